"""Clusters of several nodes, over SSH, MPI and as jobs of Slurm and Grid Engine: what works on one machine works on
many, and nodes that fail are told of."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import hpcnb
from hpcnb import Cluster
from hpcnb.cluster.cell_run import CellRequest
from hpcnb.core import tree
from hpcnb.core.errors import LaunchError, OptionError
from tests.cluster.hosts import HEAD_IP, why_not
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are virtual hosts"),
]


def on_hosts(hosts, names, num_ranks=None, **options):
    options = {"threads_per_rank": 1, "idle_timeout_s": 0, "start_timeout_s": 60, **options}
    return Cluster(num_ranks, launcher="ssh", hosts=names, ssh_config=str(hosts.ssh_config), **options)


def leftovers(host):
    """Processes of ranks and agents on a host, and folders of clusters."""
    processes = [line for line in host.processes() if "hpcnb" in line]
    folders = [str(path) for root in (host.folder / "tmp").glob("hpcnb-*") for path in _listed(root)]
    return processes + folders


def _listed(folder):
    """What is in a folder, which may just be removed."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


@pytest.fixture(scope="module", params=["ssh", "tree", "mpi", "slurm", "sge", "dask", "existing"])
def many(hosts, request):
    """Two ranks on each of two nodes; as a tree, n2 speaks with the head through n1."""
    options = {"mesh": "dp=2,tp=2", "name": "many", "threads_per_rank": 1, "idle_timeout_s": 0}
    if request.param in ("ssh", "tree"):
        cluster = on_hosts(hosts, ["n1", "n2"], 4, **options)
    elif request.param == "dask":
        cluster = Cluster(4, launcher="dask", client=request.getfixturevalue("dask"), start_timeout_s=60, **options)
    elif request.param == "existing":
        cluster = Cluster(
            4, launcher="existing", client=request.getfixturevalue("engines"), hosts="n1,n2", start_timeout_s=60, **options
        )  # fmt: skip
    elif request.param == "mpi":
        request.getfixturevalue("mpiexec")
        cluster = Cluster(4, launcher="mpi", hosts="n1,n2", start_timeout_s=60, **options)
    elif request.param == "sge":
        request.getfixturevalue("sge")
        folder = str(hosts.ssh_config.parent / "shared")
        cluster = Cluster(4, launcher="sge", nodes=2, cpus_per_node=4, folder=folder, start_timeout_s=60, **options)
    else:
        slurm = request.getfixturevalue("slurm")
        cluster = Cluster(4, launcher="slurm", nodes=2, partition="debug", start_timeout_s=60, **options)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tree":
            patch.setattr(tree, "FANOUT", 1)
        cluster.start()
    yield cluster
    cluster.stop()
    if request.param == "slurm":
        wait_until(lambda: not slurm.jobs(), 5)
    for name in hosts.names:
        wait_until(lambda name=name: not [line for line in leftovers(hosts[name]) if "many" in line], 5)


@pytest.fixture
def cluster(many):
    yield many
    if many.selection_context().failed & (hpcnb.core.ranks.RankSet.all(4) - many.alive):
        many.restart_rank()
    assert many.run("%reset -f").ok


def test_cells_run_on_all_hosts_as_on_one(cluster):
    result = cluster.run(
        "import os, socket, torch, torch.distributed as dist\n"
        "x = torch.full((3,), float(rank))\ndist.all_reduce(x)\n"
        "y = torch.full((3,), float(rank))\ndist.all_reduce(y, group=mesh.get_group('dp'))\n"
        "print('said by all'); print(f'rank {rank}')\n"
        "(socket.gethostname(), local_rank, int(os.environ['LOCAL_WORLD_SIZE']), x[0].item(), y[0].item())"
    )
    assert result.values == {
        0: "('n1', 0, 2, 6.0, 2.0)", 1: "('n1', 1, 2, 6.0, 4.0)", 2: "('n2', 0, 2, 6.0, 2.0)", 3: "('n2', 1, 2, 6.0, 4.0)",
    }  # fmt: skip
    assert [(str(item.ranks), item.text) for item in result.items if item.kind == "stdout"] == [
        ("0-3", "said by all"), ("0", "rank 0"), ("1", "rank 1"), ("2", "rank 2"), ("3", "rank 3"),
    ]  # fmt: skip
    breakdown = result.breakdown
    assert set(breakdown["rank"]) == {0, 1, 2, 3}
    assert set(cluster.run("rank", on="host=n2").values) == {2, 3}
    assert [row["host"] for row in cluster.status()] == ["n1", "n1", "n2", "n2"]
    assert cluster.call(os.getpid).keys() == {0, 1, 2, 3}


def test_time_is_told_by_one_clock(cluster):
    clocks = cluster.run("import time, torch, torch.distributed as dist\ntime.perf_counter()").values
    apart_s = float(clocks[2]) - float(clocks[0])
    result = cluster.run("if rank == 3:\n    time.sleep(0.5)\ndist.all_reduce(torch.ones(1000))")
    breakdown = result.breakdown.groupby(["rank", "category"])["duration_ms"].sum()
    for rank in range(3):
        assert 400 < breakdown[rank, "communication_wait"] < 600, f"clocks {apart_s:.0f} s apart:\n{breakdown}"
    sums = result.breakdown.groupby("rank")["duration_ms"].sum()
    assert sums.max() - sums.min() < 0.02 * sums.max()


def test_a_flood_is_whole_in_a_file_on_its_host(cluster, hosts):
    result = cluster.run("if rank == 3:\n    for line in range(20_000):\n        print('line', line)", on="2,3")
    host, _, path = result.floods[3].partition(":")
    assert hosts[host].run("tail", "-n1", path) == "line 19999\n"


def test_ipyparallel_reaches_the_same_engines(cluster):
    cluster.run("mine = rank * 10")
    assert cluster.client[:]["mine"] == [0, 10, 20, 30]


def test_ranks_on_all_hosts_are_workers_of_dask(cluster):
    client = cluster.dask_client()
    try:
        told = {rank: client.submit(socket.gethostname, workers=[rank], pure=False).result() for rank in range(4)}
        assert told == {row["rank"]: row["host"] for row in cluster.status()}
        listens_on = {each["host"] for each in client.scheduler_info()["workers"].values()}
        assert listens_on == {"10.77.0.11", "10.77.0.12"}
    finally:
        cluster.stop_dask()


def test_a_rank_that_raises_releases_the_others_on_all_hosts(cluster):
    cluster.run("import torch, torch.distributed as dist\nkept = rank")
    began_s = time.monotonic()
    result = cluster.run("if rank == 3:\n    1 / 0\ndist.all_reduce(torch.ones(2))")
    assert time.monotonic() - began_s < 10
    assert result.errors[3].ename == "ZeroDivisionError"
    assert all(result.errors[rank].is_released for rank in (0, 1, 2))
    assert "ranks 0-2 were in  all_reduce #1" in result.failure_text()
    assert cluster.run("x = torch.ones(1)\ndist.all_reduce(x)\n(kept, x.item())").values == {
        rank: str((rank, 4.0)) for rank in range(4)
    }


def test_a_rank_that_leaves_is_named(cluster):
    result = cluster.run("import torch, torch.distributed as dist\nif rank != 1:\n    dist.barrier()")
    assert "rank 1 ended the cell without it" in result.failure_text()
    assert "ranks 0,2,3 were in  barrier" in result.failure_text()


@pytest.mark.parametrize(
    "source",
    [
        "dist.all_reduce(torch.ones(4, dtype=torch.float32 if rank < 3 else torch.float64))",
        "x = torch.ones(4)\ndist.broadcast(x, 0) if rank == 3 else dist.all_reduce(x)",
    ],
)
def test_operations_that_differ_between_hosts_are_named(cluster, source):
    cluster.run("import torch, torch.distributed as dist")
    result = cluster.run(source)
    assert set(result.errors) == {0, 1, 2, 3}
    assert re.search(r"ranks? \S+ called all_reduce\(float32\[4\], sum\) .* and rank 3 called ", result.failure_text())


def test_an_interrupt_stops_all_hosts_at_one_step(cluster):
    timer = threading.Timer(1.0, cluster.interrupt)
    timer.start()
    source = "import time\nfor turn in hpc.progress(range(10**6)):\n    time.sleep(0.02 + 0.001 * rank)"
    result = cluster.execute(CellRequest(source, timeout_s=30))
    timer.join()
    assert result.interrupted
    assert len(set(cluster.run("turn").values.values())) == 1


def test_an_interrupt_ends_a_collective_on_all_hosts(cluster):
    cluster.run("import torch, torch.distributed as dist\nkept = rank")
    timer = threading.Timer(1.0, cluster.interrupt)
    timer.start()
    result = cluster.execute(CellRequest("while True:\n    dist.all_reduce(torch.ones(1000))", timeout_s=30))
    timer.join()
    assert result.interrupted
    assert not result.busy
    assert cluster.run("x = torch.ones(1)\ndist.all_reduce(x)\n(kept, x.item())").values[3] == "(3, 4.0)"


def test_a_dead_rank_is_replaced_on_its_host(cluster, hosts):
    cluster.run("import torch, torch.distributed as dist\nkept = rank")
    result = cluster.run("import os, signal\nif rank == 2:\n    os.kill(os.getpid(), signal.SIGKILL)\ndist.barrier()")
    assert result.exits == {2: -signal.SIGKILL}
    assert "SIGKILL" in result.failure_text()
    assert cluster.restart_rank().ranks == hpcnb.core.ranks.RankSet([2])
    assert cluster.run(
        "import torch.distributed as dist, torch\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"
    ).values == dict.fromkeys(range(4), "4.0")
    assert cluster.status()[2]["host"] == "n2"


def test_a_kernel_that_comes_back_finds_names_and_running_cells(hosts):
    cluster = on_hosts(hosts, "n3", 2, name="leaves", idle_timeout_s=60).start()
    try:
        cluster.run("kept = rank + 5")
        cluster.detach()
        cluster = hpcnb.attach("leaves")
        assert cluster.run("kept").values == {0: "5", 1: "6"}
        assert cluster.launcher == "ssh"
    finally:
        cluster.stop()
    wait_until(lambda: not leftovers(hosts["n3"]), 5)


# --- hosts that fail ------------------------------------------------------------------------------------------


def harmed(cluster, harm, source="while True:\n    dist.all_reduce(x)\n    x.fill_(1)"):
    """A cell during which something happens, and seconds from then to the prompt."""
    cluster.run("import torch, torch.distributed as dist\nx = torch.ones(4)\nkept = rank")
    happened = []

    def do():
        happened.append(time.monotonic())
        harm()

    timer = threading.Timer(1.0, do)
    timer.start()
    result = cluster.execute(CellRequest(source, timeout_s=60))
    took_s = time.monotonic() - happened[0]
    timer.join()
    return result, took_s


def goes_on(cluster):
    """Names on living ranks are there; lost ranks come back."""
    assert cluster.run("kept", on="0,1").values == {0: "0", 1: "1"}
    cluster.restart_rank()
    source = "import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"
    assert cluster.run(source).values == dict.fromkeys(range(4), "4.0")
    assert cluster.run("kept", on="0,1").values == {0: "0", 1: "1"}


def test_a_job_that_is_cancelled_takes_its_ranks_along(slurm):
    before = set(slurm.jobs())
    options = {"partition": "debug", "name": "job", "threads_per_rank": 1, "idle_timeout_s": 0}
    with Cluster(2, launcher="slurm", nodes=2, **options) as cluster:
        (job,) = set(slurm.jobs()) - before
        result, took_s = harmed(cluster, lambda: slurm.cancel(job))
        assert took_s < 5
        assert (
            f"ended: it was told to end (SIGTERM): job {job} was cancelled, or its time is up" in result.failure_text()
        )
        wait_until(lambda: not cluster.alive, 5)


_INSIDE = """
import hpcnb
with hpcnb.Cluster(launcher="slurm", ranks_per_node=2, name="inside", threads_per_rank=1, idle_timeout_s=0) as cluster:
    cluster.run("import socket, torch, torch.distributed as dist")
    print(cluster.run("x = torch.ones(1)\\ndist.all_reduce(x)\\n(socket.gethostname(), x.item())").values)
try:
    hpcnb.Cluster(launcher="slurm", nodes=3)
except hpcnb.core.errors.OptionError as error:
    print(error)
"""


@pytest.mark.parametrize("command", [["salloc", "--nodes=2"], ["srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=1"]])
def test_within_an_allocation_its_nodes_are_used(slurm, command):
    before = set(slurm.jobs())
    nodes = 2 if command[0] == "salloc" else 1
    if nodes == 1:  # the notebook is on a node of the cluster, which must reach itself
        command = [*command, "--export=ALL"]
    done = subprocess.run(
        [*command, "--partition=debug", sys.executable, "-c", _INSIDE], capture_output=True, text=True, timeout=90, check=False
    )  # fmt: skip
    hosts = re.findall(rf"\('(n\d)', {2.0 * nodes}\)", done.stdout)  # whichever are free
    assert len(hosts) == 2 * nodes, done.stdout + done.stderr
    assert hosts[::2] == hosts[1::2]
    assert len(set(hosts)) == nodes
    assert f"has {nodes} node{'s' if nodes > 1 else ''}, not 3" in done.stdout
    wait_until(lambda: set(slurm.jobs()) <= before, 10)


def test_a_job_that_waits_in_the_queue_is_cancelled_with_the_start(slurm):
    before = set(slurm.jobs())
    stages = []
    options = {"partition": "debug", "name": "queued", "start_timeout_s": 3, "srun": "--begin=now+1hour"}
    timer = threading.Timer(8.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Cluster(2, launcher="slurm", nodes=2, **options).start(on_stage=stages.append)
    timer.join()
    assert re.search(r"job \d+ is queued \(\w+\); Ctrl-C gives it up", " ".join(stages)), stages
    wait_until(lambda: set(slurm.jobs()) <= before, 5)  # those of other tests may end meanwhile


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "nosuch"}, "srun failed: .*partition"),
        ({"python": "/opt/no/python"}, "node number 0 (has no interpreter|did not start).*/opt/no/python"),
    ],
)
def test_a_job_that_cannot_be_says_why(slurm, options, words):
    before = set(slurm.jobs())
    with pytest.raises(LaunchError, match=words):
        Cluster(launcher="slurm", name="cannot", start_timeout_s=20, **{"partition": "debug"} | options).start()
    wait_until(lambda: set(slurm.jobs()) == before, 5)


@pytest.fixture
def dask_jobs(slurm, tmp_path):
    """A Dask cluster whose workers are jobs of Slurm."""
    import dask_jobqueue

    with dask_jobqueue.SLURMCluster(
        queue="debug", cores=1, processes=1, memory="500MB", python=sys.executable, death_timeout=30,
        local_directory=str(tmp_path), log_directory=str(tmp_path), job_extra_directives=["--exclusive"],
        scheduler_options={"host": HEAD_IP, "dashboard": False, "dashboard_address": f"{HEAD_IP}:0"},
    ) as cluster:  # fmt: skip
        yield cluster
    wait_until(lambda: not slurm.jobs(), 30)


def test_ranks_move_to_another_host_when_a_job_of_dask_is_cancelled(slurm, dask_jobs):
    import distributed

    with distributed.Client(dask_jobs, set_as_default=False) as client:
        dask_jobs.scale(jobs=2)
        client.wait_for_workers(2, timeout=60)
        with Cluster(launcher="dask", client=client, name="jobs", threads_per_rank=1, idle_timeout_s=0) as cluster:
            hosts = cluster.selection_context().hosts
            assert len(set(hosts)) == 2
            names = {each["host"]: each["name"] for each in client.scheduler_info()["workers"].values()}
            lost = names[socket.gethostbyname(hosts[1])]
            job = dask_jobs.workers[lost].job_id
            dask_jobs.scale(jobs=3)  # one that has none of our ranks
            client.wait_for_workers(3, timeout=60)
            result, took_s = harmed(cluster, lambda: slurm.cancel(job), "while True:\n    dist.barrier()")
            assert took_s < 8
            assert set(result.exits) == {1}, result.failure_text()
            wait_until(lambda: lost not in {each["name"] for each in client.scheduler_info()["workers"].values()}, 30)
            cluster.restart_rank()
            assert cluster.run("kept", on="0").values == {0: "0"}
            source = "import torch, torch.distributed as dist\ndist.barrier()\nrank"
            assert cluster.run(source).values == {0: "0", 1: "1"}
            assert cluster.selection_context().hosts[0] == hosts[0]


def kill_agent(host):
    pids = [line.split()[0] for line in host.processes() if "-m hpcnb.node" in line]
    host.run("kill", "-9", pids[0])


@pytest.mark.parametrize(
    "source", ["while True:\n    dist.all_reduce(x)\n    x.fill_(1)", "import time\ntime.sleep(3)\n'slept'"]
)
def test_who_is_below_a_lost_node_stays(hosts, monkeypatch, source):
    monkeypatch.setattr(tree, "FANOUT", 1)
    with on_hosts(hosts, ["n3", "n1", "n2"], 3, name="chain") as cluster:
        result, took_s = harmed(cluster, lambda: kill_agent(hosts["n3"]), source)
        assert took_s < 5, result
        assert set(result.exits) == {0}
        assert "the agent of node n3 ended" in result.failure_text()
        if "slept" in source:
            assert result.values == {1: "'slept'", 2: "'slept'"}
        assert cluster.run("kept", on="1,2").values == {1: "1", 2: "2"}
        assert [row["state"] for row in cluster.status()] == ["dead", "idle", "idle"]
        cluster.restart_rank()
        source = "import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"
        assert cluster.run(source).values == dict.fromkeys(range(3), "3.0")
    for name in hosts.names:
        wait_until(lambda name=name: not [line for line in leftovers(hosts[name]) if "chain" in line], 5)


def test_a_killed_agent_is_told_of_at_once_and_comes_back(cluster, hosts):
    result, took_s = harmed(cluster, lambda: kill_agent(hosts["n2"]))
    assert took_s < 5
    assert "the agent of node n2 ended" in result.failure_text()
    assert set(result.exits) == {2, 3}
    goes_on(cluster)


def test_a_host_without_power_is_given_up_and_comes_back(hosts):
    with on_hosts(hosts, ["n1", "n3"], 4, name="power", silence_s=3) as cluster:
        result, took_s = harmed(cluster, lambda: hosts.off("n3"))
        assert took_s < 6
        assert "node n3 has not answered for 3 s" in result.failure_text()
        assert [row["state"] for row in cluster.status()][2:] == ["dead", "dead"]
        hosts.on("n3")
        goes_on(cluster)
    for name in ("n1", "n3"):
        wait_until(lambda name=name: not [line for line in leftovers(hosts[name]) if "power" in line], 5)


def test_a_host_that_was_cut_off_ends_itself_and_can_be_started_again(hosts):
    with on_hosts(hosts, ["n1", "n3"], 4, name="cut", silence_s=3) as cluster:
        try:
            result, _ = harmed(cluster, lambda: hosts.link("n3", up=False))
        finally:
            hosts.link("n3", up=True)
        assert "node n3 has not answered for 3 s" in result.failure_text()
        wait_until(lambda: not [line for line in leftovers(hosts["n3"]) if "cut" in line], 30)
        goes_on(cluster)


# --- launches that fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"hosts": "n1,n9", "address": "10.77.0.254"},
            "ssh to n9 failed: .*the name n9 has no address here; look for a slip",
        ),
        ({"hosts": "nowhere.invalid"}, "host 'nowhere.invalid' cannot be reached from here"),
        ({"python": "/opt/no/python"}, "node n1 has no interpreter /opt/no/python"),
        ({"python": "/usr/bin/python3"}, "node n1:? .*(no hpcnb for|lacks a module|runs hpcnb)"),
        ({"setup": "cd /no/such/folder"}, "node n1 did not start: .*no/such/folder"),
        ({"port": 2222}, "ssh to n1 failed: .*Connection refused.*systemctl start sshd"),
    ],
)
def test_a_launch_that_fails_says_why(hosts, options, words):
    began_s = time.monotonic()
    with pytest.raises((LaunchError, OptionError), match=words):
        on_hosts(hosts, options.pop("hosts", "n1"), name="fails", **options).start()
    assert time.monotonic() - began_s < 30
    wait_until(lambda: not [line for line in leftovers(hosts["n1"]) if "fails" in line], 5)


@pytest.mark.parametrize(
    ("num_ranks", "options", "words"),
    [
        (4, {}, "launcher ssh needs the names of hosts"),
        (1, {"hosts": "n1,n2"}, "1 rank cannot be spread over 2 nodes"),
        (5, {"hosts": "n1,n2", "ranks_per_node": 2}, "2 nodes with 2 ranks each are 4 ranks, not 5"),
        (4, {"hosts": "n1", "jmup": "x"}, r"no option 'jmup' \(did you mean jump\?\)"),
        (4, {"hosts": ["-oProxyCommand=x"]}, "'-oProxyCommand=x' is no name of a host"),
    ],
)
def test_options_are_checked_before_anything_starts(num_ranks, options, words):
    with pytest.raises(OptionError, match=words):
        Cluster(num_ranks, launcher="ssh", **options)
