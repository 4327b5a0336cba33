"""Shared memory of one node: what its ranks tell each other and the agent without a message.

One anonymous mapping, made before the first fork, so that it has no name and every process of the node has it. It has
room for ranks that come later: pages that nobody has written to take no memory. A region per local rank, which that
rank alone writes::

    0              the span ring, see spans.py
    RING_BYTES     activity: what the main thread runs, and at which step boundary it is
    + 64           channels: what the rank has issued, in order, per process group and per peer

A *channel* is a sequence of operations that has to be the same on all who take part: the collectives of one process
group, or the messages from one rank to another. Every operation has a *stamp*, generation of the groups in the upper
bits and its number in the lower, so that stamps grow over rebuilds. Because a rank publishes an operation before it
looks at the others, of two ranks that issue different operations at least the later one sees it. An operation that a
rank has stopped waiting for stays where it is, marked: the backend may still have it, so others must not meet it.

The head of the board belongs to the agent: the request to stop at a step boundary.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from enum import IntEnum
from typing import NamedTuple

from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import HEADER_BYTES, ring_bytes

__all__ = [
    "ANYBODY",
    "HISTORY",
    "NUM_CHANNELS",
    "Activity",
    "ActivityState",
    "Board",
    "ChannelReader",
    "ChannelWriter",
    "Issued",
    "channel_key",
    "generation_of",
    "message_key",
    "new_board",
    "number_of",
    "room_for",
    "stamp",
]

#: Records in a rank's span ring: 1.3 MB; the agent reads four times a second.
NUM_SLOTS = 16384
#: Operations of a channel that can still be looked up. A rank that issues collectives further ahead of a peer waits for
#: it, a second at most; before messages it does not wait. What a peer has still to compare is then in the ledger.
HISTORY = 64
#: Instead of a peer: who waits for a message from whichever rank of the group sends first.
ANYBODY = -2
#: Process groups plus peers and tags (point-to-point) of a rank that are watched.
NUM_CHANNELS = 256
#: A node has room for so many ranks, or for so many times those that it begins with.
_ROOM, _ROOM_TIMES = 64, 4

_RING_BYTES = ring_bytes(NUM_SLOTS)
#: words: activity and flags, cell, boundary reached, passed
_ACTIVITY_WORDS = 4
_WAITS, _IN_LOOP = 1 << 8, 1 << 9
_ACTIVITY_BYTES = 64
_CHANNELS_AT = _RING_BYTES + _ACTIVITY_BYTES
#: key, newest stamp, oldest stamp that was given up
_CHANNEL = struct.Struct("<QQQ")
#: stamp, signature, line, string of its source, string that describes the operation
_ENTRY = struct.Struct("<QIIHH4x")
_CHECK = struct.Struct("<QI")
_CHANNEL_BYTES = _CHANNEL.size + HISTORY * _ENTRY.size
_REGION_BYTES = -(-(_CHANNELS_AT + NUM_CHANNELS * _CHANNEL_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
_HEAD_BYTES = mmap.PAGESIZE
_NUMBER_BITS = 40
#: Instead of the key of a channel: another one may take its place. Zero says that none has been here yet.
_CLOSED = (1 << 64) - 1
#: In the stamp of an entry: the rank does not wait for it any more. Numbers stay below it.
_GIVEN_UP = 1 << (_NUMBER_BITS - 1)


class Activity(IntEnum):
    """What a rank's main thread runs."""

    IDLE = 0
    CELL = 1
    REQUEST = 2  #: of an ipyparallel view or ``%%px``
    DEBUGGER = 3  #: waits for a person


class StopState(IntEnum):
    """Where a request to stop at a step boundary is."""

    NONE = 0
    ASKED = 1  #: ranks that reach a boundary wait there
    DECIDED = 2  #: ranks go on to the boundary that was chosen, and stop there


class ActivityState(NamedTuple):
    """What a rank says of itself."""

    activity: int
    waits_at_boundary: bool
    in_loop: bool
    cell: int
    reached: int  #: boundaries of the cell that it has come to
    passed: int  #: ... and gone through


class Issued(NamedTuple):
    """An operation that a rank has issued; strings are numbers in that rank's table."""

    stamp: int
    signature: int
    line: int
    source: int
    description: int


def stamp(generation: int, number: int) -> int:
    """Order of an operation in its channel, over all generations of the groups."""
    return generation << _NUMBER_BITS | number


def number_of(stamped: int) -> int:
    """Number of the operation in its generation, from 1."""
    return stamped & ((1 << _NUMBER_BITS) - 1)


def generation_of(stamped: int) -> int:
    """Generation of the groups it was issued in."""
    return stamped >> _NUMBER_BITS


def channel_key(*parts: object) -> int:
    """The same number on every rank for the same parts; never one that says that there is no channel."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _CLOSED or 1


def message_key(group: int | str, sender: int, receiver: int, tag: int) -> int:
    """Channel of the messages from one rank to another; ``group`` is the channel of the group's collectives.

    So whoever knows the group, as the agent does, finds its messages.
    """
    return channel_key("messages", group, sender, receiver, tag)


def room_for(num_ranks: int) -> int:
    """How many ranks a node can have that begins with ``num_ranks``: a mapping cannot grow where it is in use."""
    return max(_ROOM, _ROOM_TIMES * num_ranks)


def new_board(num_ranks: int) -> mmap.mmap:
    """Memory for a board; processes forked from now on share it."""
    return mmap.mmap(-1, _HEAD_BYTES + num_ranks * _REGION_BYTES)


class Board:
    """The memory of all ranks of a node.

    Args:
        memory: From :func:`new_board`.
        ranks: Of this node: their regions follow each other.
    """

    def __init__(self, memory: mmap.mmap, ranks: RankSet) -> None:
        self._memory = memory
        self._view = memoryview(memory)
        # what is read while it is written is written word by word: struct packs byte by byte
        self._stop = self._view[:12].cast("I")  # boundary to stop at, state, cell
        self._activities: dict[int, memoryview] = {}
        self.seat(ranks)

    @property
    def room(self) -> int:
        """How many ranks the node can have."""
        return (len(self._view) - _HEAD_BYTES) // _REGION_BYTES

    def seat(self, ranks: RankSet) -> None:
        """The node has these ranks from now on. Those that it had and has still, the lowest, keep their places."""
        self._places = {rank: place for place, rank in enumerate(ranks)}
        self._activities.clear()

    def place(self, rank: int) -> int:
        """Which region is the rank's."""
        return self._places[rank]

    def free(self, place: int) -> None:
        """Give the memory of a region back: the process that wrote it has ended."""
        # a hole in the file behind the mapping, which is one file for all processes that have it
        self._memory.madvise(mmap.MADV_REMOVE, _HEAD_BYTES + place * _REGION_BYTES, _REGION_BYTES)

    def _region(self, rank: int) -> memoryview:
        start = _HEAD_BYTES + self._places[rank] * _REGION_BYTES
        return self._view[start : start + _REGION_BYTES]

    def holds(self, rank: int) -> bool:
        """Whether this rank is on this node."""
        return rank in self._places

    def ring(self, rank: int) -> memoryview:
        """Memory of the rank's span ring."""
        return self._region(rank)[:_RING_BYTES]

    def channels(self, rank: int) -> memoryview:
        """Memory of the rank's channels."""
        return self._region(rank)[_CHANNELS_AT : _CHANNELS_AT + NUM_CHANNELS * _CHANNEL_BYTES]

    def clear(self, rank: int) -> None:
        """Forget what an earlier process of this rank wrote."""
        region = self._region(rank)
        region[:HEADER_BYTES] = bytes(HEADER_BYTES)
        region[_RING_BYTES:] = bytes(len(region) - _RING_BYTES)

    # --- activity -------------------------------------------------------------------------------------------

    def activity(self, rank: int) -> ActivityState:
        """What the rank says of itself."""
        flags, cell, reached, passed = self._activity(rank)
        return ActivityState(flags & 0xFF, bool(flags & _WAITS), bool(flags & _IN_LOOP), cell, reached, passed)

    def _activity(self, rank: int) -> memoryview:
        if (words := self._activities.get(rank)) is None:
            memory = self._region(rank)[_RING_BYTES : _RING_BYTES + 4 * _ACTIVITY_WORDS]
            words = self._activities[rank] = memory.cast("I")
        return words

    def tell_activity(self, rank: int, state: ActivityState) -> None:
        """Say what this rank does; only the rank itself does so."""
        words = self._activity(rank)
        words[1], words[2], words[3] = state.cell, state.reached, state.passed
        words[0] = state.activity | _WAITS * state.waits_at_boundary | _IN_LOOP * state.in_loop

    # --- the request to stop at a boundary ------------------------------------------------------------------

    def ask_stop(self, cell: int, state: StopState, boundary: int = 0) -> None:
        """Agent: ask the ranks of a cell to stop at a boundary; ``boundary`` once it is decided."""
        self._stop[0], self._stop[1], self._stop[2] = boundary, state, cell

    def stop_asked(self) -> tuple[int, int, int]:
        """Cell, state and boundary of the request."""
        boundary, state, cell = self._stop
        return cell, state, boundary


class ChannelWriter:
    """A rank's own channels.

    Args:
        memory: From :meth:`Board.channels`.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("Q")
        self._num = 0
        self._closed: list[int] = []

    @property
    def has_room(self) -> bool:
        """Whether one more channel can be opened."""
        return self._num < NUM_CHANNELS or bool(self._closed)

    def open(self, key: int, newest: int = 0) -> int:
        """Offset of a channel in which operations up to ``newest`` have been issued; -1 when there is no room.

        One that has no room is not watched.
        """
        if self._closed:
            at = self._closed.pop()
            self._memory[at + 8 : at + _CHANNEL_BYTES] = bytes(_CHANNEL_BYTES - 8)
        elif self._num < NUM_CHANNELS:
            at = self._num * _CHANNEL_BYTES
            self._num += 1
        else:
            return -1
        self._words[at // 8 + 1] = newest
        self._words[at // 8] = key  # last: who finds it sees nothing of the channel that was here
        return at

    def close(self, at: int) -> None:
        """Nothing is issued in this channel any more; its place is free."""
        self._words[at // 8] = _CLOSED
        self._closed.append(at)

    def publish(self, at: int, stamped: int, issued: tuple[int, int, int, int]) -> None:
        """Say that this operation is about to be issued: signature, line, source, description."""
        entry = at + _CHANNEL.size + stamped % HISTORY * _ENTRY.size
        _ENTRY.pack_into(self._memory, entry, stamped, *issued)
        # the entry first, then the stamp in one store: who sees the stamp finds the entry (stores are ordered on x86;
        # on other processors the interpreter's own locks order them)
        self._words[(at + 8) // 8] = stamped

    def withdraw(self, at: int, stamped: int) -> None:
        """The backend refused the newest operation: it was never issued."""
        self._words[(at + 8) // 8] = stamped - 1

    def give_up(self, at: int, stamped: int) -> None:
        """The rank does not wait for this operation any more, which the backend may still have."""
        first = at // 8 + 2
        oldest = self._words[first]
        if not oldest or generation_of(oldest) != generation_of(stamped) or stamped < oldest:
            self._words[first] = stamped
        entry = (at + _CHANNEL.size + stamped % HISTORY * _ENTRY.size) // 8
        if self._words[entry] == stamped:
            self._words[entry] = stamped | _GIVEN_UP


class ChannelReader:
    """The channels of one rank, as its peers and the agent see them.

    Args:
        memory: From :meth:`Board.channels`.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("Q")

    def find(self, key: int) -> int:
        """Offset of the channel; -1 while the rank has not used it."""
        for at in range(0, NUM_CHANNELS * _CHANNEL_BYTES, _CHANNEL_BYTES):
            found = self._words[at // 8]
            if found == key:
                return at
            if not found:
                return -1
        return -1

    @property
    def full(self) -> bool:
        """Whether the rank may use channels that are not watched."""
        size = _CHANNEL_BYTES // 8
        if not self._words[(NUM_CHANNELS - 1) * size]:
            return False
        return all(self._words[number * size] != _CLOSED for number in range(NUM_CHANNELS))

    def newest(self, at: int) -> int:
        """Stamp of the newest operation; 0 if none."""
        return int(self._words[(at + 8) // 8])

    def newest_of(self, at: int, key: int) -> int:
        """The same if this channel is still at this offset; -1 if another is, or none."""
        words, word = self._words, at >> 3  # asked for every operation and peer
        return words[word + 1] if at >= 0 and words[word] == key else -1

    def given_up(self, at: int, stamped: int) -> bool:
        """Whether the rank has given up this operation, or one before it in the same generation."""
        oldest = self._words[at // 8 + 2]
        return oldest <= stamped and generation_of(oldest) == generation_of(stamped) and oldest > 0

    def newest_kept(self, at: int) -> int:
        """Stamp of the newest operation that can still be completed: before the first that was given up."""
        newest = self.newest(at)
        return int(self._words[at // 8 + 2]) - 1 if self.given_up(at, newest) else newest

    def signature(self, at: int, stamped: int) -> int | None:
        """Signature of an operation that has been issued; None if it is too old to be looked up, or given up."""
        entry = at + _CHANNEL.size + stamped % HISTORY * _ENTRY.size
        found, signature = _CHECK.unpack_from(self._memory, entry)
        return int(signature) if found == stamped else None

    def issued(self, at: int, stamped: int) -> Issued | None:
        """An operation that has been issued; None if it is too old to be looked up."""
        entry = at + _CHANNEL.size + stamped % HISTORY * _ENTRY.size
        found, *issued = _ENTRY.unpack_from(self._memory, entry)
        return Issued(stamped, *issued) if found & ~_GIVEN_UP == stamped else None
