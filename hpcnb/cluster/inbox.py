"""What arrives for whoever waits, and the two ways to wait for it: blocking, or while an event loop runs on.

A sequence of waits (a cell, what mends groups after it) is written once, as a coroutine that awaits ``Inbox.next``.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.errors import CellInterrupted, ClusterStateError, LinkError

__all__ = ["Arrived", "Inbox", "drive", "drive_async", "raise_if_over"]

_T = TypeVar("_T")

#: What a wait comes back with; None if nothing arrived in time.
Arrived = m.Message | watch.Event | None


class Inbox:
    """What arrives for whoever waits: put from any thread, taken by one thread or one event loop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[m.Message | watch.Event] = queue.SimpleQueue()
        self._arrived: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.is_interrupted = False  #: somebody has asked to stop what is waited for; it may not have been taken yet
        #: Told of what is put, on the thread that puts it, while whoever takes is busy asking a person.
        self.on_put: Callable[[m.Message | watch.Event], None] | None = None

    def put(self, message: m.Message | watch.Event) -> None:
        """Something arrived."""
        self._queue.put(message)
        if isinstance(message, watch.InterruptAsked):
            self.is_interrupted = True
        if (told := self.on_put) is not None:
            told(message)
        if (arrived := self._arrived) is not None:
            loop, event = arrived
            with contextlib.suppress(RuntimeError):  # the loop has just been closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)

    def next(self, timeout_s: float) -> _Next:
        """In a coroutine that :func:`drive` or :func:`drive_async` runs: await what arrives next."""
        return _Next(self, timeout_s)

    def take(self, timeout_s: float) -> Arrived:
        """The next message; None if none arrives in time. Blocks."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    async def take_async(self, timeout_s: float) -> Arrived:
        """The same, while the event loop runs on."""
        event = asyncio.Event()
        self._arrived = asyncio.get_running_loop(), event  # before looking: what is put after the look sets it
        try:
            message = self._queue.get_nowait()
        except queue.Empty:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
            return None if self._queue.empty() else self._queue.get_nowait()
        finally:
            self._arrived = None
        await asyncio.sleep(0)  # in a flood, too, the loop has its turn
        return message


class _Next:
    """A wait that whoever drives the coroutine carries out."""

    def __init__(self, inbox: Inbox, timeout_s: float) -> None:
        self.inbox = inbox
        self.timeout_s = timeout_s

    def __await__(self) -> Generator[_Next, Arrived, Arrived]:
        return (yield self)


def raise_if_over(message: Arrived, interrupted: str) -> None:
    """Raise what ends a wait for ranks or nodes, if this does.

    Args:
        message: What has arrived.
        interrupted: What it means that Ctrl-C was pressed, in words.

    Raises:
        CellInterrupted: Ctrl-C was pressed.
        ClusterStateError: This notebook lets go of the cluster.
        LinkError: The cluster ended.
    """
    if isinstance(message, watch.InterruptAsked):
        raise CellInterrupted(interrupted)
    if isinstance(message, watch.LetGo):
        msg = "this notebook let go of the cluster"
        raise ClusterStateError(msg)
    if isinstance(message, m.Farewell):
        msg = f"the cluster ended: {message.reason}"
        raise LinkError(msg)


def drive(steps: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine whose only waits are those of inboxes; blocks."""
    arrived: Arrived = None
    with contextlib.closing(steps):  # should the wait itself raise
        while True:
            try:
                wait = steps.send(arrived)
            except StopIteration as over:
                result: _T = over.value
                return result
            arrived = wait.inbox.take(wait.timeout_s)


async def drive_async(steps: Coroutine[Any, Any, _T]) -> _T:
    """The same without blocking: a notebook kernel goes on answering its widgets."""
    arrived: Arrived = None
    with contextlib.closing(steps):
        while True:
            try:
                wait = steps.send(arrived)
            except StopIteration as over:
                result: _T = over.value
                return result
            arrived = await wait.inbox.take_async(wait.timeout_s)
