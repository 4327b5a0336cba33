"""The relay with several cells at once: every reply and every line goes to the cell it is of."""

from __future__ import annotations

import pytest

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.relay import CellRelay


class FakeRank:
    """A rank process without a process."""

    def __init__(self, rank):
        self.rank = rank
        self.alive = True
        self.cell = 0

    def begin_cell(self, cell, *_):
        self.cell = cell

    def send(self, _):
        return True

    def show(self, entries):
        return entries

    def read_pipes(self):
        return []

    def held(self):
        return None

    def end_cell(self):
        self.cell = 0
        return []

    def drain_spans(self):
        pass

    def take_spans(self, _):
        return b"", {}, 0

    def log(self, _):
        pass


class Relayed:
    def __init__(self, num_ranks):
        self.now_s = 0.0
        self.said = []
        self.ranks = {rank: FakeRank(rank) for rank in range(num_ranks)}
        self.relay = CellRelay(self.ranks, self.said.append, lambda: self.now_s)

    def run(self, cell, ranks):
        self.relay.begin(m.RunCell(cell, RankSet(ranks), "", f"cell {cell}", 1, False, 100, 1000, is_init=False))

    def reply(self, cell, rank):
        self.relay.hear(
            self.ranks[rank], m.CellReply(cell, rank, True, 0, 1, "", False, False, b"", "", None, [], False)
        )

    def print(self, cell, rank, text):
        self.relay.hear(self.ranks[rank], m.Text(cell, "stdout", text))

    def take(self, kind):
        found = [message for message in self.said if isinstance(message, kind)]
        self.said.clear()
        return found


@pytest.fixture
def relayed():
    return Relayed(3)


def test_a_cell_ends_with_its_last_reply(relayed):
    relayed.run(1, [0, 1])
    relayed.reply(1, 0)
    assert relayed.take(m.CellDone) == []
    relayed.reply(1, 1)
    (done,) = relayed.take(m.CellDone)
    assert [fields[1] for fields in done.replies] == [0, 1]


def test_a_reply_is_told_early_when_others_run_on(relayed):
    relayed.run(1, [0, 1])
    relayed.reply(1, 0)
    relayed.now_s = relayed.relay.due_s + 1
    relayed.relay.tick(relayed.now_s)
    (early,) = relayed.take(m.Replies)
    assert [fields[1] for fields in early.replies] == [0]
    relayed.reply(1, 1)
    (done,) = relayed.take(m.CellDone)
    assert [fields[1] for fields in done.replies] == [1]  # not twice


def test_two_cells_at_once_keep_what_is_theirs(relayed):
    relayed.run(1, [0, 1])
    relayed.reply(1, 1)
    relayed.run(2, [1, 2])
    relayed.print(1, 0, "of the first\n")
    relayed.print(2, 1, "of the second\n")
    relayed.relay.tick(100.0)
    assert {output.cell: output.entries[0][1] for output in relayed.take(m.Output)} == {
        1: [("stdout", "of the first\n")],
        2: [("stdout", "of the second\n")],
    }
    relayed.reply(1, 0)
    (done,) = relayed.take(m.CellDone)
    assert done.cell == 1
    relayed.reply(2, 1)
    relayed.reply(2, 2)
    (done,) = relayed.take(m.CellDone)
    assert (done.cell, [fields[1] for fields in done.replies]) == (2, [1, 2])


def test_a_rank_that_ends_is_not_waited_for(relayed):
    relayed.run(1, [0, 1])
    relayed.reply(1, 0)
    cell = relayed.relay.lost(relayed.ranks[1])
    assert relayed.take(m.CellDone) == []  # its end is told first
    relayed.relay.forget(cell, 1)
    assert len(relayed.take(m.CellDone)) == 1
    assert relayed.relay.due_s is None


def test_a_late_reply_of_a_cell_that_is_over_is_no_reply_of_the_next(relayed):
    relayed.run(1, [0])
    relayed.reply(1, 0)
    relayed.run(2, [0])
    relayed.take(m.CellDone)
    relayed.reply(1, 0)
    assert relayed.take(m.CellDone) == []


def test_a_question_follows_the_output_before_it(relayed):
    relayed.run(1, [0, 1])
    relayed.print(1, 1, "> stopped here\n")
    relayed.relay.hear(relayed.ranks[1], m.InputRequest(1, 1, 1, "(Pdb) ", True))
    assert [type(message) for message in relayed.said] == [m.Output, m.InputRequest]
    relayed.said.clear()
    relayed.relay.hear(relayed.ranks[1], m.DebuggerLeft(1, 1))
    relayed.relay.hear(relayed.ranks[1], m.InputRequest(7, 1, 2, "of an earlier cell", False))
    assert relayed.said == [m.DebuggerLeft(1, 1)]


def test_a_question_shows_what_a_flood_has_held_back(relayed):
    relayed.run(1, [0])
    relayed.ranks[0].held = lambda: (9, "newest")
    relayed.ranks[0].release = lambda: [("cut", "7 lines not shown"), ("stdout", "newest\n")]
    relayed.relay.hear(relayed.ranks[0], m.InputRequest(1, 0, 1, "go on? ", False))
    (shown,) = relayed.take(m.Output)
    assert shown.entries == [(RankSet([0]), [("cut", "7 lines not shown"), ("stdout", "newest\n")])]
