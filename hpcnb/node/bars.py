"""Where the progress bars of a cell are, gathered before it is sent on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Bars"]

#: Which bar: its number, description and total.
Key = tuple[int, str, int]


class Bars:
    """Holds positions of ranks until they are taken, all ranks of a bar together."""

    #: Bars move so often.
    PERIOD_S = 0.1

    def __init__(self) -> None:
        self._positions: dict[Key, dict[int, Any]] = {}
        self._unfinished: dict[Key, set[int]] = {}
        self._due_s: float | None = None

    @property
    def due_s(self) -> float | None:
        """When the positions should be taken; None if nothing has moved."""
        return self._due_s

    def move(self, key: Key, positions: Mapping[int, Any], teller: int, *, finished: bool, now_s: float) -> None:
        """Ranks have come to these positions.

        Args:
            key: Which bar.
            positions: By rank.
            teller: Who says so: a rank, or a node of which all ranks have ``finished``.
            finished: Whether the teller will not move this bar any more.
            now_s: Monotonic seconds.
        """
        self._positions.setdefault(key, {}).update(positions)
        unfinished = self._unfinished.setdefault(key, set())
        (unfinished.discard if finished else unfinished.add)(teller)
        if self._due_s is None:
            self._due_s = now_s + self.PERIOD_S

    def take(self) -> list[tuple[Key, dict[int, Any], bool]]:
        """Of every bar that has moved: which, positions by rank, whether all who tell of it have finished."""
        taken = [(key, positions, not self._unfinished.get(key)) for key, positions in self._positions.items()]
        self._positions = {}
        self._due_s = None
        return taken
