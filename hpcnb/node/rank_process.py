"""What the agent holds of one rank: its process, its sockets, its pipes, its span ring, its output of a cell."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpcnb.core.launch import RunFolder
from hpcnb.core.messages import FrameReader, Message, MessageError, RankReady, frame
from hpcnb.core.spans import SPAN, RankState, RingReader, strings_of
from hpcnb.node.gate import FloodGate

__all__ = ["RankProcess"]

Entry = tuple[str, str]
#: A rank that is stopped is sent so many bytes of orders when it goes on; later ones are dropped.
_ORDERS_LIMIT = 1 << 20
#: A rank's log keeps at most so many bytes; it may lie in memory.
_LOG_LIMIT = 16 << 20
#: Span records of one cell that are kept; a long cell keeps its end.
_SPANS_LIMIT = 64 << 20


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("backslashreplace")


@dataclass
class RankProcess:
    """One rank as its agent sees it.

    Attributes:
        rank: Global rank.
        folder: Of the cluster.
        memory: Of the rank's span ring.
        pid: Of the process; 0 until it has been forked.
        ready: Its announcement that it runs cells.
        status: How the process ended, as ``Popen.returncode``; None while it lives.
        cell: The cell it runs; 0 if none.
        num_interrupts: How often its cells have been interrupted.
        last_lines: The end of what it said in its last cell and after it.
    """

    rank: int
    folder: RunFolder
    memory: memoryview
    pid: int = 0
    ready: RankReady | None = None
    status: int | None = None
    cell: int = 0
    num_interrupts: int = 0
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _pidfd: int = -1
    _cells: socket.socket | None = None
    _control: socket.socket | None = None
    _unsent: bytearray = field(default_factory=bytearray)
    _control_unsent: bytearray = field(default_factory=bytearray)
    _await_room: Callable[[], None] | None = None
    _reader: FrameReader = field(default_factory=FrameReader)
    _stacks: int = -1
    _pipes: dict[int, tuple[str, codecs.IncrementalDecoder]] = field(default_factory=dict)
    _ring: RingReader | None = None
    _gate: FloodGate | None = None
    _budgets: tuple[int, int] = (0, 0)
    _spans: list[bytes] = field(default_factory=list)
    _spans_lost: int = 0
    _spans_size: int = 0
    _spans_cell: int = 0
    _log_size: int = 0
    _began_ns: int = 0

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.pid != 0 and self.status is None

    # --- connection -----------------------------------------------------------------------------------------

    def attach_cells(self, connection: socket.socket, descriptors: list[int]) -> None:
        """The rank's first connection, with its pipes; its span ring is ready.

        Raises:
            ProcessLookupError: It has ended already; nothing is attached then.
            ValueError: Its span ring is none.
        """
        ring = RingReader(self.memory)
        self._pidfd = os.pidfd_open(self.pid)
        connection.setblocking(False)
        self._cells = connection
        out, err, self._stacks = descriptors
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        for name, descriptor in (("stdout", out), ("stderr", err)):
            self._pipes[descriptor] = (name, _decoder())
        self._ring = ring

    def attach_control(self, connection: socket.socket, await_room: Callable[[], None]) -> None:
        """The rank's second connection, to its link thread.

        ``await_room`` is called when it takes no more: then :meth:`send_control_rest` is to be called when it does.
        """
        connection.setblocking(False)
        self._control = connection
        self._await_room = await_room

    def has_channel(self, name: str) -> bool:
        """Whether the rank has connected for ``cells`` or, any other name, for ``control``."""
        return bool(self.descriptors) if name == "cells" else self._control is not None

    @property
    def control(self) -> int:
        """Descriptor of the second connection; -1 if there is none."""
        return -1 if self._control is None else self._control.fileno()

    @property
    def descriptors(self) -> list[int]:
        """To be watched for reading."""
        stacks = [self._stacks] if self._stacks >= 0 else []
        return [*([self._cells.fileno()] if self._cells else []), *stacks, *self._pipes]

    def read_messages(self, refused: Callable[[MessageError], None] | None = None) -> list[Message]:
        """What the rank has sent.

        Args:
            refused: Told why a complete frame is no message.

        Raises:
            MessageError: Its stream cannot be cut into frames any more; no more is read from it.
        """
        if self._cells is None:
            return []
        try:
            received = self._cells.recv(1 << 20)
        except BlockingIOError:
            return []
        except ConnectionError:
            received = b""
        if not received:
            self._cells.close()
            self._cells = None
            return []
        try:
            return self._reader.feed(received, refused)
        except MessageError:
            self._cells.close()
            self._cells = None
            raise

    def read_stacks(self) -> str:
        """What faulthandler has written since the last call."""
        try:
            received = os.read(self._stacks, 1 << 16)
        except BlockingIOError:
            return ""
        if not received:
            os.close(self._stacks)
            self._stacks = -1
        return received.decode("utf-8", "backslashreplace")

    def read_pipe(self, descriptor: int) -> list[Entry]:
        """Some of what was written to the rank's descriptor 1 or 2: one read, nothing if there is nothing."""
        name, decoder = self._pipes[descriptor]
        try:
            received = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return []
        if not received:
            os.close(descriptor)
            del self._pipes[descriptor]
            return []
        return [(name, decoder.decode(received))]

    def read_pipes(self) -> list[Entry]:
        """All that was written to the rank's descriptors 1 and 2 and has not been read."""
        entries: list[Entry] = []
        for descriptor in list(self._pipes):
            while received := self.read_pipe(descriptor):
                entries += received
        return entries

    def send(self, framed: bytes) -> bool:
        """Queue a frame for the rank's main thread; false if it cannot all be sent now (then watch for writing)."""
        self._unsent += framed
        return self.send_rest()

    def send_rest(self) -> bool:
        """Send what is queued; false if some is left."""
        while self._unsent and self._cells is not None:
            try:
                del self._unsent[: self._cells.send(self._unsent)]
            except BlockingIOError:
                return False
            except ConnectionError:
                self._unsent.clear()
        return True

    def send_control(self, message: Message) -> None:
        """Send to the rank's link thread, which always reads, unless the process is stopped: then it is queued."""
        if self._control is None:
            return
        was_empty = not self._control_unsent
        if len(self._control_unsent) > _ORDERS_LIMIT:
            return  # it has been told more than enough
        self._control_unsent += frame(message)
        if was_empty and not self.send_control_rest() and self._await_room is not None:
            self._await_room()

    def send_control_rest(self) -> bool:
        """Send what is queued for the link thread; false if some is left."""
        while self._control_unsent and self._control is not None:
            try:
                del self._control_unsent[: self._control.send(self._control_unsent)]
            except BlockingIOError:
                return False
            except ConnectionError:
                self._control_unsent.clear()  # its end is already on the way to us as an exit
        return True

    def signal(self, number: int) -> None:
        """Signal the process itself; safe against reused process ids."""
        if self._pidfd >= 0 and self.alive:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # it has just ended, and the template will say so

    def kill_group(self) -> None:
        """SIGKILL to the rank and what its cells have started. Only before its exit has been reaped."""
        if self.alive:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has not made its group yet
                if self._pidfd >= 0:
                    self.signal(signal.SIGKILL)
                else:  # nor connected: the template has not said that it ended, so the number is its own
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)

    # --- a cell ---------------------------------------------------------------------------------------------

    def begin_cell(self, cell: int, line_budget: int, byte_budget: int) -> None:
        """The rank is about to run a cell."""
        self.cell = self._spans_cell = cell
        self._began_ns = time.perf_counter_ns()
        self.last_lines.clear()  # should it die, what earlier cells said does not tell why
        self._budgets = (line_budget, byte_budget)
        self._gate = FloodGate(line_budget, byte_budget, self.folder.flood(cell, self.rank))
        self.drain_spans()
        self._spans.clear()
        self._spans_lost = self._spans_size = 0

    def show(self, entries: list[Entry]) -> list[Entry]:
        """What of this output goes to the notebook; the rest is kept or logged."""
        if self._gate is None:
            for _, text in entries:
                self.log(text)
            return []
        shown: list[Entry] = []
        for kind, text in entries:
            shown += self._gate.feed(kind, text)
            self.last_lines.extend(text.splitlines()[-20:])
        return shown

    def held(self) -> tuple[int, str] | None:
        """Output that is held back: number of lines and the newest; None if all is shown."""
        return self._gate.held if self._gate is not None and self._gate.overflowed else None

    def release(self) -> list[Entry]:
        """What a flood has held back, cut as at the end of a cell; what follows has the whole budget again."""
        entries = self._gate.finish() if self._gate is not None else []
        self._gate = FloodGate(*self._budgets, self.folder.flood(self.cell, self.rank), append=True)
        return entries

    def end_cell(self) -> list[Entry]:
        """The rank has answered: the rest of its output."""
        entries = self.read_pipes()
        for name, decoder in self._pipes.values():  # half a character that will not be completed
            if half := decoder.decode(b"", final=True):
                entries.append((name, half))
        entries = self.show(entries)
        if self._gate is not None:
            entries += self._gate.finish()
        self._gate = None
        self.cell = 0
        self.drain_spans()
        return entries

    def log(self, text: str) -> None:
        """Append to the rank's log."""
        self.last_lines.extend(text.splitlines()[-20:])
        if self._log_size < _LOG_LIMIT:
            self._log_size += len(text)
            try:
                with self.folder.rank_log(self.rank).open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text)
            except OSError as error:  # /run and /tmp are small on some machines
                self._log_size = _LOG_LIMIT
                self.last_lines.append(f"(the log cannot be written: {error})")

    def drain_spans(self) -> None:
        """Read new records before the ring overwrites them."""
        if self._ring is not None:
            records, lost = self._ring.drain()
            if records:
                self._spans.append(records)
                self._spans_size += len(records)
            while self._spans_size > _SPANS_LIMIT and len(self._spans) > 1:  # of a long cell the end is kept
                dropped = self._spans.pop(0)
                self._spans_size -= len(dropped)
                lost += len(dropped) // SPAN.size
            self._spans_lost += lost

    def take_spans(self, cell: int) -> tuple[bytes, dict[int, str], int]:
        """Records of this cell, strings that they name, and how many were lost; nothing if another has begun."""
        if cell != self._spans_cell:
            return b"", {}, 0
        spans = b"".join(self._spans)
        self._spans.clear()
        self._spans_size = 0
        lost, self._spans_lost = self._spans_lost, 0
        # an empty cell has one record without names: nothing to look up
        if self._ring is None or len(spans) <= SPAN.size:
            return spans, {}, lost
        # the whole table grows with the session, and every cell would carry it
        table = self._ring.strings()
        return spans, {number: table[number] for number in strings_of(spans) if 0 < number < len(table)}, lost

    def strings(self) -> Sequence[str]:
        """The rank's string table."""
        return self._ring.strings() if self._ring is not None else [""]

    def communication(self) -> RankState | None:
        """The operation that the rank's main thread is in, read from shared memory, also when it hangs."""
        if self._ring is None:
            return None
        state = self._ring.state()
        return state if state.in_communication else None

    def last_communication(self) -> RankState | None:
        """The last operation of the cell that the main thread is out of."""
        if self._ring is None:
            return None
        state = self._ring.state()
        return state if not state.in_communication and state.name and state.since_ns >= self._began_ns else None

    def state(self) -> str:
        """In words: what the rank does now."""
        if not self.alive:
            return "not started" if self.pid == 0 else "dead"
        if self.ready is None:
            return "starting"
        if self.cell and (state := self.communication()) is not None:
            place = f", line {state.line}" if state.line else ""
            return f"in {state.name} #{state.sequence} of {state.group} ({state.num_bytes:,} B{place})"
        return f"runs cell {self.cell}" if self.cell else "idle"

    def close(self) -> None:
        """Let go of everything the process left."""
        for connection in (self._cells, self._control):
            if connection is not None:
                connection.close()
        self._cells = self._control = None
        self._control_unsent.clear()
        for descriptor in self._pipes:
            os.close(descriptor)
        self._pipes.clear()
        if self._stacks >= 0:
            os.close(self._stacks)
            self._stacks = -1
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._ring = None
