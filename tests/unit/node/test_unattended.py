"""Cells that no notebook listens to: the same decisions, carried out by the agent."""

from __future__ import annotations

from dataclasses import fields

import pytest

from hpcnb.core import messages as m
from hpcnb.core.board import Activity, stamp
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.node.unattended import Unattended

BOTH = RankSet.all(2)
KEY = 7


class Node:
    """What is said and ordered, and a clock."""

    def __init__(self, grace_s=1.0):
        self.now_s = 100.0
        self.attended = False
        self.said, self.ordered = [], []
        self.unattended = Unattended(
            grace_s, lambda _: self.attended, self.ordered.append, self.said.append, lambda: self.now_s
        )
        self.unattended.begin(5, BOTH)

    def reply(self, rank, error=None):
        values = {field.name: None for field in fields(m.CellReply)} | {"cell": 5, "rank": rank, "error": error}
        self.unattended.heard(m.CellReply(**values))

    def look(self, after_s, activity=Activity.IDLE):
        """Rank 0 waits in an all_reduce that rank 1 has not issued."""
        self.now_s += after_s
        inside = Inside("all_reduce #1 (4 B, line 2)", KEY, stamp(0, 1), BOTH, self.now_s - 100.0)
        self.unattended.looked(
            5,
            {
                0: RankFacts(Activity.CELL, 5, inside=inside, issues={KEY: Issues(stamp(0, 1))}),
                1: RankFacts(activity, 0 if activity == Activity.IDLE else 5, issues={KEY: Issues(0)}),
            },
        )


@pytest.fixture
def node():
    return Node()


def test_a_rank_that_waits_in_vain_is_released_and_why_is_kept(node):
    node.look(0.2)
    node.reply(1, {"ename": "ValueError", "evalue": "t"})
    node.look(0.2)
    assert node.ordered == []
    node.look(1.2)
    (release,) = node.ordered
    assert (release.cell, release.ranks, release.mismatch) == (5, RankSet([0]), False)
    assert "rank 1 raised ValueError" in release.reason
    assert node.said == [m.Explained(5, release.reason)]


def test_who_listens_decides(node):
    node.attended = True
    node.reply(1, {"ename": "ValueError", "evalue": "t"})
    node.look(0.2)
    node.look(5.0)
    assert (node.ordered, node.said) == ([], [])
    node.attended = False  # the notebook is killed now
    node.look(0.2)
    node.look(1.2)
    assert [type(order) for order in node.ordered] == [m.Release]


def test_a_rank_that_still_works_is_waited_for(node):
    for _ in range(20):
        node.look(1.0, activity=Activity.CELL)
    assert not [order for order in node.ordered if isinstance(order, m.Release)]


def test_nobody_is_released_while_a_person_looks_at_a_rank(node):
    node.look(20.0, activity=Activity.DEBUGGER)
    assert not [order for order in node.ordered if isinstance(order, m.Release)]


def test_a_death_is_named(node):
    node.look(0.1)
    node.unattended.exited(m.RankExited(1, 4242, -9, [], False, "", "", 0.0, False))
    node.look(0.1)
    node.look(0.3)
    assert "rank 1 was ended by SIGKILL" in node.ordered[0].reason


def test_without_grace_nobody_is_released():
    node = Node(float("inf"))
    node.reply(1)
    node.look(1000.0)
    assert not [order for order in node.ordered if isinstance(order, m.Release)]


def test_cells_that_are_over_are_forgotten(node):
    node.unattended.forget(5)
    node.reply(1)
    node.look(10.0)
    assert node.ordered == []
