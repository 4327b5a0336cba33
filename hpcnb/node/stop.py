"""Choosing the step at which all ranks of a cell stop: pure but for the board."""

from __future__ import annotations

from collections.abc import Iterable

from hpcnb.core.board import ActivityState, Board, StopState

__all__ = ["Stop", "decide"]


def decide(states: Iterable[ActivityState]) -> int:
    """The first boundary that no rank has passed; 0 while that cannot be told.

    A rank that has reached a boundary, has not passed it and does not wait there may or may not have seen the
    request: it will wait or pass within microseconds.
    """
    passed = 0
    for state in states:
        if state.reached != state.passed and not state.waits_at_boundary:
            return 0
        passed = max(passed, state.passed)
    return passed + 1


class Stop:
    """A request to stop, from asking to the end of the cell.

    Args:
        board: Of the node.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._cell = 0
        self._ranks: list[int] = []

    @property
    def is_open(self) -> bool:
        """Whether a step has still to be chosen."""
        return bool(self._ranks)

    def ask(self, cell: int, ranks: list[int]) -> bool:
        """Ask ranks that run a cell; whether all are in a loop with boundaries."""
        if not ranks or not all(self._board.activity(rank).in_loop for rank in ranks):
            return False
        self._cell, self._ranks = cell, ranks
        self._board.ask_stop(cell, StopState.ASKED)
        return True

    def look(self) -> None:
        """Choose, if it can be told how far all are."""
        boundary = decide([self._board.activity(rank) for rank in self._ranks])
        if boundary:
            self._board.ask_stop(self._cell, StopState.DECIDED, boundary)
            self._ranks = []

    def keep(self, running: list[int]) -> None:
        """Withdraw the request if its cell is over."""
        if self._cell and self._cell not in running:
            self.withdraw()

    def withdraw(self, cell: int = 0) -> None:
        """The cell is over, or will be stopped in another way; 0 is whichever was asked to stop."""
        if self._cell and cell in (0, self._cell):
            self._cell, self._ranks = 0, []
            self._board.ask_stop(0, StopState.NONE)
