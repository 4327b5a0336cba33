"""Whose blocked time was waiting for whom, and how much was transfer: matches communication over ranks.

A rank is blocked from ``wait_start_ns`` to ``wait_end_ns``. Up to the moment when the last rank issued its
part of the same operation it waits for that rank; from then on it waits for the network. Notebook side, pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcnb.core.spans import Flag, Kind
from hpcnb.timing.timeline import CellTimeline, RankCell

__all__ = ["Exposed", "exposed"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Exposed:
    """All communication of a cell: one entry per record, rank after rank.

    Attributes:
        first: Entries of the i-th rank of the cell are ``first[i]`` to ``first[i + 1]``.
        record: Position of the entry's record among its rank's spans.
        operation: Equal for the two or more records of one collective, or of one send and its recv.
        wait_ns: Blocked until the last rank came; all of it where the operation failed.
        transfer_ns: Blocked after that.
        last: Entry of the rank that came last to the same operation (of several, the lowest rank); -1 where
            the operation failed: who was missing has no entry.
    """

    first: tuple[int, ...]
    record: Ints
    operation: Ints
    wait_ns: Ints
    transfer_ns: Ints
    last: Ints

    def of_rank(self, index: int) -> slice:
        """Entries of the cell's ``index``-th rank."""
        return slice(self.first[index], self.first[index + 1])


@lru_cache(maxsize=1)  # words, bars and pictures of a cell ask one after the other
def exposed(cell: CellTimeline) -> Exposed:
    """Split the blocked time of every communication record of ``cell`` into wait and transfer.

    Collectives match by (name of the group, sequence); a send of rank a to b matches the recv of b from a by
    (name of the group, a, b, sequence). Groups that are built again count from the beginning: what repeats on
    a rank matches in the order of occurrence. What matches nothing, or comes from any source, waited for
    nobody. Where an operation failed nothing was transferred: all of its blocked time is wait.
    """
    names: dict[str, int] = {}
    num_ranks = 1 + max((rank.rank for rank in cell.ranks), default=0)
    parts = [_entries(rank, names, num_ranks) for rank in cell.ranks]
    first = np.cumsum([0, *(len(part[0]) for part in parts)]).tolist()
    if not first[-1]:
        empty = np.zeros(0, np.int64)
        return Exposed(tuple(first), empty, empty, empty, empty, empty)
    record, pair, sequence, start, wait_start, wait_end, failed = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    rank_of_entry = np.repeat(np.arange(len(cell.ranks)), np.diff(first))
    operation, arrived, last = _match(pair, sequence, start, rank_of_entry)
    blocked_ns = np.maximum(wait_end - wait_start, 0)
    arrived[failed] = wait_end[failed]
    last[failed] = -1
    wait_ns = np.clip(np.minimum(arrived, wait_end) - wait_start, 0, blocked_ns)
    return Exposed(tuple(first), record, operation, wait_ns, blocked_ns - wait_ns, last)


def _entries(rank: RankCell, names: dict[str, int], num_ranks: int) -> tuple[npt.NDArray[Any], ...]:
    """Position, pair of sides, sequence, start, wait start and end, failed: of one rank's communication."""
    kind = rank.spans["kind"]
    record = np.flatnonzero((kind == Kind.COLLECTIVE) | (kind == Kind.POINT_TO_POINT))
    spans = rank.spans[record]
    columns = (spans["sequence"], spans["start_ns"], spans["wait_start_ns"], spans["wait_end_ns"])
    sequence, start, wait_start, wait_end = (column.astype(np.int64) for column in columns)
    number = np.array([names.setdefault(text, len(names)) for text in rank.strings] or [0], np.int64)
    group = np.where(spans["group"] < len(rank.strings), spans["group"], 0)
    pair = number[group] * (num_ranks * num_ranks + 1)
    to_peer = spans["kind"] == Kind.POINT_TO_POINT
    if to_peer.any():
        received = np.array([text.endswith("recv") for text in rank.strings] or [False])
        receives = received[np.where(spans["name"] < len(rank.strings), spans["name"], 0)]
        peer = spans["peer"].astype(np.int64)
        source, target = np.where(receives, peer, rank.rank), np.where(receives, rank.rank, peer)
        pair += np.where(to_peer, 1 + source * num_ranks + target, 0)
        pair[to_peer & ((peer < 0) | (peer >= num_ranks))] = -1
    return record, pair, sequence, start, wait_start, wait_end, (spans["flags"] & Flag.FAILED) > 0


def _match(pair: Ints, sequence: Ints, start: Ints, rank: Ints) -> tuple[Ints, Ints, Ints]:
    """For every entry: number of its operation, when the last rank came to it, and which entry that was."""
    alone = pair < 0
    if int(pair.max()) > 0x7FFF_FFFF:  # many groups times many ranks: number those that occur
        pair = np.unique(pair, return_inverse=True)[1].astype(np.int64)
    key = (pair << 32) | sequence
    key[alone] = -1 - np.flatnonzero(alone)
    # timsort: each rank's entries are in order already, so this merges a few runs
    order = np.argsort(key, kind="stable")
    key, rank = key[order], rank[order]
    begins = np.concatenate([[True], key[1:] != key[:-1]])
    repeats = ~begins
    repeats[1:] &= rank[1:] == rank[:-1]
    if repeats.any():
        position = np.arange(len(key))
        occurrence = position - np.maximum.accumulate(np.where(repeats, 0, position))
        again = np.lexsort((occurrence, key))
        order, key, occurrence = order[again], key[again], occurrence[again]
        begins[1:] = (key[1:] != key[:-1]) | (occurrence[1:] != occurrence[:-1])
    number = np.cumsum(begins) - 1
    start = start[order]
    latest = np.maximum.reduceat(start, np.flatnonzero(begins))
    is_last = np.flatnonzero(start == latest[number])[::-1]
    entry_of = np.empty(len(latest), np.int64)
    entry_of[number[is_last]] = order[is_last]  # reversed, so that the lowest rank of several stays
    operation, arrived, last = (np.empty(len(order), np.int64) for _ in range(3))
    operation[order], arrived[order], last[order] = number, latest[number], entry_of[number]
    return operation, arrived, last
