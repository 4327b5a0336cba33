"""Waits of the notebook: for a cluster to be ready, and for a cell to end. They carry out what core decides."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from hpcnb.core import lifecycle, watch
from hpcnb.core import messages as m
from hpcnb.core.errors import LaunchError, VersionMismatch

if TYPE_CHECKING:
    from hpcnb.cluster.cell_run import CellRun, CellView
    from hpcnb.cluster.node import Node

__all__ = ["Inbox", "await_cell", "await_ready", "sigint_as_event"]

Inbox = queue.SimpleQueue[m.Message | watch.Event]

#: Waits look around so often when nothing arrives.
_TICK_S = 0.05
#: Interrupted ranks get so long to answer before the prompt comes back.
_GRACE_S = 2.0


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
        try:
            events = _lifecycle_events(inbox.get(timeout=_TICK_S))
        except queue.Empty:
            events = []
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


def await_cell(run: CellRun, node: Node, inbox: Inbox, *, timeout_s: float | None, view: CellView | None) -> None:
    """Wait until the watch ends the cell, and do what it wants done.

    Raises:
        LinkError: The agent is gone.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    grace_until_s: float | None = None
    while not run.watch.ended:
        actions: list[watch.Action] = []
        try:
            message = inbox.get(timeout=_TICK_S)
        except queue.Empty:
            node.check()
        else:
            actions = run.feed(message) if isinstance(message, m.Message) else run.tell(message)
        now_s = time.monotonic()
        if deadline_s is not None and now_s > deadline_s:
            deadline_s = None
            actions += run.tell(watch.TimedOut())
        if grace_until_s is not None and now_s > grace_until_s:
            actions += run.tell(watch.GraceOver())
        for action in actions:
            if isinstance(action, watch.InterruptRanks):
                node.link.send(m.Interrupt(action.ranks))
            elif isinstance(action, watch.StartGrace):
                grace_until_s = now_s + _GRACE_S
        if view is not None:
            view.update(run)


@contextlib.contextmanager
def sigint_as_event(run: CellRun, inbox: Inbox) -> Iterator[None]:
    """Ctrl-C becomes an event: no KeyboardInterrupt in the middle of a message or of the view."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        run.signalled = True
        inbox.put(watch.InterruptAsked())

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
