"""The ranks that others waited for: who, for how long, and where. Notebook side, pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from hpcnb.core.ranks import RankSet
from hpcnb.timing.exposed import Exposed, exposed
from hpcnb.timing.timeline import CellTimeline

__all__ = ["Straggler", "slowest", "waited_for"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Straggler:
    """A rank that came last to operations while others were blocked in them.

    Attributes:
        rank: Global rank.
        wait_ms: What it cost, summed over the ranks that waited.
        delay_ms: What it cost in wall time, at most: of each operation the longest wait.
        operation: Name of the operation where most of ``wait_ms`` was spent, ``all_reduce``.
        line: Line of the ranks that waited there; 0 if unknown.
        source: Cell or file of that line.
        there_ms: How much of ``wait_ms`` was spent there.
        num_operations: Operations in which somebody waited for it.
    """

    rank: int
    wait_ms: float
    delay_ms: float
    operation: str
    line: int
    source: str
    there_ms: float
    num_operations: int


_Place = tuple[str, int, str]  # name, line, source

_known: WeakKeyDictionary[CellTimeline, tuple[Straggler, ...]] = WeakKeyDictionary()


def waited_for(cell: CellTimeline) -> list[Straggler]:
    """The ranks of ``cell`` that others waited for, the one that cost most first; empty if nobody waited."""
    if all(len(rank.spans) <= 1 for rank in cell.ranks):
        return []
    if cell not in _known:
        _known[cell] = tuple(sorted(_stragglers(cell), key=lambda each: (-each.wait_ms, each.rank)))
    return list(_known[cell])


def slowest(cell: CellTimeline) -> RankSet:
    """The ranks that cost the others most, by waits in operations and by idling at the end of the cell.

    Those within half of the worst; empty if nobody waited for anybody.
    """
    cost_ns = {straggler.rank: straggler.wait_ms * 1e6 for straggler in waited_for(cell)}
    ends = {rank.rank: cell.extent(rank)[1] for rank in cell.ranks}
    idle_ns = sum(cell.last_ns - end_ns for end_ns in ends.values())
    for rank, end_ns in ends.items():
        if end_ns == cell.last_ns:
            cost_ns[rank] = cost_ns.get(rank, 0.0) + idle_ns
    worst_ns = max(cost_ns.values(), default=0.0)
    return RankSet(rank for rank, ns in cost_ns.items() if ns > 0 and ns >= worst_ns / 2)


def _stragglers(cell: CellTimeline) -> Iterator[Straggler]:
    communication = exposed(cell)
    waiting = np.flatnonzero((communication.wait_ns > 0) & (communication.last >= 0))
    wait_ns = communication.wait_ns[waiting]
    num_ranks = len(cell.ranks)
    rank_of_entry = np.repeat(np.arange(num_ranks), np.diff(communication.first))
    culprit = rank_of_entry[communication.last[waiting]]
    # an operation has one culprit: its longest wait counts for that rank
    _, first, operation = np.unique(communication.operation[waiting], return_index=True, return_inverse=True)
    longest_ns = np.zeros(len(first), np.int64)
    np.maximum.at(longest_ns, operation, wait_ns)
    delay_ns = np.bincount(culprit[first], longest_ns, num_ranks)
    num_operations = np.bincount(culprit[first], minlength=num_ranks)
    place, places = _places(cell, communication, waiting)
    cost_ns = np.bincount(culprit * len(places) + place, wait_ns, num_ranks * len(places))
    cost_ns = cost_ns.reshape(num_ranks, len(places))
    for index in np.unique(culprit).tolist():
        most = int(cost_ns[index].argmax())
        name, line, source = places[most]
        yield Straggler(
            rank=cell.ranks[index].rank,
            wait_ms=float(cost_ns[index].sum()) / 1e6,
            delay_ms=float(delay_ns[index]) / 1e6,
            operation=name,
            line=line,
            source=source,
            there_ms=float(cost_ns[index, most]) / 1e6,
            num_operations=int(num_operations[index]),
        )


def _places(cell: CellTimeline, communication: Exposed, waiting: Ints) -> tuple[Ints, list[_Place]]:
    """The number of each waiting entry's place in the code, and the places."""
    numbers: dict[_Place, int] = {}
    parts = [np.zeros(0, np.int64)]
    bounds = np.searchsorted(waiting, communication.first)
    for index, rank in enumerate(cell.ranks):
        spans = rank.spans[communication.record[waiting[bounds[index] : bounds[index + 1]]]]
        code = spans["name"].astype(np.int64) << 48 | spans["source"].astype(np.int64) << 32 | spans["line"]
        _, first, position = np.unique(code, return_index=True, return_inverse=True)
        local = [
            (rank.text(int(span["name"])), int(span["line"]), rank.text(int(span["source"]))) for span in spans[first]
        ]
        number = np.array([numbers.setdefault(place, len(numbers)) for place in local], np.int64)
        parts.append(number[position])
    return np.concatenate(parts), list(numbers)
