"""Who waits for whom, and who waits in vain: pure, over what ranks say of themselves on their node's board.

A rank waits in vain if somebody who takes part in its operation will never issue it: it has left the cell, it is
dead, it called something else, or it waits in vain itself (in a circle, for example). Where any of several will do
(a receive without a source), it waits in vain if none of them will ever come. A rank that waits for one that computes,
or whose operation all have issued (bytes are under way), only waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hpcnb.core.board import Activity, number_of
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet

__all__ = ["LEFT", "Diagnosis", "Hang", "diagnose", "roots"]


_ABSENT = "does not run this cell"
#: How a rank has left a cell that failed nowhere on it.
LEFT = "ended the cell without it"
#: How a rank has left a cell since its groups were broken by what happened to another.
_FOLLOWED = "raised CollectiveAborted"
#: How the words of a send, and of the receive that takes it, begin.
_MESSAGE = "message("


@dataclass(frozen=True)
class Hang:
    """Ranks that wait in vain, for the same reasons.

    Attributes:
        ranks: Who waits.
        causes: Why, in words.
        is_mismatch: Ranks called different operations.
        is_of_absent: They wait for a rank that does not run this cell now.
        is_of_gone: They wait for a rank that has left the cell.
    """

    ranks: RankSet
    causes: tuple[str, ...]
    is_mismatch: bool = False
    is_of_absent: bool = False
    is_of_gone: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, if anything.

    Attributes:
        hangs: Ranks that wait in vain; those that have nothing to do with each other apart.
        stopped: Ranks of the cell that somebody stopped (SIGSTOP).
        waits: In words: who waits for whom, and is not stuck.
        awaited: Ranks that others wait for and that run code: a look at them tells where.
        transfers: Ranks whose operation all have issued: bytes should move there.
        operations: Who takes part in each of these operations, and so may move bytes.
        orphans: Those of them whose operation includes a rank that has failed since.
    """

    hangs: tuple[Hang, ...] = ()
    stopped: RankSet = field(default_factory=RankSet)
    waits: tuple[str, ...] = ()
    awaited: RankSet = field(default_factory=RankSet)
    transfers: RankSet = field(default_factory=RankSet)
    orphans: RankSet = field(default_factory=RankSet)
    operations: tuple[RankSet, ...] = ()

    @property
    def stuck(self) -> RankSet:
        """All ranks that wait in vain."""
        return _all(hang.ranks for hang in self.hangs)

    @property
    def causes(self) -> tuple[str, ...]:
        """Why, in words."""
        return tuple(cause for hang in self.hangs for cause in hang.causes)

    @property
    def is_mismatch(self) -> bool:
        """Whether somewhere ranks called different operations."""
        return any(hang.is_mismatch for hang in self.hangs)


def diagnose(facts: Mapping[int, RankFacts], cell: int, ranks: RankSet, gone: Mapping[int, str]) -> Diagnosis:
    """Find the ranks of a cell that wait in vain.

    Args:
        facts: By rank; of all ranks of the cluster that are known.
        cell: Number of the cell.
        ranks: That it runs on.
        gone: Ranks that have left the cell, and how in words: ``raised ValueError``.
    """
    inside = {
        rank: each.inside
        for rank, each in facts.items()
        if each.inside is not None and rank not in gone and each.cell == cell
    }
    missing = {rank: _missing(rank, waits_in, facts) for rank, waits_in in inside.items()}
    differing = {rank: _differing(rank, waits_in, facts) for rank, waits_in in inside.items()}
    absent = {rank: _absence(rank, facts, ranks, gone) for rank in _all(missing.values())}
    # whoever waits is presumed stuck, until all it waits for turn out to move
    stuck = {rank for rank in inside if missing[rank] or differing[rank]}
    while True:
        moving = {
            rank
            for rank in stuck
            if not differing[rank]
            and _may_go_on(inside[rank], [not absent[p] and p not in stuck for p in missing[rank]])
        }
        if not moving:
            break
        stuck -= moving
    stopped = RankSet(
        rank for rank, each in facts.items() if each.is_stopped and each.cell == cell and rank not in gone
    )
    hangs = []
    for together in _components(stuck, missing, differing):
        causes = [*_differences(together, inside, differing, facts), *_absences(together, missing, absent, gone)]
        if not causes:
            causes = [_circle(together, inside, missing)]
        awaited = _all(missing[rank] for rank in together)
        hangs.append(
            Hang(
                RankSet(together), tuple(causes), any(differing[rank] for rank in together),
                any(absent[peer] == _ABSENT for peer in awaited), bool(awaited & RankSet(gone)),
            )
        )  # fmt: skip
    failed = RankSet(rank for rank, how in gone.items() if how != LEFT)
    waiting = {rank: each for rank, each in inside.items() if rank not in stuck}
    return Diagnosis(
        tuple(hangs),
        stopped,
        tuple(_waits(waiting, missing)),
        RankSet(peer for rank in waiting for peer in missing[rank] if peer not in inside),
        RankSet(rank for rank in waiting if not missing[rank]),
        RankSet(rank for rank in waiting if not missing[rank] and inside[rank].members & failed),
        _operations({rank: each for rank, each in waiting.items() if not missing[rank]}),
    )


def roots(gone: Mapping[int, str]) -> dict[int, str]:
    """Ranks that left the cell for a reason of their own, and how; all where nobody has one."""
    own = {rank: how for rank, how in gone.items() if how != _FOLLOWED}
    return own if any(how != LEFT for how in own.values()) else dict(gone)


def _operations(transfers: Mapping[int, Inside]) -> tuple[RankSet, ...]:
    """Ranks of each operation that is under way."""
    members: dict[tuple[int, int], RankSet] = {}
    for rank, at in transfers.items():
        where = (at.key, at.stamp)
        members[where] = members.get(where, RankSet()) | at.members | RankSet([rank])
    return tuple(members.values())


def _components(stuck: set[int], missing: Mapping[int, RankSet], differing: Mapping[int, RankSet]) -> list[set[int]]:
    """Stuck ranks that wait for each other, or for the same ranks, together."""
    reach = {rank: RankSet([rank]) | missing[rank] | differing[rank] for rank in stuck}
    components: list[tuple[set[int], RankSet]] = []
    for rank in sorted(stuck):
        members, touched = {rank}, reach[rank]
        for other in [each for each in components if each[1] & touched]:
            components.remove(other)
            members, touched = members | other[0], touched | other[1]
        components.append((members, touched))
    return [members for members, _ in components]


def _missing(rank: int, waits_in: Inside, facts: Mapping[int, RankFacts]) -> RankSet:
    """Who has not issued the operation that ``rank`` waits in."""
    if waits_in.is_any:
        return waits_in.members - RankSet([rank])
    missing = []
    for peer in waits_in.members:
        if peer == rank:
            continue
        theirs = facts.get(peer)
        issues = theirs.issues.get(waits_in.key) if theirs is not None else None
        if theirs is not None and theirs.is_unwatched and issues is None:
            continue
        if issues is None or issues.newest < waits_in.stamp:
            missing.append(peer)
    return RankSet(missing)


def _may_go_on(waits_in: Inside, may_come: list[bool]) -> bool:
    return any(may_come) if waits_in.is_any else all(may_come)


def _differing(rank: int, waits_in: Inside, facts: Mapping[int, RankFacts]) -> RankSet:
    """Who has issued something else under the same number."""
    mine = facts[rank].issues.get(waits_in.key, Issues(0)).last.get(waits_in.stamp)
    if mine is None:
        return RankSet()
    differing = []
    for peer in waits_in.members:
        theirs = facts[peer].issues.get(waits_in.key, Issues(0)).last.get(waits_in.stamp) if peer in facts else None
        if theirs is not None and theirs[0] != mine[0]:
            differing.append(peer)
    return RankSet(differing)


def _all(sets: Iterable[RankSet]) -> RankSet:
    union = RankSet()
    for each in sets:
        union |= each
    return union


def _absence(rank: int, facts: Mapping[int, RankFacts], ranks: RankSet, gone: Mapping[int, str]) -> str:
    """Why a rank will not come, in words; "" if it may."""
    if rank in gone:
        return gone[rank]
    if rank not in ranks and rank in facts and facts[rank].activity == Activity.IDLE:
        return _ABSENT
    return ""


def _absences(
    stuck: Iterable[int], missing: Mapping[int, RankSet], absent: Mapping[int, str], gone: Mapping[int, str]
) -> list[str]:
    reasons = {peer: absent[peer] for peer in _all(missing[rank] for rank in stuck) if absent[peer]}
    if _FOLLOWED in reasons.values():  # what they followed is why, also where nobody waits for that rank
        failed = {rank: words for rank, words in gone.items() if words not in (LEFT, _FOLLOWED)}
        if failed:
            reasons = {rank: words for rank, words in reasons.items() if words != _FOLLOWED} | failed
    how: dict[str, list[int]] = {}
    for peer, words in sorted(reasons.items()):
        how.setdefault(words, []).append(peer)
    return [f"{RankSet(peers).words()} {_plural(words) if len(peers) > 1 else words}" for words, peers in how.items()]


def _plural(words: str) -> str:
    """``was ended by SIGKILL`` of several ranks."""
    for one, many in (("was ", "were "), ("does ", "do ")):
        if words.startswith(one):
            return many + words.removeprefix(one)
    return words


def _differences(
    stuck: Iterable[int], inside: Mapping[int, Inside], differing: Mapping[int, RankSet], facts: Mapping[int, RankFacts]
) -> list[str]:
    lines: dict[tuple[int, int], str] = {}
    for rank in stuck:
        if not differing[rank]:
            continue
        at = inside[rank]
        called: dict[str, list[int]] = {}
        for peer in at.members:
            issues = facts[peer].issues.get(at.key) if peer in facts else None
            if issues is not None and at.stamp in issues.last:
                words = issues.last[at.stamp][1]
                if words.startswith(_MESSAGE):  # the board has one word for both ends
                    words = f"{_role(peer, rank, at)}({words.removeprefix(_MESSAGE)}"
                called.setdefault(words, []).append(peer)
        parts = [f"{RankSet(peers).words()} called {words}" for words, peers in called.items()]
        lines[at.key, at.stamp] = f"as operation {number_of(at.stamp)} of ranks {at.members}, " + " and ".join(parts)
    return list(lines.values())


def _role(peer: int, rank: int, at: Inside) -> str:
    """What ``peer`` calls in the messages of which ``rank`` waits for one: one of the two sends, the other receives."""
    mine = "send" if at.what.startswith("send") else "recv"
    return mine if peer == rank else "recv" if mine == "send" else "send"


def _circle(stuck: Iterable[int], inside: Mapping[int, Inside], missing: Mapping[int, RankSet]) -> str:
    parts = [
        f"rank {rank} waits in {inside[rank].what} for {_whom(inside[rank], missing[rank])}" for rank in sorted(stuck)
    ]
    return "they wait for each other: " + "; ".join(parts[:8])


def _whom(waits_in: Inside, missing: RankSet) -> str:
    """Who is waited for, in words; "" for nobody."""
    if not missing:
        return ""
    return f"any of {missing.words()}" if waits_in.is_any and len(missing) > 1 else missing.words()


def _waits(waiting: Mapping[int, Inside], missing: Mapping[int, RankSet]) -> list[str]:
    groups: dict[tuple[str, str], list[int]] = {}
    for rank, at in waiting.items():
        groups.setdefault((at.what, _whom(at, missing[rank])), []).append(rank)
    lines = []
    for (what, peers), ranks in groups.items():
        age_s = max(waiting[rank].age_s for rank in ranks)
        plural = "s" if len(ranks) == 1 else ""
        if peers:
            lines.append(f"{RankSet(ranks).words()} wait{plural} in {what} for {peers}, since {age_s:.0f} s")
        else:
            lines.append(f"{RankSet(ranks).words()} transfer{plural} in {what}, since {age_s:.0f} s")
    return lines
