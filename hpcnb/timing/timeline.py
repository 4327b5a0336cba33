"""A timeline as a value: cells, the ranks that ran them, and the spans each rank recorded. Notebook side.

Knows the shape of the records and nothing of what they mean: that is ``exposed`` and ``breakdown``. All times
are nanoseconds on one clock; whoever builds a timeline has applied the clock offsets already.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcnb.core import units
from hpcnb.core.errors import TimelineError
from hpcnb.core.spans import SPAN, SPAN_FIELDS

if TYPE_CHECKING:
    import pandas as pd

    from hpcnb.plots.figure import Figure

__all__ = ["SPAN_DTYPE", "CellTimeline", "RankCell", "Spans", "Timeline"]

Spans = npt.NDArray[np.void]  # of dtype SPAN_DTYPE

_NUMPY_CODES = {"B": "u1", "H": "<u2", "I": "<u4", "i": "<i4", "Q": "<u8", "q": "<i8"}

#: One record as the rank packs it, for numpy.
SPAN_DTYPE = np.dtype([(name, _NUMPY_CODES[code]) for name, code in SPAN_FIELDS])


@dataclass(frozen=True, eq=False)
class RankCell:
    """One rank's part of one cell.

    Attributes:
        rank: Global rank.
        start_ns: When the rank began the cell.
        end_ns: When it ended, or was last seen alive.
        spans: Its records, of dtype SPAN_DTYPE, in the order of their ends.
        strings: What the fields ``group``, ``name`` and ``source`` of its records number.
        spans_lost: Records that were overwritten before they could be read.
    """

    rank: int
    start_ns: int
    end_ns: int
    spans: Spans
    strings: tuple[str, ...] = ("",)
    spans_lost: int = 0

    @classmethod
    def from_bytes(
        cls, rank: int, start_ns: int, end_ns: int, packed: bytes, strings: Mapping[int, str], spans_lost: int = 0
    ) -> RankCell:
        """From records as ``RingReader.drain`` gives them, and the strings they name, which are numbered anew.

        Raises:
            TimelineError: ``packed`` does not hold whole records.
        """
        if len(packed) % SPAN.size:
            raise TimelineError(
                f"rank {rank} sent {len(packed)} bytes of spans, which is no multiple of {SPAN.size}: "
                f"notebook and rank run different versions of hpcnb; install one version, then %hpc start"
            )
        spans: Spans = np.frombuffer(packed, dtype=SPAN_DTYPE)
        if not strings:
            return cls(rank, start_ns, end_ns, spans, spans_lost=spans_lost)
        known = np.array(sorted({0, *strings}))  # 0 is the empty string
        spans = spans.copy()
        for field in ("group", "name", "source"):
            place = np.searchsorted(known, spans[field]).clip(max=len(known) - 1)
            spans[field] = np.where(known[place] == spans[field], place, 0)
        return cls(rank, start_ns, end_ns, spans, ("", *(strings[number] for number in known[1:])), spans_lost)

    def shifted(self, by_ns: int) -> RankCell:
        """The same by a clock that shows so much more."""
        if by_ns == 0:
            return self
        spans = self.spans.copy()
        for field in ("start_ns", "end_ns", "wait_start_ns", "wait_end_ns"):
            known = spans[field] != 0  # 0 where there was no wait
            spans[field][known] += by_ns
        return replace(self, start_ns=self.start_ns + by_ns, end_ns=self.end_ns + by_ns, spans=spans)

    def of_cell(self, cell: int) -> RankCell:
        """The same with the records of that cell only."""
        if len(self.spans) == 1 and self.spans["cell"][0] == cell:
            return self
        mine = self.spans["cell"] == cell
        return self if mine.all() else replace(self, spans=self.spans[mine])

    def text(self, number: int) -> str:
        """The string that a record calls ``number``; empty when the rank's table had no room for it."""
        return self.strings[number] if number < len(self.strings) else ""


@dataclass(frozen=True, eq=False)
class CellTimeline:
    """One cell on all ranks that ran it.

    Attributes:
        cell: Number of the cell.
        label: What tracebacks call it, ``cell 3``.
        submitted_ns: When the notebook sent it.
        done_ns: When the notebook had every rank's reply.
        ranks: One entry per rank, ascending, with the records of this cell only.
    """

    cell: int
    label: str
    submitted_ns: int
    done_ns: int
    ranks: tuple[RankCell, ...]

    def __post_init__(self) -> None:
        # communication that ends after its cell is read with the records of a later one
        object.__setattr__(self, "ranks", tuple(rank.of_cell(self.cell) for rank in self.ranks))

    @property
    def wall_ns(self) -> int:
        """From sending the cell to the last reply: what the categories of each rank add up to."""
        return max(0, self.done_ns - self.submitted_ns)

    @property
    def wall_ms(self) -> float:
        """The same in milliseconds."""
        return self.wall_ns / 1e6

    @cached_property
    def last_ns(self) -> int:
        """When the last rank ended its part; ``submitted_ns`` without ranks."""
        return max((self.extent(rank)[1] for rank in self.ranks), default=self.submitted_ns)

    def extent(self, rank: RankCell) -> tuple[int, int]:
        """Start and end of the rank's part, inside the cell: one that died may have reported neither."""
        start_ns = min(max(rank.start_ns, self.submitted_ns), max(self.done_ns, self.submitted_ns))
        return start_ns, min(max(rank.end_ns, start_ns), max(self.done_ns, start_ns))


@dataclass(frozen=True, eq=False, repr=False)
class Timeline:
    """All spans of some cells, on one clock.

    Attributes:
        cells: In the order in which they ran.
    """

    cells: tuple[CellTimeline, ...]

    @classmethod
    def of(cls, cells: Iterable[CellTimeline]) -> Timeline:
        """The timeline of these cells."""
        return cls(tuple(cells))

    @property
    def world_size(self) -> int:
        """One more than the highest rank that ran any of the cells; 0 without cells."""
        return 1 + max((rank.rank for cell in self.cells for rank in cell.ranks), default=-1)

    @property
    def wall_ms(self) -> float:
        """The cells' wall times together; time between cells is nobody's."""
        return sum(cell.wall_ms for cell in self.cells)

    @property
    def num_spans(self) -> int:
        """Records of all ranks and cells."""
        return sum(len(rank.spans) for cell in self.cells for rank in cell.ranks)

    @property
    def spans_lost(self) -> int:
        """Records that were overwritten before they could be read; their time is in category ``other``."""
        return sum(rank.spans_lost for cell in self.cells for rank in cell.ranks)

    def breakdown(self) -> pd.DataFrame:
        """Where the time went, per rank, step and category; see ``hpcnb.timing.breakdown.breakdown``."""
        from hpcnb.timing import breakdown

        return breakdown.breakdown(self)

    def plot(self, kind: str = "breakdown") -> Figure:
        """Draw it.

        Args:
            kind: ``breakdown``: time per category as bars; ``timeline``: what each rank did when.

        Raises:
            TimelineError: No such kind, or there is nothing to draw.
        """
        # by name, not by import: plots stand above timing and know it
        figure: Figure = importlib.import_module("hpcnb.plots").plot(self, kind)
        return figure

    def save(self, path: str | Path) -> Path:
        """Write it to ``path`` as JSON that people can read and :meth:`load` reads back; returns the path.

        Raises:
            TimelineError: The file cannot be written.
        """
        from hpcnb.timing import saved

        return saved.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Timeline:
        """Read what :meth:`save` wrote.

        Raises:
            TimelineError: No such file, no timeline in it, damaged, or of another version.
        """
        from hpcnb.timing import saved

        return saved.load(path)

    def to_perfetto(self, path: str | Path) -> Path:
        """Write Chrome trace events, for Perfetto or chrome://tracing; returns the path.

        Raises:
            TimelineError: The file cannot be written.
        """
        from hpcnb.timing import perfetto

        return perfetto.export(self, path)

    def __add__(self, other: Timeline) -> Timeline:
        return Timeline(self.cells + other.cells) if isinstance(other, Timeline) else NotImplemented

    def __repr__(self) -> str:
        if not self.cells:
            return "Timeline: no cells"
        ranks = {rank.rank for cell in self.cells for rank in cell.ranks}
        lost = f" · {units.count(self.spans_lost, 'span')} lost" if self.spans_lost else ""
        return (
            f"Timeline: {units.count(len(self.cells), 'cell')} · {units.count(len(ranks), 'rank')} · "
            f"{units.duration(self.wall_ms)} · {units.count(self.num_spans, 'span')}{lost}"
        )

    def _repr_mimebundle_(
        self,
        include: Iterable[str] | None = None,  # noqa: ARG002 - IPython's protocol
        exclude: Iterable[str] | None = None,  # noqa: ARG002
    ) -> Mapping[str, Any]:
        return {"text/plain": repr(self)}
