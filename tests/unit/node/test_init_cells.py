"""Which cells run again on a new rank: those that went well somewhere, each once."""

from __future__ import annotations

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.init_cells import InitCells


def cell(number, source):
    return m.RunCell(number, RankSet.all(2), source, f"cell In[{number}]", 2, False, 40, 4000, True)


def kept(cells):
    return [(source, label) for source, label, _, _ in cells.rows()]


def test_a_cell_is_kept_when_it_has_gone_well_on_a_rank():
    cells = InitCells()
    cells.began(cell(1, "a = 1"))
    assert cells.rows() == []  # and never is if it fails everywhere
    cells.began(cell(2, "b = 1"))
    cells.went_well(2)
    cells.went_well(2)  # the other rank
    cells.went_well(7)  # no such cell
    assert cells.rows() == [["b = 1", "cell In[2]", 2, RankSet.all(2)]]


def test_one_that_runs_again_counts_once_and_stays_if_it_fails_then():
    cells = InitCells()
    for number, source in ((1, "a = 1"), (2, "b = 1"), (3, "a = 1")):
        cells.began(cell(number, source))
        cells.went_well(number)
    assert kept(cells) == [("b = 1", "cell In[2]"), ("a = 1", "cell In[3]")]
    cells.began(cell(4, "b = 1"))
    assert kept(cells) == [("b = 1", "cell In[2]"), ("a = 1", "cell In[3]")]


def test_they_are_dropped_by_their_number():
    cells = InitCells()
    for number in (1, 2, 3):
        cells.began(cell(number, f"x = {number}"))
        cells.went_well(number)
    assert not cells.drop(0)
    assert not cells.drop(4)
    assert cells.drop(2)
    assert [source for source, _ in kept(cells)] == ["x = 1", "x = 3"]
    assert cells.drop(-1)
    assert cells.rows() == []


def test_cells_that_fail_do_not_pile_up():
    cells = InitCells()
    for number in range(100):
        cells.began(cell(number, f"x = {number}"))
    cells.went_well(3)
    assert cells.rows() == []
    cells.went_well(99)
    assert len(cells.rows()) == 1


def test_what_ran_on_all_ranks_is_for_all_ranks_of_another_number():
    cells = InitCells()
    only = m.RunCell(2, RankSet([1]), "b = 1", "cell In[2]", 2, False, 40, 4000, True)
    for message in (cell(1, "a = 1"), only, cell(3, "c = 1")):
        cells.began(message)
        if message.cell < 3:
            cells.went_well(message.cell)
    cells.scaled(2, 4)
    cells.went_well(3)
    assert [ranks for *_, ranks in cells.rows()] == [RankSet.all(4), RankSet([1]), RankSet.all(4)]
    cells.scaled(4, 1)
    assert [ranks for *_, ranks in cells.rows()] == [RankSet.all(1), RankSet([1]), RankSet.all(1)]
