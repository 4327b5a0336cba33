"""What was said of a cell, held back a little so that much of it can be told at once. Pure.

A node holds what its ranks say, and the head of a cluster what its nodes have told: both the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.bars import Bars, Key
from hpcnb.node.gather import Entry, Gather

__all__ = ["Held"]

#: Answers are told of so soon while other ranks run on; errors sooner, since others may wait in vain for that rank.
_REPLIES_S, _ERRORS_S = 0.3, 0.05
#: The place of this field in the list that a CellReply travels as.
_OK = [each.name for each in dataclasses.fields(m.CellReply)].index("ok")


class Held:
    """Output, progress and answers of one cell.

    Args:
        cell: Its number.
    """

    def __init__(self, cell: int) -> None:
        self._cell = cell
        self._gather = Gather()
        self._bars = Bars()
        self._replies: list[Any] = []
        self._replies_due_s: float | None = None

    @property
    def due_s(self) -> float:
        """When :meth:`tick` has something to say; infinite if nothing is held."""
        dues = (self._gather.due_s, self._bars.due_s, self._replies_due_s)
        return min((due_s for due_s in dues if due_s is not None), default=float("inf"))

    def say(self, ranks: RankSet, entries: Sequence[Entry], now_s: float) -> None:
        """Output of ranks, the same of all of them, in order."""
        self._gather.add(ranks, entries, now_s)

    def move(self, key: Key, positions: Mapping[int, Any], teller: int, *, finished: bool, now_s: float) -> None:
        """Ranks have come so far, see :meth:`Bars.move`."""
        self._bars.move(key, positions, teller, finished=finished, now_s=now_s)

    def answer(self, replies: Sequence[list[Any]], now_s: float) -> None:
        """Ranks have answered: fields of CellReply."""
        if not replies:
            return
        self._replies += replies
        due_s = now_s + (_REPLIES_S if all(reply[_OK] for reply in replies) else _ERRORS_S)
        self._replies_due_s = due_s if self._replies_due_s is None else min(self._replies_due_s, due_s)

    def tick(self, now_s: float) -> list[m.Message]:
        """What has been held long enough. Answers stand after all that their ranks said."""
        said: list[m.Message] = []
        is_answered = self._replies_due_s is not None and now_s >= self._replies_due_s
        if is_answered or (self._gather.due_s is not None and now_s >= self._gather.due_s):
            said += self.output()
        if self._bars.due_s is not None and now_s >= self._bars.due_s:
            said += self.progress()
        if is_answered:
            said.append(m.Replies(self._cell, self.replies()))
        return said

    def output(self) -> list[m.Message]:
        """All output, now."""
        entries = self._gather.take()
        return [m.Output(self._cell, entries)] if entries else []

    def progress(self) -> list[m.Message]:
        """All positions, now."""
        return [m.Progress(self._cell, *key, positions, finished) for key, positions, finished in self._bars.take()]

    def replies(self) -> list[Any]:
        """All answers that have not been told."""
        replies, self._replies, self._replies_due_s = self._replies, [], None
        return replies
