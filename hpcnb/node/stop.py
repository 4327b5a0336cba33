"""Choosing the step at which all ranks of a cell stop: pure but for the board.

Each node proposes the first step that none of its ranks has passed; the last of these is where all stop.
"""

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

    def look(self) -> tuple[int, int]:
        """The cell, and the first step that no rank of this node has passed, if it can be told; else (0, 0).

        Ranks wait before that step, or the one they come to, until :meth:`choose`.
        """
        step = decide([self._board.activity(rank) for rank in self._ranks]) if self._ranks else 0
        if not step:
            return 0, 0
        self._ranks = []
        return self._cell, step

    def choose(self, cell: int, step: int) -> None:
        """Stop at this step, which no rank of the cluster has passed; 0 to go on."""
        if step == 0:
            self.withdraw(cell)
        elif cell == self._cell:
            self._board.ask_stop(cell, StopState.DECIDED, step)

    def keep(self, running: list[int]) -> None:
        """Withdraw the request if its cell is over."""
        if self._cell and self._cell not in running:
            self.withdraw()

    def withdraw(self, cell: int = 0) -> None:
        """The cell is over, or will be stopped in another way; 0 is whichever was asked to stop."""
        if self._cell and cell in (0, self._cell):
            self._cell, self._ranks = 0, []
            self._board.ask_stop(0, StopState.NONE)
