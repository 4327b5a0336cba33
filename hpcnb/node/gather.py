"""Output of a node's ranks, grouped before it leaves the node: equal text of many ranks is sent once. Pure."""

from __future__ import annotations

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
        self._pending: dict[int, list[Entry]] = {}
        self._size = 0
        self._window_s = self.WINDOW_S
        self._due_s: float | None = None

    @property
    def due_s(self) -> float | None:
        """When the held output should be taken; None if there is none."""
        return self._due_s

    def add(self, rank: int, entries: list[Entry], now_s: float) -> None:
        """Output of one rank, in order."""
        if not entries:
            return
        pending = self._pending.setdefault(rank, [])
        for kind, text in entries:
            if pending and pending[-1][0] == kind and kind != "cut":
                pending[-1] = (kind, pending[-1][1] + text)
            else:
                pending.append((kind, text))
            self._size += len(text)
        if self._due_s is None:
            self._due_s = now_s + self._window_s

    def take(self) -> list[tuple[RankSet, list[Entry]]]:
        """All held output, one entry per distinct text, lowest rank first."""
        groups: dict[tuple[Entry, ...], int] = {}
        for rank in sorted(self._pending):
            key = tuple(self._pending[rank])
            groups[key] = groups.get(key, 0) | 1 << rank
        self._window_s = self.LONG_WINDOW_S if self._size > self._LARGE else self.WINDOW_S
        self._pending.clear()
        self._size = 0
        self._due_s = None
        return [(RankSet.of_bits(bits), list(entries)) for entries, bits in groups.items()]
