"""Dask and ranks: ranks carried by workers of a Dask cluster, and ranks that are workers themselves."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path

import distributed
import psutil
import pytest

import hpcnb
from hpcnb import Cluster
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.ranks import RankSet
from tests.waiting import wait_until

pytestmark = pytest.mark.engines


# --- ranks carried by workers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _tracker(runtime_root):
    resource_tracker.ensure_running()  # Python's, one per process, of whoever makes processes first


@pytest.fixture(scope="module")
def dask_cluster(runtime_root):
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(dask_cluster):
    with distributed.Client(dask_cluster, set_as_default=False) as client:
        yield client


def carried(num_ranks=None, **options):
    options = {"name": "carried", "threads_per_rank": 1, "idle_timeout_s": 0, **options}
    return Cluster(num_ranks, launcher="dask", **options)


def agents():
    """Processes of agents and ranks that workers carry."""
    return [each.pid for each in psutil.process_iter() if "hpcnb-" in _words(each) and "carried" in _words(each)]


def _words(process):
    try:
        return " ".join(process.cmdline()) if process.status() != "zombie" else ""
    except psutil.Error:
        return ""


@pytest.fixture(autouse=True)
def nothing_is_carried(runtime_root):
    yield
    wait_until(lambda: not agents(), 10)
    wait_until(lambda: not list(runtime_root.glob("hpcnb-*-nodes/*")), 5)


def test_ranks_run_under_a_worker_beside_its_tasks(client):
    long = client.submit(time.sleep, 3)  # one that does not keep the worker from carrying
    with carried(client=client) as cluster:
        assert cluster.world_size == 2
        source = "import os, torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"
        assert cluster.run(source).values == {0: "2.0", 1: "2.0"}
        ancestors = {each.pid for each in psutil.Process(cluster.status()[0]["pid"]).parents()}
        assert ancestors & set(client.run(os.getpid).values())
        assert client.submit(sum, [1, 2, 3]).result() == 6
        long.result()
    assert client.status == "running"  # it is not ours to close
    assert client.submit(sum, [1, 2, 4]).result() == 7


def test_a_worker_that_is_killed_takes_its_ranks_along_and_its_successor_carries_them():
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as dask_cluster,
        distributed.Client(dask_cluster, set_as_default=False) as client,
        carried(3, client=client) as cluster,
    ):
        before = set(client.nthreads())
        ancestors = {each.pid for each in psutil.Process(cluster.status()[0]["pid"]).parents()}
        (carrier,) = ancestors & set(client.run(os.getpid).values())
        timer = threading.Timer(0.5, os.kill, (carrier, signal.SIGKILL))
        timer.start()
        began_s = time.monotonic()
        result = cluster.run("import time\nfor turn in range(600):\n    time.sleep(0.05)", timeout_s=30)
        assert time.monotonic() - began_s < 5
        timer.join()
        assert "ranks 0-2 of 3 were lost" in result.failure_text()
        assert "the Dask worker that carried it ended" in result.failure_text()
        wait_until(lambda: set(client.nthreads()) - before)  # the nanny sees to it
        assert cluster.restart_rank().ranks == RankSet.all(3)
        assert cluster.run("rank").values == {0: "0", 1: "1", 2: "2"}


def test_a_kernel_that_comes_back_starts_nodes_again_by_the_scheduler_s_address(client, dask_cluster):
    cluster = carried(client=dask_cluster, idle_timeout_s=60).start()
    try:
        cluster.detach()
        cluster = hpcnb.attach("carried")
        assert cluster.launcher == "dask"
        agent = psutil.Process(cluster.status()[0]["pid"]).parent().parent()
        agent.kill()
        wait_until(lambda: not cluster.alive, 10)
        cluster.restart_rank()
        assert cluster.run("rank").values == {0: "0", 1: "1"}
    finally:
        cluster.stop()


def test_workers_can_be_chosen_and_a_magic_names_the_client(client, dask_cluster):
    cluster = carried(client=dask_cluster.scheduler_address, workers="1")
    assert cluster.world_size == 1
    with pytest.raises(OptionError, match=r"has no worker '7'; it has 0, 1"):
        carried(client=client, workers=[7])
    with pytest.raises(OptionError, match="take 2 hosts, and there are 1"):
        carried(4, client=client, ranks_per_node=2)


def test_what_is_no_client_or_does_not_answer(client):
    with pytest.raises(OptionError, match="launcher dask needs a Dask cluster, and there is no client of one"):
        carried()
    with pytest.raises(OptionError, match=r"takes a distributed.Client, a Dask cluster or the address .* not a dict"):
        carried(client={})
    with pytest.raises(OptionError, match="'nowhere' is no address of a Dask scheduler"):
        carried(client="nowhere")
    closed = distributed.Client(client.scheduler.address, set_as_default=False)
    closed.close()
    with pytest.raises(OptionError, match="the client that was given is closed"):
        carried(client=closed)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("hpcnb.cluster.launchers.dask._CONNECT_S", 0.5)
    with pytest.raises(LaunchError, match=r"scheduler at tcp://127\.0\.0\.1:1 does not answer"):
        carried(client="127.0.0.1:1")


def test_a_dask_cluster_without_workers_says_so():
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(LaunchError, match=r"has no workers yet; wait for them with  client\.wait_for_workers"),
    ):
        carried(client=empty)


def test_a_cluster_that_asks_for_certificates(monkeypatch):
    monkeypatch.setattr("hpcnb.cluster.launchers.dask._CONNECT_S", 2.0)
    security = distributed.Security.temporary()
    with (
        distributed.LocalCluster(n_workers=1, security=security, dashboard_address="127.0.0.1:0") as secured,
        distributed.Client(secured, set_as_default=False) as client,
    ):
        with pytest.raises(LaunchError, match="lets nobody in without its certificates; make a client with them"):
            carried(client=secured.scheduler_address)
        with carried(client=client) as cluster:
            assert cluster.run("rank").values == {0: "0"}
        with client.as_current(), distributed.Client(secured), carried(client=secured.scheduler_address) as cluster:
            assert cluster.run("rank").values == {0: "0"}


def test_a_worker_without_this_hpcnb_says_so(client, monkeypatch):
    from hpcnb.cluster.launchers import carried as launching
    from hpcnb.core.named import Named

    monkeypatch.setattr(launching, "_START", Named("hpcnb.node.no_such_module:start"))
    with pytest.raises(LaunchError, match=r"Dask worker tcp://\S+ cannot import the hpcnb of this notebook .*no_such"):
        carried(client=client).start()


def test_what_an_agent_says_that_cannot_join(client):
    cluster = carried(client=client)
    launch = cluster._launcher.launch
    cluster._launcher.launch = lambda ticket, nodes: launch(dataclasses.replace(ticket, address="127.0.0.1:9"), nodes)
    with pytest.raises(LaunchError, match=r"node \S+ cannot reach this machine at 127\.0\.0\.1:9 .*refused"):
        cluster.start()


# --- ranks that are workers -----------------------------------------------------------------------------------


def threads(cluster):
    return cluster.call(_thread_names)[0]


def _thread_names():
    return [thread.name for thread in threading.enumerate()]


@pytest.fixture
def ranks(cluster2):
    yield cluster2
    cluster2.stop_dask()


def test_tasks_run_in_ranks_and_see_their_names(ranks):
    def look(name):
        from IPython import get_ipython

        return os.getpid(), get_ipython().user_ns[name]

    ranks.run("mine = rank * 10")
    client = ranks.dask_client()
    told = {rank: client.submit(look, "mine", workers=[rank], pure=False).result() for rank in (0, 1)}
    assert told == {row["rank"]: (row["pid"], row["rank"] * 10) for row in ranks.status()}
    assert ranks.dask_client() is client
    workers = client.scheduler_info()["workers"].values()
    assert [(each["nthreads"], each["host"]) for each in workers] == [(1, "127.0.0.1")] * 2
    assert not Path("dask-scratch-space").exists()


def test_arrays_and_cells_side_by_side(ranks):
    import dask.array as da

    ranks.dask_client()
    results = []
    cell = threading.Thread(target=lambda: results.append(ranks.run("import time\ntime.sleep(1.5)\nrank")))
    cell.start()
    assert da.ones((400, 400), chunks=100).sum().compute() == 160_000
    assert not results  # the cell runs on
    cell.join()
    assert results[0].values == {0: "0", 1: "1"}


def test_ranks_that_are_busy_become_no_workers(ranks):
    cell = threading.Thread(target=lambda: ranks.run("import time\ntime.sleep(1)"))
    cell.start()
    wait_until(lambda: ranks.busy)
    with pytest.raises(hpcnb.core.errors.ClusterStateError):
        ranks.dask_client()
    cell.join()
    assert ranks.dask_client().submit(sum, [1, 2]).result() == 3


def test_nothing_is_left_when_dask_is_stopped(ranks):
    client = ranks.dask_client()
    client.submit(sum, [1, 2]).result()
    assert "hpcnb-dask" in threads(ranks)
    address = client.scheduler.address
    ranks.stop_dask()
    assert client.status == "closed"
    wait_until(lambda: not [name for name in threads(ranks) if "ask" in name], 10)
    host, _, port = address.removeprefix("tls://").partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1)
    again = ranks.dask_client()
    assert again is not client
    assert again.submit(sum, [1, 2]).result() == 3
    again.close()  # by whoever has it
    assert ranks.dask_client().submit(sum, [1, 2]).result() == 3


def test_only_who_has_the_keys_is_heard_and_no_port_is_open_beyond_loopback(ranks):
    client = ranks.dask_client()
    address = client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    with pytest.raises((OSError, TypeError)):
        distributed.Client(address, timeout=0.5, set_as_default=False)
    with pytest.raises((OSError, TypeError)):  # keys of somebody else
        distributed.Client(address, timeout=0.5, set_as_default=False, security=distributed.Security.temporary())
    for pid in (os.getpid(), *(row["pid"] for row in ranks.status())):
        listening = [each for each in psutil.Process(pid).net_connections("tcp") if each.status == "LISTEN"]
        assert {each.laddr.ip for each in listening} <= {"127.0.0.1"}


def test_a_rank_that_was_replaced_becomes_a_worker_when_asked(ranks):
    client = ranks.dask_client()
    ranks.restart_rank(1)
    wait_until(lambda: len(client.scheduler_info()["workers"]) == 1, 10)
    assert ranks.dask_client() is client
    assert sorted(each["name"] for each in client.scheduler_info()["workers"].values()) == [0, 1]


def test_numbers_of_threads(ranks):
    with pytest.raises(OptionError, match="a worker has at least 1 thread, not 0"):
        ranks.dask_client(num_threads=0)
    client = ranks.dask_client(num_threads=2)
    assert sum(client.nthreads().values()) == 4
    with pytest.raises(OptionError, match=r"with 2 threads already; to change that first call  cluster.stop_dask"):
        ranks.dask_client()


_KILLED = """
import os, signal, hpcnb
cluster = hpcnb.Cluster(1, name="dasked", threads_per_rank=1, idle_timeout_s=60).start()
cluster.dask_client().submit(sum, [1, 2]).result()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_kernel_leaves_ranks_that_are_no_workers(tmp_path):
    subprocess.run([sys.executable, "-c", _KILLED], timeout=60, check=False, cwd=tmp_path)
    cluster = hpcnb.attach("dasked")
    try:
        wait_until(lambda: "hpcnb-dask" not in threads(cluster), 10)
        assert cluster.dask_client().submit(sum, [1, 2]).result() == 3
    finally:
        cluster.stop()
    assert list(tmp_path.iterdir()) == []


_ENDS = """
import hpcnb
cluster = hpcnb.Cluster(1, name="dasked", threads_per_rank=1, idle_timeout_s=0).start()
print(cluster.dask_client().submit(sum, [1, 2]).result())
"""


def test_the_end_of_a_script_closes_all_without_a_word(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ENDS)], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)
    assert list(tmp_path.iterdir()) == []
