"""Shared by all tests: a private runtime folder, clusters started once per run, and a leak check after every test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# a shell that runs tests in the background has Ctrl-C ignored, which tests press
signal.signal(signal.SIGINT, signal.default_int_handler)

#: What a test leaves is given so long to go away by itself (processes being reaped).
_SETTLE_S = 5.0


@pytest.fixture(scope="session", autouse=True)
def runtime_root():
    """Clusters of this run live in a folder of their own: short, since it holds unix sockets (107 characters)."""
    folder = Path(tempfile.mkdtemp(prefix="hpcnb-test-", dir="/tmp"))
    before = os.environ.get("HPCNB_RUNTIME_DIR")
    os.environ["HPCNB_RUNTIME_DIR"] = str(folder)
    yield folder
    if before is None:
        os.environ.pop("HPCNB_RUNTIME_DIR")
    else:
        os.environ["HPCNB_RUNTIME_DIR"] = before
    shutil.rmtree(folder)


def _start(num_ranks: int, mesh: str | None = None):
    from hpcnb import Cluster

    # should the run be killed, its clusters end at once
    cluster = Cluster(num_ranks, mesh=mesh, name=f"test{num_ranks}", threads_per_rank=1, idle_timeout_s=0)
    return cluster.start()


@pytest.fixture(scope="session")
def session_cluster4(runtime_root):
    cluster = _start(4, "dp=2,tp=2")
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster4(session_cluster4):
    """Four ranks on a 2 x 2 mesh, shared by the whole run; names that a test made are removed after it."""
    yield session_cluster4
    _forget_names(session_cluster4)


@pytest.fixture(scope="session")
def session_cluster2(runtime_root):
    cluster = _start(2)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster2(session_cluster2):
    """Two ranks, shared by the whole run."""
    yield session_cluster2
    _forget_names(session_cluster2)


@pytest.fixture(scope="session")
def session_elastic(runtime_root):
    from hpcnb import Cluster

    cluster = Cluster(2, name="elastic", threads_per_rank=1, idle_timeout_s=0).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def elastic(session_elastic):
    """A cluster of its own for tests that change its size; two ranks at the beginning of each."""
    if str(session_elastic.mesh) != "dp=2":
        session_elastic.scale(2, mesh="dp=2")
    _forget_names(session_elastic)
    session_elastic.forget_init_cells()
    return session_elastic


def _forget_names(cluster) -> None:
    result = cluster.run("%reset -f")
    assert result.ok, result.failure_text()


def _state(runtime_root: Path) -> dict[str, set[object]]:
    me = psutil.Process()
    return {
        "processes": set(_children(me)),
        "shared memory": {path.name for path in Path("/dev/shm").iterdir()},
        "clusters": {str(path) for path in runtime_root.glob("hpcnb-*/*")},
        "sockets": {connection.fd for connection in me.net_connections("unix") if connection.raddr or connection.laddr},
    }


def _children(process: psutil.Process) -> Iterator[tuple[int, str]]:
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends while we look
            if child.status() != "zombie":
                yield child.pid, child.name()


def _ranks() -> set[int]:
    """Processes of ranks of the clusters that run."""
    from hpcnb.cluster.cluster import held

    return {row["pid"] for cluster in held() for row in cluster.status()}


@pytest.fixture(autouse=True)
def no_leaks(request, runtime_root):
    """A test leaves no process, no shared memory, no folder and no socket behind, other than the run's clusters."""
    if "engines" not in request.keywords and "notebook" not in request.keywords:
        yield
        return
    for name in ("session_cluster2", "session_cluster4", "session_elastic"):
        if name.removeprefix("session_") in request.fixturenames:
            request.getfixturevalue(name)  # started before we look
    before = _state(runtime_root)
    yield
    deadline = time.monotonic() + _SETTLE_S
    replaced = _ranks()  # a rank that died is another process now, of a cluster whose agent was there before
    while True:
        left = {kind: found - before[kind] for kind, found in _state(runtime_root).items()}
        left["processes"] = {(pid, name) for pid, name in left["processes"] if pid not in replaced}
        if not any(left.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.05)  # processes take a moment to be reaped
    assert not any(left.values()), f"left behind: {left}"
