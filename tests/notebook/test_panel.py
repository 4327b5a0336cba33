"""The panel without a front-end: its words, what a click does, and when its thread lives."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from hpcnb.cluster.result import CellResult, RankError
from hpcnb.core.errors import LaunchError, LinkError
from hpcnb.core.ranks import RankSet
from hpcnb.notebook import panel_words as words
from hpcnb.notebook.panel_words import Snapshot

WAIT_S = 10.0
STAGES = ("controller 0.8 s", "import torch 1.2 s", "ranks 1 of 2", "2 ranks ready 2.0 s")


def rows(*states):
    return tuple(
        {"rank": rank, "host": "n1", "pid": 100 + rank, "device": "cpu", "state": state, "memory_mb": 61.4}
        for rank, state in enumerate(states)
    )


def running(*states, **more):
    return Snapshot("running", "2 ranks, mesh dp=2", STAGES, rows(*states), **more)


# --- words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "enabled"),
    [
        (Snapshot(), {"Start"}),
        (Snapshot("none", problem="did not start"), {"Start"}),
        (Snapshot("starting"), {"Stop"}),
        (running("idle", "idle"), {"Stop"}),
        (running("idle", "runs cell 3"), {"Stop", "Interrupt"}),
        (running("in all_reduce #3 of dp (16 B)", "dead"), {"Stop", "Interrupt"}),
        (running("dead", "idle"), {"Stop"}),
        (running(problem="the node agent did not answer"), {"Stop", "Interrupt"}),
        (Snapshot("stopping"), set()),
    ],
)
def test_buttons(seen, enabled):
    assert {name for name, is_enabled in words.buttons(seen).items() if is_enabled} == enabled


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (Snapshot(), "no cluster is running"),
        (Snapshot("starting", "2 ranks"), "starting 2 ranks"),
        (Snapshot("starting", "2 ranks", STAGES[:1]), "starting 2 ranks · controller 0.8 s"),
        (running("idle", "idle"), "2 ranks, mesh dp=2 · idle"),
        (running("runs cell 1", "in barrier #1 of dp (0 B)"), "2 ranks, mesh dp=2 · a cell runs"),
        (running("idle", "runs cell 1"), "2 ranks, mesh dp=2 · a cell runs on rank 1"),
        (running("dead", "idle"), "2 ranks, mesh dp=2 · idle · rank 0 dead"),
        (running(), "2 ranks, mesh dp=2"),
        (Snapshot("stopping", "cluster 'default'"), "stopping cluster 'default'"),
    ],
)
def test_sentence(seen, sentence):
    assert words.sentence(seen) == sentence


def test_of_the_counts_of_ranks_only_the_latest_is_said():
    assert words.stage_words(STAGES[:3]) == "controller 0.8 s · import torch 1.2 s · ranks 1 of 2"
    assert words.stage_words(STAGES) == "controller 0.8 s · import torch 1.2 s · 2 ranks ready 2.0 s"
    assert words.stage_words(()) == ""


def result(**how):
    return CellResult(7, "cell In[3]", RankSet([0, 1]), 2, **how)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "last cell, In[3]"),
        ({"interrupted": True}, "last cell, In[3]: interrupted"),
        ({"timeout_s": 2.5}, "last cell, In[3]: interrupted by its timeout of 2.5 s"),
        (
            {"errors": {1: RankError("ValueError", "", "", 0, "", "", "")}},
            "last cell, In[3]: failed on rank 1",
        ),
        ({"exits": {0: -9, 1: -9}}, "last cell, In[3]: failed on ranks 0,1"),
    ],
)
def test_cell_words(how, said):
    assert words.cell_words(result(**how)) == said


def test_text_has_everything_in_words():
    seen = running("idle", "runs cell 1", cell="last cell, In[3]", strip=("2 ranks · 1 s", " 0 ██"), problem="hm")
    assert words.text(seen).splitlines() == [
        "2 ranks, mesh dp=2 · a cell runs on rank 1",
        "hm",
        "started: controller 0.8 s · import torch 1.2 s · 2 ranks ready 2.0 s",
        "rank  node  pid  device  state        memory",
        "0     n1    100  cpu     idle         61 MB",
        "1     n1    101  cpu     runs cell 1  61 MB",
        "",
        "last cell, In[3]",
        "2 ranks · 1 s",
        " 0 ██",
    ]
    assert words.text(Snapshot()) == "no cluster is running"


def test_html_escapes_what_others_wrote():
    seen = running("in <b>", "idle", cell="last cell, <i>", problem="<s>")
    made = words.line_html(seen) + words.table_html(seen) + words.cell_html(seen)
    for tag in ("<b>", "<i>", "<s>"):
        assert tag not in made.replace(f"<b>{words.sentence(seen)}", "")
    assert made.count("<tr>") == 3
    assert words.table_html(Snapshot()) == words.cell_html(Snapshot()) == ""


# --- clicks and the watching thread -------------------------------------------------------------------------


class FakeCluster:
    """Starts when it is let, and says what it is told to."""

    def __init__(self, num_ranks=2, *, mesh=None):
        if mesh == "dp=3":
            raise ValueError("mesh dp=3 needs 3 ranks")
        if mesh == "bug":
            raise RuntimeError("no such thing")
        self.name, self.mesh, self.world_size = "default", mesh or f"dp={num_ranks}", num_ranks
        self.may_start = threading.Event()
        self.start_stages = []
        self.phase = ""
        self.interrupts = 0
        self.last_result = None
        self.problem = None

    starting = property(lambda self: self.phase == "starting")
    running = property(lambda self: self.phase == "running")

    def start(self):
        self.phase = "starting"
        FakeCluster.latest = self
        self.may_start.wait(WAIT_S)
        if self.phase == "stopped":
            raise LaunchError("the cluster ended itself")
        self.phase = "running"

    def stop(self):
        self.phase = "stopped"
        self.may_start.set()

    def interrupt(self):
        if self.problem is not None:
            raise self.problem
        self.interrupts += 1

    def status(self):
        if self.problem is not None:
            raise self.problem
        return list(rows("idle", "idle"))


class FakePanel:
    """Keeps what it is shown."""

    def __init__(self):
        self.news = threading.Condition()
        self.seen = None

    def show(self, seen):
        with self.news:
            self.seen = seen
            self.news.notify_all()

    def wait_for(self, condition):
        with self.news:
            assert self.news.wait_for(lambda: self.seen and condition(self.seen), WAIT_S), self.seen
            return self.seen

    def wait_for_start(self):
        return self.wait_for(lambda seen: seen.phase == "starting" and "mesh" in seen.title)

    def wait_for_phase(self, phase):
        return self.wait_for(lambda seen: seen.phase == phase)


@pytest.fixture
def clusters(monkeypatch):
    from hpcnb.notebook import panel_watch

    def latest(phase):
        return FakeCluster.latest if FakeCluster.latest is not None and FakeCluster.latest.phase == phase else None

    FakeCluster.latest = None
    monkeypatch.setattr(panel_watch, "Cluster", FakeCluster)
    monkeypatch.setattr(panel_watch, "current", lambda: latest("running"))
    monkeypatch.setattr(panel_watch, "starting", lambda: latest("starting"))
    monkeypatch.setattr(panel_watch, "warm", SimpleNamespace(warm=lambda: None))
    return SimpleNamespace(latest=lambda: FakeCluster.latest)


@pytest.fixture
def watcher(clusters):
    from hpcnb.notebook.panel_watch import Watcher

    watcher = Watcher()
    yield watcher
    watcher.close()
    assert watcher._thread is None


@pytest.fixture
def shown(watcher):
    panel = FakePanel()
    watcher.open(panel)
    panel.wait_for_phase("none")
    return panel


def test_start_and_stop_by_click(watcher, shown, clusters):
    watcher.start(2, " dp=2 ")
    assert shown.wait_for_start().title == "2 ranks, mesh dp=2"
    watcher.start(2, "")  # a second click
    first = clusters.latest()
    first.start_stages.append("controller 0.8 s")
    shown.wait_for(lambda seen: seen.stages == ("controller 0.8 s",))
    first.may_start.set()
    assert len(shown.wait_for_phase("running").rows) == 2
    assert clusters.latest() is first
    watcher.stop()
    shown.wait_for_phase("none")
    assert first.phase == "stopped"


def test_stop_while_it_starts_is_no_failure(watcher, shown):
    watcher.start(2, "")
    shown.wait_for_start()
    watcher.stop()
    assert shown.wait_for_phase("none").problem == ""


def test_stop_before_there_is_anything_to_stop(watcher, shown, clusters, monkeypatch):
    begun, may_go = threading.Event(), threading.Event()
    start = FakeCluster.start

    def slow_start(self):
        begun.set()
        may_go.wait(WAIT_S)
        self.may_start.set()
        start(self)

    monkeypatch.setattr(FakeCluster, "start", slow_start)
    watcher.start(2, "")
    begun.wait(WAIT_S)
    watcher.stop()
    shown.wait_for_phase("none")
    may_go.set()
    wait_for_threads()
    assert clusters.latest().phase == "stopped"


def wait_for_threads():
    for thread in threading.enumerate():
        if thread.name.startswith("hpcnb-panel-"):
            thread.join(WAIT_S)


def test_what_went_wrong_is_said_until_the_next_click(watcher, shown, clusters):
    watcher.start(2, "dp=3")
    assert shown.wait_for(lambda seen: seen.problem).problem == "mesh dp=3 needs 3 ranks"
    watcher.start(2, "bug")
    problem = shown.wait_for(lambda seen: "no such thing" in seen.problem).problem
    assert problem.startswith("RuntimeError: no such thing")
    watcher.start(2, "")
    shown.wait_for_start()
    clusters.latest().may_start.set()
    assert shown.wait_for_phase("running").problem == ""


def test_a_cluster_that_does_not_answer_can_be_interrupted_and_stopped(watcher, shown, clusters):
    watcher.start(2, "")
    shown.wait_for_start()
    clusters.latest().may_start.set()
    shown.wait_for_phase("running")
    watcher.interrupt()
    assert clusters.latest().interrupts == 1
    clusters.latest().problem = LinkError("the node agent ended with status 1")
    watcher.interrupt()
    seen = shown.wait_for(lambda seen: seen.problem)
    assert seen.problem == "the node agent ended with status 1"
    assert words.buttons(seen) == {"Start": False, "Stop": True, "Interrupt": True}
    watcher.stop()
    assert shown.wait_for_phase("none").problem == ""


def test_it_follows_a_cluster_that_a_cell_started(watcher, shown, clusters):
    cluster = FakeCluster(2)
    cluster.may_start.set()
    cluster.start()
    cluster.last_result = result(interrupted=True)
    watcher._wake.set()
    seen = shown.wait_for_phase("running")
    assert seen.cell == "last cell, In[3]: interrupted"
    assert seen.strip == ()
    cluster.stop()
    watcher._wake.set()
    assert shown.wait_for_phase("none").cell == ""


def test_one_thread_for_all_panels_and_none_for_none(watcher, shown):
    def threads():
        return [thread for thread in threading.enumerate() if thread is watcher._thread]

    other = FakePanel()
    watcher.open(other)
    other.wait_for_phase("none")
    (thread,) = threads()
    watcher.discard(shown)
    assert thread.is_alive()
    watcher.discard(other)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    watcher.open(shown)
    assert len(threads()) == 1


def test_a_panel_that_cannot_be_shown_is_left_and_said_aloud(watcher, shown, caplog):
    class Broken:
        def show(self, seen):
            raise RuntimeError("no such widget")

    broken = Broken()
    watcher.open(broken)
    watcher._wake.set()
    watcher.refresh()
    assert broken not in watcher._panels
    assert shown in watcher._panels
    assert "cannot be updated" in caplog.text


def test_a_look_that_fails_is_said_in_words(watcher, shown, clusters, caplog):
    cluster = FakeCluster(2)
    cluster.may_start.set()
    cluster.start()
    cluster.problem = KeyError("surprise")
    watcher._wake.set()
    seen = shown.wait_for(lambda seen: seen.problem)
    assert "KeyError: 'surprise'" in seen.problem
    assert words.buttons(seen)["Stop"]
    assert "surprise" in caplog.text


# --- the widget ---------------------------------------------------------------------------------------------


@pytest.fixture
def panel(watcher):
    from hpcnb.notebook.panel import Panel

    panel = Panel(watcher)
    yield panel
    panel.close()


def test_controls_have_words_for_everybody(panel):
    for name, button in panel._buttons.items():
        assert button.description == name
        assert button.tooltip
    assert panel._ranks.description
    assert panel._mesh.tooltip


def test_show_writes_parts_and_buttons(panel):
    assert panel._buttons["Stop"].disabled
    seen = running("runs cell 1", "idle")
    panel.show(seen)
    assert not panel._buttons["Interrupt"].disabled
    assert panel._ranks.disabled
    assert "a cell runs on rank 0" in panel._parts[words.line_html].value
    assert repr(panel) == words.text(seen)


def test_saved_notebook_reads_as_words_and_table(panel):
    panel.show(running("idle", "idle"))
    bundle = panel._bundle()
    assert bundle["text/plain"] == words.text(panel._seen)
    assert "<table" in bundle["text/html"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id


def test_views_decide_whether_it_is_watched(panel, watcher):
    panel._view_count = 1
    assert panel in watcher._panels
    panel._view_count = 0
    assert panel not in watcher._panels


def test_closing_it_ends_the_watching(panel, watcher):
    panel._view_count = 1
    thread = watcher._thread
    panel.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    panel.close()  # twice is no error


def test_in_a_terminal_it_prints_words_and_watches_nothing(panel, watcher, capsys):
    panel._ipython_display_()
    assert "no cluster is running" in capsys.readouterr().out
    assert watcher._thread is None


def test_public_function_makes_a_new_panel_each_time():
    import hpcnb

    first, second = hpcnb.panel(), hpcnb.panel()
    assert first is not second
    first.close()
    second.close()


# --- with real ranks ----------------------------------------------------------------------------------------


@pytest.fixture
def real_watcher(monkeypatch):
    from hpcnb.notebook import panel_watch

    monkeypatch.setattr(panel_watch, "warm", SimpleNamespace(warm=lambda: None))
    watcher = panel_watch.Watcher()
    yield watcher
    watcher.close()


@pytest.mark.engines
def test_a_start_can_be_stopped_half_way(real_watcher):
    shown = FakePanel()
    real_watcher.open(shown)
    real_watcher.start(2, "")
    shown.wait_for_start()
    real_watcher.stop()
    assert shown.wait_for_phase("none").problem == ""
    wait_for_threads()


@pytest.mark.engines
def test_a_start_does_not_outlive_the_notebook_kernel(runtime_root):
    code = """
import time
from hpcnb.cluster.cluster import starting
from hpcnb.notebook.panel_watch import Watcher
watcher = Watcher()
watcher.start(2, "")
while starting() is None:
    time.sleep(0.01)
"""
    before = list(runtime_root.glob("hpcnb-*/*"))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stderr=subprocess.DEVNULL)
    assert list(runtime_root.glob("hpcnb-*/*")) == before
