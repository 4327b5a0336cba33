"""What a node has told and would have to tell again, should who is above be lost before it was passed on. Pure."""

from __future__ import annotations

from collections import deque

from hpcnb.core import messages as m

__all__ = ["Kept"]

#: Answers of the last cells are kept; text is not, for which a file on the node is.
_NUM_ANSWERS, _NUM_BYTES = 64, 64 << 20
_NUM_CELLS = 1000


class Kept:
    """States of ranks, and answers of the last cells."""

    def __init__(self) -> None:
        self.cells: deque[int] = deque(maxlen=_NUM_CELLS)  #: That have begun here.
        self._ranks: dict[int, bytes] = {}  # what was told of each rank last
        self._answers: deque[bytes] = deque()
        self._num_bytes = 0

    def begins(self, cell: int) -> None:
        """A cell begins here."""
        self.cells.append(cell)

    def told(self, message: m.Message, packed: bytes) -> None:
        """This is told."""
        if isinstance(message, m.RankReady | m.RankExited):
            self._ranks[message.rank] = packed
        elif isinstance(message, m.Replies | m.CellDone):
            self._answers.append(packed)
            self._num_bytes += len(packed)
            while len(self._answers) > _NUM_ANSWERS or (self._num_bytes > _NUM_BYTES and len(self._answers) > 1):
                self._num_bytes -= len(self._answers.popleft())

    def told_again(self) -> list[bytes]:
        """All of it, in an order in which it may be heard again."""
        return [*self._ranks.values(), *self._answers]
