"""What is sent to ranks and waited for: mending around cells, and Ctrl-C in it. The agent is a fake that answers at once."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcnb.cluster import waiting
from hpcnb.cluster.inbox import drive, drive_async
from hpcnb.cluster.submission import Submitter
from hpcnb.core import messages as m
from hpcnb.core.errors import CellInterrupted, ClusterStateError, TransferError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

ALL = RankSet.all(2)
INTERRUPTED = {
    "ename": "KeyboardInterrupt", "evalue": "", "cell": "", "line": 0, "code": "", "traceback": "", "key": "",
}  # fmt: skip


def answer(cell, rank, *, is_broken=False, value_pickle=b"", error=None):
    fields = {
        "cell": cell, "rank": rank, "ok": error is None, "start_ns": 0, "end_ns": 1, "value": "", "has_value": False,
        "value_shown": False, "value_pickle": value_pickle, "value_problem": "", "error": error, "notices": [],
        "is_broken": is_broken, "issued": [],
    }  # fmt: skip
    return [fields[name] for name in m.names_of(m.CellReply(**fields))]


def done(cell, *answers):
    return m.CellDone(cell, list(answers), {}, {}, {}, 9)


def ready(rank):
    return m.RankReady(rank, 1, "n1", "cpu", {})


def exited(rank):
    return m.RankExited(rank, 1, -9, [], False, "", "", 0.0, False)


class FakeAgent:
    """Answers for two ranks; ``on`` says what else happens when a message of a kind comes."""

    def __init__(self, **options):
        self.sent = []
        self.on = {}
        self.notebooks, self.unseen = 1, []
        self.link = SimpleNamespace(send=self.send)
        self.folder = SimpleNamespace(flood=lambda cell, rank: Path(f"{cell}-{rank}"))
        self.submitter = Submitter(
            MeshSpec.parse("dp=2"), lambda: self, grace_s=1.0, **{"auto_restart": False, **options}
        )

    def check(self):
        pass

    def ask(self, question):
        described = {"generation": 3, "notebooks": self.notebooks, "unseen": self.unseen, "running": [],
                     "is_half_scaled": False}  # fmt: skip
        return {"cluster": described, "init cells": [["init()", "cell 1", 1, ALL]], "status": []}[question]

    def say(self, *messages):
        for message in messages:
            self.submitter.hear(m.decode(m.encode(message)), is_starting=False)

    def send(self, message):
        self.sent.append(message)
        if (happens := self.on.get(type(message))) is not None:
            happens(message)
        elif isinstance(message, m.ListGroups):
            packed = pickle.dumps((0, [], []))
            self.say(done(message.cell, *(answer(message.cell, rank, value_pickle=packed) for rank in message.ranks)))
        elif isinstance(message, m.RunCell | m.Rebuild):
            self.say(done(message.cell, *(answer(message.cell, rank) for rank in message.ranks)))
        elif isinstance(message, m.RestartRanks):
            self.say(*map(ready, message.ranks))

    def kinds(self):
        kinds, self.sent[:] = [type(message).__name__ for message in self.sent], []
        return kinds

    def run(self, *, is_async=False, on=ALL):
        def message(cell, ranks):
            return m.RunCell(cell, ranks, "x", "cell 7", 1, False, 9, 99, False)

        with self.submitter.command():
            steps = self.submitter.cell(message, on, label="cell 7")
            return asyncio.run(drive_async(steps)) if is_async else drive(steps)

    def follow(self, cell):
        with self.submitter.command():
            return drive(self.submitter.follow(cell))

    def breaks(self, message):
        """A cell breaks the groups."""
        self.on.pop(type(message))
        self.say(done(message.cell, *(answer(message.cell, rank, is_broken=True) for rank in message.ranks)))

    def kills(self, message):
        """Rank 1 dies in the cell."""
        self.on.pop(type(message))
        self.say(exited(1), done(message.cell, answer(message.cell, 0)))


@pytest.mark.parametrize("is_async", [False, True])
def test_groups_are_mended_after_the_cell_that_broke_them(is_async):
    agent = FakeAgent()
    agent.on[m.RunCell] = agent.breaks
    result = agent.run(is_async=is_async)
    assert agent.kinds() == ["RunCell", "ListGroups", "Rebuild"]
    assert result.recovery[0].startswith("process groups built again (generation 4, ")
    assert not agent.submitter.is_broken


@pytest.mark.parametrize("is_async", [False, True])
def test_a_dead_rank_is_replaced_and_init_cells_run_again(is_async):
    agent = FakeAgent(auto_restart=True)
    agent.on[m.RunCell] = agent.kills
    result = agent.run(is_async=is_async)
    assert agent.kinds() == ["RunCell", "ListGroups", "RestartRanks", "Rebuild", "RunCell", "ListGroups", "ListGroups"]
    assert "rank 1 was replaced in " in result.recovery[0]
    assert "run again there: cell 1" in result.recovery[0]
    assert not agent.submitter.is_broken


def test_the_loop_runs_on_while_a_new_rank_is_awaited():
    agent = FakeAgent(auto_restart=True)
    agent.on[m.RunCell] = agent.kills
    turns = []

    def restarts(message):
        def later():
            turns.append(agent.submitter.alive)
            agent.say(ready(1))

        asyncio.get_running_loop().call_later(0.02, later)

    agent.on[m.RestartRanks] = restarts
    agent.run(is_async=True)
    assert turns == [RankSet([0])]


def test_nothing_else_is_submitted_while_a_new_rank_is_awaited():
    agent = FakeAgent(auto_restart=True)
    agent.on[m.RunCell] = agent.kills

    def restarts(message):
        with pytest.raises(ClusterStateError, match="another cell is running"):
            agent.run()
        agent.say(ready(1))

    agent.on[m.RestartRanks] = restarts
    assert "was replaced" in agent.run().recovery[0]


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_ctrl_c_while_a_new_rank_is_awaited(is_async):
    agent = FakeAgent(auto_restart=True)
    agent.on[m.RunCell] = agent.kills
    agent.on[m.RestartRanks] = lambda _: threading.Timer(0.02, agent.submitter.interrupt).start()
    result = agent.run(is_async=is_async)
    assert result.recovery == [
        "rank 1 not replaced, since it was interrupted before rank 1 was ready; type  %hpc restart-rank  to try again"
    ]
    assert agent.submitter.is_broken
    agent.kinds()
    agent.say(ready(1))  # it comes all the same
    assert agent.run(is_async=is_async).ok
    assert agent.kinds() == ["ListGroups", "Rebuild", "RunCell"]
    assert not agent.submitter.is_broken


def test_ctrl_c_between_two_messages_of_mending():
    agent = FakeAgent()
    agent.on[m.RunCell] = agent.breaks

    def lists(message):
        del agent.on[m.ListGroups]
        agent.send(message)
        agent.submitter.interrupt()  # it has been answered

    agent.on[m.ListGroups] = lists
    result = agent.run()
    assert result.recovery == ["building process groups again was interrupted; the next cell begins with it"]
    assert "Rebuild" not in agent.kinds()
    assert agent.run().ok
    assert agent.kinds() == ["ListGroups", "Rebuild", "RunCell"]


def test_ctrl_c_while_ranks_build_groups():
    agent = FakeAgent()
    agent.on[m.RunCell] = agent.breaks

    def stops(message):
        number = agent.sent[-2].cell
        agent.on.pop(m.StopAtBoundary)
        agent.say(done(number, *(answer(number, rank, is_broken=True, error=INTERRUPTED) for rank in (0, 1))))

    agent.on[m.StopAtBoundary] = stops
    agent.on[m.Rebuild] = lambda message: agent.on.pop(m.Rebuild) and agent.submitter.interrupt()
    result = agent.run()
    assert result.recovery == ["building process groups again was interrupted; the next cell begins with it"]
    assert agent.submitter.is_broken
    agent.kinds()
    assert agent.run().ok
    assert agent.kinds() == ["ListGroups", "Rebuild", "RunCell"]


def test_a_rank_that_dies_while_groups_are_mended_is_told_and_nobody_waits_for_it():
    agent = FakeAgent()
    agent.on[m.RunCell] = agent.breaks

    def gives_up(message):
        agent.say(done(message.cell, answer(message.cell, 0, is_broken=True, error=INTERRUPTED)))

    agent.on[m.Rebuild] = lambda message: agent.say(exited(1))
    agent.on[m.Interrupt] = gives_up
    began_s = time.monotonic()
    result = agent.run()
    assert time.monotonic() - began_s < 5.0
    (words,) = result.recovery
    assert words.splitlines() == [
        "process groups could not be built again; type  %hpc recover  to try once more",
        "rank 1 was ended by SIGKILL meanwhile",
    ]
    assert agent.submitter.is_broken
    assert agent.submitter.roster.dead == RankSet([1])


def test_a_rank_that_dies_while_another_is_replaced_is_told_and_nobody_waits_for_it():
    agent = FakeAgent()
    agent.on[m.RestartRanks] = lambda _: None
    agent.on[m.Rebuild] = lambda message: agent.say(exited(0), done(message.cell))
    with agent.submitter.command(), pytest.raises(ClusterStateError, match=r"^rank 0 was ended by SIGKILL meanwhile$"):
        drive(agent.submitter.restart(RankSet([1])))
    assert agent.submitter.is_broken


def test_why_groups_cannot_be_used_while_another_rank_is_busy():
    agent = FakeAgent()
    lost = {"ename": "CollectiveAborted", "evalue": "x", "cell": "", "line": 0, "code": "", "traceback": "", "key": "x"}
    agent.on[m.RunCell] = lambda message: agent.say(
        done(message.cell, answer(message.cell, 0, error=lost, is_broken=True))
    )
    agent.say(m.CellBegan(1, "cell In[4]", RankSet([1]), 1, 0))
    agent.submitter._is_broken = True
    result = agent.run(on=RankSet([0]))
    assert result.explanations == ["process groups cannot be used while rank 1 still runs an earlier cell"]


def test_ctrl_c_while_groups_are_mended_before_a_cell():
    agent = FakeAgent()
    agent.say(m.Welcome(2, "", "", "", 1, 0, 2, 3, 5, is_broken=True))
    agent.on[m.ListGroups] = lambda message: agent.submitter.interrupt()
    agent.on[m.StopAtBoundary] = lambda message: agent.say(done(6, answer(6, 0), answer(6, 1)))
    with pytest.raises(
        CellInterrupted, match=r"^interrupted while process groups were built again; cell 7 was not run$"
    ):
        agent.run()
    assert "RunCell" not in agent.kinds()
    agent.on.clear()
    assert agent.run().ok
    assert agent.kinds() == ["ListGroups", "Rebuild", "RunCell"]


def test_ctrl_c_while_init_cells_run_again():
    agent = FakeAgent(auto_restart=True)
    agent.ask = lambda question, ask=agent.ask: (
        [["init()", "cell 1", 1, ALL], ["more()", "cell 2", 1, ALL]] if question == "init cells" else ask(question)
    )
    agent.on[m.RunCell] = lambda message: (agent.kills(message), agent.on.update({m.RunCell: inits}))

    def inits(message):
        del agent.on[m.RunCell]
        agent.submitter.interrupt()
        agent.say(done(message.cell, answer(message.cell, 1)))

    (words,) = agent.run().recovery
    assert "cell 1 failed there: it was interrupted\ncell 2 failed there: it was not run: it was interrupted" in words
    assert agent.kinds().count("RunCell") == 2
    assert not agent.submitter.is_broken  # ranks and groups are whole


def test_ctrl_c_before_the_first_wait_is_not_lost():
    command = waiting.Command()
    command.press()
    inbox = waiting.Inbox()
    with command.waits(inbox):
        assert inbox.take(0) is not None
        assert inbox.take(0) is None


# --- other notebooks ----------------------------------------------------------------------------------------------


def began(cell, label="cell 5"):
    return m.CellBegan(cell, label, ALL, 1, 5)


def rebuilds(cell):
    return began(cell, "rebuild"), done(cell, answer(cell, 0), answer(cell, 1))


def follows(agent, *then):
    """The cell that is followed breaks the groups; then this is said."""
    agent.on[m.Follow] = lambda message: agent.say(
        began(5), done(5, answer(5, 0, is_broken=True), answer(5, 1, is_broken=True)), *then
    )


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(waiting, "_OTHERS_BEGIN_S", 0.2)


def test_who_submitted_a_cell_mends():
    agent = FakeAgent()
    agent.notebooks = 2
    follows(agent, began(6, "listgroups"), done(6, answer(6, 0, is_broken=True)), *rebuilds(7))
    result = agent.follow(5)
    assert agent.kinds() == ["Follow"]
    assert result.recovery == [
        "process groups built again by another notebook (generation 3)", "all names on all ranks are intact",
    ]  # fmt: skip
    assert not agent.submitter.is_broken


def test_who_follows_mends_if_nobody_else_is_connected():
    agent = FakeAgent()
    follows(agent)
    assert agent.follow(5).recovery[0].startswith("process groups built again (generation 4")
    assert agent.kinds() == ["Follow", "ListGroups", "Rebuild"]


def test_who_follows_mends_if_the_others_do_not(impatient):
    agent = FakeAgent()
    agent.notebooks = 2
    follows(agent)
    assert agent.follow(5).recovery[0].startswith("process groups built again (generation 4")
    assert not agent.submitter.is_broken


def test_who_follows_mends_if_the_other_fails(impatient):
    agent = FakeAgent()
    agent.notebooks = 2
    follows(agent, began(6, "rebuild"), done(6, answer(6, 0), answer(6, 1, is_broken=True)))
    assert agent.follow(5).recovery[0].startswith("process groups built again (generation 4")


def test_waiting_for_the_other_can_be_interrupted():
    agent = FakeAgent()
    agent.notebooks = 2
    follows(agent, began(6, "rebuild"))
    agent.ask = lambda question, ask=agent.ask: (
        threading.Timer(0.05, agent.submitter.interrupt).start() if agent.sent else None,
        ask(question),
    )[1]
    result = agent.follow(5)
    assert result.recovery == ["another notebook builds process groups again; waiting for it was interrupted"]
    assert agent.submitter.is_broken


def test_two_that_mend_at_the_same_moment(impatient):
    agent = FakeAgent()
    agent.notebooks = 2
    agent.on[m.RunCell] = agent.breaks

    def is_late(message):
        del agent.on[m.ListGroups]
        agent.say(began(8, "rebuild"), m.CellRefused(message.cell, "another notebook was faster"))
        agent.say(done(8, answer(8, 0), answer(8, 1)))

    agent.on[m.ListGroups] = is_late
    result = agent.run()
    assert result.recovery[0] == "process groups built again by another notebook (generation 3)"
    assert agent.kinds() == ["RunCell", "ListGroups"]
    assert agent.run().ok
    assert agent.kinds() == ["RunCell"]


def test_a_finished_cell_does_not_mend_what_is_whole_again():
    agent = FakeAgent()
    agent.unseen = [{"cell": 5}]
    follows(agent, *rebuilds(6))
    agent.follow(5)
    assert agent.kinds() == ["Follow"]


@pytest.mark.parametrize("is_told", [False, True])
def test_who_comes_later_mends_before_its_first_cell(is_told):
    agent = FakeAgent()
    agent.say(m.Welcome(2, "", "", "", 1, 0, 2, 3, 5, is_broken=is_told))
    if not is_told:  # it was connected when another notebook broke groups, and left
        agent.say(began(6), done(6, answer(6, 0, is_broken=True), answer(6, 1)))
    assert agent.submitter.is_broken
    assert agent.run().ok
    assert agent.kinds() == ["ListGroups", "Rebuild", "RunCell"]
    agent.run()
    assert agent.kinds() == ["RunCell"]


def test_what_another_notebook_mended_is_not_mended_again():
    agent = FakeAgent()
    agent.say(m.Welcome(2, "", "", "", 1, 0, 2, 3, 5, is_broken=True), *rebuilds(6))
    assert not agent.submitter.is_broken


@pytest.mark.parametrize("error", [TransferError("Check.rng cannot be a int"), OSError("odd"), KeyboardInterrupt()])
def test_ranks_that_a_message_could_not_be_sent_to_are_free(error):
    agent = FakeAgent()

    def fails(_):
        raise error

    agent.on[m.RunCell] = fails
    with pytest.raises(type(error)):
        agent.run()
    assert not agent.submitter.busy
    del agent.on[m.RunCell]
    assert agent.run().ok


def test_what_the_agent_refused_is_not_waited_for():
    agent = FakeAgent()
    agent.on[m.RunCell] = lambda message: agent.say(
        m.CellRefused(message.cell, "the node agent refused what it was sent")
    )
    with pytest.raises(ClusterStateError, match="the node agent refused what it was sent"):
        agent.run()
    assert not agent.submitter.busy
