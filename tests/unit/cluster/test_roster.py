"""Which ranks are busy, with whose cell: two notebooks that submit at the same moment."""

from __future__ import annotations

import pytest

from hpcnb.cluster.roster import Roster
from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet

REFUSED = m.CellRefused(5, "number 5 is taken")


def began(cell, ranks):
    return m.CellBegan(cell, f"cell {cell}", RankSet(ranks), 1, 1)


def done(cell):
    return m.CellDone(cell, [], {}, {}, {}, 9)


@pytest.fixture
def roster():
    return Roster(4)


def test_a_refused_cell_does_not_free_ranks_of_the_other_cell_of_its_number(roster):
    roster.begin(RankSet([0, 1]), 5)
    roster.hear(began(5, [1, 2]))
    assert roster.busy == RankSet([1, 2])
    roster.hear(REFUSED)
    assert roster.busy == RankSet([1, 2])
    roster.hear(done(5))
    assert roster.busy == RankSet()


def test_the_other_cell_may_be_heard_of_before_ours_has_begun(roster):
    roster.hear(began(5, [1, 2]))
    roster.begin(RankSet([1, 3]), 5)
    assert roster.busy == RankSet([1, 2, 3])
    roster.hear(REFUSED)
    assert roster.busy == RankSet([1, 2])


def test_a_cell_that_was_refused_for_busy_ranks_frees_its_own_only(roster):
    roster.hear(began(4, [0]))
    roster.begin(RankSet([0, 1]), 5)
    roster.hear(REFUSED)
    assert roster.busy == RankSet([0])


def test_ours_runs_on_when_another_one_of_ours_is_taken_back(roster):
    roster.begin(RankSet([0]), 4)
    roster.begin(RankSet([1]), 5)
    roster.take_back(5)
    assert roster.busy == RankSet([0])
    roster.hear(m.RankExited(0, 1, -9, [], False, "", "", 0.0, False))
    assert roster.busy == RankSet()


def test_ranks_that_are_added_are_dead_until_they_are_ready(roster):
    roster.hear(m.Scaled(6, "dp=6", []))
    assert (roster.alive, roster.dead) == (RankSet.all(4), RankSet([4, 5]))
    for rank in (4, 5):
        roster.hear(m.RankReady(rank, 1, "n1", "cpu", {}))
    assert roster.alive == RankSet.all(6)
    assert roster.hosts()[4:] == ("n1", "n1")


def test_ranks_that_are_removed_are_forgotten(roster):
    roster.begin(RankSet([1, 3]), 5)
    roster.hear(m.RankExited(2, 1, -9, [], False, "", "", 0.0, False))
    roster.hear(m.Scaled(2, "dp=2", []))
    assert (roster.alive, roster.dead, roster.busy) == (RankSet.all(2), RankSet(), RankSet([1]))
    roster.hear(m.RankExited(3, 1, -9, [], False, "", "", 0.0, False))  # of the one that was removed
    assert roster.dead == RankSet()
    roster.hear(m.Scaled(4, "dp=4", []))
    assert roster.dead == RankSet([2, 3])
