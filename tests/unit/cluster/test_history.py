from __future__ import annotations

from hpcnb.cluster.history import History
from hpcnb.cluster.result import CellResult, RawSpans
from hpcnb.core.ranks import RankSet


def result(cell, size):
    spans = RawSpans(0, 1, {}, {0: bytes(size)}, {}, {}) if size else None
    return CellResult(cell, f"cell {cell}", RankSet([0]), 1, spans=spans)


def kept(history):
    return [each.cell for each in history]


def test_the_last_cells_are_kept():
    history = History(3, 1000)
    for cell in range(5):
        history.append(result(cell, 10))
    assert kept(history) == [2, 3, 4]
    assert len(history) == 3


def test_cells_go_when_their_spans_do_not_fit():
    history = History(10, 100)
    for cell in range(5):
        history.append(result(cell, 40))
    assert kept(history) == [3, 4]
    history.append(result(5, 0))
    assert kept(history) == [3, 4, 5]


def test_the_last_cell_is_kept_whatever_its_size():
    history = History(10, 100)
    history.append(result(0, 50))
    history.append(result(1, 5000))
    assert kept(history) == [1]
    history.append(result(2, 10))
    assert kept(history) == [2]
