"""What to do about the ranks of a running cell: pure decisions over what happens and what is seen.

Fed with events, which carry their times; returns actions. Knows no clock, no process and no socket.

A rank that waits in vain (diagnosis.py) for longer than the grace period is released: its wait raises, its names
stay. What happens and what is done about it are values (watch_events.py, whose names are also here); what Ctrl-C
does is decided in watch_interrupt.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hpcnb.core.diagnosis import LEFT, Diagnosis, Hang, diagnose, roots
from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.core.watch_events import (
    Action,
    BoundaryFound,
    CellEnds,
    ContinueRanks,
    EndRanks,
    Event,
    Exited,
    InterruptAsked,
    InterruptRanks,
    LetGo,
    Located,
    LookAtRanks,
    Looked,
    ReleaseRanks,
    Replied,
    Say,
    StopAtBoundary,
    Tick,
    TimedOut,
)
from hpcnb.core.watch_interrupt import Interrupt, boundary_found, press, tick, time_out

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
#: A release that did not help is tried again.
_AGAIN_S = 2.0
#: Where awaited ranks are, and whether bytes move, is looked up so often.
_LOOK_S = 2.0
#: An operation that all have issued, one of whom has failed since, is given up when nothing has moved for so long.
_STALL_S = 10.0


@dataclass(frozen=True)
class Watch:
    """A running cell.

    Attributes:
        running: Ranks that have not answered.
        cell: Number of the cell.
        ranks: All ranks it runs on.
        grace_s: How long ranks may wait in vain; infinite to never release.
        exited: Ranks whose process ended during the cell.
        gone: How ranks have left the cell, in words, and which.
        interrupt: How far Ctrl-C, or the timeout, has come.
        ended: Whether the cell is over.
        report: In words: who waits for whom; for while the cell runs.
        released: Ranks that were released.
        is_debugging: A person looks at a rank in the debugger: nothing is hurried.
    """

    running: RankSet
    cell: int = 0
    ranks: RankSet = field(default_factory=RankSet)
    grace_s: float = GRACE_S
    exited: RankSet = field(default_factory=RankSet)
    gone: tuple[tuple[str, RankSet], ...] = ()
    interrupt: Interrupt = field(default_factory=Interrupt)
    ended: bool = False
    report: tuple[str, ...] = ()
    released: RankSet = field(default_factory=RankSet)
    is_debugging: bool = False
    mismatch: str = ""
    left_s: float = 0.0  # when the last rank left
    stuck_since: tuple[tuple[int, int, int, float], ...] = ()  # rank, channel, stamp, time
    stopped_since: tuple[tuple[int, float], ...] = ()
    released_s: float = float("-inf")
    looked_s: float = float("-inf")
    places: tuple[tuple[int, str], ...] = ()
    moved: tuple[tuple[int, int, float], ...] = ()  # rank, bytes moved so far, when that was seen to change

    @property
    def interrupted(self) -> bool:
        """Whether ranks have been interrupted."""
        return self.interrupt.is_asked

    @property
    def timed_out(self) -> bool:
        """Whether that was because of the timeout."""
        return self.interrupt.timed_out

    @property
    def is_signalled(self) -> bool:
        """Whether ranks were interrupted wherever they were, not at a step."""
        return self.interrupt.is_signalled

    def how_gone(self) -> dict[int, str]:
        """How each rank that has left the cell did, in words."""
        return dict(sorted((rank, how) for how, ranks in self.gone for rank in ranks))

    @property
    def killed(self) -> RankSet:
        """Ranks that were ended since they did not answer the second Ctrl-C."""
        return self.interrupt.killed


def advance(watch: Watch, event: Event) -> tuple[Watch, list[Action]]:
    """The state after ``event``, and what is to be done about it."""
    if watch.ended:
        return watch, []
    if isinstance(event, Replied | Exited):
        return _left(watch, event)
    if isinstance(event, Looked):
        return _looked(watch, event)
    if isinstance(event, Located):
        return _located(watch, event), []
    if isinstance(event, LetGo):
        return replace(watch, ended=True), [CellEnds(watch.running)]
    return _interrupt(watch, event)


def _interrupt(watch: Watch, event: InterruptAsked | TimedOut | BoundaryFound | Tick) -> tuple[Watch, list[Action]]:
    interrupt, running, at_s = watch.interrupt, watch.running, event.at_s
    if isinstance(event, InterruptAsked):
        interrupt, actions = press(interrupt, running, at_s)
    elif isinstance(event, TimedOut):
        interrupt, actions = time_out(interrupt, running, at_s)
    elif isinstance(event, BoundaryFound):
        interrupt, actions = boundary_found(interrupt, running, at_s, found=event.found)
    else:
        interrupt, actions = tick(interrupt, running, at_s)
    watch = replace(watch, interrupt=interrupt)
    if any(isinstance(action, ReleaseRanks) for action in actions):
        watch = replace(watch, released=watch.released | running, released_s=at_s)
    if isinstance(event, Tick) and at_s >= interrupt.prompt_at_s:
        return replace(watch, ended=True), [*actions, CellEnds(running)]
    return watch, actions


def _left(watch: Watch, event: Replied | Exited) -> tuple[Watch, list[Action]]:
    if isinstance(event, Exited):
        ranks = RankSet([event.rank])
        watch = replace(watch, exited=watch.exited | (ranks & watch.running))
        mismatch = ""
    else:
        ranks, mismatch = event.ranks & watch.running, event.mismatch
    if ranks:
        gone = {how: others - ranks for how, others in watch.gone}
        how = event.how or LEFT
        gone[how] = gone.get(how, RankSet()) | ranks
        watch = replace(
            watch, running=watch.running - ranks, gone=tuple(gone.items()), left_s=event.at_s,
            mismatch=watch.mismatch or mismatch,
        )  # fmt: skip
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
    diagnosis = diagnose(event.facts, watch.cell, watch.ranks or watch.running, watch.how_gone())
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
    if not diagnosis.hangs:
        watch, more = _not_stuck(watch, event, diagnosis)
        actions = [*actions, *more]
    return watch, actions


def _not_stuck(watch: Watch, event: Looked, diagnosis: Diagnosis) -> tuple[Watch, list[Action]]:
    """Nobody waits in vain: give up an operation in which nothing moves, and look what takes so long."""
    at_s = event.at_s
    # where messages are forwarded from rank to rank, one waits while others move them: nothing may move anywhere
    still_s = [_still_s(watch, event.facts, members, at_s) for members in diagnosis.operations]
    stalled = diagnosis.orphans if min(still_s, default=0.0) >= _STALL_S else RankSet()
    if stalled and watch.grace_s != float("inf"):
        left = ", ".join(f"rank {rank} {how}" for rank, how in roots(watch.how_gone()).items())
        reason = f"nothing has moved for {_STALL_S:.0f} s; {left}"
        watch = replace(watch, released=watch.released | stalled, released_s=at_s, moved=())
        return watch, [Say(reason), ReleaseRanks(stalled, reason)]
    patience_s = max((fact.inside.age_s for fact in event.facts.values() if fact.inside is not None), default=0.0)
    interesting = watch.running & diagnosis.awaited
    for members in diagnosis.operations:  # also who has gone on, and may still move bytes
        interesting |= watch.running & members
    if interesting and patience_s > watch.grace_s and at_s - watch.looked_s > _LOOK_S:
        return replace(watch, looked_s=at_s), [LookAtRanks(interesting)]
    return watch, []


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
    for members in diagnosis.operations:
        still_s = _still_s(watch, event.facts, members, event.at_s)
        if still_s > _STALL_S:
            where.append(f"nothing has moved between {members.words()} for {still_s:.0f} s")
    return (*diagnosis.waits[:6], *where[:4])


def _still_s(watch: Watch, facts: dict[int, RankFacts], members: RankSet, at_s: float) -> float:
    """For how long nothing has moved on any rank of an operation; 0 where that is not known of all that run."""
    since = {rank: since_s for rank, _, since_s in watch.moved}
    still_s = []
    for rank in members & watch.running:
        if rank not in since:
            return 0.0
        fact = facts.get(rank)
        age_s = fact.inside.age_s if fact is not None and fact.inside is not None else float("inf")
        still_s.append(min(at_s - since[rank], age_s))
    return min(still_s, default=0.0)
