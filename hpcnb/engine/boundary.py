"""Where this rank is, said on the board: what its main thread runs, and the steps at which all ranks can stop alike.

A turn of an ``hpc.progress`` loop is a *boundary*: nothing of a step is half done there. The agent asks ranks to stop;
each waits at the next boundary it reaches, until the agent, which sees how far all are, has chosen one that nobody
has passed; then all stop at that one, with equal replicas.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hpcnb.core.board import Activity, ActivityState, Board, StopState

__all__ = ["Boundary"]

_PAUSE_S = 0.001


class Boundary:
    """What a rank says of itself on the board.

    Args:
        board: Of the node.
        rank: Global rank.
    """

    def __init__(self, board: Board, rank: int) -> None:
        self._board = board
        self._rank = rank
        self._activity = Activity.IDLE
        self._cell = 0
        self._depth = 0
        self._reached = 0
        self._passed = 0
        self._fence = threading.Lock()

    def _tell(self, *, waits: bool = False) -> None:
        state = ActivityState(self._activity, waits, self._depth > 0, self._cell, self._reached, self._passed)
        self._board.tell_activity(self._rank, state)

    def begin_cell(self, cell: int) -> None:
        """A cell begins."""
        self._activity, self._cell = Activity.CELL, cell
        self._depth = self._reached = self._passed = 0
        self._tell()

    def end_cell(self) -> None:
        """The cell is over."""
        self._activity, self._cell, self._depth = Activity.IDLE, 0, 0
        self._tell()

    @contextmanager
    def doing(self, activity: Activity) -> Iterator[None]:
        """The body is a request of a view, or a person in the debugger."""
        before, self._activity = self._activity, activity
        self._tell()
        try:
            yield
        finally:
            self._activity = before
            self._tell()

    def enter_loop(self) -> None:
        """A loop whose turns are boundaries begins."""
        self._depth += 1
        self._tell()

    def leave_loop(self) -> None:
        """It is over."""
        self._depth = max(0, self._depth - 1)
        self._tell()

    def reach(self) -> None:
        """A turn begins.

        Raises:
            KeyboardInterrupt: All ranks stop here.
        """
        self._reached += 1
        self._tell()
        # x86 may let the look below overtake the store above: the agent, which stores and looks the other way round,
        # would then choose a turn that this rank has passed unseen. Taking a lock waits for the store.
        with self._fence:  # not acquire() and release(): an interrupt between the two would leave it taken for good
            pass
        if self._board.stop_asked()[0] == self._cell != 0:
            self._await_decision()
        self._passed = self._reached
        self._tell()

    def _await_decision(self) -> None:
        self._tell(waits=True)
        while True:
            cell, state, boundary = self._board.stop_asked()
            if cell != self._cell or state == StopState.NONE:
                return
            if state == StopState.DECIDED:
                if self._reached >= boundary:
                    self._tell()
                    msg = f"stopped before turn {self._reached}, as all ranks"
                    raise KeyboardInterrupt(msg)
                return
            time.sleep(_PAUSE_S)
