"""Start and end of clusters: nothing is left behind, whoever ends; who has no key gets nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest
import zmq

from hpcnb import Cluster
from hpcnb.cluster.launchers import local
from hpcnb.core.errors import ClusterStateError, LaunchError, MeshError, VersionMismatch
from hpcnb.core.messages import PROTOCOL, Hello, Welcome, decode, encode
from tests.waiting import wait_until

pytestmark = pytest.mark.engines


def folders(runtime_root):
    return list(runtime_root.glob("hpcnb-*/*"))


def test_with_block_starts_and_stops(runtime_root):
    before = folders(runtime_root)
    with Cluster(1) as cluster:
        assert cluster.run("rank").values == {0: "0"}
        with pytest.raises(ClusterStateError, match="running with 1 ranks already"):
            cluster.start()
        (folder,) = set(folders(runtime_root)) - set(before)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "cluster.json").stat().st_mode) == 0o600
    assert folders(runtime_root) == before
    with pytest.raises(ClusterStateError, match="is not running; start it"):
        cluster.run("rank")
    cluster.stop()  # twice does no harm
    cluster.start()  # and it can be started again
    assert cluster.run("rank").values == {0: "0"}
    cluster.stop()


def test_arguments_are_checked_before_anything_starts(runtime_root):
    before = folders(runtime_root)
    with pytest.raises(MeshError, match=r"mesh dp=2 x tp=3 needs 6 ranks, but the cluster has 4; try 6 ranks"):
        Cluster(4, mesh="dp=2,tp=3")
    with pytest.raises(ValueError, match="at least 1 rank"):
        Cluster(0)
    with pytest.raises(ValueError, match="no launcher 'slurn'"):
        Cluster(2, launcher="slurn")
    assert Cluster(mesh="dp=2,tp=3").world_size == 6
    assert folders(runtime_root) == before


def test_a_dead_rank_is_named_and_the_others_go_on():
    with Cluster(2) as cluster:
        result = cluster.run("import os, signal\nprint('last words')\nif rank: os.kill(os.getpid(), signal.SIGKILL)")
        assert "rank 1 of 2 was ended by SIGKILL" in result.failure_text()
        assert "last words" in result.failure_text()
        with pytest.raises(
            ClusterStateError, match=r"rank 1 of 2 has ended \(signal 9\); run on the others with  --on ~\(1\)"
        ):
            cluster.run("1")
        assert cluster.run("rank", on="~1").values == {0: "0"}
        assert [row["state"] for row in cluster.status()] == ["idle", "dead"]


def test_a_failing_start_says_what_failed_and_leaves_nothing(runtime_root, tmp_path):
    before = folders(runtime_root)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('this torch is broken')")
    with pytest.raises(LaunchError, match="this torch is broken"):
        Cluster(1, environment={"PYTHONPATH": str(tmp_path)}).start()
    with pytest.raises(LaunchError, match="did not start"):
        Cluster(1, start_timeout_s=0.2).start()
    assert folders(runtime_root) == before


def test_another_version_is_refused_with_both_named(monkeypatch):
    monkeypatch.setattr("hpcnb.cluster.launchers.local.__version__", "9.9.9")
    with pytest.raises(VersionMismatch, match=r"the notebook runs hpcnb 9\.9\.9 on Python 3.*this node runs hpcnb 0\."):
        Cluster(1).start()


KERNEL = """
import os, sys, hpcnb
cluster = hpcnb.Cluster(2, idle_timeout_s=0).start()
cluster.run("import os; open('/dev/shm/ours', 'w') if False else None")
agent = cluster._node.agent.process.pid
print(agent, flush=True)
if sys.argv[1] == "exit":
    sys.exit()
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_nothing_is_left_when_the_notebook_kernel_ends(runtime_root, how):
    before = folders(runtime_root)
    process = subprocess.Popen(
        [sys.executable, "-c", KERNEL, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        agent = psutil.Process(int(process.stdout.readline()))
        family = [agent, *agent.children(recursive=True)]
        if how == "kill":
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in family), 10)
        wait_until(lambda: folders(runtime_root) == before, 5)
    finally:
        process.kill()
        process.communicate()


def test_nothing_is_left_when_the_agent_is_killed(runtime_root):
    before = folders(runtime_root)
    cluster = Cluster(2).start()
    agent = psutil.Process(cluster._node.agent.process.pid)
    family = agent.children(recursive=True)
    agent.kill()
    with pytest.raises(ConnectionError, match="the node agent ended"):
        wait_until(lambda: cluster.run("1") is None, 10)
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in family), 10)
    cluster.stop()
    assert folders(runtime_root) == before


def test_processes_that_a_cell_started_end_with_the_cluster():
    with Cluster(1) as cluster:
        child = int(cluster.run("import subprocess\nsubprocess.Popen(['sleep', '1000']).pid").values[0])
        assert psutil.pid_exists(child)
    wait_until(lambda: not psutil.pid_exists(child), 5)


def knock(address, keys, server):
    """A peer that says hello with these keys; what it hears, or None."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        if keys is not None:
            peer.curve_publickey, peer.curve_secretkey = keys
            peer.curve_serverkey = server
        peer.connect(address)
        peer.send(encode(Hello(PROTOCOL, "0", "3")))
        return decode(peer.recv()) if peer.poll(700) else None


def test_only_the_holder_of_the_key_is_heard(cluster2):
    spec = json.loads(cluster2._node.folder.spec.read_text())
    address, server = spec["link_address"], spec["server_public"].encode()
    assert knock(address, None, server) is None
    assert knock(address, zmq.curve_keypair(), server) is None
    mine = (spec["client_public"].encode(), spec["client_secret"].encode())
    assert knock(address, mine, server) is not None
    assert not isinstance(knock(address, mine, server), Welcome)  # the right key, another version
    assert cluster2.run("rank").ok


def test_keys_are_on_no_command_line_and_in_no_environment(cluster2):
    spec = json.loads(cluster2._node.folder.spec.read_text())
    agent = psutil.Process(cluster2._node.agent.process.pid)
    for process in [agent, *agent.children(recursive=True)]:
        said = " ".join(process.cmdline()) + " ".join(process.environ().values())
        for key in ("server_secret", "client_secret"):
            assert spec[key] not in said


def test_the_agent_command_names_the_folder_only(tmp_path):
    from hpcnb.core.launch import RunFolder

    command = local.agent_command(RunFolder(tmp_path))
    assert command == [sys.executable, "-m", "hpcnb.node", str(tmp_path)]


def test_import_and_load_ext_are_light():
    script = textwrap.dedent("""
        import sys, time
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        began = time.perf_counter()
        shell.run_line_magic("load_ext", "hpcnb")
        print(time.perf_counter() - began)
        heavy = {"torch", "pandas", "hvplot", "holoviews", "bokeh", "ipyparallel", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """)
    environment = {**os.environ, "IPYTHONDIR": str(Path(os.environ["HPCNB_RUNTIME_DIR"]) / "ipython")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3  # a generous deadline; benchmarks/bench_load.py has the bar


def test_two_clusters_do_not_disturb_each_other(cluster2):
    with Cluster(1, name="other") as other:
        other.run("x = 'other'")
        cluster2.run("x = 'this'")
        assert other.run("x").values == {0: "'other'"}
        assert cluster2.run("x").values == {0: "'this'", 1: "'this'"}


def test_ranks_draw_different_random_numbers():
    with Cluster(4) as cluster:
        values = cluster.run(
            "import random, numpy, torch\nrandom.random(), numpy.random.rand(), torch.rand(1).item()"
        ).values
    assert len({number for value in values.values() for number in value.strip("()").split(", ")}) == 12


@pytest.mark.parametrize("running", [False, True])
def test_a_template_that_is_killed_ends_the_cluster_with_its_reason(runtime_root, running):
    before = folders(runtime_root)
    with Cluster(1) as cluster:
        (template,) = [
            child
            for child in psutil.Process(cluster._node.agent.process.pid).children()
            if "ipyparallel" not in str(child.cmdline())
        ]
        if running:
            timer = threading.Timer(0.5, template.kill)
            timer.start()
            with pytest.raises(ConnectionError, match="template"):
                cluster.run("import time; time.sleep(30)")
        else:
            template.kill()
            with pytest.raises(ConnectionError, match="template"):
                wait_until(lambda: cluster.run("1") is None, 10)
    assert folders(runtime_root) == before
