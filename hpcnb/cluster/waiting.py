"""Waits of the notebook: for a cluster to be ready, and for a cell to end. They carry out what core decides."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from hpcnb.cluster import asking
from hpcnb.cluster.inbox import Arrived, Inbox, raise_if_over
from hpcnb.core import lifecycle, watch
from hpcnb.core import messages as m
from hpcnb.core.errors import CellInterrupted, ClusterStateError, LaunchError, LinkError, VersionMismatch
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.cell_run import CellRun, CellView
    from hpcnb.cluster.node import Node
    from hpcnb.cluster.nodes import Nodes

__all__ = [
    "CellWait",
    "Command",
    "TakenElsewhere",
    "await_began",
    "await_gone",
    "await_mended",
    "await_ranks",
    "await_ready",
    "sigint_as_event",
]

#: Waits look around so often when nothing arrives.
_TICK_S = 0.05
#: A notebook whose cell broke the groups begins to build them again within so long, and has then so long for it.
_OTHERS_BEGIN_S, _OTHERS_END_S = 1.5, 30.0


class TakenElsewhere(ClusterStateError):
    """Another notebook was faster: the ranks are doing what it wants."""


class Command:
    """What a person waits for, to the last word: a cell, and groups that are mended before and after it.

    Ctrl-C is for the wait under way; while groups are mended it is for all that is left of that.
    """

    def __init__(self) -> None:
        self._inboxes: list[Inbox] = []
        self._is_mending = self._is_pending = False
        self.signalled = False  #: Whether Ctrl-C was pressed, in whichever wait.
        self.given_up = False  #: Whether it was pressed while groups were mended.

    def press(self, *, by_signal: bool = False) -> None:
        """Ctrl-C, or an interrupt from another thread."""
        self.signalled |= by_signal
        self.given_up |= self._is_mending
        self._is_pending = not self._inboxes
        for inbox in list(self._inboxes):
            inbox.put(watch.InterruptAsked(time.monotonic()))

    @contextlib.contextmanager
    def waits(self, inbox: Inbox) -> Iterator[None]:
        """While something is waited for: this is where an interrupt is heard."""
        self.check()
        self._inboxes.append(inbox)
        if self._is_pending:  # pressed between two waits
            self._is_pending = False
            inbox.put(watch.InterruptAsked(time.monotonic()))
        try:
            yield
        finally:
            self._inboxes.remove(inbox)

    @contextlib.contextmanager
    def mends(self) -> Iterator[None]:
        """While groups are mended; a press as late as that the cell was just over meant the cell."""
        self._is_mending, self._is_pending = True, False
        try:
            yield
        finally:
            self._is_mending = False

    def resume(self) -> None:
        """What was given up is undone: a press from now on is for that."""
        self._is_pending = self.given_up = False

    def check(self) -> None:
        """Raise CellInterrupted if what is left of mending has been given up."""
        if self._is_mending and self.given_up:
            msg = "it was interrupted"
            raise CellInterrupted(msg)


def await_ready(
    node: Node,
    inbox: Inbox,
    state: lifecycle.Lifecycle,
    *,
    timeout_s: float,
    on_stage: Callable[[str], None],
    nodes: Nodes | None = None,
) -> lifecycle.Lifecycle:
    """Wait until all ranks run cells.

    Args:
        node: The launched agent.
        inbox: Its messages.
        state: Of a cluster that starts.
        timeout_s: The start fails after so long.
        on_stage: Called with words whenever a stage is done.
        nodes: To be started, where there are many.

    Raises:
        LaunchError: A stage failed; the text has the last lines of the log.
        VersionMismatch: Ranks run another version of hpcnb or Python.
    """
    deadline_s = time.monotonic() + timeout_s
    with nodes.launching() if nodes is not None else contextlib.nullcontext():
        while state.phase == "starting":
            message = inbox.take(_TICK_S)
            events = [] if message is None else _lifecycle_events(message)
            if nodes is not None:
                events += nodes.step(message)
                if nodes.is_queued:  # as long as the scheduler likes
                    deadline_s = time.monotonic() + timeout_s
            if message is None:
                if (status := node.agent.ended()) is not None:
                    words = f"the node agent ended with status {status}"
                    events = [lifecycle.AgentEnded(words, node.agent.log_lines())]
                elif time.monotonic() > deadline_s:
                    events = [lifecycle.Deadline(timeout_s, nodes.missing() if nodes is not None else "")]
            for event in events:
                state = _advanced(state, event, on_stage)
    return state


def _advanced(
    state: lifecycle.Lifecycle, event: lifecycle.Event, on_stage: Callable[[str], None]
) -> lifecycle.Lifecycle:
    state, actions = lifecycle.advance(state, event)
    for action in actions:
        if isinstance(action, lifecycle.Tell):
            on_stage(action.words)
        elif isinstance(action, lifecycle.Fail):
            _raise_failure(action, state.world_size)
    return state


async def await_began(node: Node, inbox: Inbox, cell: int) -> m.CellBegan:
    """Wait for the beginning of what the agent has kept of a cell; what came before it is there once more.

    Raises:
        ClusterStateError: Nothing is kept of this cell.
        LinkError: The agent is gone.
    """
    pressed: list[watch.Event] = []
    while True:
        message = await inbox.next(_TICK_S)
        if message is None:
            node.check()
        elif isinstance(message, watch.InterruptAsked | watch.LetGo):
            pressed.append(message)
        elif isinstance(message, m.CellBegan) and message.cell == cell:
            for event in pressed:  # for the wait that follows
                inbox.put(event)
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
        case m.NodeJoined():
            event = lifecycle.NodeIsHere(message.node, message.host)
        case m.NodeLost():
            event = lifecycle.StartFailure(message.why)
        case m.RankReady():
            event = lifecycle.RankIsReady(message.rank)
        case m.Scaled():
            event = lifecycle.Resized(message.world_size)
        case m.RankExited():
            event = lifecycle.RankEnded(message.rank, message.status, tuple(message.last_lines), message.how)
        case m.StartFailed():
            event = lifecycle.StartFailure(message.reason, tuple(message.log_lines))
        case m.Farewell():
            event = lifecycle.AgentEnded(f"the cluster ended itself: {message.reason}")
        case _:
            return []
    return [event]


async def await_ranks(inbox: Inbox, ranks: RankSet, *, timeout_s: float) -> None:
    """Wait until ranks that were forked again run cells.

    Args:
        inbox: What agents say.
        ranks: To wait for.
        timeout_s: After so long it has failed.

    Raises:
        CellInterrupted: Ctrl-C was pressed.
        ClusterStateError: The notebook lets go of the cluster.
        LaunchError: One of them ended, or is not ready in time.
        LinkError: The cluster ended.
    """
    deadline_s = time.monotonic() + timeout_s
    missing = ranks
    while missing:
        message = await inbox.next(_TICK_S)
        were = "was" if len(missing) == 1 else "were"
        raise_if_over(message, f"it was interrupted before {missing.words()} {were} ready")
        if isinstance(message, m.RankReady):
            missing -= RankSet([message.rank])
        elif isinstance(message, m.RankExited) and message.rank in missing and not message.expected:
            lines = "".join(f"\n    {line}" for line in message.last_lines)
            msg = f"rank {message.rank} ended with status {message.status} before it was ready{lines}"
            raise LaunchError(msg)
        elif time.monotonic() > deadline_s:
            msg = f"{missing.words()} not ready after {timeout_s:.0f} s; type  %hpc logs {missing.first()}"
            raise LaunchError(msg)


async def await_gone(inbox: Inbox, ranks: RankSet, *, timeout_s: float) -> None:
    """Wait until ranks have ended that were told to, but not for long: their agent sees to it."""
    deadline_s = time.monotonic() + timeout_s
    while ranks and time.monotonic() < deadline_s:
        message = await inbox.next(_TICK_S)
        if isinstance(message, m.RankExited):
            ranks -= RankSet([message.rank])
        elif isinstance(message, watch.LetGo | m.Farewell):
            return


async def await_mended(inbox: Inbox, has_been: Callable[[], bool], is_incomplete: Callable[[], bool]) -> bool:
    """Wait while another notebook builds groups again, if one does.

    Args:
        inbox: What agents say from the end of the cell on.
        has_been: Whether it has been done.
        is_incomplete: Whether ranks are missing, which are perhaps being replaced.

    Returns:
        Whether it was done; else nobody has begun, or it failed.

    Raises:
        CellInterrupted: Ctrl-C was pressed.
    """
    until_s = time.monotonic() + _OTHERS_BEGIN_S
    was_done = False
    while True:
        if has_been():
            if not is_incomplete():
                return True
            if not was_done:
                was_done, until_s = True, time.monotonic() + _OTHERS_BEGIN_S
        if time.monotonic() > until_s:
            return has_been()
        message = await inbox.next(_TICK_S)
        if isinstance(message, watch.InterruptAsked):
            msg = "it was interrupted"
            raise CellInterrupted(msg)
        if isinstance(message, watch.LetGo | m.Farewell):
            return has_been()
        if isinstance(message, m.CellBegan):
            until_s = time.monotonic() + _OTHERS_END_S
        elif isinstance(message, m.CellDone):
            until_s = time.monotonic() + _OTHERS_BEGIN_S


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

    async def wait(self) -> None:
        """Wait until the watch ends the cell.

        Raises:
            ClusterStateError: Another notebook was faster.
            LinkError: The agent is gone.
        """
        while not self.run.watch.ended:
            self._step(await self._inbox.next(_TICK_S))

    def _step(self, message: Arrived) -> None:
        actions: list[watch.Action] = []
        if message is None:
            self._node.check()
        elif isinstance(message, m.Farewell):
            msg = f"the cluster ended: {message.reason}; type  %hpc stop  and then  %hpc start"
            raise LinkError(msg)
        elif isinstance(message, m.CellRefused | m.CellBegan) and message.cell == self.result.cell:
            # two notebooks at the same moment: what follows under this number is the other's
            msg = message.reason if isinstance(message, m.CellRefused) else f"another notebook began {message.label}"
            raise TakenElsewhere(msg)
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
def sigint_as_event(command: Command) -> Iterator[None]:
    """Ctrl-C becomes an event: no KeyboardInterrupt in the middle of a message, of the view, or of mending."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        command.press(by_signal=True)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
