"""The step at which the ranks of all nodes stop: each node proposes one, the last of them is taken. Pure."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Steps"]

#: A node has not proposed one yet.
_UNKNOWN = -1


class Steps:
    """What nodes have proposed, by cell."""

    def __init__(self) -> None:
        self._proposed: dict[int, dict[int, int]] = {}

    def ask(self, cell: int, nodes: Iterable[int]) -> None:
        """These nodes are asked."""
        self._proposed[cell] = dict.fromkeys(nodes, _UNKNOWN)

    def hear(self, cell: int, node: int, step: int) -> int | None:
        """A node proposes a step, 0 if it has none; returns what all have agreed on, None while some are missing."""
        steps = self._proposed.get(cell)
        if steps is None or node not in steps:
            return None
        steps[node] = step
        if _UNKNOWN in steps.values():
            return None
        del self._proposed[cell]
        return max(steps.values()) if all(steps.values()) else 0

    def lost(self, node: int) -> dict[int, int]:
        """A node will not propose one; returns cells whose answer is there by that, with it."""
        agreed = {cell: self.hear(cell, node, 0) for cell in list(self._proposed)}
        return {cell: step for cell, step in agreed.items() if step is not None}

    def forget(self, cell: int) -> None:
        """A cell is over."""
        self._proposed.pop(cell, None)
