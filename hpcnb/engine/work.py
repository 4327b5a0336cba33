"""A communication operation under way: its waits are seen by the recorder, and can be given up.

gloo's own wait ends only when the operation does. Waiting in slices lets Ctrl-C land in a collective within a tenth
of a second, and lets a released rank go although the backend does not.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from time import monotonic, perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hpcnb.core.board import generation_of
from hpcnb.engine.futures import WatchedFuture
from hpcnb.engine.guard import raise_instead
from hpcnb.engine.pauses import pauses_s

if TYPE_CHECKING:
    from hpcnb.engine.guard import Guard
    from hpcnb.engine.recorder import Operation, Recorder

__all__ = ["AnySourceWork", "RecordedWork"]

#: One slice of a wait for gloo. When it is over the wait goes on; what it costs is an exception.
_SLICE = datetime.timedelta(milliseconds=100)
_SLICE_OVER = "Operation timed out"
#: What a Work can do besides waiting; handed through to the inner work
_WORK_METHODS = ("is_success", "exception", "result", "source_rank", "synchronize", "abort", "boxed")


class RecordedWork(dist.Work):
    """A Work whose waits are seen, from Python and, through torch's PyWork trampoline, from C++.

    Args:
        inner: Of the backend.
        operation: What it is.
        recorder: Of this rank.
        guard: Of this rank.
        in_slices: Whether the wait may be cut: true for gloo's collectives. Its point-to-point waits end the
            connection when they time out, and accelerators wait on a stream.
    """

    def __init__(
        self, inner: dist.Work, operation: Operation, recorder: Recorder, guard: Guard, *, in_slices: bool
    ) -> None:
        super().__init__()
        self._inner = inner
        self._operation = operation
        self._recorder = recorder
        self._guard = guard
        self._in_slices = in_slices
        self._watched = False
        self.tensors: list[torch.Tensor] = []  #: What the future holds when it is over, where somebody may take it.

    def wait(self, *timeout: Any) -> bool:
        recorder, operation = self._recorder, self._operation
        began_ns = recorder.begin_wait(operation)
        try:
            if self._is_old() and not self._inner.is_completed():  # nor will it ever be
                raise self._guard.outdated(recorder.words(operation))
            done: bool = self._wait_in_slices(*timeout) if self._in_slices else self._inner.wait(*timeout)
        except BaseException as error:  # noqa: BLE001 - raised again, in the words of a person
            recorder.end_wait(operation, began_ns, failed=True)
            if operation.channel is not None:
                self._guard.given_up(operation.channel, operation.stamp)
            waited_s = (perf_counter_ns() - began_ns) / 1e9
            generation = None if operation.channel is None else generation_of(operation.stamp)
            words = recorder.words(operation)
            raise_instead(error, self._guard.explained(error, words, waited_s, generation=generation))
        recorder.end_wait(operation, began_ns)
        return done

    def _is_old(self) -> bool:
        """Whether groups have been built again since it was issued: its connections are gone."""
        operation = self._operation
        return operation.channel is not None and generation_of(operation.stamp) != self._guard.generation

    def _wait_in_slices(self, timeout: datetime.timedelta | None = None) -> bool:
        limit_s = timeout.total_seconds() if timeout else float("inf")  # C++ says zero for "none"
        until_s = monotonic() + limit_s
        while True:
            try:
                done: bool = self._inner.wait(_SLICE)
            except RuntimeError as error:
                if _SLICE_OVER not in str(error) or monotonic() > until_s:
                    raise
            else:
                return done
            if self._is_old():  # another thread waits while groups are built again
                raise self._guard.outdated(self._recorder.words(self._operation))
            self._guard.check()

    def watch(self) -> None:
        """Learn of the completion from the backend, at the price of a callback on its thread."""
        if self._watched:
            return
        try:
            future = self._inner.get_future()
        except RuntimeError:
            return  # gloo's send, recv and reduce_scatter have no future; their wait tells
        self._watched = True
        operation, recorder = self._operation, self._recorder
        future.add_done_callback(lambda _: recorder.completed(operation))

    def is_completed(self) -> bool:
        done = bool(self._inner.is_completed())
        recorder, operation = self._recorder, self._operation
        if operation.backward is None:
            recorder.asked(operation, is_over=done)  # a cell may ask until it is, which is a wait as well
            if not done and self._is_old():
                raise self._guard.outdated(recorder.words(operation))
            if self._guard.broken and not (done and self._inner.is_success()):  # released, it ends without a result
                raise self._guard.error(recorder.words(operation), recorder.seconds_since(operation.start_ns))
        return done

    def get_future(self) -> torch.futures.Future[Any]:
        self._recorder.waited_through_future(self._operation)
        future = self._inner.get_future()
        self._operation.is_done = future.done
        tensors = self.tensors
        self._operation.abandon = lambda: future.set_result(tensors)
        if self._operation.backward is None and self._in_slices:  # else it is waited for in C++, or on a stream
            return WatchedFuture(future, self._operation, self._recorder, self._guard)
        return future

    def getFuture(self) -> torch.futures.Future[Any]:  # noqa: N802 - the name C++ looks for
        return self.get_future()


def _delegate(name: str) -> Callable[..., Any]:
    def method(self: RecordedWork, *args: Any) -> Any:
        return getattr(self._inner, name)(*args)

    method.__name__ = name
    return method


for _name in _WORK_METHODS:
    if hasattr(dist.Work, _name):
        setattr(RecordedWork, _name, _delegate(_name))


class AnySourceWork(dist.Work):
    """A receive from whoever sends first: waits until a sender is known, then receives from that one.

    gloo's own receive from any source cannot be released, and aborts the interpreter when sizes differ.

    Args:
        find_sender: Rank in the group of a sender whose message has not been received; -1 while there is none.
        receive: Receives from that rank.
        operation: What it is, for who watches; the receive from the sender is recorded by itself.
        recorder: Of this rank.
        guard: Of this rank.
    """

    def __init__(
        self, find_sender: Callable[[], int], receive: Callable[[int], dist.Work], operation: Operation,
        recorder: Recorder, guard: Guard,
    ) -> None:  # fmt: skip
        super().__init__()
        self._find_sender = find_sender
        self._receive = receive
        self._operation = operation
        self._recorder = recorder
        self._guard = guard
        self._sender = -1
        self._done = False

    def wait(self, *timeout: Any) -> bool:
        if self._done:
            return True
        sender = self._find_sender()
        if sender < 0:
            sender = self._await_sender()
        self._sender = sender
        self._receive(sender).wait(*timeout)
        self._done = True
        return True

    def _await_sender(self) -> int:
        recorder, guard = self._recorder, self._guard
        pauses = pauses_s()
        with recorder.inside(self._operation) as began_ns:
            while (sender := self._find_sender()) < 0:
                if guard.broken:
                    raise guard.error(recorder.words(self._operation), recorder.seconds_since(began_ns))
                time.sleep(next(pauses))
        return sender

    def is_completed(self) -> bool:
        return self._done

    def source_rank(self) -> int:
        return self._sender

    # torch asks the work of a receive for its sender under this name
    _source_rank = source_rank
