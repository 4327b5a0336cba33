"""Cells marked with ``--init``, which run again on a rank that takes the place of another. Knows no process."""

from __future__ import annotations

import dataclasses
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet

__all__ = ["InitCells"]

#: Cells that no rank has ended well; the oldest is forgotten then.
_MOST_PENDING = 16


class InitCells:
    """Those that have gone well on some rank, in the order in which they last ran."""

    def __init__(self) -> None:
        self._cells: list[m.RunCell] = []
        self._pending: dict[int, m.RunCell] = {}

    def began(self, message: m.RunCell) -> None:
        """Such a cell has been sent to its ranks."""
        self._pending[message.cell] = message
        while len(self._pending) > _MOST_PENDING:
            del self._pending[next(iter(self._pending))]

    def went_well(self, cell: int) -> None:
        """A rank has ended this cell without an error: it is kept, once however often it runs."""
        if (message := self._pending.pop(cell, None)) is not None:
            self._cells = [each for each in self._cells if each.source != message.source] + [message]

    def scaled(self, before: int, now: int) -> None:
        """The cluster has another number of ranks: what ran on all of them is for all of them from now on."""

        def fitted(message: m.RunCell) -> m.RunCell:
            if message.ranks != RankSet.all(before):
                return message
            return dataclasses.replace(message, ranks=RankSet.all(now))

        self._cells = [fitted(each) for each in self._cells]
        self._pending = {cell: fitted(each) for cell, each in self._pending.items()}

    def rows(self) -> list[list[Any]]:
        """Source, label, first line, ranks of each."""
        return [[each.source, each.label, each.first_line, each.ranks] for each in self._cells]

    def drop(self, number: int) -> bool:
        """Forget one, counted from 1 in ``rows``; all for -1. False if there is none of this number."""
        if number == -1:
            self._cells.clear()
            return True
        if not 1 <= number <= len(self._cells):
            return False
        del self._cells[number - 1]
        return True
