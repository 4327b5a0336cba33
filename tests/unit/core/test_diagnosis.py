"""Who waits in vain: hand-made boards, and a reference that follows every chain of waits by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core import messages as m
from hpcnb.core.board import Activity, stamp
from hpcnb.core.diagnosis import diagnose, roots
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet

CELL = 5
ALL = RankSet.all(4)
WORLD, LEFT, RIGHT, P2P01, P2P12, P2P23, P2P32 = range(1, 8)
#: who takes part in which channel
MEMBERS = {WORLD: [0, 1, 2, 3], LEFT: [0, 1], RIGHT: [0, 1], P2P01: [0, 1], P2P12: [1, 2], P2P23: [2, 3], P2P32: [3, 2]}


def ranks(*members):
    return RankSet(members)


def waits(key, number, *, name="all_reduce", signature=1, age_s=3.0, also=None, **changes):
    """A rank that waits in operation ``number`` of a channel, and has issued ``also`` elsewhere: {key: number}."""
    stamped = stamp(1, number)
    words = f"{name}(float32[8]) (line {number})"
    issues = {key: Issues(stamped, {stamped: (signature, words)})}
    for other, newest in (also or {}).items():
        issues[other] = Issues(stamp(1, newest))
    inside = Inside(f"{name} #{number} (32 B, line {number})", key, stamped, RankSet(MEMBERS[key]), age_s)
    return RankFacts(Activity.CELL, CELL, inside=inside, issues=issues, **changes)


def computes(also=None, **changes):
    """A rank that runs Python code, and has issued these numbers."""
    issues = {key: Issues(stamp(1, newest)) for key, newest in (also or {}).items()}
    return RankFacts(**{"activity": Activity.CELL, "cell": CELL, "issues": issues, **changes})


def receives(members=(0, 1, 2, 3), age_s=3.0):
    """A rank that receives from whichever of the others sends first."""
    return RankFacts(
        Activity.CELL, CELL, inside=Inside("recv from any rank #1 (4 B)", 0, 1, RankSet(members), age_s, is_any=True)
    )


IDLE = RankFacts(Activity.IDLE)


@dataclass
class Expected:
    """A diagnosis, all hangs together."""

    stuck: RankSet
    causes: tuple = ()
    is_mismatch: bool = False
    stopped: RankSet = RankSet()  # noqa: RUF009 - immutable
    waits: tuple = ()
    awaited: RankSet = RankSet()  # noqa: RUF009 - immutable


@dataclass
class Case:
    facts: dict
    expected: Expected
    gone: dict = ()
    on: RankSet = ALL


CASES = {
    "nothing happens": Case({rank: computes() for rank in ALL}, Expected(ranks())),
    "all have arrived: bytes are under way": Case(
        {rank: waits(WORLD, 7, age_s=20.0 + rank) for rank in ALL},
        Expected(ranks(), waits=("ranks 0-3 transfer in all_reduce #7 (32 B, line 7), since 23 s",)),
    ),
    "one rank alone transfers": Case(
        {0: waits(WORLD, 7), **{rank: computes({WORLD: 7}) for rank in (1, 2, 3)}},
        Expected(ranks(), waits=("rank 0 transfers in all_reduce #7 (32 B, line 7), since 3 s",)),
    ),
    "one raised": Case(
        {0: waits(WORLD, 7), 1: waits(WORLD, 7), 2: IDLE, 3: waits(WORLD, 7)},
        Expected(ranks(0, 1, 3), ("rank 2 raised ValueError",)),
        gone={2: "raised ValueError"},
    ),
    "two left, one raised: one line for each reason": Case(
        {0: waits(WORLD, 7), 1: IDLE, 2: IDLE, 3: IDLE},
        Expected(ranks(0), ("rank 1 raised KeyError", "ranks 2,3 ended the cell without it")),
        gone={1: "raised KeyError", 2: "ended the cell without it", 3: "ended the cell without it"},
    ),
    "one is dead": Case(  # it has no facts
        {0: waits(WORLD, 7), 1: waits(WORLD, 7), 3: waits(WORLD, 7)},
        Expected(ranks(0, 1, 3), ("rank 2 was ended by SIGKILL",)),
        gone={2: "was ended by SIGKILL"},
    ),
    "one issued it and left then": Case(
        {**{rank: waits(WORLD, 7) for rank in (0, 1, 2)}, 3: computes({WORLD: 7}, activity=Activity.IDLE, cell=0)},
        Expected(ranks(), waits=("ranks 0-2 transfer in all_reduce #7 (32 B, line 7), since 3 s",)),
        gone={3: "raised ValueError"},
    ),
    "one is not in the cell": Case(
        {0: waits(WORLD, 7), 1: waits(WORLD, 7), 2: waits(WORLD, 7), 3: IDLE},
        Expected(ranks(0, 1, 2), ("rank 3 does not run this cell",)),
        on=ranks(0, 1, 2),
    ),
    "one that is not in the cell runs something else, and may come": Case(
        {0: waits(LEFT, 7), 1: computes(activity=Activity.REQUEST, cell=0)},
        Expected(
            ranks(), waits=("rank 0 waits in all_reduce #7 (32 B, line 7) for rank 1, since 3 s",), awaited=ranks(1)
        ),
        on=ranks(0),
    ),
    "one has not begun the cell": Case(  # its facts say CELL; a rank that nothing is known of may come, too
        {0: waits(WORLD, 7), 1: waits(WORLD, 7), 2: computes()},
        Expected(
            ranks(),
            waits=("ranks 0,1 wait in all_reduce #7 (32 B, line 7) for ranks 2,3, since 3 s",), awaited=ranks(2, 3),
        ),
    ),
    "a rank computes": Case(
        {**{rank: waits(WORLD, 7) for rank in (0, 1, 2)}, 3: computes({WORLD: 6})},
        Expected(
            ranks(), waits=("ranks 0-2 wait in all_reduce #7 (32 B, line 7) for rank 3, since 3 s",), awaited=ranks(3)
        ),
    ),
    "a rank is in the debugger": Case(
        {**{rank: waits(WORLD, 7) for rank in (0, 1, 2)}, 3: computes({WORLD: 6}, activity=Activity.DEBUGGER)},
        Expected(
            ranks(), waits=("ranks 0-2 wait in all_reduce #7 (32 B, line 7) for rank 3, since 3 s",), awaited=ranks(3)
        ),
    ),
    "a rank is stopped": Case(
        {**{rank: waits(WORLD, 7) for rank in (0, 1, 2)}, 3: computes({WORLD: 6}, is_stopped=True)},
        Expected(
            ranks(), stopped=ranks(3), awaited=ranks(3),
            waits=("ranks 0-2 wait in all_reduce #7 (32 B, line 7) for rank 3, since 3 s",),
        ),
    ),
    "a stopped rank that has left, or is not in the cell, is none of ours": Case(
        {0: computes(is_stopped=True), 1: computes(is_stopped=True, cell=4), 2: computes(is_stopped=True)},
        Expected(ranks(), stopped=ranks(2)),
        gone={0: "raised ValueError"},
    ),
    "a rank uses more channels than are watched": Case(
        {**{rank: waits(WORLD, 7) for rank in (0, 1, 2)}, 3: computes(is_unwatched=True)},
        Expected(ranks(), waits=("ranks 0-2 transfer in all_reduce #7 (32 B, line 7), since 3 s",)),
    ),
    "such a rank is seen where its channel is": Case(
        {**{rank: waits(WORLD, 7) for rank in (0, 1, 2)}, 3: computes({WORLD: 6}, is_unwatched=True)},
        Expected(ranks(0, 1, 2), ("rank 3 raised ValueError",)),
        gone={3: "raised ValueError"},
    ),
    "a receive from anybody, and one still computes": Case(
        {0: receives(), 1: computes()},
        Expected(
            ranks(), waits=("rank 0 waits in recv from any rank #1 (4 B) for any of ranks 1-3, since 3 s",),
            awaited=ranks(1, 2, 3),
        ),
        gone={2: "raised ValueError", 3: "was ended by SIGKILL"},
    ),
    "a receive from anybody, and nobody is left": Case(
        {0: receives(), 3: IDLE},
        Expected(ranks(0), ("rank 1 raised ValueError", "rank 2 ended the cell without it", "rank 3 does not run this cell")),
        gone={1: "raised ValueError", 2: "ended the cell without it"},
        on=ranks(0, 1, 2),
    ),
    "a receive from anybody, and of the others one transfers": Case(
        {0: receives(), 1: waits(P2P12, 3, name="send"), 2: waits(P2P12, 3, name="recv")},
        Expected(
            ranks(),
            waits=(
                "rank 0 waits in recv from any rank #1 (4 B) for any of ranks 1-3, since 3 s",
                "rank 1 transfers in send #3 (32 B, line 3), since 3 s",
                "rank 2 transfers in recv #3 (32 B, line 3), since 3 s",
            ),
            awaited=ranks(3),
        ),
        gone={3: "raised ValueError"},
    ),
    "a receive from anybody, and all others wait for it": Case(
        {0: receives([0, 1, 2]), **{rank: waits(WORLD, 7) for rank in (1, 2, 3)}},
        Expected(
            ALL,
            (
                ("they wait for each other: rank 0 waits in recv from any rank #1 (4 B) for any of ranks 1,2; "
                "rank 1 waits in all_reduce #7 (32 B, line 7) for rank 0; "
                "rank 2 waits in all_reduce #7 (32 B, line 7) for rank 0; "
                "rank 3 waits in all_reduce #7 (32 B, line 7) for rank 0"),
            ),
        ),
    ),
    "two receive from anybody, and one of them could be served": Case(
        {0: receives([0, 1]), 1: receives([0, 1, 2]), 2: computes()},
        Expected(
            ranks(),
            waits=(
                "rank 0 waits in recv from any rank #1 (4 B) for rank 1, since 3 s",
                "rank 1 waits in recv from any rank #1 (4 B) for any of ranks 0,2, since 3 s",
            ),
            awaited=ranks(2),
        ),
    ),
    "who only followed is no cause: the root is": Case(
        {1: waits(WORLD, 7)},
        Expected(ranks(1), ("rank 3 was ended by SIGKILL",)),
        gone={0: "raised CollectiveAborted", 2: "raised CollectiveAborted", 3: "was ended by SIGKILL"},
    ),
    "the root is named although nobody who waits takes part with it": Case(
        {0: waits(LEFT, 7)},
        Expected(ranks(0), ("rank 3 raised ValueError",)),
        gone={1: "raised CollectiveAborted", 3: "raised ValueError"},
    ),
    "who left without it is a cause beside the root": Case(
        {0: waits(WORLD, 7)},
        Expected(ranks(0), ("rank 1 ended the cell without it", "rank 3 raised ValueError")),
        gone={1: "ended the cell without it", 2: "raised CollectiveAborted", 3: "raised ValueError"},
    ),
    "the root is not known": Case(
        {0: waits(WORLD, 7), 3: IDLE},
        Expected(ranks(0), ("ranks 1,2 raised CollectiveAborted", "rank 3 ended the cell without it")),
        gone={1: "raised CollectiveAborted", 2: "raised CollectiveAborted", 3: "ended the cell without it"},
    ),
    "a failure elsewhere is no cause of this hang": Case(
        {0: waits(LEFT, 7)},
        Expected(ranks(0), ("rank 1 raised KeyError",)),
        gone={1: "raised KeyError", 3: "raised ValueError"},
    ),
    "a circle over two groups": Case(
        {0: waits(LEFT, 1, name="all_gather"), 1: waits(RIGHT, 1)},
        Expected(
            ranks(0, 1),
            (
                ("they wait for each other: rank 0 waits in all_gather #1 (32 B, line 1) for rank 1; "
                "rank 1 waits in all_reduce #1 (32 B, line 1) for rank 0"),
            ),
        ),
    ),
    "whoever waits for a circle is stuck as well": Case(
        {0: waits(LEFT, 1), 1: waits(RIGHT, 1), 2: waits(P2P12, 1, name="recv"), 3: computes()},
        Expected(
            ranks(0, 1, 2),
            (
                ("they wait for each other: rank 0 waits in all_reduce #1 (32 B, line 1) for rank 1; "
                "rank 1 waits in all_reduce #1 (32 B, line 1) for rank 0; "
                "rank 2 waits in recv #1 (32 B, line 1) for rank 1"),
            ),
        ),
    ),
    "both send first": Case(  # the two directions are two channels
        {0: waits(LEFT, 1, name="send"), 1: waits(RIGHT, 1, name="send")},
        Expected(
            ranks(0, 1),
            (
                ("they wait for each other: rank 0 waits in send #1 (32 B, line 1) for rank 1; "
                "rank 1 waits in send #1 (32 B, line 1) for rank 0"),
            ),
        ),
    ),
    "a send waits for a receiver that has left": Case(
        {0: waits(P2P01, 3, name="send"), 1: IDLE},
        Expected(ranks(0), ("rank 1 ended the cell without it",)),
        gone={1: "ended the cell without it"},
    ),
    "a pipeline waits for its first stage": Case(
        {
            0: computes({P2P01: 2}), 1: waits(P2P01, 3, name="recv", age_s=1.0),
            2: waits(P2P12, 3, name="recv", age_s=2.0), 3: waits(P2P23, 3, name="recv", age_s=3.0),
        },
        Expected(
            ranks(),
            waits=(
                "rank 1 waits in recv #3 (32 B, line 3) for rank 0, since 1 s",
                "rank 2 waits in recv #3 (32 B, line 3) for rank 1, since 2 s",
                "rank 3 waits in recv #3 (32 B, line 3) for rank 2, since 3 s",
            ),
            awaited=ranks(0),
        ),
    ),
    "a pipeline whose first stage raised": Case(
        {
            0: IDLE, 1: waits(P2P01, 3, name="recv"), 2: waits(P2P12, 3, name="recv"), 3: waits(P2P23, 3, name="recv"),
        },
        Expected(ranks(1, 2, 3), ("rank 0 raised ValueError",)),
        gone={0: "raised ValueError"},
    ),
    "a message that is under way": Case(
        {0: waits(P2P01, 3, name="send"), 1: waits(P2P01, 3, name="recv")},
        Expected(
            ranks(),
            waits=(
                "rank 0 transfers in send #3 (32 B, line 3), since 3 s",
                "rank 1 transfers in recv #3 (32 B, line 3), since 3 s",
            ),
        ),
    ),
    "different operations under one number": Case(
        {
            0: waits(LEFT, 7), 1: waits(LEFT, 7, name="broadcast", signature=2),
        },
        Expected(
            ranks(0, 1),
            (
                ("as operation 7 of ranks 0,1, rank 0 called all_reduce(float32[8]) (line 7) "
                "and rank 1 called broadcast(float32[8]) (line 7)"),
            ),
            is_mismatch=True,
        ),
    ),
    "a message of another size than expected": Case(
        {
            0: replace(
                waits(P2P01, 7, name="message"),
                inside=Inside("send #7 (32 B, line 7)", P2P01, stamp(1, 7), ranks(0, 1), 3.0),
            ),
            1: RankFacts(
                Activity.CELL, CELL,
                issues={P2P01: Issues(stamp(1, 7), {stamp(1, 7): (2, "message(float32[9]) (line 9)")})},
            ),
        },
        Expected(
            ranks(0),
            (
                ("as operation 7 of ranks 0,1, rank 0 called send(float32[8]) (line 7) "
                "and rank 1 called recv(float32[9]) (line 9)"),
            ),
            is_mismatch=True,
        ),
    ),
    "different lines, the same operation": Case(
        {0: waits(LEFT, 7, name="all_reduce"), 1: waits(LEFT, 7, name="all_reduce at another line")},
        Expected(
            ranks(),
            waits=(
                "rank 0 transfers in all_reduce #7 (32 B, line 7), since 3 s",
                "rank 1 transfers in all_reduce at another line #7 (32 B, line 7), since 3 s",
            ),
        ),
    ),
    "three called one thing and one another": Case(
        {
            **{rank: waits(WORLD, 7) for rank in (0, 1, 3)},
            2: waits(WORLD, 7, name="barrier", signature=9),
        },
        Expected(
            ALL,
            (
                ("as operation 7 of ranks 0-3, ranks 0,1,3 called all_reduce(float32[8]) (line 7) "
                "and rank 2 called barrier(float32[8]) (line 7)"),
            ),
            is_mismatch=True,
        ),
    ),
    "who called something else has raised": Case(  # what it published stays on the board
        {
            0: waits(LEFT, 7),
            1: RankFacts(
                Activity.IDLE, issues={LEFT: Issues(stamp(1, 7), {stamp(1, 7): (2, "barrier() (line 9)")})},
            ),
        },
        Expected(
            ranks(0),
            (
                ("as operation 7 of ranks 0,1, rank 0 called all_reduce(float32[8]) (line 7) "
                "and rank 1 called barrier() (line 9)"),
            ),
            is_mismatch=True,
        ),
        gone={1: "raised CollectiveMismatch"},
    ),
    "one is behind, in an earlier collective of the same group": Case(
        # rank 0 has gone on to #8, which rank 1 reaches when the transfer of #7 is over
        {0: waits(LEFT, 8), 1: waits(LEFT, 7)},
        Expected(
            ranks(),
            waits=(
                "rank 0 waits in all_reduce #8 (32 B, line 8) for rank 1, since 3 s",
                "rank 1 transfers in all_reduce #7 (32 B, line 7), since 3 s",
            ),
        ),
    ),
    "one is behind, in an earlier generation of the groups": Case(
        {
            0: waits(LEFT, 1),
            1: RankFacts(Activity.CELL, CELL, issues={LEFT: Issues(stamp(0, 900))}),
        },
        Expected(
            ranks(), waits=("rank 0 waits in all_reduce #1 (32 B, line 1) for rank 1, since 3 s",), awaited=ranks(1)
        ),
    ),
    "a rank that waits in another cell is not looked at": Case(
        {0: waits(LEFT, 1), 1: replace(waits(RIGHT, 1), cell=4)},
        Expected(
            ranks(), waits=("rank 0 waits in all_reduce #1 (32 B, line 1) for rank 1, since 3 s",), awaited=ranks(1)
        ),
        on=ranks(0),
    ),
    "a rank that has left waits for nothing": Case(
        {0: waits(LEFT, 1), 1: waits(RIGHT, 1)},
        Expected(ranks(0), ("rank 1 raised KeyboardInterrupt",)),
        gone={1: "raised KeyboardInterrupt"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_waits_in_vain_and_why(case):
    found = diagnose(case.facts, CELL, case.on, dict(case.gone))
    assert (found.stuck, found.causes, found.is_mismatch) == (
        case.expected.stuck, case.expected.causes, case.expected.is_mismatch,
    )  # fmt: skip
    assert (found.stopped, found.waits, found.awaited) == (
        case.expected.stopped, case.expected.waits, case.expected.awaited,
    )  # fmt: skip


# --- hangs that have nothing to do with each other ----------------------------------------------------------------

SENT = "as operation 7 of ranks 0,1, rank 0 called all_reduce(float32[8]) (line 7) and rank 1 called barrier(float32[8]) (line 7)"
FACING = (
    "they wait for each other: rank 2 waits in send #1 (32 B, line 1) for rank 3; "
    "rank 3 waits in recv #2 (32 B, line 2) for rank 2"
)
MISMATCHED = {0: waits(LEFT, 7), 1: waits(LEFT, 7, name="barrier", signature=2)}
CIRCLING = {2: waits(P2P23, 1, name="send", also={P2P32: 0}), 3: waits(P2P32, 2, name="recv", also={P2P23: 0})}

SEPARATE = {
    "a mismatch and a circle": (
        {**MISMATCHED, **CIRCLING},
        {},
        [(ranks(0, 1), (SENT,), True), (ranks(2, 3), (FACING,), False)],
    ),
    "a circle, and one that waits for a rank that raised": (
        {**CIRCLING, 0: waits(LEFT, 7), 1: IDLE},
        {1: "raised ValueError"},
        [(ranks(0), ("rank 1 raised ValueError",), False), (ranks(2, 3), (FACING,), False)],
    ),
    "two that wait for ranks that left, each in its own way": (
        {0: waits(LEFT, 7), 1: IDLE, 2: IDLE, 3: waits(P2P23, 1, name="recv")},
        {1: "raised ValueError", 2: "was ended by SIGKILL"},
        [(ranks(0), ("rank 1 raised ValueError",), False), (ranks(3), ("rank 2 was ended by SIGKILL",), False)],
    ),
    "two that wait for the same rank are one": (
        {0: waits(P2P01, 1, name="recv"), 1: IDLE, 2: waits(P2P12, 1, name="recv")},
        {1: "raised ValueError"},
        [(ranks(0, 2), ("rank 1 raised ValueError",), False)],
    ),
    "whoever waits for both joins them": (
        {**MISMATCHED, 2: waits(P2P12, 1, name="recv", also={P2P23: 0}), 3: waits(P2P23, 1, name="recv")},
        {},
        [(ranks(0, 1, 2, 3), (SENT,), True)],
    ),
}


@pytest.mark.parametrize(("facts", "gone", "expected"), SEPARATE.values(), ids=SEPARATE)
def test_hangs_have_causes_of_their_own(facts, gone, expected):
    found = diagnose(facts, CELL, ALL, gone)
    assert [(hang.ranks, hang.causes, hang.is_mismatch) for hang in found.hangs] == expected
    assert found.stuck == RankSet(rank for members, *_ in expected for rank in members)


def test_an_operation_that_all_have_issued_and_one_has_left_is_an_orphan():
    left = computes({WORLD: 7}, activity=Activity.IDLE, cell=0)
    facts = {**{rank: waits(WORLD, 7) for rank in (0, 1)}, 2: computes({WORLD: 7}), 3: left}
    found = diagnose(facts, CELL, ALL, {3: "raised ValueError"})
    assert (found.hangs, found.transfers, found.orphans) == ((), ranks(0, 1), ranks(0, 1))
    found = diagnose(
        facts, CELL, ALL, {3: "ended the cell without it"}
    )  # its part is done: the root of a broadcast, for example
    assert (found.hangs, found.transfers, found.orphans) == ((), ranks(0, 1), ranks())
    found = diagnose(facts, CELL, ALL, {})
    assert (found.transfers, found.orphans) == (ranks(0, 1), ranks())
    found = diagnose({**facts, 2: computes({WORLD: 6})}, CELL, ALL, {})
    assert (found.transfers, found.awaited) == (ranks(), ranks(2))


def test_operations_under_way_are_told_with_all_who_take_part():
    facts = {
        0: waits(LEFT, 7), 1: computes({LEFT: 7, P2P12: 0}), 2: waits(P2P23, 3, name="send"),
        3: waits(P2P23, 3, name="recv"),
    }  # fmt: skip
    assert diagnose(facts, CELL, ALL, {}).operations == (ranks(0, 1), ranks(2, 3))
    assert diagnose({**facts, 1: computes({LEFT: 6})}, CELL, ALL, {}).operations == (ranks(2, 3),)


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ({}, {}),
        ({1: "raised ValueError"}, {1: "raised ValueError"}),
        ({0: "raised CollectiveAborted", 1: "raised ValueError"}, {1: "raised ValueError"}),
        ({0: "raised CollectiveAborted"}, {0: "raised CollectiveAborted"}),
        (
            {0: "raised CollectiveAborted", 1: "ended the cell without it"},
            {0: "raised CollectiveAborted", 1: "ended the cell without it"},
        ),
    ],
)
def test_who_has_left_for_a_reason_of_its_own(gone, expected):
    assert roots(gone) == expected


def test_a_long_circle_is_cut():
    facts = {
        rank: RankFacts(
            Activity.CELL,
            CELL,
            inside=Inside(f"recv #{rank}", rank + 1, stamp(0, 1), ranks(rank, (rank + 1) % 20), 2.0),
            issues={rank + 1: Issues(stamp(0, 1))},
        )
        for rank in range(20)
    }
    (cause,) = diagnose(facts, CELL, RankSet.all(20), {}).causes
    assert cause.count("waits in") == 8


# --- a reference ------------------------------------------------------------------------------------------------


def vain(facts, on, gone):
    """Ranks that reach, over ranks that have not come and wait themselves, one that never comes or a circle."""
    inside = {rank for rank, each in facts.items() if each.inside and rank not in gone and each.cell == CELL}

    def number(rank, key):
        return facts[rank].issues[key].newest if rank in facts and key in facts[rank].issues else 0

    def called(rank, key, stamped):
        return facts[rank].issues[key].last.get(stamped) if rank in facts and key in facts[rank].issues else None

    def missing(rank):
        at = facts[rank].inside
        return [peer for peer in at.members if peer != rank and (at.is_any or number(peer, at.key) < at.stamp)]

    def is_mismatched(rank):
        at = facts[rank].inside
        if at.is_any:
            return False
        mine = called(rank, at.key, at.stamp)
        theirs = [called(peer, at.key, at.stamp) for peer in at.members]
        return any(each is not None and each[0] != mine[0] for each in theirs)

    def never_comes(rank):
        return rank in gone or (rank not in on and rank in facts and facts[rank].activity == Activity.IDLE)

    def reaches(rank, path):
        if rank in path:
            return True  # a circle
        if is_mismatched(rank):
            return True
        quantifier = all if facts[rank].inside.is_any else any
        return quantifier(
            never_comes(peer) or (peer in inside and reaches(peer, (*path, rank))) for peer in missing(rank)
        )

    return {rank for rank in inside if reaches(rank, ())}


@st.composite
def worlds(draw):
    num_ranks = draw(st.integers(2, 5))
    everybody = list(range(num_ranks))
    groups = draw(
        st.lists(
            st.lists(st.sampled_from(everybody), min_size=2, max_size=num_ranks, unique=True), min_size=1, max_size=4
        )
    )
    facts, gone = {}, {}
    on = RankSet(draw(st.lists(st.sampled_from(everybody), min_size=1, unique=True)))
    for rank in everybody:
        state = draw(
            st.sampled_from(["waits", "waits", "waits", "waits", "computes", "gone", "dead", "idle", "unknown"])
        )
        mine = [key for key, members in enumerate(groups, 1) if rank in members]
        # what ranks issue differs by a call at most: the property holds for any numbers
        issues = {key: draw(st.integers(0, 2)) for key in mine}
        if state in ("gone", "dead"):
            gone[rank] = "raised ValueError"
        if state in ("dead", "unknown"):
            continue
        inside = None
        if state == "waits" and mine:
            key = draw(st.sampled_from(mine))
            issues[key] = max(1, issues[key])
            inside = Inside(
                f"all_reduce #{issues[key]}", key, issues[key], RankSet(groups[key - 1]), draw(st.floats(0, 9))
            )
            if draw(st.integers(0, 3)) == 0:
                inside = Inside("recv from any rank #1", 0, 1, RankSet(groups[key - 1]), inside.age_s, is_any=True)
        said = {
            key: Issues(
                newest, {number: (draw(st.sampled_from([1] * 9 + [2])), "f()") for number in range(1, newest + 1)}
            )
            for key, newest in issues.items()
            if newest
        }
        activity = Activity.IDLE if state in ("idle", "gone") else Activity.CELL
        facts[rank] = RankFacts(activity, 0 if state == "idle" else CELL, inside=inside, issues=said)
    return facts, on, gone


@given(worlds())
def test_a_rank_waits_in_vain_if_it_waits_in_the_end_for_what_never_comes(world):
    facts, on, gone = world
    found = diagnose(facts, CELL, on, gone)
    assert set(found.stuck) == vain(facts, on, gone)
    assert bool(found.causes) == bool(found.stuck)
    assert not found.stuck & RankSet(gone)
    assert not found.awaited & found.stuck
    waiting = (
        RankSet(r for r, each in facts.items() if each.inside and each.cell == CELL and r not in gone) - found.stuck
    )
    assert bool(found.waits) == bool(waiting)
    if found.is_mismatch:
        assert any(cause.startswith("as operation ") for cause in found.causes)
    assert not found.transfers & (found.stuck | found.awaited)
    assert not found.orphans - found.transfers


@given(worlds())
def test_hangs_have_nothing_to_do_with_each_other(world):
    facts, on, gone = world
    found = diagnose(facts, CELL, on, gone)
    for number, hang in enumerate(found.hangs):
        assert hang.ranks
        assert hang.causes
        assert hang.is_mismatch == any(cause.startswith("as operation ") for cause in hang.causes)
        others = RankSet(rank for other in found.hangs[number + 1 :] for rank in other.ranks)
        assert not hang.ranks & others
        # alone, without what others wait in, it is the same hang
        alone = {rank: replace(each, inside=None) if rank in others else each for rank, each in facts.items()}
        assert hang in diagnose(alone, CELL, on, gone).hangs


@given(worlds())
def test_facts_come_back_from_a_message(world):
    facts, _, _ = world
    sent = m.decode(m.encode(m.RankStates(CELL, {rank: each.pack() for rank, each in facts.items()})))
    assert {rank: RankFacts.unpack(packed) for rank, packed in sent.ranks.items()} == facts
