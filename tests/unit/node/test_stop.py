"""Choosing the step at which ranks stop: a table, and ranks that run against each other in any order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.board import Activity, ActivityState, Board, StopState, new_board
from hpcnb.core.ranks import RankSet
from hpcnb.node.stop import Stop, decide

CELL = 5


def state(reached, passed, *, waits=False, in_loop=True):
    return ActivityState(Activity.CELL, waits, in_loop, CELL, reached, passed)


@pytest.mark.parametrize(
    ("states", "boundary"),
    [
        ([], 1),
        ([state(0, 0)], 1),
        ([state(7, 7), state(7, 7)], 8),
        ([state(7, 7), state(9, 9), state(8, 8)], 10),
        ([state(8, 7, waits=True), state(7, 7)], 8),  # it waits before what nobody has passed
        ([state(8, 7, waits=True), state(9, 9)], 10),  # ... and is let go to the next that nobody has passed
        ([state(8, 7), state(7, 7)], 0),  # it may pass at any moment
        ([state(8, 7, waits=True), state(8, 7)], 0),
        ([state(8, 7), state(20, 20)], 0),  # even if it does not matter: look again
    ],
)
def test_the_first_boundary_that_nobody_has_passed(states, boundary):
    assert decide(states) == boundary
    assert decide(iter(states[::-1])) == boundary


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["runs", "waits", "passes"])), min_size=1))
def test_no_rank_is_asked_to_stop_at_a_boundary_it_has_passed(given_states):
    states = [
        state(passed + (how != "runs"), passed, waits=how == "waits") for passed, how in given_states
    ]  # fmt: skip
    boundary = decide(states)
    if any(how == "passes" for _, how in given_states):
        assert boundary == 0
    else:
        assert boundary == 1 + max(each.passed for each in states)
        assert all(each.passed < boundary for each in states)


class Rank:
    """A loop of turns, one store or load at a time, as engine/boundary.py does them."""

    def __init__(self, board, rank, num_turns):
        self.board, self.rank, self.stopped_at = board, rank, None
        self.steps = self._loop(num_turns)

    def tell(self, reached, passed, *, waits=False):
        self.board.tell_activity(self.rank, state(reached, passed, waits=waits))

    def _loop(self, num_turns):
        self.tell(0, 0)
        for turn in range(1, num_turns + 1):
            self.tell(turn, turn - 1)
            yield
            asked = self.board.stop_asked()[0] == CELL
            yield
            if asked:
                self.tell(turn, turn - 1, waits=True)
                while (request := self.board.stop_asked())[1] == StopState.ASKED:
                    yield
                if request[1] == StopState.DECIDED and turn >= request[2]:
                    self.stopped_at = turn
                    return
                yield
            self.tell(turn, turn)
            yield


@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_ranks_stop_at_the_same_boundary_however_they_run(data, num_ranks, num_nodes):
    num_nodes = min(num_nodes, num_ranks)
    boards = [Board(new_board(num_ranks), RankSet.all(num_ranks)) for _ in range(num_nodes)]
    ranks = [Rank(boards[rank % num_nodes], rank, num_turns=300) for rank in range(num_ranks)]
    stops = [Stop(board) for board in boards]
    for rank in ranks:
        next(rank.steps)
    for moved in data.draw(st.lists(st.integers(0, num_ranks - 1), max_size=60)):
        next(ranks[moved].steps)
    for node, stop in enumerate(stops):
        assert stop.ask(CELL, list(range(node, num_ranks, num_nodes)))
    running, moves = list(ranks), iter(data.draw(st.lists(st.integers(-1, num_ranks - 1), max_size=60)))
    proposed = {}
    while running:
        move = next(moves, None)
        if move in (-1, None) and len(proposed) < num_nodes:
            node = data.draw(st.integers(0, num_nodes - 1))
            cell, step = stops[node].look()
            if step:
                assert cell == CELL
                proposed[node] = step
            if len(proposed) == num_nodes:
                for stop in stops:
                    stop.choose(CELL, max(proposed.values()))
        for rank in running if move in (-1, None) else [ranks[move]]:
            if rank in running and next(rank.steps, "done") == "done":
                running.remove(rank)
    assert len({rank.stopped_at for rank in ranks}) == 1
    assert ranks[0].stopped_at == max(proposed.values())
    assert all(board.stop_asked() == (CELL, StopState.DECIDED, ranks[0].stopped_at) for board in boards)


# --- the request --------------------------------------------------------------------------------------------


@pytest.fixture
def board():
    board = Board(new_board(3), RankSet.all(3))
    for rank in range(3):
        board.tell_activity(rank, state(3, 3))
    return board


def test_a_request_is_made_decided_and_withdrawn(board):
    stop = Stop(board)
    assert not stop.is_open
    assert stop.ask(CELL, [0, 1])
    assert stop.is_open
    assert board.stop_asked() == (CELL, StopState.ASKED, 0)
    board.tell_activity(1, state(4, 3))
    assert stop.look() == (0, 0)
    assert stop.is_open
    board.tell_activity(1, state(4, 3, waits=True))
    board.tell_activity(2, state(90, 90))  # it is not asked
    assert stop.look() == (CELL, 4)
    assert not stop.is_open
    assert board.stop_asked() == (CELL, StopState.ASKED, 0)  # another node may have come further
    stop.choose(CELL + 1, 4)
    assert board.stop_asked() == (CELL, StopState.ASKED, 0)
    stop.choose(CELL, 6)
    assert board.stop_asked() == (CELL, StopState.DECIDED, 6)
    stop.withdraw()
    assert board.stop_asked() == (0, StopState.NONE, 0)


@pytest.mark.parametrize(("asked", "outside"), [([], []), ([0, 1, 2], [2])])
def test_ranks_that_are_in_no_loop_are_not_asked(board, asked, outside):
    for rank in outside:
        board.tell_activity(rank, state(3, 3, in_loop=False))
    stop = Stop(board)
    assert not stop.ask(CELL, asked)
    assert not stop.is_open
    assert board.stop_asked() == (0, StopState.NONE, 0)


@pytest.mark.parametrize("is_decided", [False, True])
@pytest.mark.parametrize("running", [[], [CELL - 1], [CELL + 1, CELL - 1]])
def test_a_request_lasts_as_long_as_its_cell(board, is_decided, running):
    stop = Stop(board)
    stop.withdraw()  # nothing was asked
    stop.keep([])
    assert stop.ask(CELL, [0])
    if is_decided:
        stop.look()
    asked = board.stop_asked()
    stop.keep([CELL - 1, CELL])
    assert stop.is_open != is_decided
    assert board.stop_asked() == asked
    stop.keep(running)
    assert not stop.is_open
    assert board.stop_asked() == (0, StopState.NONE, 0)
    assert stop.ask(CELL, [0])  # and can be made again


@pytest.mark.parametrize(("cell", "is_withdrawn"), [(CELL, True), (0, True), (CELL - 1, False)])
def test_an_interrupt_withdraws_the_request_of_its_own_cell(cell, is_withdrawn):
    board = Board(new_board(1), RankSet.all(1))
    board.tell_activity(0, state(0, 0))
    stop = Stop(board)
    assert stop.ask(CELL, [0])
    stop.withdraw(cell)
    assert stop.is_open is not is_withdrawn
    assert board.stop_asked()[1] == (StopState.NONE if is_withdrawn else StopState.ASKED)
