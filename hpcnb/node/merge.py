"""One cell on many nodes: what they say of it, as if one node had said it. Pure: is told of messages and of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.held import Held

__all__ = ["Merge"]

#: The place of this field in the list that a CellReply travels as.
_RANK = [each.name for each in dataclasses.fields(m.CellReply)].index("rank")


class Merge:
    """A cell that some nodes have not ended.

    Args:
        cell: Number of the cell.
        nodes: That have ranks of it.
        ranks: All that run it.
        packed: The message that began it.
    """

    def __init__(self, cell: int, nodes: Iterable[int], ranks: RankSet | None = None, packed: bytes = b"") -> None:
        self.cell = cell
        self.ranks = RankSet() if ranks is None else ranks
        self.packed = packed
        self.waiting = set(nodes)
        self._held = Held(cell)
        self._floods: dict[int, list[Any]] = {}
        self._answered: set[int] = set()
        self._spans: dict[int, bytes] = {}
        self._strings: dict[int, dict[int, str]] = {}
        self._spans_lost: dict[int, int] = {}
        self._offsets_ns: dict[int, int] = {}

    @property
    def due_s(self) -> float:
        """When :meth:`tick` has something to say; infinite if nothing is held."""
        return self._held.due_s

    def hear(self, node: int, message: m.Message, now_s: float) -> list[m.Message]:
        """A node says something of this cell; returns what is to be said now."""
        match message:
            case m.Output():
                for ranks, entries in message.entries:
                    self._held.say(ranks, [tuple(entry) for entry in entries], now_s)
                return []
            case m.Progress():
                key = (message.bar, message.description, message.total)
                self._held.move(key, message.positions, node, finished=message.finished, now_s=now_s)
                return []
            case m.Held():
                self._floods[node] = message.entries
                return [self._all_floods()]
            case m.Replies():
                self._answer(message.replies, now_s)
                return []
            case m.CellDone():
                self._answer(message.replies, now_s)
                self._spans |= message.spans
                self._strings |= message.strings
                self._spans_lost |= message.spans_lost
                self._offsets_ns |= message.offsets_ns
                return self.ended(node, message.done_ns)
            case _:  # a picture, a question: it stands after what was said before
                return [*self._held.output(), message]

    def ended(self, node: int, now_ns: int) -> list[m.Message]:
        """A node has ended the cell, or is lost; returns what is to be said now."""
        if node not in self.waiting:
            return []
        self.waiting.discard(node)
        self._floods.pop(node, None)
        if self.waiting:
            return []
        kept = (self._spans, self._strings, self._spans_lost)
        done = m.CellDone(self.cell, self._held.replies(), *kept, now_ns, self._offsets_ns)
        return [*self._held.output(), *self._held.progress(), done]

    def instead(self, node: int, others: Iterable[int]) -> None:
        """A node will not end the cell, but these will, whose answers it had to tell."""
        if node in self.waiting:
            self.waiting |= set(others)

    def _answer(self, replies: list[list[Any]], now_s: float) -> None:
        """Who was between is gone, and these are told again by who had told it: each is told once from here."""
        new = [reply for reply in replies if reply[_RANK] not in self._answered]
        self._answered.update(reply[_RANK] for reply in new)
        self._held.answer(new, now_s)

    def tick(self, now_s: float) -> list[m.Message]:
        """What has been held long enough."""
        return self._held.tick(now_s)

    def _all_floods(self) -> m.Message:
        groups: dict[tuple[int, str], RankSet] = {}
        for entries in self._floods.values():
            for ranks, num_lines, newest in entries:
                groups[num_lines, newest] = groups.get((num_lines, newest), RankSet()) | ranks
        return m.Held(self.cell, [(ranks, *held) for held, ranks in groups.items()])
