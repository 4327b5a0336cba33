"""One cell on many nodes: what they say of it, as if one node had said it. Pure: is told of messages and of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.bars import Bars
from hpcnb.node.gather import Gather

__all__ = ["Merge"]

#: Answers of nodes are told of so soon while other nodes run on, as a node does of its ranks.
_REPLIES_S, _ERRORS_S = 0.3, 0.05
#: The place of this field in the list that a CellReply travels as.
_OK = [each.name for each in dataclasses.fields(m.CellReply)].index("ok")


class Merge:
    """A cell that some nodes have not ended.

    Args:
        cell: Number of the cell.
        nodes: That have ranks of it.
    """

    def __init__(self, cell: int, nodes: Iterable[int]) -> None:
        self.cell = cell
        self.waiting = set(nodes)
        self._gather = Gather()
        self._bars = Bars()
        self._held: dict[int, list[Any]] = {}
        self._replies: list[Any] = []
        self._replies_due_s: float | None = None
        self._spans: dict[int, bytes] = {}
        self._strings: dict[int, dict[int, str]] = {}
        self._spans_lost: dict[int, int] = {}
        self._offsets_ns: dict[int, int] = {}

    @property
    def due_s(self) -> float:
        """When :meth:`tick` has something to say; infinite if nothing is held."""
        dues = (self._gather.due_s, self._bars.due_s, self._replies_due_s)
        return min((due_s for due_s in dues if due_s is not None), default=float("inf"))

    def hear(self, node: int, message: m.Message, now_s: float) -> list[m.Message]:
        """A node says something of this cell; returns what is to be said now."""
        match message:
            case m.Output():
                for ranks, entries in message.entries:
                    self._gather.add(ranks, [tuple(entry) for entry in entries], now_s)
                return []
            case m.Progress():
                key = (message.bar, message.description, message.total)
                self._bars.move(key, message.positions, node, finished=message.finished, now_s=now_s)
                return []
            case m.Held():
                self._held[node] = message.entries
                return [self._all_held()]
            case m.Replies():
                self._answered(message.replies, now_s)
                return []
            case m.CellDone():
                self._answered(message.replies, now_s)
                self._spans |= message.spans
                self._strings |= message.strings
                self._spans_lost |= message.spans_lost
                self._offsets_ns |= message.offsets_ns
                return self.ended(node, message.done_ns)
            case _:  # a picture, a question: it stands after what was said before
                return [*self._output(), message]

    def ended(self, node: int, now_ns: int) -> list[m.Message]:
        """A node has ended the cell, or is lost; returns what is to be said now."""
        if node not in self.waiting:
            return []
        self.waiting.discard(node)
        self._held.pop(node, None)
        if self.waiting:
            return []
        replies, self._replies = self._replies, []
        kept = (self._spans, self._strings, self._spans_lost)
        done = m.CellDone(self.cell, replies, *kept, now_ns, self._offsets_ns)
        return [*self._output(), *self._progress(), done]

    def tick(self, now_s: float) -> list[m.Message]:
        """What has been held long enough."""
        said: list[m.Message] = []
        if self._bars.due_s is not None and now_s >= self._bars.due_s:
            said += self._progress()
        if self._replies_due_s is not None and now_s >= self._replies_due_s:
            replies, self._replies, self._replies_due_s = self._replies, [], None
            return [*said, *self._output(), m.Replies(self.cell, replies)]
        if self._gather.due_s is not None and now_s >= self._gather.due_s:
            said += self._output()
        return said

    def _answered(self, replies: list[Any], now_s: float) -> None:
        if not replies:
            return
        self._replies += replies
        due_s = now_s + (_REPLIES_S if all(reply[_OK] for reply in replies) else _ERRORS_S)
        self._replies_due_s = due_s if self._replies_due_s is None else min(self._replies_due_s, due_s)

    def _output(self) -> list[m.Message]:
        entries = self._gather.take()
        return [m.Output(self.cell, entries)] if entries else []

    def _progress(self) -> list[m.Message]:
        return [m.Progress(self.cell, *key, positions, finished) for key, positions, finished in self._bars.take()]

    def _all_held(self) -> m.Message:
        groups: dict[tuple[int, str], RankSet] = {}
        for entries in self._held.values():
            for ranks, num_lines, newest in entries:
                groups[num_lines, newest] = groups.get((num_lines, newest), RankSet()) | ranks
        return m.Held(self.cell, [(ranks, *held) for held, ranks in groups.items()])
