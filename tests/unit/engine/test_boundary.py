"""What a rank says of itself on the board, and the steps at which it stops."""

from __future__ import annotations

import pytest

from hpcnb.core.board import Activity, ActivityState, Board, StopState, new_board
from hpcnb.core.ranks import RankSet
from hpcnb.engine import boundary as boundary_module
from hpcnb.engine.boundary import Boundary

CELL = 5


@pytest.fixture
def board():
    return Board(new_board(3), RankSet(range(2, 2 + 3)))


@pytest.fixture
def boundary(board):
    return Boundary(board, 3)


@pytest.fixture
def pauses(monkeypatch):
    """What happens while the rank waits at a boundary: functions, one for each pause."""
    happenings = []
    monkeypatch.setattr(boundary_module.time, "sleep", lambda _: happenings.pop(0)())
    return happenings


def test_what_a_cell_does(board, boundary):
    boundary.begin_cell(CELL)
    assert board.activity(3) == ActivityState(Activity.CELL, False, False, CELL, 0, 0)
    boundary.enter_loop()
    boundary.reach()
    boundary.enter_loop()
    boundary.reach()
    boundary.reach()
    assert board.activity(3) == ActivityState(Activity.CELL, False, True, CELL, 3, 3)
    boundary.leave_loop()
    assert board.activity(3).in_loop
    boundary.leave_loop()
    boundary.leave_loop()  # once too often does no harm
    assert not board.activity(3).in_loop
    boundary.enter_loop()
    boundary.end_cell()
    assert board.activity(3)[:4] == (Activity.IDLE, False, False, 0)
    boundary.begin_cell(CELL + 1)
    assert board.activity(3) == ActivityState(Activity.CELL, False, False, CELL + 1, 0, 0)
    assert board.activity(2) == ActivityState(0, False, False, 0, 0, 0)


def test_what_else_a_rank_does(board, boundary):
    with boundary.doing(Activity.REQUEST):
        assert board.activity(3).activity == Activity.REQUEST
    assert board.activity(3).activity == Activity.IDLE
    boundary.begin_cell(CELL)

    def debug():
        with boundary.doing(Activity.DEBUGGER):
            assert board.activity(3)[:4] == (Activity.DEBUGGER, False, False, CELL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        debug()
    assert board.activity(3).activity == Activity.CELL


@pytest.mark.parametrize(
    "request_of",
    [(CELL - 1, StopState.ASKED, 0), (CELL - 1, StopState.DECIDED, 1), (0, StopState.NONE, 0)],
)
def test_a_request_to_another_cell_is_passed_by(board, boundary, request_of, pauses):
    board.ask_stop(*request_of)
    boundary.begin_cell(CELL)
    boundary.reach()
    assert board.activity(3)[-2:] == (1, 1)


def test_outside_of_cells_nobody_stops(board, boundary):
    board.ask_stop(0, StopState.DECIDED, 1)
    boundary.reach()
    assert board.activity(3)[-2:] == (1, 1)


def test_a_rank_waits_until_the_step_is_chosen_and_stops_there(board, boundary, pauses):
    boundary.begin_cell(CELL)
    boundary.enter_loop()
    boundary.reach()
    board.ask_stop(CELL, StopState.ASKED)
    seen = []
    pauses += [
        lambda: seen.append(board.activity(3)),
        lambda: board.ask_stop(CELL, StopState.DECIDED, 2),
    ]
    with pytest.raises(KeyboardInterrupt, match=r"^stopped before turn 2, as all ranks$"):
        boundary.reach()
    assert seen == [ActivityState(Activity.CELL, True, True, CELL, 2, 1)]
    assert board.activity(3) == ActivityState(Activity.CELL, False, True, CELL, 2, 1)
    assert pauses == []


def test_a_rank_that_is_behind_goes_on_to_the_step_that_was_chosen(board, boundary, pauses):
    boundary.begin_cell(CELL)
    board.ask_stop(CELL, StopState.ASKED)
    pauses.append(lambda: board.ask_stop(CELL, StopState.DECIDED, 3))
    boundary.reach()
    boundary.reach()
    assert board.activity(3) == ActivityState(Activity.CELL, False, False, CELL, 2, 2)
    for _ in range(2):  # also if the cell's code goes on
        with pytest.raises(KeyboardInterrupt, match=r"before turn [34]"):
            boundary.reach()


@pytest.mark.parametrize("cell", [0, CELL + 1])
def test_a_request_that_is_withdrawn_lets_ranks_go(board, boundary, pauses, cell):
    boundary.begin_cell(CELL)
    board.ask_stop(CELL, StopState.ASKED)
    pauses.append(lambda: board.ask_stop(cell, StopState.NONE if not cell else StopState.ASKED))
    boundary.reach()
    assert board.activity(3) == ActivityState(Activity.CELL, False, False, CELL, 1, 1)
