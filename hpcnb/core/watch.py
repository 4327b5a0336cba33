"""What to do about the ranks of a running cell: pure decisions over what happens and what is seen.

Fed with events, which carry their times; returns actions. Knows no clock, no process and no socket.

A rank that waits in vain (diagnosis.py) for longer than the grace period is released: its wait raises, its names
stay. Ctrl-C has two levels. The first press stops all ranks at the next step that they can agree on; where there is
none, or it does not come within a second, it interrupts Python code and releases ranks that wait. The second press
shows every rank's stack, and ends ranks that do not answer even then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hpcnb.core.diagnosis import LEFT, Diagnosis, Hang, RankFacts, diagnose
from hpcnb.core.ranks import RankSet

__all__ = [
    "GRACE_S",
    "Action",
    "BoundaryFound",
    "CellEnds",
    "ContinueRanks",
    "EndRanks",
    "Event",
    "Exited",
    "InterruptAsked",
    "InterruptRanks",
    "LetGo",
    "Located",
    "LookAtRanks",
    "Looked",
    "ReleaseRanks",
    "Replied",
    "Say",
    "StopAtBoundary",
    "Tick",
    "TimedOut",
    "Watch",
    "advance",
]

#: Ranks that wait in vain are released after so long.
GRACE_S = 1.0
#: ... or after so long where a process has ended, which is beyond doubt.
_EXIT_GRACE_S = 0.2
#: All ranks may take so long to come to the step at which they stop.
_BOUNDARY_S = 1.0
#: After a signal, ranks that still run are released from what they wait in.
_SIGNAL_S = 0.25
#: The prompt comes back so long after Ctrl-C, whatever ranks do; a second press within this time ends them.
_PROMPT_S = 3.0
#: Ranks have so long to answer the second press.
_LAST_WORDS_S = 0.5
#: A release that did not help is tried again.
_AGAIN_S = 2.0
#: Where awaited ranks are, and whether bytes move, is looked up so often.
_LOOK_S = 2.0
#: An operation that all have issued, one of whom has failed since, is given up when nothing has moved for so long.
_STALL_S = 10.0


@dataclass(frozen=True)
class Replied:
    """A rank answered; ``how`` in words if it raised: ``raised ValueError``."""

    rank: int
    at_s: float = 0.0
    how: str = ""
    mismatch: str = ""  # the words of a CollectiveMismatch


@dataclass(frozen=True)
class Exited:
    """A rank's process ended, in words: ``was ended by SIGKILL``."""

    rank: int
    at_s: float = 0.0
    how: str = "ended"


@dataclass(frozen=True)
class Looked:
    """Where ranks are."""

    at_s: float
    facts: dict[int, RankFacts]


@dataclass(frozen=True)
class Located:
    """What a rank's Python code does, in words: ``is at line 5: x = f(x)``; and bytes moved so far, -1 if unknown."""

    rank: int
    at_s: float
    words: str
    moved_bytes: int = -1


@dataclass(frozen=True)
class InterruptAsked:
    """The person pressed Ctrl-C, or called interrupt()."""

    at_s: float = 0.0


@dataclass(frozen=True)
class BoundaryFound:
    """Whether ranks can agree on a step to stop at."""

    found: bool
    at_s: float = 0.0


@dataclass(frozen=True)
class TimedOut:
    """The cell ran longer than its timeout."""

    at_s: float = 0.0


@dataclass(frozen=True)
class LetGo:
    """The notebook lets go of the cluster; nothing more will be heard."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    at_s: float


Event = Replied | Exited | Looked | Located | InterruptAsked | BoundaryFound | TimedOut | LetGo | Tick


@dataclass(frozen=True)
class StopAtBoundary:
    """Ask these ranks to stop at a step that all can agree on."""

    ranks: RankSet


@dataclass(frozen=True)
class InterruptRanks:
    """Send SIGINT to these ranks."""

    ranks: RankSet


@dataclass(frozen=True)
class ReleaseRanks:
    """Let these ranks go from what they wait in."""

    ranks: RankSet
    reason: str
    mismatch: bool = False


@dataclass(frozen=True)
class ContinueRanks:
    """Send SIGCONT to these ranks."""

    ranks: RankSet


@dataclass(frozen=True)
class LookAtRanks:
    """Find out what the Python code of these ranks does; ``show`` their stacks in the cell."""

    ranks: RankSet
    show: bool = False


@dataclass(frozen=True)
class EndRanks:
    """Send SIGKILL to these ranks."""

    ranks: RankSet
    reason: str


@dataclass(frozen=True)
class Say:
    """Something the person must know about this cell."""

    words: str


@dataclass(frozen=True)
class CellEnds:
    """The notebook gets its prompt back; ``busy`` ranks have not answered and still run the cell."""

    busy: RankSet


Action = (
    StopAtBoundary | InterruptRanks | ReleaseRanks | ContinueRanks | LookAtRanks | EndRanks | Say | CellEnds
)  # fmt: skip


@dataclass(frozen=True)
class Watch:
    """A running cell.

    Attributes:
        running: Ranks that have not answered.
        cell: Number of the cell.
        ranks: All ranks it runs on.
        grace_s: How long ranks may wait in vain; infinite to never release.
        exited: Ranks whose process ended during the cell.
        gone: Ranks that have left the cell, and how, in words.
        interrupted: Whether ranks have been interrupted.
        timed_out: Whether that was because of the timeout.
        ended: Whether the cell is over.
        report: In words: who waits for whom; for while the cell runs.
        released: Ranks that were released.
        killed: Ranks that were ended since they did not answer the second Ctrl-C.
        is_signalled: Ranks were interrupted wherever they were, not at a step.
        is_debugging: A person looks at a rank in the debugger: nothing is hurried.
    """

    running: RankSet
    cell: int = 0
    ranks: RankSet = field(default_factory=RankSet)
    grace_s: float = GRACE_S
    exited: RankSet = field(default_factory=RankSet)
    gone: tuple[tuple[int, str], ...] = ()
    interrupted: bool = False
    timed_out: bool = False
    ended: bool = False
    report: tuple[str, ...] = ()
    released: RankSet = field(default_factory=RankSet)
    killed: RankSet = field(default_factory=RankSet)
    is_signalled: bool = False
    is_debugging: bool = False
    mismatch: str = ""
    left_s: float = 0.0  # when the last rank left
    stuck_since: tuple[tuple[int, int, int, float], ...] = ()  # rank, channel, stamp, time
    stopped_since: tuple[tuple[int, float], ...] = ()
    released_s: float = float("-inf")
    looked_s: float = float("-inf")
    places: tuple[tuple[int, str], ...] = ()
    moved: tuple[tuple[int, int, float], ...] = ()  # rank, bytes moved so far, when that was seen to change
    # times of an interrupt; infinite while not due
    asked_s: float = float("inf")
    boundary_until_s: float = float("inf")
    release_at_s: float = float("inf")
    prompt_at_s: float = float("inf")
    end_at_s: float = float("inf")


def advance(watch: Watch, event: Event) -> tuple[Watch, list[Action]]:  # noqa: PLR0911 - one per event
    """The state after ``event``, and what is to be done about it."""
    if watch.ended:
        return watch, []
    if isinstance(event, Replied | Exited):
        return _left(watch, event)
    if isinstance(event, Looked):
        return _looked(watch, event)
    if isinstance(event, Located):
        return _located(watch, event), []
    if isinstance(event, InterruptAsked):
        return _interrupt_asked(watch, event.at_s)
    if isinstance(event, TimedOut):
        watch = replace(watch, timed_out=True, prompt_at_s=event.at_s + _PROMPT_S)
        return _interrupt_hard(watch, event.at_s)
    if isinstance(event, BoundaryFound):
        if event.found or watch.boundary_until_s == float("inf"):
            return watch, []
        return _interrupt_hard(watch, event.at_s)
    if isinstance(event, LetGo):
        return replace(watch, ended=True), [CellEnds(watch.running)]
    return _tick(watch, event.at_s)


def _left(watch: Watch, event: Replied | Exited) -> tuple[Watch, list[Action]]:
    rank = RankSet([event.rank])
    how = event.how or LEFT
    if isinstance(event, Exited):
        watch = replace(watch, exited=watch.exited | (rank & watch.running))
    elif event.mismatch:
        watch = replace(watch, mismatch=watch.mismatch or event.mismatch)
    if event.rank in watch.running or isinstance(event, Exited):
        gone = {**dict(watch.gone), event.rank: how}
        watch = replace(watch, running=watch.running - rank, gone=tuple(sorted(gone.items())), left_s=event.at_s)
    if not watch.running:
        return replace(watch, ended=True), [CellEnds(RankSet())]
    return watch, []


def _located(watch: Watch, event: Located) -> Watch:
    if event.words:
        places = dict(watch.places) | {event.rank: event.words}
        watch = replace(watch, places=tuple(sorted(places.items())))
    if event.moved_bytes < 0:
        return watch
    moved = {rank: (num_bytes, since_s) for rank, num_bytes, since_s in watch.moved}
    if event.rank not in moved or moved[event.rank][0] != event.moved_bytes:
        moved[event.rank] = (event.moved_bytes, event.at_s)
    return replace(watch, moved=tuple((rank, *each) for rank, each in sorted(moved.items())))


# --- hangs ----------------------------------------------------------------------------------------------------


def _looked(watch: Watch, event: Looked) -> tuple[Watch, list[Action]]:
    at_s = event.at_s
    diagnosis = diagnose(event.facts, watch.cell, watch.ranks or watch.running, dict(watch.gone))
    before = {(rank, key, stamp): since for rank, key, stamp, since in watch.stuck_since}
    stuck_since = []
    for hang in diagnosis.hangs:
        inside = {rank: each for rank in hang.ranks if (each := event.facts[rank].inside) is not None}
        # they wait in vain since the last of them waits, and since the last one left who might have come
        since_s = max((at_s - each.age_s for each in inside.values()), default=at_s)
        if hang.is_of_gone:
            since_s = max(since_s, watch.left_s)
        if hang.is_of_absent:  # idle at this look, and perhaps not at the next
            since_s = at_s
        for rank, each in inside.items():
            where = (rank, each.key, each.stamp)
            stuck_since.append((*where, before.get(where, since_s)))
    watch = replace(watch, stuck_since=tuple(stuck_since))
    watch, actions = _continue_stopped(watch, diagnosis, at_s)
    watch = replace(watch, report=_report(watch, event, diagnosis))
    if watch.is_debugging:
        return watch, actions
    for hang in diagnosis.hangs:
        if _is_due(watch, hang, at_s):
            mismatch = _is_mismatch(watch, hang)
            reason = watch.mismatch if mismatch and watch.mismatch else "; ".join(hang.causes)
            watch = replace(watch, released=watch.released | hang.ranks, released_s=at_s)
            if mismatch:
                watch = replace(watch, mismatch=reason)  # told once, however many ranks find it
            actions = [*actions, Say(reason), ReleaseRanks(hang.ranks, reason, mismatch)]
    if diagnosis.hangs:
        return watch, actions
    still = RankSet(
        rank
        for rank, _, since_s in watch.moved
        if (fact := event.facts.get(rank)) is not None
        and fact.inside is not None
        and min(at_s - since_s, fact.inside.age_s) >= _STALL_S
    )
    # where messages are forwarded from rank to rank, one waits while others move them: nothing may move anywhere
    stalled = RankSet() if diagnosis.transfers - still else diagnosis.orphans
    if stalled and watch.grace_s != float("inf"):
        left = ", ".join(f"rank {rank} {how}" for rank, how in watch.gone)
        reason = f"nothing has moved for {_STALL_S:.0f} s; {left}"
        watch = replace(watch, released=watch.released | stalled, released_s=at_s, moved=())
        return watch, [*actions, Say(reason), ReleaseRanks(stalled, reason)]
    patience_s = max((fact.inside.age_s for fact in event.facts.values() if fact.inside is not None), default=0.0)
    interesting = (diagnosis.awaited | diagnosis.transfers) & watch.running
    if interesting and patience_s > watch.grace_s and at_s - watch.looked_s > _LOOK_S:
        watch = replace(watch, looked_s=at_s)
        actions = [*actions, LookAtRanks(interesting)]
    return watch, actions


def _is_mismatch(watch: Watch, hang: Hang) -> bool:
    """Whether these ranks wait since somebody called something else: seen on the board, or told by who noticed."""
    return hang.is_mismatch or (bool(watch.mismatch) and any("CollectiveMismatch" in cause for cause in hang.causes))


def _is_due(watch: Watch, hang: Hang, at_s: float) -> bool:
    """Whether these ranks are to be released now."""
    if watch.grace_s == float("inf") or (hang.ranks & watch.released and at_s - watch.released_s < _AGAIN_S):
        return False
    if _is_mismatch(watch, hang):
        return True
    grace_s = min(watch.grace_s, _EXIT_GRACE_S) if watch.exited else watch.grace_s
    return any(at_s - since_s >= grace_s for rank, _, _, since_s in watch.stuck_since if rank in hang.ranks)


def _continue_stopped(watch: Watch, diagnosis: Diagnosis, at_s: float) -> tuple[Watch, list[Action]]:
    before = dict(watch.stopped_since)
    since = {rank: before.get(rank, at_s) for rank in diagnosis.stopped}
    due = RankSet(rank for rank, since_s in since.items() if at_s - since_s >= watch.grace_s)
    watch = replace(watch, stopped_since=tuple((rank, s) for rank, s in since.items() if rank not in due))
    if not due:
        return watch, []
    words = f"{due.words()} had been stopped from outside (SIGSTOP) and {'was' if len(due) == 1 else 'were'} continued"
    return watch, [Say(words), ContinueRanks(due)]


def _report(watch: Watch, event: Looked, diagnosis: Diagnosis) -> tuple[str, ...]:
    """For the running cell: who waits for whom, once it takes longer than the grace period."""
    oldest_s = max((fact.inside.age_s for fact in event.facts.values() if fact.inside is not None), default=0.0)
    if oldest_s < watch.grace_s:
        return ()
    places = dict(watch.places)
    where = [f"rank {rank} {places[rank]}" for rank in diagnosis.awaited & watch.running if rank in places]
    still_s = [
        min(event.at_s - since_s, fact.inside.age_s)
        for rank, _, since_s in watch.moved
        if rank in diagnosis.transfers and (fact := event.facts[rank]).inside is not None
    ]
    if still_s and min(still_s) > _STALL_S:
        where.append(f"nothing has moved between these ranks for {min(still_s):.0f} s")
    return (*diagnosis.waits[:6], *where[:4])


# --- interrupts -----------------------------------------------------------------------------------------------


def _interrupt_asked(watch: Watch, at_s: float) -> tuple[Watch, list[Action]]:
    if watch.asked_s == float("inf"):
        watch = replace(
            watch, interrupted=True, asked_s=at_s, boundary_until_s=at_s + _BOUNDARY_S, prompt_at_s=at_s + _PROMPT_S
        )
        return watch, [StopAtBoundary(watch.running)]
    if watch.end_at_s != float("inf"):
        return watch, []
    watch, actions = _interrupt_hard(watch, at_s)
    watch = replace(watch, end_at_s=at_s + _LAST_WORDS_S, prompt_at_s=float("inf"))
    return watch, [LookAtRanks(watch.running, show=True), *actions]


def _interrupt_hard(watch: Watch, at_s: float) -> tuple[Watch, list[Action]]:
    watch = replace(
        watch, interrupted=True, is_signalled=True, boundary_until_s=float("inf"), release_at_s=at_s + _SIGNAL_S
    )
    return watch, [InterruptRanks(watch.running)]


def _tick(watch: Watch, at_s: float) -> tuple[Watch, list[Action]]:
    actions: list[Action] = []
    if at_s >= watch.boundary_until_s:
        watch, actions = _interrupt_hard(watch, at_s)
    if at_s >= watch.release_at_s:
        watch = replace(watch, release_at_s=float("inf"), released=watch.released | watch.running, released_s=at_s)
        reason = "the cell ran longer than its timeout" if watch.timed_out else "the cell was interrupted"
        actions += [ReleaseRanks(watch.running, reason), LookAtRanks(watch.running)]  # to say where they are
    if at_s >= watch.end_at_s:
        watch = replace(watch, end_at_s=float("inf"), killed=watch.running)
        actions.append(EndRanks(watch.running, "it did not answer a second Ctrl-C"))
    if at_s >= watch.prompt_at_s:
        return replace(watch, ended=True), [*actions, CellEnds(watch.running)]
    return watch, actions
