"""Clusters that outlive who started them: attach, join, several notebooks at once, lists, and nothing left at last."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import hpcnb
from hpcnb import Cluster
from hpcnb.cluster import attach as attach_module
from hpcnb.cluster import cluster as cluster_module
from hpcnb.cluster import running
from hpcnb.core.alive import feel
from hpcnb.core.errors import ClusterStateError, LinkError, OptionError, VersionMismatch
from hpcnb.core.launch import RunFolder
from hpcnb.core.messages import CellBegan
from hpcnb.core.ranks import RankSet
from tests.waiting import wait_until

pytestmark = pytest.mark.engines


def row(name):
    return next((row for row in hpcnb.clusters() if row.name == name), None)


@contextlib.contextmanager
def script(source, *arguments):
    """A script that has printed one line; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def alone(tmp_path_factory, monkeypatch):
    """A runtime folder without the clusters that other tests share."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="hpcnb-alone-", dir="/tmp")
    monkeypatch.setenv("HPCNB_RUNTIME_DIR", folder)
    yield folder
    hpcnb.stop_all()
    assert not list(Path(folder).iterdir())
    shutil.rmtree(folder)


KILLED = """
import sys, threading, hpcnb
cluster = hpcnb.Cluster(2, name="orphan", mesh="tp=2").start()
cluster.run("x = rank + 10")
cluster.recover()
request = hpcnb.cluster.cell_run.CellRequest(open(sys.argv[1]).read(), label="cell In[7]")
threading.Timer(0.05, print, ["ready"], {"flush": True}).start()
cluster.execute(request)
"""


def test_attach_after_a_kill_brings_names_and_what_was_said(alone, tmp_path):
    source = tmp_path / "source"
    source.write_text(f"""
import os, time
from IPython.display import HTML, display
print("first, of", rank)
display(HTML("<b>picture</b>"))
print("second")
for step in hpc.progress(range(3)):
    pass
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
print("third", flush=True)
os.write(2, b"from C\\n")
x * 2
""")
    with script(KILLED, source) as process:
        wait_until(
            lambda: (found := row("orphan")) and found.cell == "cell In[7] on ranks 0,1" and found.notebooks == 1
        )
        process.kill()
        wait_until(lambda: row("orphan").notebooks == 0)
        assert row("orphan").idle_left_s == pytest.approx(8 * 3600, abs=60)
    (tmp_path / "go").touch()
    wait_until(lambda: row("orphan").unseen == ("cell In[7]",))
    labels = []
    cluster = hpcnb.attach("orphan", view=labels.append)
    assert hpcnb.current() is cluster
    assert labels == ["cell In[7]"]
    result = cluster.last_result
    assert result.ok
    assert result.values == {0: "20", 1: "22"}
    shown = [(str(item.ranks), item.kind, item.text) for item in result.items if item.kind != "value"]
    assert [text for _, kind, text in shown if kind == "display"] == ["0"]
    assert [text for ranks, _, text in shown if ranks == "0,1"] == ["0", "second", "third", "from C"]
    assert {(ranks, text) for ranks, _, text in shown if ranks != "0,1"} == {("0", "first, of 0"), ("1", "first, of 1")}
    assert result.outputs[0] == "first, of 0\nsecond\nthird\nfrom C\n"
    assert result.displays[0].bundle["text/html"] == "<b>picture</b>"
    breakdown = result.breakdown
    assert breakdown.duration_ms.sum() > 0
    assert cluster.run("x").values == {0: "10", 1: "11"}
    assert cluster.run("mesh.mesh_dim_names").values[0] == "('tp',)"
    assert cluster.recover() == 2  # the script had come to generation 1
    with pytest.raises(ClusterStateError, match=r"no cell is running on this cluster, and none has ended unseen"):
        cluster.join()
    cluster.stop()
    assert hpcnb.clusters() == []


def test_join_shows_a_running_cell_from_its_beginning_and_interrupts_it(alone, tmp_path):
    source = tmp_path / "source"
    source.write_text("import time\nprint('began')\nfor i in range(10**6): time.sleep(0.01)")
    with script(KILLED, source) as process:
        wait_until(lambda: (found := row("orphan")) and found.cell)
        process.kill()
    cluster = hpcnb.attach()
    with pytest.raises(ClusterStateError, match=r"ranks 0,1 still run an earlier cell; .*%hpc join to see it"):
        cluster.run("1")

    class View:
        def __init__(self):
            self.seen = []

        def update(self, run):
            self.seen.append([item.text for item in run.items()])
            if self.seen[-1] and not run.watch.interrupted:
                cluster.interrupt()

        def finish(self, run, result):
            self.finished = result

    view = View()
    result = cluster.join(view)
    assert view.finished is result is cluster.last_result
    assert result.interrupted
    assert result.label == "cell In[7]"
    assert result.outputs == {0: "began\n", 1: "began\n"}
    assert cluster.run("x").values == {0: "10", 1: "11"}


OTHER = """
import sys, hpcnb
cluster = hpcnb.attach("shared")
print("ready", flush=True)
for line in sys.stdin:
    result = cluster.run(line.strip())
    print(result.cell, result.values, flush=True)
cluster.detach()
"""


def test_two_notebooks_at_once(alone):
    with Cluster(2, name="shared") as cluster:
        cluster.run("x = 'ours'")
        with script(OTHER) as other:

            def ask(source):
                other.stdin.write(source + "\n")
                other.stdin.flush()

            ask("x")
            assert other.stdout.readline() == "2 {0: \"'ours'\", 1: \"'ours'\"}\n"
            assert cluster.run("x").cell == 3  # its number was taken
            assert row("shared").notebooks == 2
            ask("import time; time.sleep(0.5); print('theirs')")
            wait_until(lambda: cluster.busy)
            with pytest.raises(ClusterStateError, match="still run an earlier cell"):
                cluster.run("1")
            joined = cluster.join()
            assert joined.outputs[0] == "theirs\n"
            assert other.stdout.readline().startswith("4 ")
            assert cluster.run("x").cell == 5
            other.stdin.close()
            wait_until(lambda: row("shared").notebooks == 1)
            assert other.wait(20) == 0
        assert cluster.run("x").ok


def test_two_notebooks_that_begin_a_cell_at_the_same_moment_are_told_apart(alone):
    with Cluster(1, name="twice") as cluster:
        node = cluster._node
        other = Cluster.of_spec(hpcnb.cluster.running.read_spec(node.folder))
        hear_all = other._on_message
        # as if it had not heard yet of what the first one begins
        other._on_message = lambda message: None if isinstance(message, CellBegan) else hear_all(message)
        other.connect(
            lambda hear: hpcnb.cluster.attach._node(
                hpcnb.cluster.running.find()[0], hpcnb.cluster.running.read_spec(node.folder), on_message=hear
            )
        )
        try:
            background = threading.Thread(target=lambda: cluster.run("import time; time.sleep(1)"))
            background.start()
            wait_until(lambda: cluster.describe()["running"])
            with pytest.raises(ClusterStateError, match=r"number 1 is taken|another notebook began"):
                other.run("1")
            wait_until(lambda: not other.busy)
            with pytest.raises(ClusterStateError, match=r"rank 0 still runs a cell of another notebook"):
                other.run("1")
            background.join()
            assert other.run("rank").values == {0: "0"}
        finally:
            other.detach()


def test_the_last_notebook_ends_the_cluster_and_no_other(alone):
    first = Cluster(1, name="both").start()
    with script("import hpcnb\nc = hpcnb.attach()\nprint('ready', flush=True)\nimport sys; sys.stdin.read()") as second:
        second.stdin.close()
        second.wait(20)
    assert first.run("rank").values == {0: "0"}
    first.leave()
    assert hpcnb.clusters() == []


def test_detach_and_attach_in_one_process(alone):
    cluster = Cluster(1, name="mine").start()
    cluster.run("x = 5")
    with pytest.raises(ClusterStateError, match=r"this notebook has cluster 'mine' already \(mine-.*%hpc detach"):
        hpcnb.attach()
    cluster.detach()
    assert hpcnb.current() is None
    assert cluster not in cluster_module.held()
    with pytest.raises(ClusterStateError, match="is not running"):
        cluster.run("x")
    again = hpcnb.attach("mine")
    assert again.run("x").values == {0: "5"}
    assert again.client[:]["x"] == [5]
    again.stop()
    assert hpcnb.clusters() == []


def test_detach_while_a_cell_runs(alone):
    cluster = Cluster(1, name="mine").start()
    raised = []

    def run():
        try:
            cluster.run("import time\nfor i in range(10**6): time.sleep(0.01)")
        except ClusterStateError as error:
            raised.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: cluster.describe()["running"])
    cluster.detach()
    thread.join(20)
    assert "is not running" in raised[0]
    again = hpcnb.attach()
    again.interrupt()
    assert again.join().errors[0].ename == "KeyboardInterrupt"
    again.stop()


def test_a_name_that_fits_none_or_several(alone):
    with pytest.raises(
        ClusterStateError, match=r"no cluster of yours is running on this machine; start one with  %hpc"
    ):
        hpcnb.attach()
    with pytest.raises(OptionError, match="takes the name of a cluster, not a int"):
        hpcnb.attach(4)
    ones = [Cluster(1, name="one").start() for _ in range(2)]
    for each in ones:
        each.detach()
    keys = [each.key for each in hpcnb.clusters()]
    with pytest.raises(
        ClusterStateError,
        match=rf"2 clusters are running: one \({keys[0]}: 1 rank, started \d\d:\d\d\); .*%hpc attach {keys[1]}",
    ):
        hpcnb.attach()
    with pytest.raises(ClusterStateError, match="2 clusters are running"):
        hpcnb.attach("one")
    with pytest.raises(ClusterStateError, match="no cluster 'two' is running; there is one"):
        hpcnb.attach("two")
    hpcnb.attach(keys[0]).stop()
    hpcnb.attach("one").stop()


def test_the_idle_timeout_counts_from_the_last_notebook(alone):
    cluster = Cluster(1, idle_timeout_s=1.5).start()
    agent = psutil.Process(cluster._node.agent.pid)
    cluster.detach()
    assert 0 < row("default").idle_left_s <= 1.5  # and looking does not make it longer
    wait_until(lambda: not hpcnb.clusters())
    wait_until(lambda: not agent.is_running() or agent.status() == "zombie")


def test_an_agent_that_was_killed_is_listed_once_and_removed(alone):
    cluster = Cluster(2, name="gone").start()
    agent, folder = psutil.Process(cluster._node.agent.pid), cluster._node.folder
    family = agent.children(recursive=True)
    cluster.detach()
    agent.kill()
    wait_until(lambda: not feel(folder).pid)
    assert [(each.name, each.state, each.num_ranks) for each in hpcnb.clusters()] == [("gone", "removed", 2)]
    assert hpcnb.clusters() == []
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in family))
    with pytest.raises(ClusterStateError, match="no cluster of yours is running"):
        hpcnb.attach("gone")


def test_nobody_but_the_agent_holds_its_lock(alone):
    with Cluster(1) as cluster:
        agent = psutil.Process(cluster._node.agent.pid)

        def holds(process):
            return sum(path.samefile(cluster._node.folder.lock) for path in descriptors(process))

        def descriptors(process):
            return [path for path in Path(f"/proc/{process.pid}/fd").iterdir() if path.exists()]

        assert holds(agent) == 1
        family = agent.children(recursive=True)
        assert len(family) >= 4  # template, store, rank, controller
        assert [holds(child) for child in family] == [0] * len(family)
        assert holds(psutil.Process()) == 0


def test_a_folder_of_a_cluster_that_is_about_to_start_is_left_alone(alone):
    folder = RunFolder.create("soon")
    assert [(each.name, each.state) for each in hpcnb.clusters()] == [("soon", "unreadable")]  # no spec yet
    assert folder.path.exists()
    assert [each.state for each in hpcnb.stop_all()] == ["starting"]
    folder.remove()


def test_stop_all_ends_the_living_the_stuck_and_the_dead(alone):
    kept = Cluster(1, name="kept").start()
    stuck = Cluster(1, name="stuck").start()
    os.kill(stuck._node.agent.pid, signal.SIGSTOP)
    stuck.detach()
    dead = Cluster(1, name="dead").start()
    agent, folder = psutil.Process(dead._node.agent.pid), dead._node.folder
    dead.detach()
    assert row("stuck").state == "silent"
    agent.kill()
    wait_until(lambda: not feel(folder).pid)
    states = {each.name: each.state for each in hpcnb.stop_all()}
    assert states == {"kept": "stopped", "stuck": "killed", "dead": "removed"}
    assert not kept.running
    assert hpcnb.clusters() == []
    assert hpcnb.stop_all() == []


def test_another_version_is_not_attached_to_but_can_be_ended(alone, monkeypatch):
    cluster = Cluster(1, name="older").start()
    cluster.detach()
    with monkeypatch.context() as patch:
        patch.setattr("hpcnb.cluster.launchers.local.__version__", "9.9.9")
        with pytest.raises(
            VersionMismatch, match=r"cluster 'older' runs another version: .*the notebook runs hpcnb 9\.9\.9"
        ):
            hpcnb.attach()
        assert hpcnb.current() is None
        assert [each.state for each in hpcnb.stop_all()] == ["stopped"]


def test_a_cluster_that_ends_is_told_to_who_is_attached(alone):
    cluster = Cluster(1, name="short").start()
    cluster.detach()
    attached = hpcnb.attach()
    psutil.Process(attached._node.agent.pid).kill()
    with pytest.raises(LinkError, match=r"the node agent ended, and its ranks with it \(status unknown\)"):
        wait_until(lambda: attached.run("1") is None)
    attached.stop()


# --- what one notebook breaks, and another one sees ----------------------------------------------------------------

SUM = "import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"
#: Waits for a file, then rank 0 raises and rank 1 waits in vain.
BREAKS = """
import os, time, torch, torch.distributed as dist
while not os.path.exists({!r}):
    time.sleep(0.01)
if rank == 0: raise ValueError("early")
dist.all_reduce(torch.ones(1))
"""


@contextlib.contextmanager
def second_notebook():
    """Another hold of this process on the one cluster that runs."""
    (found,) = running.find()
    spec = running.read_spec(found.folder)
    other = Cluster.of_spec(spec)
    other.connect(lambda hear: attach_module._node(found, spec, on_message=hear))
    try:
        yield other
    finally:
        other.detach()


@contextlib.contextmanager
def in_background(run):
    """While this runs on another thread; its result is the one item of the list, afterwards."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    try:
        yield results
    finally:
        thread.join(30)
        assert not thread.is_alive(), "it did not end in time"


def test_who_submitted_a_cell_mends_what_it_broke(alone, tmp_path):
    flag = tmp_path / "go"
    with Cluster(2, name="shared") as cluster, second_notebook() as other:
        with in_background(lambda: cluster.run(BREAKS.format(str(flag)))) as submitted:
            wait_until(lambda: cluster.describe()["running"])
            with in_background(other.join) as followed:
                wait_until(lambda: other._submitter._command is not None)
                flag.touch()
        assert submitted[0].recovery[0].startswith("process groups built again (generation 1, ")
        assert followed[0].recovery == [
            "process groups built again by another notebook (generation 1)", "all names on all ranks are intact",
        ]  # fmt: skip
        for each in (other, cluster):
            assert each.run(SUM).values == {0: "2.0", 1: "2.0"}
        assert cluster.describe()["generation"] == 1  # nobody has built them once more


def test_who_follows_a_cell_mends_when_the_other_notebook_is_gone(alone, tmp_path):
    flag = tmp_path / "go"
    with Cluster(2, name="shared") as cluster:
        with script(OTHER) as other:
            other.stdin.write(f"exec({BREAKS.format(str(flag))!r})\n")
            other.stdin.flush()
            wait_until(lambda: cluster.describe()["running"])
            with in_background(cluster.join) as followed:
                wait_until(lambda: cluster._submitter._command is not None)
                other.kill()
                wait_until(lambda: cluster.describe()["notebooks"] == 1)
                flag.touch()
        assert followed[0].recovery[0].startswith("process groups built again (generation 1, ")
        assert cluster.run(SUM).values == {0: "2.0", 1: "2.0"}


DIES_BEFORE_IT_MENDS = """
import os, hpcnb
from hpcnb.cluster import recovery
cluster = hpcnb.Cluster(2, name="orphan").start()
print("ready", flush=True)
cluster.run("import torch, torch.distributed as dist")
recovery.mend = lambda _: os._exit(0)
cluster.run("if rank == 0: raise ValueError('early')\\ndist.all_reduce(torch.ones(1))")
"""


ORPHAN = """
import sys, hpcnb
cluster = hpcnb.Cluster(2, name="orphan").start()
print("ready", flush=True)
cluster.run(sys.argv[1])
"""
HANGS = """
import os, time, torch, torch.distributed as dist
kept = rank
while not os.path.exists({flag!r}): time.sleep(0.02)
if rank == 1: {ill}
dist.all_reduce(torch.ones(1))
"""


def leave_running(source):
    """A cell of a notebook that is killed while it runs."""
    with script(ORPHAN, source) as notebook:
        wait_until(lambda: row("orphan").cell)
        notebook.kill()
        wait_until(lambda: row("orphan").notebooks == 0)


@pytest.mark.parametrize(
    ("ill", "why", "living"),
    [
        ("raise ValueError('early')", "rank 1 raised ValueError", {0: "0", 1: "1"}),
        ("os._exit(3)", "rank 1 of 2 ended its process with status 3", {0: "0"}),
        ("x = torch.ones(9); dist.broadcast(x, 0)", "rank 0 called all_reduce", {0: "0", 1: "1"}),
    ],
)
def test_ranks_are_released_while_no_notebook_is_there(alone, tmp_path, ill, why, living):
    flag = tmp_path / "go"
    leave_running(HANGS.format(flag=str(flag), ill=ill))
    flag.touch()
    wait_until(lambda: row("orphan").unseen)  # 1 s of grace, not the idle timeout
    with hpcnb.attach() as cluster:
        text = cluster.last_result.failure_text()
        assert why in text
        assert "rank 0" in text
        assert "process groups" in text  # have been mended by who came
        assert cluster.run("kept", on=",".join(map(str, living))).values == living


def test_a_healthy_wait_is_left_alone_while_no_notebook_is_there(alone, tmp_path):
    flag = tmp_path / "go"
    leave_running(
        "import os, time, torch, torch.distributed as dist\nif rank == 1:\n"
        f"    while not os.path.exists({str(flag)!r}): time.sleep(0.02)\n"
        "x = torch.ones(1); dist.all_reduce(x); x.item()"
    )
    time.sleep(2.5)
    flag.touch()
    wait_until(lambda: row("orphan").unseen)
    with hpcnb.attach() as cluster:
        assert cluster.last_result.ok
        assert cluster.last_result.values == {0: "2.0", 1: "2.0"}


def test_a_second_interrupt_ends_ranks_that_nobody_waits_for(alone):
    """As the second press of Ctrl-C does, which has no cell any more to be pressed in."""
    with Cluster(2) as cluster:
        cluster.run("kept = rank")
        assert cluster.interrupt_left() is None
        deaf = "import ctypes\nif rank == 1:\n    while True: ctypes.PyDLL(None).usleep(900000)"
        result = cluster.run(deaf + "\n", timeout_s=0.2)
        if result.busy:
            result = cluster.interrupt_left()
            assert result.ranks == RankSet.all(2)
        deadline = time.monotonic() + 20
        while cluster.busy and time.monotonic() < deadline:
            result = cluster.interrupt_left()
        assert not cluster.busy
        assert cluster.run("kept", on="0").values == {0: "0"}


def test_groups_that_a_notebook_broke_and_did_not_mend_are_mended_before_the_first_cell(alone):
    with script(DIES_BEFORE_IT_MENDS) as process:
        process.wait(30)
    cluster = hpcnb.attach()
    assert cluster._submitter.is_broken
    assert cluster.run(SUM).values == {0: "2.0", 1: "2.0"}
    assert cluster.describe()["generation"] == 1
    cluster.detach()
    again = hpcnb.attach()
    assert not again._submitter.is_broken
    again.stop()


def test_a_rank_that_died_before_somebody_followed_its_cell_is_named(alone, tmp_path):
    flag = tmp_path / "go"
    source = f"""
import os, signal, time
if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
while not os.path.exists({str(flag)!r}):
    time.sleep(0.01)
"""
    with (
        Cluster(2, name="shared", grace_s=None) as cluster,
        in_background(lambda: cluster.run(source)) as submitted,
    ):
        wait_until(lambda: str(cluster.alive) == "0")
        with second_notebook() as other, in_background(other.join) as followed:
            wait_until(lambda: other._submitter._command is not None)
            flag.touch()
    for result in (*submitted, *followed):
        assert result.exits == {1: -signal.SIGKILL}
        assert "rank 1 of 2 was ended by SIGKILL" in result.failure_text()


def test_a_question_that_was_answered_is_not_asked_of_who_follows_later(alone, tmp_path):
    flag = tmp_path / "go"
    source = f"""
import os, time
name = input("who? ")
while not os.path.exists({str(flag)!r}):
    time.sleep(0.01)
name
"""

    class View:
        shows_answers = True

        def __init__(self):
            self.prompts = []

        def update(self, run):
            pass

        def finish(self, run, result):
            pass

        def ask(self, run, prompt):
            self.prompts.append(prompt)
            return "me"

    first, second = View(), View()
    request = hpcnb.cluster.cell_run.CellRequest(source)
    with (
        Cluster(1, name="shared") as cluster,
        in_background(lambda: cluster.execute(request, first)) as submitted,
    ):
        wait_until(lambda: first.prompts)
        time.sleep(0.2)  # the answer is on its way
        with second_notebook() as other, in_background(lambda: other.join(second)) as followed:
            wait_until(lambda: other._submitter._command is not None)
            flag.touch()
    assert [result.values for result in (*submitted, *followed)] == [{0: "'me'"}] * 2
    assert len(first.prompts) == 1
    assert second.prompts == []
