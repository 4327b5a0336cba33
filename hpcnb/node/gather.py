"""Output of many ranks, grouped before it is sent on: equal text is sent once. Pure.

A node gathers what its ranks say, and the head of a cluster what its nodes have gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcnb.core.ranks import RankSet

__all__ = ["Gather"]

Entry = tuple[str, str]


class Gather:
    """Holds output of ranks until it is taken, and takes it grouped by equal text.

    How output is cut into chunks does not matter to the reader (it regroups whole lines), so waiting a few
    milliseconds for the slower ranks is all that is needed to send equal text once.
    """

    #: Output waits so long for equal output of other ranks, at first and in a flood.
    WINDOW_S = 0.004
    LONG_WINDOW_S = 0.05
    _LARGE = 16384

    def __init__(self) -> None:
        self._pending: dict[int, list[Entry]] = {}  # by bitmap of ranks that have said the same since the last take
        self._size = 0
        self._window_s = self.WINDOW_S
        self._due_s: float | None = None

    @property
    def due_s(self) -> float | None:
        """When the held output should be taken; None if there is none."""
        return self._due_s

    def add(self, ranks: RankSet, entries: Sequence[Entry], now_s: float) -> None:
        """Output of ranks, the same of all of them, in order."""
        if not entries:
            return
        for pending in self._said_by(ranks.bits):
            for kind, text in entries:
                if pending and pending[-1][0] == kind and kind != "cut":
                    pending[-1] = (kind, pending[-1][1] + text)
                else:
                    pending.append((kind, text))
                self._size += len(text)
        if self._due_s is None:
            self._due_s = now_s + self._window_s

    def _said_by(self, bits: int) -> list[list[Entry]]:
        """What these ranks have said: a list for each part of them that has said the same."""
        if (known := self._pending.get(bits)) is not None:
            return [known]
        parts, rest = [], bits
        for others in [each for each in self._pending if each & bits]:
            said = self._pending[others]
            if others & ~bits:  # some of them have not said what comes now
                self._pending[others & ~bits] = self._pending.pop(others)
                said = self._pending[others & bits] = list(said)
            parts.append(said)
            rest &= ~others
        if rest:
            parts.append(self._pending.setdefault(rest, []))
        return parts

    def take(self) -> list[tuple[RankSet, list[Entry]]]:
        """All held output, one entry per distinct text, lowest rank first."""
        groups: dict[tuple[Entry, ...], int] = {}
        for bits in sorted(self._pending, key=lambda bits: bits & -bits):  # by the lowest rank
            key = tuple(self._pending[bits])
            groups[key] = groups.get(key, 0) | bits
        self._window_s = self.LONG_WINDOW_S if self._size > self._LARGE else self.WINDOW_S
        self._pending.clear()
        self._size = 0
        self._due_s = None
        return [(RankSet.of_bits(bits), list(entries)) for entries, bits in groups.items()]
