"""What to do about the ranks of a running cell: pure decisions over replies, exits, interrupts and deadlines.

Fed with events, returns actions; knows no clock, no process and no socket. Ranks that are stuck in a
collective are named here but not yet released: their place is this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hpcnb.core.ranks import RankSet

__all__ = [
    "Action",
    "CellEnds",
    "Event",
    "Exited",
    "GraceOver",
    "InterruptAsked",
    "InterruptRanks",
    "Replied",
    "StartGrace",
    "TimedOut",
    "Watch",
    "advance",
]


@dataclass(frozen=True)
class Replied:
    """A rank answered."""

    rank: int


@dataclass(frozen=True)
class Exited:
    """A rank's process ended."""

    rank: int


@dataclass(frozen=True)
class InterruptAsked:
    """The person pressed Ctrl-C, or called interrupt()."""


@dataclass(frozen=True)
class TimedOut:
    """The cell ran longer than its timeout."""


@dataclass(frozen=True)
class GraceOver:
    """The time that interrupted ranks had to answer is over."""


Event = Replied | Exited | InterruptAsked | TimedOut | GraceOver


@dataclass(frozen=True)
class InterruptRanks:
    """Send SIGINT to these ranks."""

    ranks: RankSet


@dataclass(frozen=True)
class StartGrace:
    """Feed GraceOver when interrupted ranks have had their time."""


@dataclass(frozen=True)
class CellEnds:
    """The notebook gets its prompt back; ``busy`` ranks have not answered and still run the cell."""

    busy: RankSet


Action = InterruptRanks | StartGrace | CellEnds


@dataclass(frozen=True)
class Watch:
    """A running cell.

    Attributes:
        running: Ranks that have not answered.
        exited: Ranks whose process ended during the cell.
        interrupted: Whether ranks have been interrupted.
        timed_out: Whether that was because of the timeout.
        ended: Whether the cell is over.
    """

    running: RankSet
    exited: RankSet = field(default_factory=RankSet)
    interrupted: bool = False
    timed_out: bool = False
    ended: bool = False


def advance(watch: Watch, event: Event) -> tuple[Watch, list[Action]]:
    """The state after ``event``, and what is to be done about it."""
    if watch.ended:
        return watch, []
    if isinstance(event, Replied | Exited):
        rank = RankSet([event.rank])
        if isinstance(event, Exited):
            watch = replace(watch, exited=watch.exited | (rank & watch.running))
        watch = replace(watch, running=watch.running - rank)
        if not watch.running:
            return replace(watch, ended=True), [CellEnds(RankSet())]
        return watch, []
    if isinstance(event, InterruptAsked | TimedOut):
        first = not watch.interrupted
        timed_out = watch.timed_out or isinstance(event, TimedOut)
        watch = replace(watch, interrupted=True, timed_out=timed_out)
        # every press is a signal of its own; the grace period begins with the first
        return watch, [InterruptRanks(watch.running), *([StartGrace()] if first else [])]
    return replace(watch, ended=True), [CellEnds(watch.running)]
