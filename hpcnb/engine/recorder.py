"""The always-on recorder of one rank: turns what the rank does into span records in its ring.

Knows no socket and no message: it writes to shared memory, the node agent reads it. Exclusive time is accounted
here, where nesting is known: every record carries the time that records inside it already cover, so that the
tables on the notebook side are plain sums. Times are ``time.perf_counter_ns``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING

from hpcnb.core import units
from hpcnb.core.spans import Category, Flag, Kind, RingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from hpcnb.engine.guard import Channel

__all__ = ["CELL_FILE_PREFIX", "OpenSpan", "Operation", "Recorder"]

#: Cells are compiled under ``<cell 3>``: the same name on every rank, so that tracebacks can be grouped.
CELL_FILE_PREFIX = "<cell "

#: Who asks whether an operation is over, for so long and with pauses no longer than this, waits for it.
_ASKS_NS, _PAUSE_NS = 100_000_000, 1_000_000_000

#: Names of ``hpc.span`` that are categories of the breakdown.
_CATEGORY_BY_NAME = {
    "forward": Category.FORWARD,
    "backward": Category.BACKWARD,
    "optimizer": Category.OPTIMIZER,
    "data": Category.DATA,
}


@dataclass(slots=True, eq=False)
class OpenSpan:
    """A span of the main thread that has begun and not ended."""

    kind: int
    category: int
    name: int
    line: int
    source: int
    start_ns: int
    child_ns: int = 0


@dataclass(slots=True, eq=False)
class Operation:
    """A communication operation that has been issued; becomes one record when it is over."""

    kind: int
    name: int
    group: int
    sequence: int
    peer: int
    num_bytes: int
    cell: int
    step: int
    line: int
    source: int
    flags: int
    start_ns: int
    end_ns: int = 0
    wait_start_ns: int = 0
    wait_end_ns: int = 0
    written: bool = False
    backward: Backward | None = None
    stamp: int = 0  # on the board
    channel: Channel | None = None
    is_done: Callable[[], bool] | None = None  # asks the backend; where there is a future
    abandon: Callable[[], None] | None = None  # completes that future, whatever the backend does


@dataclass(slots=True, eq=False)
class Backward:
    """One run of the autograd engine: DDP's C++ waits for its buckets when it ends.

    DDP waits for futures in C++, where no Python wait is seen. But it queues that wait on the autograd engine
    after we queued ours (torch/csrc/distributed/c10d/reducer.cpp, ``mark_variable_ready`` queues
    ``finalize_backward``; callbacks run in order), so our callback marks the moment at which waiting begins.
    """

    task: int
    ended_ns: int = 0
    exposed_until_ns: int = 0
    num_issued: int = 0
    operations: set[Operation] = field(default_factory=set)  # waited for through futures, and not over
    last: list[Operation] = field(default_factory=list)  # the operation whose end DDP waits for
    is_abandoned: bool = False  # gradients are not what they should be: the backward pass must raise


class Recorder:
    """Writes span records of one rank.

    Args:
        ring: Where records go.
        enabled: When false no span is written; what the rank is in is still said, since the watch needs it.
    """

    def __init__(self, ring: RingWriter, *, enabled: bool = True) -> None:
        self.ring = ring
        self.enabled = enabled
        self.main_thread = threading.get_ident()
        self.cell = 0
        self.step = -1
        self._stack: list[OpenSpan] = []
        self._open: set[Operation] = set()
        self._depth = 0
        self._deepest = 0
        self._num_steps = 0
        self._backward: Backward | None = None
        self._num_buckets = 0
        self._completing = threading.Lock()
        self._asked: tuple[Operation | None, int, int] = (None, 0, 0)  # and when for the first and for the last time

    # --- spans of the main thread ---------------------------------------------------------------------------

    def begin_cell(self, cell: int) -> int:
        """A cell begins on this rank now; returns the time."""
        self.cell = cell
        self._backward = None
        self.ring.leave_communication()  # an interrupt may have torn the end of a wait
        self.step = -1
        self._depth = self._deepest = self._num_steps = 0
        start_ns = perf_counter_ns()
        self._stack = [OpenSpan(Kind.CELL, Category.COMPUTATION, 0, 0, 0, start_ns)]
        return start_ns

    def end_cell(self) -> int:
        """The cell is over: close what it left open; returns the time."""
        self._settle()
        end_ns = perf_counter_ns()
        self.step = -1
        while self._stack:
            self._close(end_ns)
        if self._open:  # issued and never waited for
            for operation in list(self._open):  # a copy: the backend's thread takes from it
                if operation.end_ns and not operation.written:
                    self._write_operation(operation)
        self.cell = 0
        return end_ns

    def begin(self, kind: int, name: str) -> OpenSpan | None:
        """Open a span; None when off, or outside of a cell or of the main thread."""
        if not self.enabled or not self._stack or threading.get_ident() != self.main_thread:
            return None
        self._settle()
        line, source = self.user_line(sys._getframe(1))
        category = Category.COMPUTATION
        if kind == Kind.DATA:
            category = Category.DATA
        elif kind == Kind.USER:
            # inside "data" or "forward", a span with a name of its own stays what surrounds it
            category = _CATEGORY_BY_NAME.get(name, Category(self._stack[-1].category))
        span = OpenSpan(kind, category, self.ring.intern(name), line, source, perf_counter_ns())
        self._stack.append(span)
        return span

    def end(self, span: OpenSpan | None) -> None:
        """Close ``span`` and whatever is still open inside it."""
        if span is None or span not in self._stack:
            return  # the cell has ended meanwhile and closed it
        self._settle()
        end_ns = perf_counter_ns()
        while self._close(end_ns) is not span:
            pass

    def _close(self, end_ns: int) -> OpenSpan:
        span = self._stack.pop()
        if self.enabled:
            self.ring.write(
                span.kind, span.category, 0, 0, 0, span.name, self.cell, span.line, self.step, -1, 0, span.source,
                0, span.start_ns, end_ns, end_ns, end_ns, span.child_ns,
            )  # fmt: skip
        if self._stack:
            self._stack[-1].child_ns += end_ns - span.start_ns
        return span

    def begin_loop(self) -> int:
        """A loop of ``hpc.progress`` begins; returns its depth. Turns of the deepest loops are the steps."""
        self._depth += 1
        if self._depth > self._deepest:
            self._deepest = self._depth
            self._num_steps = 0
        return self._depth

    def end_loop(self) -> None:
        """The innermost loop is over."""
        self._depth = max(0, self._depth - 1)
        self.step = -1

    def next_step(self, depth: int) -> None:
        """A turn of the loop at ``depth`` begins."""
        if depth == self._deepest:
            self.step = self._num_steps
            self._num_steps += 1

    # --- communication --------------------------------------------------------------------------------------

    def user_line(self, frame: FrameType | None) -> tuple[int, int]:
        """Line and source (string number) of the innermost cell code that led here; (0, 0) if there is none."""
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(CELL_FILE_PREFIX):
                return frame.f_lineno, self.ring.intern(code.co_filename[1:-1])
            frame = frame.f_back
        return 0, 0

    def place(self, depth: int) -> tuple[int, int]:
        """Line and source of the innermost cell code above the caller's caller."""
        return self.user_line(sys._getframe(depth))

    def issue(
        self, kind: int, name: int, group: int, sequence: int, peer: int, num_bytes: int, flags: int
    ) -> Operation:
        """A communication operation is about to be issued by this thread."""
        if threading.get_ident() != self.main_thread:
            flags |= Flag.OTHER_THREAD
        else:
            self._settle()
        return Operation(
            kind, name, group, sequence, peer, num_bytes, self.cell, self.step, 0, 0, flags, perf_counter_ns()
        )

    def words(self, operation: Operation) -> str:
        """The operation as a person reads it: ``all_reduce #17 (4.2 MB, line 6)``."""
        line = f", line {operation.line}" if operation.line else ""
        return f"{self.ring.text(operation.name)} #{operation.sequence} ({units.size(operation.num_bytes)}{line})"

    def last_wait(self) -> tuple[str, float]:
        """Words and seconds of what DDP waited for in the last backward pass; ("", 0) if it waited for nothing."""
        backward = self._backward
        if backward is None or not backward.last:
            return "", 0.0
        return self.words(backward.last[-1]), self.seconds_since(backward.ended_ns)

    @staticmethod
    def seconds_since(began_ns: int) -> float:
        """Seconds since a time that :meth:`begin_wait` returned."""
        return (perf_counter_ns() - began_ns) / 1e9

    def opened(self, operation: Operation) -> None:
        """The operation runs and somebody else will wait for it."""
        self._open.add(operation)

    def begin_wait(self, operation: Operation) -> int:
        """This thread blocks until the operation is over; returns the time."""
        if not operation.flags & Flag.OTHER_THREAD:
            channel = operation.channel
            self.ring.enter_communication(
                operation.name, operation.group, operation.sequence, operation.line, operation.source,
                operation.num_bytes, operation.start_ns, -1 if channel is None else channel.at, operation.stamp,
                operation.peer if operation.kind == Kind.POINT_TO_POINT else -1,
            )  # fmt: skip
        return perf_counter_ns()

    def end_wait(self, operation: Operation, began_ns: int, *, failed: bool = False) -> None:
        """The wait that began at ``began_ns`` is over."""
        now_ns = perf_counter_ns()
        if operation.written:
            if threading.get_ident() == self.main_thread:
                self.ring.leave_communication()
            return
        if failed:
            operation.flags |= Flag.FAILED
        if threading.get_ident() == self.main_thread and not operation.flags & Flag.OTHER_THREAD:
            operation.wait_start_ns, operation.wait_end_ns = began_ns, now_ns
            operation.cell, operation.step = self.cell, self.step  # where it blocks, should it have been issued earlier
            if self._stack:
                self._stack[-1].child_ns += now_ns - began_ns
            self.ring.leave_communication()
        operation.end_ns = operation.end_ns or now_ns
        self._write_operation(operation)

    def asked(self, operation: Operation, *, is_over: bool) -> None:
        """A cell asks whether the operation is over. One that asks again and again is said to be in it."""
        if operation.flags & Flag.OTHER_THREAD or threading.get_ident() != self.main_thread:
            return
        now_ns = perf_counter_ns()
        asked, first_ns, last_ns = self._asked
        if is_over:
            if asked is operation:
                self._asked = (None, 0, 0)
                self.ring.leave_communication()
            return
        if asked is not operation or now_ns - last_ns > _PAUSE_NS:
            first_ns = now_ns
        self._asked = (operation, first_ns, now_ns)
        if now_ns - first_ns > _ASKS_NS:
            self.begin_wait(operation)

    @contextlib.contextmanager
    def inside(self, operation: Operation) -> Iterator[int]:
        """The body waits for others to come to this operation; said to who watches, and not recorded."""
        began_ns = self.begin_wait(operation)
        try:
            yield began_ns
        finally:
            if not operation.flags & Flag.OTHER_THREAD:
                self.ring.leave_communication()

    def completed(self, operation: Operation) -> None:
        """The operation is over; called on the thread of the backend."""
        with self._completing:
            operation.end_ns = operation.end_ns or perf_counter_ns()
            backward = operation.backward
            if not operation.flags & Flag.FUTURE or operation.written:
                return
            if backward is not None and backward.ended_ns:
                self._expose(operation, backward, operation.end_ns)
            self._write_operation(operation)
            if backward is not None:
                backward.operations.discard(operation)
                if backward.ended_ns and not backward.operations:
                    self.ring.leave_communication()

    def waited_through_future(self, operation: Operation) -> None:
        """Somebody took the operation's future: C++ (DDP), which waits for it when the backward pass ends."""
        operation.flags |= Flag.FUTURE
        if operation.backward is not None:
            operation.backward.operations.add(operation)

    def abandon_futures(self) -> bool:
        """Complete what DDP waits for in C++ although the backend does not; whether there was anything.

        From any thread. A backend that completes the same future later ends the process, so this is for operations
        that it has forgotten.
        """
        backward = self._backward
        waiting = [] if backward is None else [each for each in list(backward.operations) if not _is_over(each)]
        for operation in waiting:
            if backward is not None and operation.abandon is not None:
                backward.is_abandoned = True
                operation.abandon()
        return bool(waiting)

    def waits_for_futures(self) -> bool:
        """Whether DDP waits in C++ for something that is not over."""
        backward = self._backward
        return backward is not None and not all(_is_over(each) for each in list(backward.operations))

    def _settle(self) -> None:
        """The main thread runs Python again: what DDP has waited for is over, though its callback may be late.

        The callback needs the interpreter lock, which the main thread gets first when its wait ends; without this
        the cell could end before its last wait is accounted for.
        """
        backward = self._backward
        if backward is None or not backward.ended_ns or not backward.operations:
            return
        for operation in list(backward.operations):
            if operation.is_done is not None and operation.is_done():
                self.completed(operation)

    def _expose(self, operation: Operation, backward: Backward, end_ns: int) -> None:
        # several buckets are waited for at once: each gets the part of the wait that it ended
        if end_ns > backward.exposed_until_ns:
            operation.wait_start_ns, operation.wait_end_ns = backward.exposed_until_ns, end_ns
            if self._stack:
                self._stack[-1].child_ns += end_ns - backward.exposed_until_ns
            backward.exposed_until_ns = end_ns

    def backward(self, task: int) -> tuple[Backward, bool]:
        """The run of the autograd engine that this thread is in, and whether it is new to us."""
        backward = self._backward
        is_new = backward is None or backward.task != task
        if backward is None or is_new:
            self._num_buckets = backward.num_issued if backward is not None else 0
            backward = self._backward = Backward(task)
        backward.num_issued += 1
        return backward, is_new

    def is_last_bucket(self, backward: Backward) -> bool:
        """Whether nothing follows in this backward pass, as far as the previous one tells.

        The end of the last bucket ends DDP's wait and needs no callback on the backend's thread, which costs more
        than all else here.
        """
        return backward.num_issued == self._num_buckets

    def backward_ended(self, backward: Backward) -> None:
        """All gradients are computed; DDP begins to wait for the buckets that are still under way."""
        backward.ended_ns = backward.exposed_until_ns = perf_counter_ns()
        if waiting := list(backward.operations):
            backward.last[:] = [max(waiting, key=lambda operation: operation.stamp)]  # it is over when all are
            self.begin_wait(backward.last[0])

    def backward_settled(self) -> None:
        """DDP has waited for its buckets; called on the main thread when it goes on."""
        self._settle()

    def _write_operation(self, operation: Operation) -> None:
        self._open.discard(operation)
        operation.written = True
        if not operation.wait_end_ns:
            operation.wait_start_ns = operation.wait_end_ns = operation.end_ns
        if not self.enabled:
            return
        self.ring.write(
            operation.kind, Category.COMMUNICATION_TRANSFER, 0, operation.flags, operation.group, operation.name,
            operation.cell, operation.line, operation.step, operation.peer, operation.sequence, operation.source,
            operation.num_bytes, operation.start_ns, operation.end_ns, operation.wait_start_ns,
            operation.wait_end_ns, 0,
        )  # fmt: skip


def _is_over(operation: Operation) -> bool:
    return operation.is_done is None or operation.is_done()
