"""Ranks on the hosts of an ipyparallel cluster that runs already: its engines carry the agents and go on."""

from __future__ import annotations

import os
import signal
import threading
import time

import ipyparallel
import psutil
import pytest

import hpcnb
from hpcnb import Cluster
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.ranks import RankSet
from tests.waiting import wait_until

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def engines(runtime_root, tmp_path_factory):
    """Two engines of ipyparallel, and a client."""
    cluster = ipyparallel.Cluster(
        n=2, profile_dir=str(tmp_path_factory.mktemp("profile")), cluster_id="mine", log_level=40,
        send_engines_connection_env=True,
    )  # fmt: skip
    client = cluster.start_and_connect_sync()
    yield client
    client.close()
    cluster.stop_cluster_sync()


def on_engines(num_ranks=None, **options):
    options = {"name": "existing", "threads_per_rank": 1, "idle_timeout_s": 0, **options}
    return Cluster(num_ranks, launcher="existing", **options)


@pytest.fixture(autouse=True)
def nothing_is_carried(runtime_root):
    yield
    wait_until(lambda: not list(runtime_root.glob("hpcnb-*-nodes/*")), 10)


def test_ranks_run_under_an_engine_whose_names_stay_its_own(engines):
    engines[:]["mine"] = "of the engine"
    with on_engines(client=engines) as cluster:
        assert cluster.world_size == 2
        source = "import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\n(x.item(), 'mine' in dir())"
        assert cluster.run(source).values == dict.fromkeys(range(2), "(2.0, False)")
        ancestors = {each.pid for each in psutil.Process(cluster.status()[0]["pid"]).parents()}
        assert ancestors & set(engines[:].apply_sync(os.getpid))
        assert cluster.client.ids == [0, 1]  # of our own controller
    assert engines[:]["mine"] == ["of the engine"] * 2
    assert engines.ids == [0, 1]


def test_a_connection_file_will_do_and_a_kernel_that_comes_back_starts_nodes_again(engines):
    cluster = on_engines(3, client=engines, idle_timeout_s=60).start()
    try:
        cluster.detach()
        cluster = hpcnb.attach("existing")
        psutil.Process(cluster.status()[0]["pid"]).parent().parent().kill()
        wait_until(lambda: not cluster.alive, 10)
        cluster.restart_rank()
        assert cluster.run("rank").values == {0: "0", 1: "1", 2: "2"}
    finally:
        cluster.stop()


def test_an_engine_that_is_busy_is_waited_for(engines):
    cluster = on_engines(client=engines)
    busy = engines[:].apply_async(time.sleep, 3)
    stages = []
    with cluster.start(on_stage=stages.append):
        assert busy.ready()
        assert any("engine 0 has yet to answer" in each for each in stages)
        assert cluster.run("rank").values == {0: "0", 1: "1"}


def test_what_is_no_cluster(engines, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcnb.cluster.launchers.existing._ANSWER_S", 0.5)
    with pytest.raises(OptionError, match=r"takes an ipyparallel.Client, not a int"):
        on_engines(client=5)
    with pytest.raises(OptionError, match="client= says which cluster it is; profile="):
        on_engines(client=engines, profile="default")
    with pytest.raises(LaunchError, match=r"there is no connection file /nowhere\.json"):
        on_engines(connection_file="/nowhere.json")
    with pytest.raises(LaunchError, match="no ipyparallel cluster answers"):
        on_engines(cluster_id="no-such")
    with pytest.raises(OptionError, match="no engine runs on host 'n7'; there are some on"):
        on_engines(client=engines, hosts="n7")
    busy = engines[0].apply_async(time.sleep, 2)
    with pytest.raises(LaunchError, match="engines 0, 1 have not answered for 0 s; is one of them busy"):
        on_engines(client=engines)
    busy.get()


def test_an_engine_without_this_hpcnb_says_so(engines, monkeypatch):
    from hpcnb.cluster.launchers import carried
    from hpcnb.core.named import Named

    monkeypatch.setattr(carried, "_START", Named("hpcnb.node.no_such_module:start"))
    with pytest.raises(LaunchError, match=r"engine 0 cannot import the hpcnb of this notebook .*no_such"):
        on_engines(client=engines).start()


def test_an_engine_that_is_killed_takes_its_ranks_along(engines):  # the last: an engine is gone then
    with on_engines(client=engines) as cluster:
        cluster.run("kept = rank")
        carrier = engines[0].apply_sync(os.getpid)
        timer = threading.Timer(0.5, os.kill, (carrier, signal.SIGKILL))
        timer.start()
        began_s = time.monotonic()
        result = cluster.run("import time\nfor turn in range(600):\n    time.sleep(0.05)", timeout_s=30)
        assert time.monotonic() - began_s < 5
        timer.join()
        assert "ranks 0,1 of 2 were lost" in result.failure_text() or "ranks 0-1 of 2" in result.failure_text()
        assert "the engine that carried it ended" in result.failure_text()
        wait_until(lambda: engines.ids == [1], 30)
        assert cluster.restart_rank().ranks == RankSet.all(2)
        assert cluster.run("rank").values == {0: "0", 1: "1"}
