"""Results of the last cells, as many as fit: a long session must not fill the notebook's memory with spans."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from hpcnb.cluster.result import CellResult

__all__ = ["History"]


class History:
    """The last cells.

    Args:
        num_cells: Kept at most.
        num_bytes: Of span records kept at most; the last cell is kept whatever its size.
    """

    def __init__(self, num_cells: int, num_bytes: int) -> None:
        self._num_cells = num_cells
        self._limit = num_bytes
        self._kept: deque[tuple[CellResult, int]] = deque()
        self._size = 0

    def __iter__(self) -> Iterator[CellResult]:
        return (result for result, _ in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, result: CellResult) -> None:
        """One more cell; the oldest go."""
        size = 0 if result.spans is None else sum(map(len, result.spans.records.values()))
        self._kept.append((result, size))
        self._size += size
        while len(self._kept) > self._num_cells or (self._size > self._limit and len(self._kept) > 1):
            self._size -= self._kept.popleft()[1]
