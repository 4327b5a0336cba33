"""Rectangles of the timeline picture: what each rank did when, few enough to draw. Notebook side, pure.

Every rank has a main band (its main thread, nested spans painted over what encloses them), a band of steps
and a band of communication from issue to completion, blocked or not. Where there are more spans than can be
drawn, the short ones become shares of equal slices of time: a rectangle's height is its share of the slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcnb.core import units
from hpcnb.core.spans import CATEGORY_NAMES, Category, Kind
from hpcnb.timing.exposed import exposed
from hpcnb.timing.strip import LABELS, place
from hpcnb.timing.timeline import CellTimeline, RankCell, Timeline

__all__ = ["Gantt", "Rectangle", "gantt"]

Ints = npt.NDArray[np.int64]

# layers of the main band in the order of painting, then the other bands
_CELL, _EDGE, _USER, _DATA, _BLOCKED, _STEP, _COMMUNICATION = range(7)
_BANDS = ("main", "main", "main", "main", "main", "step", "communication")
_MOST_SLICES, _FEWEST_SLICES = 256, 8
_LEAST_SHARE = 0.005  # of a slice: less cannot be seen


@dataclass(frozen=True)
class Rectangle:
    """One span, or a share of a slice of time.

    Attributes:
        rank: Global rank.
        band: ``main``, ``step`` or ``communication``.
        start_ms: Since the beginning of the first cell; pauses between cells are cut out.
        end_ms: The same.
        bottom: 0 or, for a share, what other shares of the slice take below it.
        top: 1, or the end of the share.
        took_ms: How long the span took; for a share, its part of the slice.
        category: Name of the category; ``step`` and ``communication`` in those bands.
        name: The user's or the operation's name.
        detail: Size, line and step where known; for a share, what it stands for.
        named: The name is one that the user gave.
    """

    rank: int
    band: str
    start_ms: float
    end_ms: float
    bottom: float
    top: float
    took_ms: float
    category: str
    name: str
    detail: str
    named: bool = False


@dataclass(frozen=True)
class Gantt:
    """Rectangles of spans and of shares: together at most as many as asked for, as long as 8 slices fit.

    Attributes:
        spans: In the order of painting.
        shares: Painted on top; none overlaps another. In the order of ranks, bands, slices, and upwards.
        wall_ms: Length of the time axis.
        left_out: A sentence about what is not drawn span by span; empty if everything is.
    """

    spans: tuple[Rectangle, ...]
    shares: tuple[Rectangle, ...]
    wall_ms: float
    left_out: str

    @property
    def rectangles(self) -> tuple[Rectangle, ...]:
        """All in the order of painting."""
        return self.spans + self.shares


@dataclass(frozen=True, eq=False)
class _Segments:
    """All spans of all cells as arrays; ``rank`` is a position in ``ranks``."""

    ranks: list[tuple[CellTimeline, RankCell]]
    rank: Ints
    layer: Ints
    category: Ints
    start: Ints
    end: Ints
    record: Ints
    own: Ints  # time that nested segments do not cover


def gantt(timeline: Timeline, *, most: int = 3000, ranks: frozenset[int] | None = None) -> Gantt:
    """The rectangles of ``timeline``.

    Args:
        timeline: Spans on one clock.
        most: How many rectangles to draw.
        ranks: Only these; all if None.
    """
    segments = _segments(timeline, ranks)
    wall_ns = max(1.0, timeline.wall_ms * 1e6)
    total = len(segments.start)
    if total <= most:
        drawn = np.arange(total)
        return Gantt(tuple(_exact(segments, drawn)), (), timeline.wall_ms, "")
    num_slices = _MOST_SLICES
    while True:
        slice_ns = wall_ns / num_slices
        short = segments.end - segments.start < slice_ns
        shares = _shares(segments, np.flatnonzero(short), slice_ns, num_slices)
        num_drawn = len(shares[0]) + total - int(np.count_nonzero(short))
        if num_drawn <= most or num_slices == _FEWEST_SLICES:
            break
        num_slices = max(_FEWEST_SLICES, min(num_slices - 1, num_slices * most // num_drawn))
    left_out = (
        f"{np.count_nonzero(short):,} of {total:,} intervals are shorter than "
        f"{units.duration(slice_ns / 1e6)} and drawn as shares of slices of that length: "
        f"the height is the share of the time"
    )
    spans = tuple(_exact(segments, np.flatnonzero(~short)))
    return Gantt(spans, tuple(_slices(shares, slice_ns / 1e6)), timeline.wall_ms, left_out)


def _segments(timeline: Timeline, ranks: frozenset[int] | None) -> _Segments:
    places: list[tuple[CellTimeline, RankCell]] = []
    parts: list[tuple[Ints, ...]] = []
    offset_ns = 0
    for cell in timeline.cells:
        communication = exposed(cell)
        for index, rank in enumerate(cell.ranks):
            if ranks is not None and rank.rank not in ranks:
                continue
            entries = communication.of_rank(index)
            record, wait_ns = communication.record[entries], communication.wait_ns[entries]
            pieces = (_edges(cell, rank), _spans(rank), *_blocked(rank, record, wait_ns))
            layer, category, start, end, number, own = (
                np.concatenate(columns) for columns in zip(*pieces, strict=True)
            )
            start, end = (np.clip(at - cell.submitted_ns, 0, cell.wall_ns) for at in (start, end))
            kept = np.flatnonzero(end > start)
            rest = (layer, category, start + offset_ns, end + offset_ns, number, own)
            parts.append((np.full(len(kept), len(places)), *(column[kept].astype(np.int64) for column in rest)))
            places.append((cell, rank))
        offset_ns += cell.wall_ns
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _Segments(places, *(joined or [np.zeros(0, np.int64)] * 7))


def _edges(cell: CellTimeline, rank: RankCell) -> tuple[Ints, ...]:
    """Dispatch before and after the rank's part of the cell, idle until the last rank ended."""
    start_ns, end_ns = cell.extent(rank)
    start = np.array([cell.submitted_ns, end_ns, cell.last_ns])
    end = np.array([start_ns, cell.last_ns, cell.done_ns])
    category = np.array([Category.DISPATCH, Category.IDLE, Category.DISPATCH])
    return np.full(3, _EDGE), category, start, end, np.full(3, -1), end - start


def _spans(rank: RankCell) -> tuple[Ints, ...]:
    """Cell, steps, the user's spans, waiting for the next element."""
    layers = np.full(256, -1)
    layers[[Kind.CELL, Kind.STEP, Kind.USER, Kind.DATA]] = _CELL, _STEP, _USER, _DATA
    record = np.flatnonzero(layers[rank.spans["kind"]] >= 0)
    spans = rank.spans[record]
    category = np.where(spans["kind"] == Kind.USER, np.minimum(spans["category"], Category.OTHER), 0)
    category = np.where(spans["kind"] == Kind.DATA, Category.DATA, category)
    own = np.maximum(spans["end_ns"] - spans["start_ns"] - spans["child_ns"], 0)
    return layers[spans["kind"]], category, spans["start_ns"], spans["end_ns"], record, own


def _blocked(rank: RankCell, record: Ints, wait_ns: Ints) -> Iterator[tuple[Ints, ...]]:
    """The wait and the transfer of blocked time, and communication from issue to completion."""
    spans = rank.spans[record]
    start, end = spans["wait_start_ns"], spans["wait_end_ns"]
    came = start + wait_ns
    for category, left, right, layer in (
        (Category.COMMUNICATION_WAIT, start, came, _BLOCKED),
        (Category.COMMUNICATION_TRANSFER, came, end, _BLOCKED),
        (Category.COMMUNICATION_TRANSFER, spans["start_ns"], spans["end_ns"], _COMMUNICATION),
    ):
        yield np.full(len(record), layer), np.full(len(record), category), left, right, record, right - left


def _shares(segments: _Segments, short: Ints, slice_ns: float, num_slices: int) -> tuple[Ints, ...]:
    """Of every rank, band, slice and category with short spans: those four, their number and their length."""
    short = short[(segments.layer[short] != _CELL) & (segments.layer[short] != _STEP)]
    middle_ns = (segments.start[short] + segments.end[short]) / 2
    of_slice = np.clip(middle_ns // slice_ns, 0, num_slices - 1).astype(np.int64)
    ranks, row = np.unique([rank.rank for _, rank in segments.ranks], return_inverse=True)
    communication = (segments.layer[short] == _COMMUNICATION).astype(np.int64)
    shape = (len(ranks), 2, num_slices, len(CATEGORY_NAMES))
    where = (row[segments.rank[short]], communication, of_slice, segments.category[short])
    key = np.ravel_multi_index(where, shape)
    number = np.bincount(key, minlength=math.prod(shape))
    spent_ns = np.bincount(key, segments.own[short], math.prod(shape)).astype(np.int64)
    shown = np.flatnonzero(spent_ns >= _LEAST_SHARE * slice_ns)
    row, communication, of_slice, category = np.unravel_index(shown, shape)
    return ranks[row], communication, of_slice, category, number[shown], spent_ns[shown]


def _slices(shares: tuple[Ints, ...], slice_ms: float) -> Iterator[Rectangle]:
    """The shares of a slice, stacked; all of them together at most the slice."""
    place_before, height = (-1, -1, -1), 0.0
    for rank, communication, of_slice, category, number, spent_ns in zip(
        *(column.tolist() for column in shares), strict=True
    ):
        if (rank, communication, of_slice) != place_before:
            place_before, height = (rank, communication, of_slice), 0.0
        share = min(spent_ns / 1e6 / slice_ms, 1.0 - height)
        if share <= 0:
            continue
        band = "communication" if communication else "main"
        yield Rectangle(
            rank=rank,
            band=band,
            start_ms=of_slice * slice_ms,
            end_ms=(of_slice + 1) * slice_ms,
            bottom=height,
            top=height + share,
            took_ms=share * slice_ms,
            category=band if communication else CATEGORY_NAMES[category],
            name=units.count(number, "short interval"),
            detail=f"{units.percent(share)} of {units.duration(slice_ms)}",
        )
        height += share


def _exact(segments: _Segments, drawn: Ints) -> Iterator[Rectangle]:
    """One rectangle per segment: what is nested is painted after what encloses it."""
    keys = (segments.start, segments.rank, segments.category)  # the last one first; neighbours look alike
    order = np.lexsort((*(key[drawn] for key in keys), _depth(segments, drawn), segments.layer[drawn]))
    for index in drawn[order].tolist():
        cell, rank = segments.ranks[segments.rank[index]]
        layer, record = int(segments.layer[index]), int(segments.record[index])
        band = _BANDS[layer]
        category = CATEGORY_NAMES[segments.category[index]] if band == "main" else band
        name, detail = _hover(cell, rank, layer, record, category)
        start_ms, end_ms = segments.start[index] / 1e6, segments.end[index] / 1e6
        yield Rectangle(
            rank=rank.rank,
            band=band,
            start_ms=float(start_ms),
            end_ms=float(end_ms),
            bottom=0.0,
            top=1.0,
            took_ms=float(end_ms - start_ms),
            category=category,
            name=name,
            detail=detail,
            named=layer == _USER and name not in LABELS,
        )


def _depth(segments: _Segments, drawn: Ints) -> Ints:
    """How many of the user's spans enclose each of the drawn segments; 0 for other layers."""
    depth = np.zeros(len(drawn), np.int64)
    user = np.flatnonzero(segments.layer[drawn] == _USER)
    rank, start, end = (column[drawn[user]] for column in (segments.rank, segments.start, segments.end))
    open_until: list[tuple[int, int]] = []
    for position in np.lexsort((-end, start, rank)).tolist():
        while open_until and (open_until[-1][0] != rank[position] or open_until[-1][1] < end[position]):
            open_until.pop()
        depth[user[position]] = len(open_until)
        open_until.append((rank[position], end[position]))
    return depth


def _hover(cell: CellTimeline, rank: RankCell, layer: int, record: int, category: str) -> tuple[str, str]:
    """Name and detail of one span."""
    if record < 0:
        return LABELS[category], cell.label
    span = rank.spans[record]
    if layer == _CELL:
        own_ms = max(0, int(span["end_ns"] - span["start_ns"] - span["child_ns"])) / 1e6
        return cell.label, f"{units.duration(own_ms)} of it in no span"
    name = rank.text(int(span["name"])) or LABELS.get(category, category)
    step = f"step {span['step']}" if span["step"] >= 0 else ""
    if layer == _STEP:
        return step, ""
    size = units.size(int(span["num_bytes"])) if span["num_bytes"] else ""
    where = place(int(span["line"]), rank.text(int(span["source"])), cell.label).strip(" ()")
    return name, " · ".join(part for part in (size, where, step) if part)
