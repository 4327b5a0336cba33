"""Launchers of batch systems: Grid Engine itself on virtual hosts, the others with a queue that stands in for them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from hpcnb import Cluster
from hpcnb.cluster.cell_run import CellRequest
from hpcnb.cluster.launchers import pbs
from hpcnb.core.errors import LaunchError, OptionError
from tests.cluster import gridengine
from tests.cluster.hosts import Hosts
from tests.cluster.hosts import why_not as why_no_hosts
from tests.cluster.local_queue import LocalQueue
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

_SUM = "import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"
_OPTIONS = {"threads_per_rank": 1, "idle_timeout_s": 0, "start_timeout_s": 60}


def clear(folder):
    """Nothing of a launch is left where nodes could see it."""
    return not folder.exists()


def start_and_press(cluster, stages, until):
    """Start, and press Ctrl-C when a stage has these words."""

    def on_stage(words):
        stages.append(words)
        if re.search(until, words):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        cluster.start(on_stage=on_stage)


# --- a queue that stands in -----------------------------------------------------------------------------------

_SYSTEMS = {
    "pbs": r"job 1\[\] is queued \(Not Running: Insufficient amount of resource: ncpus \(R: 2 A: 0 T: 4\)\)",
    "torque": r"job 1\[\] is queued",
    "lsf": r"job 1 is queued \(Job slot limit reached\)",
    "htcondor": "job 1 is queued",
}


@pytest.fixture(params=list(_SYSTEMS))
def system(request):
    pbs._is_torque.cache_clear()
    return request.param


@pytest.fixture
def queue(system):
    with LocalQueue(system) as queue:
        yield queue


@pytest.fixture
def options(system, tmp_path):
    setup = (
        f"export PYTHONPATH='{os.environ.get('PYTHONPATH', '')}' HPCNB_RUNTIME_DIR='{os.environ['HPCNB_RUNTIME_DIR']}'"
    )
    launcher = "pbs" if system == "torque" else system
    return {
        **_OPTIONS,
        "launcher": launcher,
        "folder": str(tmp_path / "shared"),
        "setup": setup,
        "address": "127.0.0.1",
    }


def agents():
    """Agents that run, of any parent."""
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if "-m hpcnb.node" in line and os.environ["HPCNB_RUNTIME_DIR"] in line]


def test_a_cluster_is_an_array_of_jobs(queue, options, tmp_path):
    with Cluster(4, nodes=2, name="array", **options) as cluster:
        assert cluster.run(_SUM).values == dict.fromkeys(range(4), "4.0")
        # two agents on one machine
        pids = set(cluster.run("import os; os.getppid()", on="0,2").values.values())
        assert len(pids) == 2
        assert len(queue.jobs()) == 1
        assert clear(tmp_path / "shared")
        scripts = "".join(path.read_text() for path in queue.spool.iterdir())
        assert "hpcnb-array" in scripts
        assert not re.search(r"[A-Za-z0-9_-]{60}", scripts.replace(str(tmp_path), "")), "a script holds a key"
    wait_until(lambda: queue.jobs() == [], 10)
    wait_until(lambda: agents() == [], 10)


def test_a_job_that_waits_says_why_and_is_deleted_by_ctrl_c(system, queue, options, tmp_path):
    queue.slots = 0
    stages = []
    start_and_press(Cluster(4, nodes=2, name="waits", **options), stages, "is queued.*; Ctrl-C gives it up")
    assert re.search(_SYSTEMS[system], " ".join(stages)), stages
    assert queue.jobs() == []
    assert clear(tmp_path / "shared")


def test_elements_begin_one_after_the_other(queue, options):
    queue.slots = 1
    stages = []

    def on_stage(words):
        stages.append(words)
        if "1 of 2 nodes run" in words:
            queue.slots = 2

    with Cluster(2, nodes=2, name="late", **options).start(on_stage=on_stage) as cluster:
        assert cluster.run(_SUM).values == dict.fromkeys(range(2), "2.0")
    assert any("1 of 2 nodes run" in words for words in stages), stages


def test_a_deleted_job_takes_its_ranks_along_and_comes_back(queue, options):
    with Cluster(2, nodes=2, name="deleted", **options) as cluster:
        cluster.run(_SUM)
        job = queue.jobs()[0]
        timer = threading.Timer(1.0, queue.cancel, (job,))
        timer.start()
        result = cluster.execute(CellRequest("while True:\n    dist.all_reduce(x)\n    x.fill_(1)", timeout_s=60))
        timer.join()
        assert not result.ok
        wait_until(lambda: not cluster.alive, 10)
        cluster.restart_rank()
        assert cluster.run(_SUM).values == dict.fromkeys(range(2), "2.0")
        assert queue.jobs() not in ([], [job])
    wait_until(lambda: queue.jobs() == [], 10)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"python": "/opt/no/python"}, "node number 0 has no interpreter /opt/no/python"),
        ({"setup": "cd /no/such/folder"}, "node number 0 did not start: .*/no/such/folder"),
    ],
)
def test_a_node_that_does_not_start_says_why(queue, options, tmp_path, odd, words):
    with pytest.raises(LaunchError, match=words):
        Cluster(1, name="cannot", **{**options, **odd}).start()
    wait_until(lambda: queue.jobs() == [], 10)
    assert clear(tmp_path / "shared")


def test_a_queue_that_is_not_there_is_named(system, queue, options):
    error = OptionError if system == "htcondor" else LaunchError
    with pytest.raises(error, match=r"(?i)HTCondor has no queues|(qsub|bsub) failed: .*(unknown queue|no such queue)"):
        Cluster(1, name="cannot", queue="nosuch", **options).start()


# --- Grid Engine ----------------------------------------------------------------------------------------------

_WHY_NOT = why_no_hosts() or gridengine.why_not()
needs_gridengine = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT or "there is Grid Engine")


@pytest.fixture(scope="module")
def hosts():
    with Hosts(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def sge(hosts):
    with gridengine.GridEngine(hosts) as sge:
        yield sge


@pytest.fixture
def on_sge(sge, hosts):
    """Options of a cluster there."""
    folder = hosts.ssh_config.parent / "shared"
    yield {**_OPTIONS, "launcher": "sge", "folder": str(folder)}
    wait_until(lambda: sge.jobs() == [], 20)
    assert clear(folder)
    for name in hosts.names:
        left = [line for line in hosts[name].processes() if "hpcnb" in line]
        assert left == []


@needs_gridengine
@pytest.mark.parametrize(("cpus", "names"), [(2, ["n1", "n1"]), (4, ["n1", "n2"])])
def test_elements_of_grid_engine_share_a_host_or_not(on_sge, cpus, names):
    with Cluster(2, nodes=2, cpus_per_node=cpus, name="share", time="1:00:00", account="me", **on_sge) as cluster:
        assert cluster.run(_SUM).values == dict.fromkeys(range(2), "2.0")
        assert [row["host"] for row in cluster.status()] == names


@needs_gridengine
def test_a_job_of_grid_engine_waits_with_its_reason_and_is_deleted_by_ctrl_c(on_sge, sge):
    stages = []
    cluster = Cluster(1, cpus_per_node=40, name="waits", **on_sge)
    start_and_press(cluster, stages, r'job \d+ is queued \(cannot run in PE "smp" because it only offers \d+ slots')
    wait_until(lambda: sge.jobs() == [], 5)


@needs_gridengine
def test_an_element_that_is_deleted_is_told_and_comes_back(on_sge, sge):
    with Cluster(2, nodes=2, cpus_per_node=4, name="lost", **on_sge) as cluster:
        cluster.run(f"{_SUM}\nkept = rank")
        (job,) = set(sge.jobs())
        timer = threading.Timer(1.0, subprocess.run, (["qdel", job, "-t", "2"],), {"check": True})
        timer.start()
        result = cluster.execute(CellRequest("while True:\n    dist.all_reduce(x)\n    x.fill_(1)", timeout_s=60))
        timer.join()
        assert "n2" in result.failure_text()
        assert set(result.exits) == {1}
        cluster.restart_rank()
        assert len(set(sge.jobs())) == 2
        assert cluster.run(_SUM).values == dict.fromkeys(range(2), "2.0")
        assert cluster.run("kept", on="0").values == {0: "0"}


@needs_gridengine
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": "nosuch"}, 'qsub failed: Unable to run job: .*unknown queue "nosuch"'),
        ({"submit": "-pe mpi 2"}, 'qsub failed: .*parallel environment "mpi" does not exist'),
        ({"python": "/opt/no/python"}, "node number 0 has no interpreter /opt/no/python"),
        ({"submit": "-wd /no/such/folder"}, "job .* will not run: .*can't chdir to /no/such/folder"),
    ],
)
def test_a_job_that_grid_engine_does_not_run_says_why(on_sge, options, words):
    with pytest.raises(LaunchError, match=words):
        Cluster(1, name="cannot", **on_sge, **options).start()


@needs_gridengine
def test_commands_of_grid_engine_are_not_taken_for_those_of_pbs(sge):
    pbs._is_torque.cache_clear()
    with pytest.raises(LaunchError, match="those of Grid Engine, not of PBS; write  --launcher sge"):
        Cluster(1, launcher="pbs")


@needs_gridengine
def test_a_folder_that_nodes_do_not_share_is_told(on_sge, hosts, tmp_path):
    for name in hosts.names:  # nodes see another folder there
        hosts[name].run("mount", "-t", "tmpfs", "none", str(tmp_path))
    try:
        with pytest.raises(LaunchError, match=r"without a word of node number 0: .*does not see the folder .*--folder"):
            Cluster(1, name="blind", **{**on_sge, "folder": str(tmp_path)}).start()
    finally:
        for name in hosts.names:
            hosts[name].run("umount", "-l", str(tmp_path))
    assert list(Path(tmp_path).iterdir()) == []
