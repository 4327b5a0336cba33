"""Waits of the notebook: what the watch decides becomes messages to the agent; no process, no socket."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from hpcnb.cluster import waiting
from hpcnb.cluster.cell_run import CellRun
from hpcnb.cluster.inbox import Inbox, drive, drive_async
from hpcnb.cluster.waiting import CellWait, await_ranks
from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.board import Activity, stamp
from hpcnb.core.errors import CellInterrupted, ClusterStateError, LaunchError, LinkError
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet

ALL = RankSet.all(2)
CELL = 5


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting.time, "monotonic", clock)
    return clock


class Waited:
    """A cell on two ranks, and what was sent to their agent."""

    def __init__(self, clock, *, timeout_s=None, grace_s=watch.GRACE_S):
        self.sent, self.checks, self.updates = [], 0, 0
        self.run = CellRun(CELL, "cell 5", ALL, 2, grace_s=grace_s, clock=clock)
        node = SimpleNamespace(link=SimpleNamespace(send=self.sent.append), check=self._check)
        view = SimpleNamespace(update=self._update)
        self.inbox = Inbox()
        self.wait = CellWait(self.run, node, self.inbox, timeout_s=timeout_s, view=view)

    def _check(self):
        self.checks += 1

    def _update(self, run):
        self.updates += 1

    def step(self, *messages):
        """What is sent after each of these."""
        for message in messages:
            self.wait._step(message)
        sent, self.sent[:] = self.sent[:], []
        return sent


@pytest.fixture
def waited(clock):
    return Waited(clock)


def replies(*ranks):
    fields = {"cell": CELL, "ok": True, "start_ns": 0, "end_ns": 1, "value": "", "has_value": False, "value_shown": False,
              "value_pickle": b"", "value_problem": "", "error": None, "notices": [], "is_broken": False}  # fmt: skip
    made = [m.CellReply(rank=rank, **fields) for rank in ranks]
    return [[getattr(reply, name) for name in m.names_of(reply)] for reply in made]


ACTIONS = [
    (watch.StopAtBoundary(ALL), [m.StopAtBoundary(CELL, ALL)]),
    (watch.InterruptRanks(ALL), [m.Interrupt(CELL, ALL)]),
    (watch.ReleaseRanks(ALL, "why"), [m.Release(CELL, ALL, "why", False)]),
    (watch.ReleaseRanks(ALL, "why", mismatch=True), [m.Release(CELL, ALL, "why", True)]),
    (watch.ContinueRanks(ALL), [m.Continue(ALL)]),
    (watch.LookAtRanks(ALL), [m.LookAt(CELL, ALL)]),
    (watch.LookAtRanks(ALL, show=True), [m.LookAt(CELL, ALL)]),
    (watch.EndRanks(ALL, "why"), [m.EndRanks(CELL, ALL, "why")]),
    (watch.Say("words"), []),
    (watch.CellEnds(RankSet()), []),
]


@pytest.mark.parametrize(("action", "messages"), ACTIONS, ids=[type(action).__name__ for action, _ in ACTIONS])
def test_what_is_to_be_done_is_sent(waited, action, messages):
    waited.wait._do(action)
    assert waited.sent == messages
    wants_stacks = isinstance(action, watch.LookAtRanks) and action.show
    assert waited.run.wants_stacks == (ALL if wants_stacks else RankSet())


def test_every_action_is_known_here():
    assert {type(action) for action, _ in ACTIONS} == set(watch.Action.__args__)


def states(age_s):
    """Rank 0 waits for rank 1, which is idle again."""
    inside = Inside("all_reduce #1 (32 B)", 7, stamp(0, 1), ALL, age_s)
    facts = {
        0: RankFacts(Activity.CELL, CELL, inside=inside, issues={7: Issues(stamp(0, 1))}),
        1: RankFacts(Activity.IDLE),
    }
    return m.RankStates(CELL, {rank: each.pack() for rank, each in facts.items()})


def test_a_rank_that_waits_in_vain_is_released(waited, clock):
    assert waited.step(m.Replies(CELL, replies(1))) == []
    clock.now_s += 0.5
    assert waited.step(states(2.0)) == []
    clock.now_s += 0.5
    reason = "rank 1 ended the cell without it"
    assert waited.step(states(2.5)) == [m.Release(CELL, RankSet([0]), reason, False)]
    assert waited.run.result.explanations == [reason]
    assert waited.updates == 3


def test_an_interrupt_from_the_first_press_to_the_prompt(waited, clock):
    assert waited.step(watch.InterruptAsked(clock.now_s)) == [m.StopAtBoundary(CELL, ALL)]
    assert waited.step(m.BoundaryAsked(CELL, False)) == [m.Interrupt(CELL, ALL)]
    clock.now_s += 0.3
    assert waited.step(None) == [m.Release(CELL, ALL, "the cell was interrupted", False), m.LookAt(CELL, ALL)]
    waited.step(m.Seen(CELL, 1, [("<cell 5>", 3, "f", "x()")], 0))
    clock.now_s += 3.0
    assert waited.step(None) == []
    assert waited.run.watch.ended
    result = waited.run.finish(flood_file=str)
    assert result.busy == ALL
    assert result.busy_states == {1: "is at line 3:  x()"}


def test_a_second_press_shows_stacks_and_ends_ranks(waited, clock):
    waited.step(watch.InterruptAsked(clock.now_s))
    assert waited.step(watch.InterruptAsked(clock.now_s)) == [m.LookAt(CELL, ALL), m.Interrupt(CELL, ALL)]
    frames = [("<cell 5>", 3, "f", "x()"), ("/lib/a.py", 7, "g", "")]
    waited.step(m.Seen(CELL, 1, frames, 0))
    clock.now_s += 0.3
    waited.step(None)
    clock.now_s += 0.3
    assert waited.step(None) == [m.EndRanks(CELL, ALL, "it did not answer a second Ctrl-C")]
    result = waited.run.finish(flood_file=str)
    assert result.stacks == {1: "      cell 5, line 3, in f  x()\n      /lib/a.py, line 7, in g"}
    assert result.killed == ALL
    assert result.is_broken


def test_a_timeout_is_told_once(clock):
    waited = Waited(clock, timeout_s=2.0)
    clock.now_s += 2.0
    assert waited.step(None) == []
    clock.now_s += 0.1
    assert waited.step(None) == [m.Interrupt(CELL, ALL)]
    assert waited.step(None, None) == []
    assert waited.run.watch.timed_out


def test_while_nothing_arrives_the_agent_is_looked_at(waited):
    waited.step(None, m.Replies(CELL, []), None)
    assert waited.checks == 2


def test_an_agent_that_says_farewell_ends_the_wait(waited):
    with pytest.raises(LinkError, match=r"^the cluster ended: idle; type  %hpc stop  and then  %hpc start$"):
        waited.step(m.Farewell("idle"))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (m.CellRefused(CELL, "another notebook was faster"), r"^another notebook was faster$"),
        (m.CellBegan(CELL, "cell 7", ALL, 1, 0), r"^another notebook began cell 7$"),
    ],
)
def test_a_cell_whose_number_is_taken_by_another_notebook(waited, message, words):
    with pytest.raises(ClusterStateError, match=words):
        waited.step(message)


def test_cells_of_other_notebooks_are_none_of_ours(waited):
    assert waited.step(m.CellRefused(CELL + 1, "x"), m.CellBegan(CELL + 1, "cell 8", ALL, 1, 0)) == []


def test_both_waits_end_with_the_cell(clock):
    for wait in (lambda waited: drive(waited.wait.wait()), lambda waited: asyncio.run(drive_async(waited.wait.wait()))):
        waited = Waited(clock)
        waited.inbox.put(m.Replies(CELL, replies(1)))
        waited.inbox.put(m.CellDone(CELL, replies(0), {}, {}, {}, 3))
        wait(waited)
        assert waited.run.watch.ended
        assert waited.updates == 2


# --- ranks that are forked again ----------------------------------------------------------------------------------


def ready(rank):
    return m.RankReady(rank, 1, "n1", "cpu", {})


def exited(rank, *, expected=False):
    return m.RankExited(rank, 1, 1, ["ImportError: x", "bye"], expected, "", "", 0.0, False)


def test_ranks_that_are_ready(clock):
    inbox = Inbox()
    for message in (ready(1), exited(2, expected=True), exited(0), m.Stage("x", 0, 1), ready(2)):
        inbox.put(message)
    drive(await_ranks(inbox, RankSet([1, 2]), timeout_s=1.0))


def test_a_rank_that_ends_before_it_is_ready(clock):
    inbox = Inbox()
    inbox.put(exited(2))
    with pytest.raises(LaunchError) as caught:
        drive(await_ranks(inbox, RankSet([1, 2]), timeout_s=1.0))
    assert str(caught.value) == "rank 2 ended with status 1 before it was ready\n    ImportError: x\n    bye"


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (watch.InterruptAsked(), CellInterrupted, r"^it was interrupted before ranks 1,2 were ready$"),
        (watch.LetGo(), ClusterStateError, r"^this notebook let go of the cluster$"),
        (m.Farewell("idle"), LinkError, r"^the cluster ended: idle$"),
    ],
)
def test_what_else_ends_the_wait_for_ranks(clock, event, kind, words):
    inbox = Inbox()
    inbox.put(event)
    with pytest.raises(kind, match=words):
        drive(await_ranks(inbox, RankSet([1, 2]), timeout_s=1.0))


def test_ranks_that_are_not_ready_in_time(clock):
    inbox = Inbox()
    inbox.take = lambda _: setattr(clock, "now_s", clock.now_s + 0.4)
    with pytest.raises(LaunchError, match=r"^ranks 2,3 not ready after 30 s; type  %hpc logs 2$"):
        drive(await_ranks(inbox, RankSet([2, 3]), timeout_s=30.0))
