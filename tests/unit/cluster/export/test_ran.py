"""Which cells are kept, and which become a script."""

from __future__ import annotations

import pytest

from hpcnb.cluster.export.ran import RanCell, RanCells, choose, shortened
from hpcnb.cluster.result import CellResult, RankError, RankExit
from hpcnb.core.errors import ExportError, OptionError
from hpcnb.core.ranks import RankSet

ALL = RankSet([0, 1])


def typed(number, how=""):
    return RanCell(f"cell In[{number}]", f"x = {number}", "all", ALL, how)


def ran(number, how=""):
    return RanCell(f"cell {number}", f"x = {number}", "all", ALL, how)


CELLS = [typed(2), typed(3, "failed on rank 1"), typed(4), ran(1), typed(6), typed(4)]


def names(choice):
    return [cell.name for cell in choice.cells]


def test_without_a_choice_all_that_ended_well_in_order():
    choice = choose(CELLS)
    assert names(choice) == ["In[2]", "In[4]", "cell 1", "In[6]", "In[4]"]
    assert choice.left_out == ("In[3] (failed on rank 1)",)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("2", ["In[2]"]),
        ("2-4", ["In[2]", "In[4]", "In[4]"]),
        ("6, 2", ["In[2]", "In[6]"]),
        ("3", ["In[3]"]),
        ("2-4,3", ["In[2]", "In[3]", "In[4]", "In[4]"]),
        ([6, 2], ["In[2]", "In[6]"]),
        ("1-999999999", ["In[2]", "In[4]", "In[6]", "In[4]"]),
    ],
)
def test_cells_by_number(asked, chosen):
    assert names(choose(CELLS, asked)) == chosen


def test_what_a_range_leaves_out_is_said():
    assert choose(CELLS, "2-4").left_out == ("In[3] (failed on rank 1)", "cell 1 (of cluster.run, has no number here)")


def test_numbers_are_those_of_run_where_nothing_was_typed():
    assert names(choose([ran(1), ran(2)], "2")) == ["cell 2"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("5", r"no parallel cell In\[5\] has run; there are: In\[2\]-In\[4\], In\[6\]"),
        ("7-9", r"no parallel cell In\[7\]-In\[9\] has run; there are: In\[2\]-In\[4\], In\[6\]$"),
        ("1", r"no parallel cell In\[1\]"),
    ],
)
def test_numbers_that_are_not_there(asked, words):
    with pytest.raises(ExportError, match=words):
        choose(CELLS, asked)


@pytest.mark.parametrize("asked", ["", "a", "1-", "3;4", "-1", [], [1.5], "1,,2"])
def test_numbers_that_cannot_be_read(asked):
    with pytest.raises(OptionError, match="write the numbers that the notebook shows, for example 3-7,9"):
        choose(CELLS, asked)


def test_a_range_that_runs_backwards():
    with pytest.raises(OptionError, match="4-2 runs backwards, write 2-4"):
        choose(CELLS, "4-2")


def test_nothing_to_export():
    with pytest.raises(ExportError, match=r"ended well on this cluster\. Run one first, then export"):
        choose([])
    with pytest.raises(ExportError, match=r"these did not: In\[3\] \(was interrupted\)"):
        choose([typed(3, "was interrupted")])
    with pytest.raises(ExportError, match=r"none of these cells ended well: In\[3\] \(was interrupted\)"):
        choose([typed(3, "was interrupted")], "1-5")


def error(operation=""):
    ename = "CollectiveAborted" if operation else "ValueError"
    return RankError(ename, "x", "cell In[1]", 1, "", "", "", operation)


@pytest.mark.parametrize(
    ("fields", "how"),
    [
        ({}, ""),
        ({"errors": {0: error("all_reduce #1 (4 B)"), 1: error()}}, "failed on rank 1"),
        ({"errors": {0: error("all_reduce #1 (4 B)")}}, "failed on rank 0"),
        ({"exits": {1: -9}, "exit_details": {1: RankExit(-9, "", "", ())}}, "failed on rank 1"),
        ({"interrupted": True}, "was interrupted"),
        ({"interrupted": True, "timeout_s": 2.5}, "ran longer than its timeout of 2.5 s"),
        ({"busy": RankSet([1])}, "had not ended on rank 1"),
    ],
)
def test_how_a_cell_ended(fields, how):
    cells = RanCells()
    cells.add("x", "all", 2, CellResult(1, "cell In[1]", ALL, 2, **fields))
    assert [each.how for each in cells.cells] == [how]


def test_the_oldest_cells_go():
    cells = RanCells(num_bytes=3000)
    for number in range(5):
        cells.add("x" * 600, "all", 2, CellResult(number, f"cell In[{number}]", ALL, 2))
    assert [each.number for each in cells.cells] == [2, 3, 4]
    assert cells.num_dropped == 2
    cells.add("x" * 9000, "all", 2, CellResult(9, "cell In[9]", ALL, 2))
    assert [each.number for each in cells.cells] == [9]
    cells.add_other("call of f")
    cells.clear()
    assert (cells.cells, cells.others, cells.num_dropped, len(cells)) == ((), (), 0, 0)


def test_names_in_short():
    assert shortened(["In[2]", "In[3]", "In[4]", "In[7]", "cell 8", "In[9]"]) == "In[2]-In[4], In[7], cell 8, In[9]"
    assert shortened([]) == ""
