"""Ctrl-C on a running cell, level by level, and its timeout: pure, fed with times.

The first press stops all ranks at the next step that they can agree on; where there is none, or it does not come
within a second, Python code is interrupted and ranks that wait are released. The second press shows every rank's
stack, and ends ranks that do not answer even then. Knows who still runs; nothing of who waits for whom.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hpcnb.core.ranks import RankSet
from hpcnb.core.watch_events import (
    Action,
    EndRanks,
    InterruptRanks,
    LookAtRanks,
    ReleaseRanks,
    StopAtBoundary,
)

__all__ = ["Interrupt", "boundary_found", "press", "tick", "time_out"]

#: All ranks may take so long to come to the step at which they stop.
_BOUNDARY_S = 1.0
#: After a signal, ranks that still run are released from what they wait in.
_SIGNAL_S = 0.25
#: The prompt comes back so long after Ctrl-C, whatever ranks do; a second press within this time ends them.
_PROMPT_S = 3.0
#: Ranks have so long to answer the second press.
_LAST_WORDS_S = 0.5
_NEVER = float("inf")


@dataclass(frozen=True)
class Interrupt:
    """How far the interrupt of a cell has come. Times are infinite while not due.

    Attributes:
        is_asked: Whether ranks have been interrupted, or asked to stop.
        timed_out: Whether that was because of the timeout.
        is_signalled: Ranks were interrupted wherever they were, not at a step.
        killed: Ranks that were ended since they did not answer the second Ctrl-C.
        prompt_at_s: When the prompt comes back.
    """

    is_asked: bool = False
    timed_out: bool = False
    is_signalled: bool = False
    killed: RankSet = field(default_factory=RankSet)
    pressed_s: float = _NEVER
    boundary_until_s: float = _NEVER
    release_at_s: float = _NEVER
    prompt_at_s: float = _NEVER
    end_at_s: float = _NEVER


def press(interrupt: Interrupt, running: RankSet, at_s: float) -> tuple[Interrupt, list[Action]]:
    """The person pressed Ctrl-C."""
    if interrupt.pressed_s == _NEVER:
        interrupt = replace(
            interrupt, is_asked=True, pressed_s=at_s, boundary_until_s=at_s + _BOUNDARY_S, prompt_at_s=at_s + _PROMPT_S
        )
        return interrupt, [StopAtBoundary(running)]
    if interrupt.end_at_s != _NEVER:
        return interrupt, []
    interrupt, actions = _signal(interrupt, running, at_s)
    interrupt = replace(interrupt, end_at_s=at_s + _LAST_WORDS_S, prompt_at_s=_NEVER)
    return interrupt, [LookAtRanks(running, show=True), *actions]


def time_out(interrupt: Interrupt, running: RankSet, at_s: float) -> tuple[Interrupt, list[Action]]:
    """The cell ran longer than its timeout."""
    interrupt = replace(interrupt, timed_out=True, prompt_at_s=at_s + _PROMPT_S)
    return _signal(interrupt, running, at_s)


def boundary_found(
    interrupt: Interrupt, running: RankSet, at_s: float, *, found: bool
) -> tuple[Interrupt, list[Action]]:
    """Whether ranks can agree on a step to stop at."""
    if found or interrupt.boundary_until_s == _NEVER:
        return interrupt, []
    return _signal(interrupt, running, at_s)


def tick(interrupt: Interrupt, running: RankSet, at_s: float) -> tuple[Interrupt, list[Action]]:
    """Time has passed. Whether the prompt comes back now is for the caller to see (``prompt_at_s``)."""
    actions: list[Action] = []
    if at_s >= interrupt.boundary_until_s:
        interrupt, actions = _signal(interrupt, running, at_s)
    if at_s >= interrupt.release_at_s:
        interrupt = replace(interrupt, release_at_s=_NEVER)
        reason = "the cell ran longer than its timeout" if interrupt.timed_out else "the cell was interrupted"
        actions += [ReleaseRanks(running, reason), LookAtRanks(running)]  # to say where they are
    if at_s >= interrupt.end_at_s:
        interrupt = replace(interrupt, end_at_s=_NEVER, killed=running)
        actions.append(EndRanks(running, "it did not answer a second Ctrl-C"))
    return interrupt, actions


def _signal(interrupt: Interrupt, running: RankSet, at_s: float) -> tuple[Interrupt, list[Action]]:
    interrupt = replace(
        interrupt, is_asked=True, is_signalled=True, boundary_until_s=_NEVER, release_at_s=at_s + _SIGNAL_S
    )
    return interrupt, [InterruptRanks(running)]
