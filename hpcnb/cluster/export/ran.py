"""The cells that were run on a cluster, as far as a script needs them: what was typed, on which ranks, how it ended.

Kept apart from results, which are large and go early. Knows nothing of files and scripts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hpcnb.cluster.result import CellResult
from hpcnb.core.errors import ExportError, OptionError
from hpcnb.core.ranks import RankSet

__all__ = ["Choice", "RanCell", "RanCells", "choose", "shortened"]

#: Source that is kept, and what a cell costs beside it. The oldest go.
_KEPT_BYTES, _CELL_BYTES = 16 << 20, 400
_LABEL = re.compile(r"cell (In\[)?(\d+)\]?")
_NUMBERS = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


@dataclass(frozen=True)
class RanCell:
    """A cell that was run.

    Attributes:
        label: What tracebacks call it, ``cell In[3]``.
        source: As it was typed, without the magic.
        on: Rank selection.
        ranks: What that was when the cell ran.
        how: Why its ranks may not all have come to its end, in words; "" if they have.
        first_line: Number of the first line of source in what was typed.
    """

    label: str
    source: str
    on: str
    ranks: RankSet
    how: str = ""
    first_line: int = 1

    @property
    def name(self) -> str:
        """``In[3]``; ``cell 3`` for one of ``cluster.run``."""
        return self.label.removeprefix("cell ") if self.is_typed else self.label

    @property
    def is_typed(self) -> bool:
        """Whether it is a cell of the notebook, and not of ``cluster.run``."""
        return self.label.startswith("cell In[")

    @property
    def number(self) -> int:
        """3 for ``In[3]``; -1 if it has none."""
        match = _LABEL.fullmatch(self.label)
        return int(match[2]) if match else -1


@dataclass(frozen=True)
class Choice:
    """Which cells become a script.

    Attributes:
        cells: In the order in which they were run.
        left_out: Those that do not, each with why: ``In[5] (failed on rank 1)``.
    """

    cells: tuple[RanCell, ...]
    left_out: tuple[str, ...] = ()


class RanCells:
    """What this notebook has run on one cluster. Told on the thread that runs cells.

    Args:
        num_bytes: Of source that is kept at most; the last cell is kept whatever its size.
    """

    def __init__(self, num_bytes: int = _KEPT_BYTES) -> None:
        self._limit = num_bytes
        self.clear()

    def clear(self) -> None:
        """The ranks are new and have no names."""
        self._kept: deque[RanCell] = deque()
        self._size = 0
        self._others: dict[str, None] = {}
        self.num_dropped = 0  #: Cells that are not kept any more.
        self.has_earlier = False  #: Cells may have run before this notebook was there.

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def cells(self) -> tuple[RanCell, ...]:
        """Those that are kept, in the order in which they were run."""
        return tuple(self._kept)

    @property
    def others(self) -> tuple[str, ...]:
        """What ran on the ranks and is no cell whose source is known here, in words."""
        return tuple(self._others)

    def add(self, source: str, on: str, first_line: int, result: CellResult) -> None:
        """A cell is over."""
        cell = RanCell(result.label, source, on, result.ranks, _how(result), first_line)
        self._kept.append(cell)
        self._size += len(source) + _CELL_BYTES
        while self._size > self._limit and len(self._kept) > 1:
            self._size -= len(self._kept.popleft().source) + _CELL_BYTES
            self.num_dropped += 1

    def add_other(self, words: str) -> None:
        """Something else has run on the ranks, of which the source is not known."""
        self._others[words] = None


def _how(result: CellResult) -> str:
    own = [rank for rank, error in result.errors.items() if not error.is_released]
    failed = RankSet([*(own or result.errors), *result.exits])
    if result.timeout_s is not None:
        return f"ran longer than its timeout of {result.timeout_s:g} s"
    if result.interrupted:
        return "was interrupted"
    if failed:
        return f"failed on {failed.words()}"
    return f"had not ended on {result.busy.words()}" if result.busy else ""


def choose(cells: Sequence[RanCell], asked: str | Sequence[int] | None = None) -> Choice:
    """The cells that were asked for; without a choice all that ended well on their ranks.

    Args:
        cells: In the order in which they were run.
        asked: Numbers as the notebook shows them, ``3-7,9``. One that is named alone is taken also if it failed.

    Raises:
        ExportError: There is no cell of that number, or none at all.
        OptionError: ``asked`` cannot be read.
    """
    if asked is None:
        chosen = tuple(cell for cell in cells if not cell.how)
        if not chosen:
            left = f"; these did not: {', '.join(map(_with_reason, cells))}" if cells else ""
            msg = f"no parallel cell has ended well on this cluster{left}. Run one first, then export"
            raise ExportError(msg)
        return Choice(chosen, tuple(_with_reason(cell) for cell in cells if cell.how))
    is_typed = any(cell.is_typed for cell in cells)  # numbers are those that a person sees, where there are such
    numbered = {cell.number for cell in cells if cell.is_typed == is_typed and cell.number >= 0}
    alone: set[int] = set()
    in_range: set[int] = set()
    for first, last in _ranges(asked):
        found = {number for number in numbered if first <= number <= last}
        if not found:
            before, after = ("In[", "]") if is_typed or not cells else ("cell ", "")
            named = "-".join(f"{before}{number}{after}" for number in dict.fromkeys((first, last)))
            there = shortened(sorted({cell.name for cell in cells if cell.is_typed == is_typed}, key=_number_in))
            msg = f"no parallel cell {named} has run; there are: {there or 'none yet'}"
            raise ExportError(msg)
        (alone if first == last else in_range).update(found)
    taken = [
        cell.is_typed == is_typed and (cell.number in alone or (cell.number in in_range and not cell.how))
        for cell in cells
    ]
    chosen = tuple(cell for cell, is_taken in zip(cells, taken, strict=True) if is_taken)
    left_out = [_with_reason(cell) for cell in cells if cell.how and cell.number in in_range - alone]
    left_out += [f"{cell.name} (of cluster.run, has no number here)" for cell in cells if cell.is_typed != is_typed]
    if not chosen:
        msg = (
            f"none of these cells ended well: {', '.join(left_out)}; "
            "name one by its number alone to have it all the same"
        )
        raise ExportError(msg)
    return Choice(chosen, tuple(left_out))


def _with_reason(cell: RanCell) -> str:
    return f"{cell.name} ({cell.how})"


def _ranges(asked: str | Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each part of ``3-7,9``."""
    parts = asked.split(",") if isinstance(asked, str) else [str(number) for number in asked]
    ranges: list[tuple[int, int]] = []
    for part in parts or [""]:
        match = _NUMBERS.fullmatch(part)
        if match is None:
            what = f"{part.strip()!r} in {asked!r}" if len(parts) > 1 else repr(asked)
            msg = f"cells {what}: write the numbers that the notebook shows, for example 3-7,9"
            raise OptionError(msg)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            msg = f"cells {asked!r}: {first}-{last} runs backwards, write {last}-{first}"
            raise OptionError(msg)
        ranges.append((first, last))
    return ranges


def shortened(names: Sequence[str]) -> str:
    """``In[2]-In[4], In[7]``."""
    parts: list[list[str]] = []
    for name in names:
        if parts and _follows(parts[-1][-1], name):
            parts[-1] = [parts[-1][0], name]
        else:
            parts.append([name])
    return ", ".join("-".join(part) for part in parts)


def _number_in(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else -1


def _follows(name: str, later: str) -> bool:
    one, other = re.findall(r"\d+", name), re.findall(r"\d+", later)
    return len(one) == len(other) == 1 and int(other[0]) == int(one[0]) + 1 and name[:2] == later[:2]
