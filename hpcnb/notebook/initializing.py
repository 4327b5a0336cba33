"""Versions of cells marked with ``--init``: one that was edited, or is marked no more, does not run again on new ranks.

The cluster knows sources only; which of them were the same cell, the front-end knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.cluster import Cluster
    from hpcnb.cluster.result import CellResult

__all__ = ["Versions"]


class Versions:
    """What cells of this notebook were when they last ran with ``--init``."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}

    def ran(
        self, cluster: Callable[[], Cluster], source: str, result: CellResult, *, is_init: bool, cell_id: str
    ) -> None:
        """A cell has ended; on some rank well, if it takes the place of its earlier version."""
        before = self._sources.get(cell_id)
        went_well = result.ranks - RankSet(result.errors) - RankSet(result.exits) - result.busy
        if not cell_id or not went_well or not (is_init or before):
            return
        if before not in (None, source) or not is_init:
            cells = [each for _, each in cluster().init_cells()]
            if before in cells:
                cluster().forget_init_cells(cells.index(before) + 1)
        self._sources.pop(cell_id, None)
        if is_init:
            self._sources[cell_id] = source
