"""What a rank has issued and its peers have not come to yet, kept when the board has no more room for it.

The board holds the last operations of a channel. A rank that sends thousands of messages ahead of their receiver would
overwrite what the receiver has still to compare, so blocks of operations are put into the store of the process groups
before that happens. Nothing is kept, and nothing is asked, while ranks are close to each other.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from hpcnb.core.board import HISTORY, ChannelReader, Issued, number_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BLOCK", "Ledger"]

#: Operations that are kept together; half of what the board holds, so that one block can be kept before it goes.
BLOCK = HISTORY // 2
_ROW = struct.Struct("<QIIHH")


class Ledger:
    """The operations of one rank that the board has no room for, and a look at those of others.

    Args:
        rank: Global rank.
        own: The rank's channels on the board.
    """

    def __init__(self, rank: int, own: ChannelReader) -> None:
        self._rank = rank
        self._own = own
        self._kept: dict[int, deque[int]] = {}
        self._found: dict[tuple[int, int], tuple[int, bytes]] = {}

    def keep(self, store: Any, key: int, at: int, stamped: int, passed: Iterable[int]) -> None:
        """Operation ``stamped``, the first of a block, is about to be published over what a peer may still need.

        Args:
            store: Of the process groups.
            key: The channel.
            at: Where it is on the board.
            stamped: Stamp of the operation; its number is a multiple of BLOCK.
            passed: Stamps that the peers have come to.
        """
        slowest = min(passed)
        kept = self._kept.setdefault(key, deque())
        while kept and kept[0] + BLOCK <= slowest:  # it has issued a later one, so it has compared all of these
            store.delete_key(_name(key, self._rank, kept.popleft()))
        first = stamped - HISTORY
        if slowest >= first + BLOCK or number_of(stamped) < HISTORY:
            return
        rows = [self._own.issued(at, each) or Issued(0, 0, 0, 0, 0) for each in range(first, first + BLOCK)]
        store.set(_name(key, self._rank, first), b"".join(_ROW.pack(*row) for row in rows))
        kept.append(first)

    def find(self, store: Any, key: int, rank: int, stamped: int) -> Issued | None:
        """What another rank has issued, and the board does not hold any more; None if nobody kept it."""
        first = stamped - number_of(stamped) % BLOCK
        known = self._found.get((key, rank))
        if known is None or known[0] != first:
            name = _name(key, rank, first)
            rows = store.get(name) if store.check([name]) else b""  # kept before it was overwritten, or never
            known = self._found[key, rank] = first, rows
        if not known[1]:
            return None
        issued = Issued(*_ROW.unpack_from(known[1], (stamped - first) * _ROW.size))
        return issued if issued.stamp == stamped else None

    def forget(self, store: Any) -> None:
        """Groups are built again: nobody asks for what was issued before."""
        for key, kept in self._kept.items():
            for first in kept:
                store.delete_key(_name(key, self._rank, first))
        self._kept.clear()
        self._found.clear()


def _name(key: int, rank: int, first: int) -> str:
    return f"issued/{key:x}/{rank}/{first:x}"
