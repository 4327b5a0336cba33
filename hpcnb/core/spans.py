"""The span record, its categories, and the ring in shared memory that it lives in. Both sides; pure bytes.

A rank is the only writer of its ring and the node agent the only reader of its records; peers read its strings. The
memory is part of the node's board (board.py), which has no name that could be left behind. Layout::

    0      header   magic, version, number of slots, number of records written (u64)
    64     state    what the rank's main thread is doing now; see STATE
    512    strings  count (u32), used bytes (u32), then u16 length + UTF-8 each; names are written once
    HEADER_BYTES    slots of SPAN.size bytes; record k is in slot k mod the number of slots

All times are nanoseconds of the node's monotonic clock (``time.perf_counter_ns`` on Linux, one clock for all
processes of a node).
"""

from __future__ import annotations

import mmap
import struct
import threading
from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, overload

__all__ = [
    "CATEGORY_NAMES",
    "HEADER_BYTES",
    "SPAN",
    "SPAN_FIELDS",
    "Category",
    "Flag",
    "Kind",
    "RankState",
    "RingReader",
    "RingWriter",
    "SpanRecord",
    "Strings",
    "ring_bytes",
    "strings_of",
]


class Kind(IntEnum):
    """What a record describes."""

    CELL = 0  #: one cell on one rank, from its first to its last line
    COLLECTIVE = 1
    POINT_TO_POINT = 2
    USER = 3  #: ``hpc.span(name)``
    DATA = 4  #: waiting for the next element in ``hpc.progress``
    STEP = 5  #: one turn of the innermost ``hpc.progress``


class Category(IntEnum):
    """Where a rank's wall time goes; the categories of one rank add up to it."""

    COMPUTATION = 0
    FORWARD = 1
    BACKWARD = 2
    OPTIMIZER = 3
    DATA = 4
    COMMUNICATION_WAIT = 5
    COMMUNICATION_TRANSFER = 6
    IDLE = 7
    DISPATCH = 8
    OTHER = 9


#: Names of the categories as tables show them.
CATEGORY_NAMES = tuple(category.name.lower() for category in Category)


class Flag(IntEnum):
    """Bits of a record's ``flags``."""

    ASYNC = 1  #: issued with async_op=True, or by C++ that waits later
    FUTURE = 2  #: waited for through its future (DDP)
    FAILED = 4  #: raised
    OTHER_THREAD = 8  #: not on the main thread: never exposed


#: Field names and ``struct`` codes, in order. ``timing`` builds its numpy dtype from this.
SPAN_FIELDS = (
    ("kind", "B"),
    ("category", "B"),  # of the record's exclusive time, for USER and DATA
    ("operation", "B"),  # reserved: 0
    ("flags", "B"),
    ("group", "H"),  # string: name of the process group; 0 where there is none
    ("name", "H"),  # string: all_reduce, or the user's name of the span
    ("cell", "I"),
    ("line", "I"),  # the user's line, 0 if unknown
    ("step", "i"),  # turn of the innermost hpc.progress, -1 outside
    ("peer", "i"),  # global rank of the other side (point-to-point) or root; -1 where there is none
    ("sequence", "I"),  # number of this operation in its group, per kind, and per peer and direction
    ("source", "I"),  # string: the cell or file of ``line``
    ("num_bytes", "Q"),
    ("start_ns", "q"),  # issue, for communication
    ("end_ns", "q"),  # completion
    ("wait_start_ns", "q"),  # main thread blocked from here ...
    ("wait_end_ns", "q"),  # ... to here: exposed communication; equal where there is none
    ("child_ns", "q"),  # time inside this span that nested records already account for
)
SPAN = struct.Struct("<" + "".join(code for _, code in SPAN_FIELDS))


def strings_of(records: bytes) -> set[int]:
    """Numbers of the strings that packed records name."""
    halves, words = memoryview(records).cast("H"), memoryview(records).cast("I")
    # every record's group, name and source, see SPAN_FIELDS; 30 ns each
    return {0, *halves[2 :: SPAN.size // 2], *halves[3 :: SPAN.size // 2], *words[7 :: SPAN.size // 4]}


class SpanRecord(NamedTuple):
    """One record; field meanings beside SPAN_FIELDS."""

    kind: int
    category: int
    operation: int
    flags: int
    group: int
    name: int
    cell: int
    line: int
    step: int
    peer: int
    sequence: int
    source: int
    num_bytes: int
    start_ns: int
    end_ns: int
    wait_start_ns: int
    wait_end_ns: int
    child_ns: int


_MAGIC = b"hpcnbR1\0"
_HEADER = struct.Struct("<8sIIQ")
_WRITTEN_AT = 16
_STATE_AT = 64
#: in a collective (1) or not (0), strings of its name and its group, sequence, line, source, bytes, since_ns; then what
#: finds it on the board: channel (-1 if it has none), stamp, and the peer it concerns (-1 for all of the group)
_STATE = struct.Struct("<BxHHHIIIQqiQi")
_STRINGS_AT = 512
#: Each cell adds its label: room for a session of 15,000 cells
HEADER_BYTES = 1 << 18
_STRINGS_BYTES = HEADER_BYTES - _STRINGS_AT
_STRINGS = struct.Struct("<II")


def ring_bytes(num_slots: int) -> int:
    """Size of the shared memory for ``num_slots`` records."""
    return HEADER_BYTES + num_slots * SPAN.size


def _strings_word(memory: mmap.mmap | memoryview) -> memoryview:
    """Count and used bytes of the strings as one word: struct reads and writes byte by byte."""
    return memoryview(memory)[_STRINGS_AT : _STRINGS_AT + _STRINGS.size].cast("Q")


def _slots_of(num_bytes: int) -> int:
    return (num_bytes - HEADER_BYTES) // SPAN.size


class RankState(NamedTuple):
    """What a rank's main thread is doing: also readable when the rank hangs or is dead."""

    in_communication: bool
    name: str
    group: str
    sequence: int
    line: int
    source: str
    num_bytes: int
    since_ns: int
    channel: int
    stamp: int
    peer: int


class RingWriter:
    """The rank's end. Thread-safe: the main thread and gloo's callback thread both write.

    Args:
        memory: Shared memory of ``ring_bytes(num_slots)`` bytes; its header is zero.
        num_slots: How many records fit; older ones are overwritten.
    """

    def __init__(self, memory: mmap.mmap | memoryview, num_slots: int) -> None:
        self._memory = memory
        self._num_slots = num_slots
        self._written = 0
        self._lock = threading.Lock()
        self._strings: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._strings_told = _strings_word(memory)
        _HEADER.pack_into(memory, 0, _MAGIC, 1, num_slots, 0)
        self._counter = memoryview(memory)[_WRITTEN_AT : _WRITTEN_AT + 8].cast("Q")
        self.intern("")

    def intern(self, text: str) -> int:
        """Number of ``text`` in the string table; 0 (the empty string) once the table is full."""
        number = self._strings.get(text)
        if number is not None:
            return number
        with self._lock:
            if text in self._strings:  # another thread was faster
                return self._strings[text]
            encoded = text.encode("utf-8", "replace")[:500]
            used, number = divmod(self._strings_told[0], 1 << 32)
            end = used + 2 + len(encoded)
            if end > _STRINGS_BYTES - _STRINGS.size or number >= 0xFFFF:
                return 0
            at = _STRINGS_AT + _STRINGS.size + used
            self._memory[at : at + 2 + len(encoded)] = struct.pack("<H", len(encoded)) + encoded
            self._texts[number] = text
            self._strings_told[0] = (
                end << 32 | number + 1
            )  # in one store, which no interrupt and no reader finds halved
            # last: another thread takes the number from here without the lock, and a peer may look it up at once
            self._strings[text] = number
        return number

    def text(self, number: int) -> str:
        """The string that :meth:`intern` gave this number. From any thread."""
        return self._texts.get(number, "")

    def write(self, *record: int) -> None:
        """Append one record, fields in the order of SPAN_FIELDS."""
        with self._lock:
            SPAN.pack_into(self._memory, HEADER_BYTES + self._written % self._num_slots * SPAN.size, *record)
            self._written += 1
            # in one store, after the record: the reader looks at this count first, so it never sees half a record
            # (stores are ordered on x86; on other processors the interpreter's own locks order them)
            self._counter[0] = self._written

    def enter_communication(self, *state: int) -> None:
        """Say that the main thread is now inside this operation.

        Args:
            state: Strings of name and group, sequence, line, string of the source, bytes, since_ns; channel, stamp
                and peer as on the board.
        """
        name, group, *rest = state
        _STATE.pack_into(self._memory, _STATE_AT, 0, name, group, 0, *rest)
        self._memory[_STATE_AT] = 1  # last: who reads half of it reads that there is none

    def leave_communication(self) -> None:
        """Say that the main thread is out of it."""
        self._memory[_STATE_AT] = 0


class Strings(Sequence[str]):
    """The string table of a ring as it grows. Texts are decoded when they are asked for: a session names thousands.

    Args:
        memory: Of the ring.
    """

    def __init__(self, memory: mmap.mmap | memoryview) -> None:
        self._memory = memory
        self._told = _strings_word(memory)
        self._places = array("I")
        self._end = 0

    def __len__(self) -> int:
        count = self._told[0] & 0xFFFFFFFF
        while len(self._places) < count:
            self._places.append(self._end)
            self._end += 2 + self._length(self._end)
        return count

    def _length(self, place: int) -> int:
        (length,) = struct.unpack_from("<H", self._memory, _STRINGS_AT + _STRINGS.size + place)
        return int(length)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            msg = f"no string {number}"
            raise IndexError(msg)
        at = _STRINGS_AT + _STRINGS.size + self._places[number] + 2
        return bytes(self._memory[at : at + self._length(self._places[number])]).decode("utf-8", "replace")


class RingReader:
    """The agent's end: reads what was written since the last call.

    Args:
        memory: The same mapping, read-only.

    Raises:
        ValueError: The memory does not hold a ring.
    """

    def __init__(self, memory: mmap.mmap | memoryview) -> None:
        header = bytes(memory[: _HEADER.size]).ljust(_HEADER.size, b"\0")
        magic, version, self._num_slots, _ = _HEADER.unpack(header)
        if magic != _MAGIC or version != 1 or not 0 < self._num_slots <= _slots_of(len(memory)):
            msg = f"not a span ring: magic {magic!r}, version {version}, {len(memory)} bytes"
            raise ValueError(msg)
        self._memory = memory
        self._counter = memoryview(memory)[_WRITTEN_AT : _WRITTEN_AT + 8].cast("Q")
        self._read = 0
        self._strings = Strings(memory)

    def drain(self) -> tuple[bytes, int]:
        """New records, concatenated, oldest first; and how many were overwritten before they were read."""
        written = self._counter[0]
        if written <= self._read:
            return b"", 0
        first = max(self._read, written - self._num_slots)
        records = self._copy(first, written)
        # the writer may have gone on: what it has filled meanwhile, and the slot it fills now, are not ours
        now = self._counter[0]
        safe = min(max(first, now - self._num_slots + 1), written)
        lost, self._read = safe - self._read, written
        return records[(safe - first) * SPAN.size :], lost

    def _copy(self, first: int, end: int) -> bytes:
        at, until = first % self._num_slots, end % self._num_slots
        start, stop = HEADER_BYTES + at * SPAN.size, HEADER_BYTES + until * SPAN.size
        if at < until:
            return bytes(self._memory[start:stop])
        limit = HEADER_BYTES + self._num_slots * SPAN.size
        return bytes(self._memory[start:limit]) + bytes(self._memory[HEADER_BYTES:stop])

    def strings(self) -> Strings:
        """The string table so far; entry 0 is the empty string."""
        return self._strings

    def state(self) -> RankState:
        """What the rank's main thread is doing now."""
        inside, name, group, _, sequence, line, source, *rest = _STATE.unpack_from(self._memory, _STATE_AT)
        strings = self.strings()
        names = [strings[number] if number < len(strings) else "" for number in (name, group, source)]
        return RankState(bool(inside), names[0], names[1], sequence, line, names[2], *rest)
