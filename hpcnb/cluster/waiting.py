"""Waits of the notebook: for a cluster to be ready, and for a cell to end. They carry out what core decides."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from hpcnb.cluster import asking
from hpcnb.core import lifecycle, watch
from hpcnb.core import messages as m
from hpcnb.core.errors import ClusterStateError, LaunchError, LinkError, VersionMismatch
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.cell_run import CellRun, CellView
    from hpcnb.cluster.node import Node

__all__ = ["CellWait", "Inbox", "await_began", "await_ranks", "await_ready", "sigint_as_event"]

#: Waits look around so often when nothing arrives.
_TICK_S = 0.05


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
            loop.call_soon_threadsafe(event.set)

    def take(self, timeout_s: float) -> m.Message | watch.Event | None:
        """The next message; None if none arrives in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def leave_loop(self) -> None:
        """The event loop that took from here may end now."""
        self._arrived = None

    async def take_async(self, timeout_s: float) -> m.Message | watch.Event | None:
        """The same, while the event loop runs on."""
        if self._arrived is None:
            self._arrived = asyncio.get_running_loop(), asyncio.Event()
        _, event = self._arrived
        event.clear()  # before looking: what is put after the look sets it again
        try:
            message = self._queue.get_nowait()
        except queue.Empty:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
            return None if self._queue.empty() else self._queue.get_nowait()
        await asyncio.sleep(0)  # in a flood, too, the loop has its turn
        return message


def await_ready(
    node: Node, inbox: Inbox, state: lifecycle.Lifecycle, *, timeout_s: float, on_stage: Callable[[str], None]
) -> lifecycle.Lifecycle:
    """Wait until all ranks run cells.

    Args:
        node: The launched agent.
        inbox: Its messages.
        state: Of a cluster that starts.
        timeout_s: The start fails after so long.
        on_stage: Called with words whenever a stage is done.

    Raises:
        LaunchError: A stage failed; the text has the last lines of the log.
        VersionMismatch: Ranks run another version of hpcnb or Python.
    """
    deadline_s = time.monotonic() + timeout_s
    while state.phase == "starting":
        message = inbox.take(_TICK_S)
        events = [] if message is None else _lifecycle_events(message)
        if message is None:
            if (status := node.agent.ended()) is not None:
                events = [lifecycle.AgentEnded(f"the node agent ended with status {status}", node.agent.log_lines())]
            elif time.monotonic() > deadline_s:
                events = [lifecycle.Deadline(timeout_s)]
        for event in events:
            state, actions = lifecycle.advance(state, event)
            for action in actions:
                if isinstance(action, lifecycle.Tell):
                    on_stage(action.words)
                elif isinstance(action, lifecycle.Fail):
                    _raise_failure(action, state.world_size)
    return state


def await_began(node: Node, inbox: Inbox, cell: int) -> m.CellBegan:
    """Wait for the beginning of what the agent has kept of a cell; what came before it is there once more.

    Raises:
        ClusterStateError: Nothing is kept of this cell.
        LinkError: The agent is gone.
    """
    while True:
        message = inbox.take(_TICK_S)
        if message is None:
            node.check()
        elif isinstance(message, m.CellBegan) and message.cell == cell:
            return message
        elif isinstance(message, m.CellRefused) and message.cell == cell:
            raise ClusterStateError(message.reason)


def _raise_failure(failure: lifecycle.Fail, world_size: int) -> None:
    if failure.version_mismatch:
        msg = f"{failure.reason}; install the same version in both, or choose the ranks' interpreter: python=..."
        raise VersionMismatch(msg)
    msg = f"the cluster of {world_size} ranks did not start: {failure.reason}"
    raise LaunchError(msg)


def _lifecycle_events(message: m.Message | watch.Event) -> list[lifecycle.Event]:
    event: lifecycle.Event
    match message:
        case m.Welcome():
            event = lifecycle.Linked()
        case m.Refused():
            event = lifecycle.Refusal(message.reason)
        case m.Stage():
            event = lifecycle.StageEnded(message.name, (message.end_ns - message.start_ns) / 1e6)
        case m.RankReady():
            event = lifecycle.RankIsReady(message.rank)
        case m.RankExited():
            event = lifecycle.RankEnded(message.rank, message.status, tuple(message.last_lines))
        case m.StartFailed():
            event = lifecycle.StartFailure(message.reason, tuple(message.log_lines))
        case m.Farewell():
            event = lifecycle.AgentEnded(f"the cluster ended itself: {message.reason}")
        case _:
            return []
    return [event]


def await_ranks(inbox: Inbox, ranks: RankSet, *, timeout_s: float) -> None:
    """Wait until ranks that were forked again run cells.

    Args:
        inbox: What agents say.
        ranks: To wait for.
        timeout_s: After so long it has failed.

    Raises:
        LaunchError: One of them ended, or is not ready in time.
    """
    deadline_s = time.monotonic() + timeout_s
    missing = ranks
    while missing:
        message = inbox.take(_TICK_S)
        if isinstance(message, m.RankReady):
            missing -= RankSet([message.rank])
        elif isinstance(message, m.RankExited) and message.rank in missing and not message.expected:
            lines = "".join(f"\n    {line}" for line in message.last_lines)
            msg = f"rank {message.rank} ended with status {message.status} before it was ready{lines}"
            raise LaunchError(msg)
        elif time.monotonic() > deadline_s:
            msg = f"{missing.words()} not ready after {timeout_s:.0f} s; type  %hpc logs {missing.first()}"
            raise LaunchError(msg)


class CellWait:
    """The wait for one cell: takes messages, does what the watch wants done, tells the view.

    Args:
        run: The submitted cell.
        node: Where it runs.
        inbox: What arrives.
        timeout_s: The cell is interrupted after so long.
        view: Told after every message and every tick.
    """

    def __init__(
        self, run: CellRun, node: Node, inbox: Inbox, *, timeout_s: float | None, view: CellView | None
    ) -> None:
        self.run = run
        self.result = run.result
        self._node = node
        self._inbox = inbox
        self._view = view
        self.needs = RankSet()  #: Ranks outside the cell that it cannot do without.
        self._deadline_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        self._asker = asking.Asker(run, node, inbox, view)

    def wait(self) -> None:
        """Block until the watch ends the cell.

        Raises:
            LinkError: The agent is gone.
        """
        while not self.run.watch.ended:
            self._step(self._inbox.take(_TICK_S))

    async def wait_async(self) -> None:
        """The same without blocking the event loop: a notebook kernel goes on answering its widgets."""
        try:
            while not self.run.watch.ended:
                self._step(await self._inbox.take_async(_TICK_S))
        finally:
            self._inbox.leave_loop()

    def _step(self, message: m.Message | watch.Event | None) -> None:
        actions: list[watch.Action] = []
        if message is None:
            self._node.check()
        elif isinstance(message, m.Farewell):
            msg = f"the cluster ended: {message.reason}; type  %hpc stop  and then  %hpc start"
            raise LinkError(msg)
        elif isinstance(message, m.CellRefused | m.CellBegan) and message.cell == self.result.cell:
            # two notebooks at the same moment: what follows under this number is the other's
            msg = message.reason if isinstance(message, m.CellRefused) else f"another notebook began {message.label}"
            raise ClusterStateError(msg)
        else:
            actions = self.run.feed(message) if isinstance(message, m.Message) else self.run.tell(message)
        self._deadline_s += self._asker.step(message)  # who waits for a person does not use up the cell's time
        now_s = time.monotonic()
        if isinstance(message, m.RankExited) and message.rank in self.needs and not message.expected:
            self._deadline_s = float("-inf")  # it waits for that rank
        if now_s > self._deadline_s:
            self._deadline_s = float("inf")
            actions += self.run.tell(watch.TimedOut(now_s))
        actions += self.run.tell(watch.Tick(now_s))
        for action in actions:
            self._do(action)
        if self._view is not None:
            self._view.update(self.run)

    def _do(self, action: watch.Action) -> None:
        cell, send = self.result.cell, self._node.link.send
        match action:
            case watch.StopAtBoundary(ranks):
                send(m.StopAtBoundary(cell, ranks))
            case watch.InterruptRanks(ranks):
                send(m.Interrupt(cell, ranks))
            case watch.ReleaseRanks(ranks, reason, mismatch):
                send(m.Release(cell, ranks, reason, mismatch))
            case watch.ContinueRanks(ranks):
                send(m.Continue(ranks))
            case watch.LookAtRanks(ranks, show):
                if show:
                    self.run.wants_stacks |= ranks
                send(m.LookAt(cell, ranks))
            case watch.EndRanks(ranks, reason):
                send(m.EndRanks(cell, ranks, reason))
            case _:
                pass  # said or ended, which the run knows


@contextlib.contextmanager
def sigint_as_event(run: CellRun, inbox: Inbox) -> Iterator[None]:
    """Ctrl-C becomes an event: no KeyboardInterrupt in the middle of a message or of the view."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        run.signalled = True
        inbox.put(watch.InterruptAsked(time.monotonic()))

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
