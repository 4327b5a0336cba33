"""How many ranks a start without a number has, and where ranks cannot run."""

from __future__ import annotations

import pytest

from hpcnb.cluster import machine
from hpcnb.core.errors import UnsupportedPlatform


@pytest.fixture
def no_driver(monkeypatch, tmp_path):
    """No GPU is listed by the driver, whatever this machine has."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "gpus")
    return tmp_path / "gpus"


@pytest.mark.parametrize(("cores", "ranks"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_without_gpus_one_rank_per_core_up_to_four(no_driver, monkeypatch, cores, ranks):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert machine.default_num_ranks() == ranks


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("0", 1),
        ("0,1,2,3,4,5,6,7", 8),
        ("GPU-3f2a,GPU-91c0", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,,1", 1),
        (" 2 , 3 ", 2),
    ],
)
def test_visible_gpus_are_counted_as_cuda_does(no_driver, monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    assert machine.num_accelerators() == gpus
    assert machine.default_num_ranks() == (gpus or 2)


def test_gpus_that_the_driver_lists(no_driver, monkeypatch):
    for gpu in ("0000:01:00.0", "0000:02:00.0"):
        (no_driver / gpu).mkdir(parents=True)
    assert machine.default_num_ranks() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.default_num_ranks() == 1


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 4, 2), (2, 4, 1), (7, 2, 3)])
def test_threads_per_rank(monkeypatch, cores, ranks, threads):
    monkeypatch.setattr(machine, "num_cores", lambda: cores)
    assert machine.threads_per_rank(ranks) == threads


def test_cores_without_affinity(monkeypatch):
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert machine.num_cores() == 1


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_platforms_are_told_what_works_and_where_to_go(platform):
    with pytest.raises(UnsupportedPlatform) as caught:
        machine.check_platform(platform)
    words = str(caught.value)
    assert f"ranks need Linux (fork, memfd, pidfd), and this is {platform}" in words
    assert "notebooks, saved timelines and plots work here" in words
    assert "JupyterHub, a container, WSL 2 or a remote server" in words


def test_linux_is_fine():
    machine.check_platform("linux")
