"""A running cell: lists of events, which carry their times, and what they lead to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.board import Activity, stamp
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.core.watch import (
    BoundaryFound,
    CellEnds,
    ContinueRanks,
    EndRanks,
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
    Watch,
    advance,
)

CELL = 5
NEVER = float("inf")


def replied(rank, *how):
    return Replied(RankSet([rank]), *how)


def ranks(*members):
    return RankSet(members)


ALL = ranks(0, 1, 2)


def watch_of(num_ranks=3, **changes):
    members = RankSet.all(num_ranks)
    return Watch(members, CELL, members, **changes)


def run(watch, *events):
    """The watch after events, and ``[(time, action), ...]``."""
    happened = []
    for event in events:
        watch, actions = advance(watch, event)
        happened += [(event.at_s, action) for action in actions]
    return watch, happened


def actions_of(watch, *events):
    return [action for _, action in run(watch, *events)[1]]


# --- hand-made facts ------------------------------------------------------------------------------------------


def inside(members, age_s, *, number=1, key=1, signature=1, name="all_reduce", **changes):
    stamped = stamp(0, number)
    return RankFacts(
        Activity.CELL,
        CELL,
        inside=Inside(f"{name} #{number}", key, stamped, RankSet(members), age_s),
        issues={key: Issues(stamped, {stamped: (signature, f"{name}() (line {number})")})},
        **changes,
    )


def computing(*, is_stopped=False):
    return RankFacts(Activity.CELL, CELL, is_stopped=is_stopped)


IDLE = RankFacts(Activity.IDLE)


def waiting_for(missing, at_s, *, since_s=0.0, number=1, on=ALL, theirs=None):
    """Looked at ``at_s``: all but ``missing`` wait in one collective since ``since_s``."""
    facts = {rank: inside(on, at_s - since_s, number=number) for rank in on if rank not in missing}
    return Looked(at_s, {**facts, **{rank: theirs or computing() for rank in missing if theirs is not IDLE}})


def circle(at_s, *, since_s=0.0, number=1):
    """Ranks 0 and 1 wait for each other, in two groups; rank 2 computes."""
    return Looked(
        at_s,
        {
            0: inside([0, 1], at_s - since_s, key=1, number=number, name="all_reduce"),
            1: inside([0, 1], at_s - since_s, key=2, number=number, name="barrier"),
            2: computing(),
        },
    )


CIRCLE = "they wait for each other: rank 0 waits in all_reduce #1 for rank 1; rank 1 waits in barrier #1 for rank 0"


# --- ranks answer and end ---------------------------------------------------------------------------------------

ENDS = {
    "all answer": ([replied(2), replied(0), replied(1)], [CellEnds(ranks())]),
    "two have answered": ([replied(2), replied(0)], []),
    "one answers twice": ([replied(2), replied(2)], []),
    "one dies": ([replied(0), Exited(1), replied(2)], [CellEnds(ranks())]),
    "all die": ([Exited(0), Exited(1), Exited(2)], [CellEnds(ranks())]),
    "a rank that is not in the cell dies": ([Exited(7)], []),
    "a rank that has answered dies": (
        [replied(1), Exited(1), replied(0), replied(2)],
        [CellEnds(ranks())],
    ),
    "nothing happens after the end": (
        [
            replied(0),
            replied(1),
            replied(2),
            InterruptAsked(),
            TimedOut(),
            Tick(9.0),
            Exited(1),
            circle(9.0),
        ],
        [CellEnds(ranks())],
    ),
}


@pytest.mark.parametrize(("events", "expected"), ENDS.values(), ids=ENDS)
def test_the_cell_ends_when_nobody_runs_it(events, expected):
    assert actions_of(watch_of(), *events) == expected


def test_a_notebook_that_lets_go_leaves_the_ranks_running():
    watch, _ = run(watch_of(), replied(1, 1.0))
    watch, actions = advance(watch, LetGo())
    assert actions == [CellEnds(ranks(0, 2))]
    assert run(watch, replied(0, 2.0), InterruptAsked(3.0), Tick(9.0)) == (watch, [])


def test_what_is_remembered():
    watch, _ = run(
        watch_of(),
        Exited(1, 2.0, "was ended by SIGKILL"),
        Exited(7, 3.0),
        replied(0, 4.0, "raised ValueError"),
    )
    assert (watch.running, watch.exited) == (ranks(2), ranks(1))
    assert watch.how_gone() == {0: "raised ValueError", 1: "was ended by SIGKILL", 7: "ended"}
    assert not watch.interrupted
    watch, _ = run(watch_of(), replied(0))
    assert watch.how_gone() == {0: "ended the cell without it"}
    interrupted, _ = run(watch_of(), InterruptAsked())
    assert (interrupted.interrupted, interrupted.timed_out) == (True, False)
    timed_out, _ = run(interrupted, TimedOut())
    assert (timed_out.interrupted, timed_out.timed_out) == (True, True)


# --- ranks that wait in vain --------------------------------------------------------------------------------------


def test_a_circle_is_released_after_the_grace_period():
    watch, happened = run(watch_of(), *(circle(at_s) for at_s in (0.4, 0.7, 0.9, 1.0)))
    assert happened == [(1.0, Say(CIRCLE)), (1.0, ReleaseRanks(ranks(0, 1), CIRCLE))]
    assert watch.released == ranks(0, 1)
    assert watch.running == ALL  # they have still to answer


@pytest.mark.parametrize(("grace_s", "first_s"), [(0.0, 1.0), (2.5, 3.0), (NEVER, None)])
def test_the_grace_period_can_be_chosen(grace_s, first_s):
    _, happened = run(watch_of(grace_s=grace_s), *(circle(float(at_s)) for at_s in (1, 2, 3, 100)))
    released = [at_s for at_s, action in happened if isinstance(action, ReleaseRanks)]
    assert (released[0] if released else None) == first_s


def test_the_grace_period_begins_anew_with_another_operation():
    looks = [circle(0.8), circle(1.6, since_s=0.9, number=2), circle(2.4, since_s=1.7, number=3)]
    watch, happened = run(watch_of(), *looks)
    assert happened == []
    _, happened = run(watch, circle(2.8, since_s=1.7, number=3))
    assert [at_s for at_s, _ in happened] == [2.8, 2.8]


def test_a_rank_that_leaves_is_given_the_grace_period_from_then_on():
    watch, happened = run(
        watch_of(),
        waiting_for([2], 30.0),
        replied(2, 30.0, "raised ValueError"),
        waiting_for([2], 30.5, theirs=IDLE),
    )
    assert [type(action) for _, action in happened] == [LookAtRanks]
    _, happened = run(watch, waiting_for([2], 30.9, theirs=IDLE), waiting_for([2], 31.0, theirs=IDLE))
    assert happened == [
        (31.0, Say("rank 2 raised ValueError")),
        (31.0, ReleaseRanks(ranks(0, 1), "rank 2 raised ValueError")),
    ]


def receives(age_s):
    return RankFacts(Activity.CELL, CELL, inside=Inside("recv from any rank #1", 0, 1, ALL, age_s, is_any=True))


def test_a_receive_from_anybody_is_released_when_the_last_who_might_have_sent_has_left():
    events = [
        Looked(20.0, {0: receives(20.0), 1: computing(), 2: computing()}),
        replied(2, 20.0, "raised ValueError"),
        Looked(40.0, {0: receives(40.0), 1: computing()}),  # it may still send
        replied(1, 50.0),
        Looked(50.1, {0: receives(50.1)}),
        Looked(50.9, {0: receives(50.9)}),
    ]
    watch, happened = run(watch_of(), *events)
    assert {type(action) for _, action in happened} == {LookAtRanks}
    reason = "rank 1 ended the cell without it; rank 2 raised ValueError"
    _, happened = run(watch, Looked(51.0, {0: receives(51.0)}))
    assert happened == [(51.0, Say(reason)), (51.0, ReleaseRanks(ranks(0), reason))]


def test_a_receive_from_anybody_whose_message_is_there_is_none_of_ours():
    """The sender has left right after it: the rank is then told as one that goes on (observer.py)."""
    events = [
        Looked(5.0, {0: receives(5.0), 1: computing(), 2: computing()}),
        replied(1, 5.1),
        replied(2, 5.1),
    ]
    _, happened = run(watch_of(), *events, *(Looked(at_s, {0: computing()}) for at_s in (6.0, 9.0, 90.0)))
    assert not [action for _, action in happened if isinstance(action, ReleaseRanks)]


def test_a_group_that_is_made_waits_for_its_ranks_and_not_for_one_that_raised():
    at_s = 30.0
    making = {rank: inside(ALL, at_s, name="new_group") for rank in (0, 1)}
    watch, happened = run(watch_of(), Looked(at_s, {**making, 2: computing()}))  # it is only later
    assert [type(action) for _, action in happened] == [LookAtRanks]
    assert watch.report == ("ranks 0,1 wait in new_group #1 for rank 2, since 30 s",)
    _, happened = run(watch, replied(2, 31.0, "raised ValueError"), Looked(32.0, making))
    words = "rank 2 raised ValueError"
    assert happened == [(32.0, Say(words)), (32.0, ReleaseRanks(ranks(0, 1), words))]


def test_a_process_that_ended_is_beyond_doubt():
    events = [
        waiting_for([2], 10.5, since_s=10.25),
        Exited(2, 10.5, "was ended by SIGKILL"),
        waiting_for([2], 10.625, since_s=10.25, theirs=IDLE),
        waiting_for([2], 10.75, since_s=10.25, theirs=IDLE),
    ]
    _, happened = run(watch_of(), *events)
    assert happened == [
        (10.75, Say("rank 2 was ended by SIGKILL")),
        (10.75, ReleaseRanks(ranks(0, 1), "rank 2 was ended by SIGKILL")),
    ]
    assert run(watch_of(grace_s=NEVER), *events)[1] == []


def test_a_short_grace_period_stays_short_when_a_process_ends():
    events = [Exited(2, 10.5), waiting_for([2], 10.625, theirs=IDLE)]
    assert len(run(watch_of(grace_s=0.125), *events)[1]) == 2
    assert run(watch_of(grace_s=0.15), *events)[1] == []


def mismatch(at_s):
    return Looked(
        at_s,
        {
            0: inside([0, 1], 0.3, number=7),
            1: inside([0, 1], 0.3, number=7, signature=2, name="broadcast"),
            2: computing(),
        },
    )


def test_a_mismatch_is_released_at_once():
    words = "as operation 7 of ranks 0,1, rank 0 called all_reduce() (line 7) and rank 1 called broadcast() (line 7)"
    _, happened = run(watch_of(), mismatch(10.0))
    assert happened == [(10.0, Say(words)), (10.0, ReleaseRanks(ranks(0, 1), words, mismatch=True))]
    assert run(watch_of(grace_s=NEVER), mismatch(10.0))[1] == []


def test_who_waits_for_a_rank_that_raised_a_mismatch_is_told_its_words():
    words = "operation 7 of ranks 0-2 is broadcast() (line 6) on rank 2 and all_reduce() (line 7) on rank 0"
    events = [
        replied(2, 10.0, "raised CollectiveMismatch", words),
        waiting_for([2], 10.1, since_s=9.9, theirs=IDLE),
    ]
    watch, happened = run(watch_of(), *events)
    assert happened == [(10.1, Say(words)), (10.1, ReleaseRanks(ranks(0, 1), words, mismatch=True))]
    watch, _ = run(watch, replied(1, 10.2, "raised CollectiveMismatch", "something later"))
    assert watch.mismatch == words


# --- hangs that have nothing to do with each other ------------------------------------------------------------------

FOUR = RankSet.all(4)
CIRCLE23 = "they wait for each other: rank 2 waits in send #1 for rank 3; rank 3 waits in recv #1 for rank 2"


def circle23(at_s, *, since_s=0.0, closed_s=None):
    """Ranks 2 and 3 wait for each other; rank 3 since ``closed_s``."""
    facts = {2: inside([2, 3], at_s - since_s, key=3, name="send")}
    closed_s = since_s if closed_s is None else closed_s
    if at_s < closed_s:
        return {**facts, 3: computing()}
    return {**facts, 3: inside([2, 3], at_s - closed_s, key=4, name="recv")}


def test_each_hang_is_released_with_its_own_reason():
    looks = [Looked(at_s, {**circle(at_s).facts, **circle23(at_s, since_s=0.5)}) for at_s in (0.9, 1.0, 1.4, 1.5)]
    watch, happened = run(watch_of(4), *looks)
    assert happened == [
        (1.0, Say(CIRCLE)), (1.0, ReleaseRanks(ranks(0, 1), CIRCLE)),
        (1.5, Say(CIRCLE23)), (1.5, ReleaseRanks(ranks(2, 3), CIRCLE23)),
    ]  # fmt: skip
    assert watch.released == FOUR


def test_hangs_that_are_due_at_once_have_their_own_reasons_too():
    at_s = 1.0
    _, happened = run(watch_of(4), Looked(at_s, {**circle(at_s).facts, **circle23(at_s)}))
    assert [action for _, action in happened] == [
        Say(CIRCLE), ReleaseRanks(ranks(0, 1), CIRCLE), Say(CIRCLE23), ReleaseRanks(ranks(2, 3), CIRCLE23),
    ]  # fmt: skip


MISMATCH01 = "as operation 7 of ranks 0,1, rank 0 called all_reduce() (line 7) and rank 1 called broadcast() (line 7)"


@pytest.mark.parametrize("age_s", [0.25, 2.0])
def test_a_mismatch_does_not_spread_to_another_hang(age_s):
    at_s = 10.0
    facts = {**mismatch(at_s).facts, **circle23(at_s, since_s=at_s - age_s)}
    watch, happened = run(watch_of(4), Looked(at_s, facts))
    expected = [Say(MISMATCH01), ReleaseRanks(ranks(0, 1), MISMATCH01, mismatch=True)]
    if age_s > 1.0:
        expected += [Say(CIRCLE23), ReleaseRanks(ranks(2, 3), CIRCLE23, mismatch=False)]
    assert [action for _, action in happened] == expected
    if age_s < 1.0:
        _, happened = run(watch, Looked(at_s + 1.0, circle23(at_s + 1.0, since_s=at_s - age_s)))
        assert [action for _, action in happened] == [Say(CIRCLE23), ReleaseRanks(ranks(2, 3), CIRCLE23)]


def test_a_mismatch_that_was_told_by_a_rank_does_not_spread_either():
    """Rank 0 raised a mismatch, and rank 1 waits for it; ranks 2 and 3 have nothing to do with that."""
    at_s = 10.0
    facts = {0: IDLE, 1: inside([0, 1], 0.5, number=7), **circle23(at_s, since_s=at_s - 2.0)}
    del facts[0]
    _, happened = run(watch_of(4), replied(0, 9.9, "raised CollectiveMismatch", MISMATCH01), Looked(at_s, facts))
    assert [action for _, action in happened if isinstance(action, ReleaseRanks)] == [
        ReleaseRanks(ranks(1), MISMATCH01, mismatch=True), ReleaseRanks(ranks(2, 3), CIRCLE23, mismatch=False),
    ]  # fmt: skip


def test_the_grace_period_of_a_circle_that_closes_late_begins_when_it_closes():
    looks = [Looked(at_s, {0: computing(), 1: computing(), **circle23(at_s, closed_s=30.25)}) for at_s in (30.0, 31.0)]
    watch, happened = run(watch_of(4), *looks)
    assert [action for _, action in happened] == [LookAtRanks(ranks(3))]  # which rank 2 waited for
    late = Looked(31.25, {0: computing(), 1: computing(), **circle23(31.25, closed_s=30.25)})
    assert [action for _, action in run(watch, late)[1]] == [Say(CIRCLE23), ReleaseRanks(ranks(2, 3), CIRCLE23)]


# --- an operation that all have issued, and nothing moves -----------------------------------------------------------


def orphan(at_s, *, gone=True, age_s=20.0):
    """Ranks 0 and 1 transfer with rank 2, which has issued the operation and may have left since."""
    issued = inside(ALL, at_s).issues
    left = RankFacts(Activity.IDLE if gone else Activity.CELL, 0 if gone else CELL, issues=issued)
    return Looked(at_s, {0: inside(ALL, age_s), 1: inside(ALL, age_s), 2: left})


def moved(at_s, num_bytes, members=(0, 1)):
    return [Located(rank, at_s, "", num_bytes) for rank in members]


STALLED = "nothing has moved for 10 s; rank 2 raised ValueError"


def test_ranks_are_let_go_when_nothing_moves_and_one_has_left():
    events = [
        replied(2, 9.0, "raised ValueError"),
        orphan(10.0),
        *moved(10.0, 500),
        orphan(12.1),
        *moved(12.1, 500),
    ]
    watch, happened = run(watch_of(), *events, orphan(19.9))
    assert {type(action) for _, action in happened} == {LookAtRanks}
    assert happened[0] == (10.0, LookAtRanks(ranks(0, 1)))
    watch, happened = run(watch, orphan(20.0))
    assert happened == [(20.0, Say(STALLED)), (20.0, ReleaseRanks(ranks(0, 1), STALLED))]


def test_a_rank_that_waits_while_bytes_move_elsewhere_is_not_let_go():
    """A broadcast that rank 0 forwards to rank 1 when it has all of it."""
    events = [replied(2, 9.0, "raised ValueError")]
    for at_s in range(10, 60):
        events += [orphan(float(at_s)), *moved(at_s, at_s, [0]), *moved(at_s, 7, [1])]
    _, happened = run(watch_of(), *events)
    assert {type(action) for _, action in happened} == {LookAtRanks}


def test_bytes_of_a_rank_that_has_gone_on_count_too():
    """Rank 0 has issued its part of a broadcast, computes, and still sends; rank 1 has not received yet."""
    events = [replied(2, 9.0, "raised ValueError")]
    for at_s in range(10, 60):
        look = orphan(float(at_s))
        facts = {**look.facts, 0: RankFacts(Activity.CELL, CELL, issues=look.facts[0].issues)}
        events += [Looked(at_s, facts), *moved(at_s, at_s, [0]), *moved(at_s, 7, [1])]
    watch, happened = run(watch_of(), *events)
    assert {action for _, action in happened} == {LookAtRanks(ranks(0, 1))}
    assert not [line for line in watch.report if "moved" in line]


def test_ranks_that_only_followed_are_not_told_as_the_cause():
    events = [
        replied(3, 9.0, "raised CollectiveAborted"), replied(2, 9.1, "raised ValueError"),
        orphan(10.0), *moved(10.0, 500), orphan(20.0),
    ]  # fmt: skip
    _, happened = run(watch_of(4), *events)
    assert happened[-2:] == [(20.0, Say(STALLED)), (20.0, ReleaseRanks(ranks(0, 1), STALLED))]


def test_as_long_as_bytes_move_nobody_is_let_go():
    events = [replied(2, 0.0, "raised ValueError")]
    for at_s in range(1, 100):
        events += [orphan(float(at_s)), *moved(at_s, at_s)]
    _, happened = run(watch_of(), *events)
    assert {type(action) for _, action in happened} == {LookAtRanks}


@pytest.mark.parametrize("changes", [{"gone": False}, {"num_bytes": -1}, {"grace_s": NEVER}])
def test_nobody_is_let_go_where_that_is_not_known(changes):
    gone = changes.get("gone", True)
    events = [replied(2, 0.0, "raised ValueError")] if gone else []
    for at_s in range(1, 60):
        events += [orphan(float(at_s), gone=gone), *moved(at_s, changes.get("num_bytes", 7))]
    _, happened = run(watch_of(grace_s=changes.get("grace_s", 1.0)), *events)
    assert {type(action) for _, action in happened} <= {LookAtRanks}


def test_what_was_seen_before_the_operation_began_says_nothing_about_it():
    """Rank 1 computes for long, is looked at since rank 0 waits for it, and then joins; rank 2 issued it and left."""
    events = [replied(2, 1.0, "raised ValueError")]
    for at_s in (3.0, 5.1, 7.2, 9.3):
        issued = inside(ALL, at_s).issues
        facts = {0: inside(ALL, at_s), 1: computing(), 2: RankFacts(Activity.IDLE, issues=issued)}
        events += [Looked(at_s, facts), *moved(at_s, 500, [1])]
    _, happened = run(watch_of(), *events, orphan(10.0, age_s=0.1))
    assert not [action for _, action in happened if isinstance(action, ReleaseRanks)]


def test_a_release_that_did_not_help_is_tried_again():
    watch, happened = run(watch_of(), *(circle(tenth / 10) for tenth in range(5, 52)))
    released = [at_s for at_s, action in happened if isinstance(action, ReleaseRanks)]
    assert released == [1.0, 3.0, 5.0]
    assert watch.released == ranks(0, 1)


def test_ranks_that_begin_to_wait_in_vain_later_are_released_as_well():
    watch, _ = run(watch_of(), circle(1.0), replied(0, 1.1, "raised"), replied(1, 1.1, "raised"))
    late = {2: inside(ALL, 1.0)}
    _, happened = run(watch, Looked(2.0, late), Looked(2.1, late))
    assert happened == [(2.1, Say("ranks 0,1 raised")), (2.1, ReleaseRanks(ranks(2), "ranks 0,1 raised"))]


def test_ranks_that_only_wait_are_left_alone():
    _, happened = run(watch_of(), *(waiting_for([2], float(at_s)) for at_s in range(1, 200, 20)))
    assert not [action for _, action in happened if not isinstance(action, LookAtRanks)]
    everybody = [Looked(float(at_s), {rank: inside(ALL, at_s) for rank in ALL}) for at_s in range(1, 200)]
    _, happened = run(watch_of(), *everybody)  # bytes are under way
    assert {action for _, action in happened} == {LookAtRanks(ALL)}


def test_nothing_is_hurried_while_a_person_debugs():
    debugging = watch_of(is_debugging=True)
    _, happened = run(debugging, circle(10.0), mismatch(11.0), waiting_for([2], 20.0), Looked(30.0, {}))
    assert happened == []
    watch, _ = run(debugging, waiting_for([2], 20.0))
    assert watch.report == ("ranks 0,1 wait in all_reduce #1 for rank 2, since 20 s",)


# --- stopped from outside -----------------------------------------------------------------------------------------


def stopped(at_s, *members):
    return Looked(at_s, {rank: computing(is_stopped=rank in members) for rank in ALL})


def test_a_stopped_rank_is_continued_after_the_grace_period():
    _, happened = run(watch_of(), stopped(5.0, 1), stopped(5.9, 1), stopped(6.0, 1))
    words = "rank 1 had been stopped from outside (SIGSTOP) and was continued"
    assert happened == [(6.0, Say(words)), (6.0, ContinueRanks(ranks(1)))]
    _, happened = run(watch_of(), stopped(5.0, 0, 1), stopped(6.0, 0, 1))
    assert happened[0][1].words == "ranks 0,1 had been stopped from outside (SIGSTOP) and were continued"


def test_a_rank_that_is_stopped_again_is_given_the_grace_period_again():
    watch, happened = run(watch_of(), stopped(5.0, 1), stopped(5.5), stopped(5.9, 1), stopped(6.5, 1))
    assert happened == []
    watch, happened = run(watch, stopped(6.9, 1), stopped(7.0, 1), stopped(7.8, 1))
    assert [at_s for at_s, action in happened if isinstance(action, ContinueRanks)] == [6.9]
    assert len(run(watch, stopped(8.0, 1))[1]) == 2


def test_with_an_infinite_grace_period_nobody_is_continued():
    assert run(watch_of(grace_s=NEVER), stopped(1.0, 1), stopped(1e6, 1))[1] == []


def test_a_rank_that_is_stopped_in_a_collective_is_continued_and_nobody_is_released():
    facts = {0: inside(ALL, 9.0), 1: inside(ALL, 9.0), 2: computing(is_stopped=True)}
    _, happened = run(watch_of(), Looked(9.0, facts), Looked(10.0, facts))
    assert [action for _, action in happened if not isinstance(action, LookAtRanks)] == [
        Say("rank 2 had been stopped from outside (SIGSTOP) and was continued"),
        ContinueRanks(ranks(2)),
    ]


# --- words while the cell runs ------------------------------------------------------------------------------------


def test_the_report_begins_after_the_grace_period_and_ends_with_the_wait():
    watch, _ = run(watch_of(), waiting_for([2], 0.9))
    assert watch.report == ()
    watch, _ = run(watch, waiting_for([2], 3.0))
    assert watch.report == ("ranks 0,1 wait in all_reduce #1 for rank 2, since 3 s",)
    watch, _ = run(
        watch, Located(2, 3.1, "is at line 5:  x = f(x)"), Located(0, 3.1, "is at line 6"), waiting_for([2], 4.0)
    )
    assert watch.report == (
        "ranks 0,1 wait in all_reduce #1 for rank 2, since 4 s",
        "rank 2 is at line 5:  x = f(x)",
    )
    watch, _ = run(watch, Looked(5.0, {rank: computing() for rank in ALL}))
    assert watch.report == ()


def transferring(at_s, age_s=20.0):
    return Looked(at_s, {rank: inside(ALL, age_s) for rank in ALL})


def test_that_nothing_moves_is_told_where_it_is_seen_on_all_who_take_part():
    still = "nothing has moved between ranks 0-2 for 13 s"
    events = [transferring(10.0), *moved(10.0, 500, ALL), *moved(14.0, 500, ALL)]
    watch, _ = run(watch_of(), *events, transferring(20.0))
    assert watch.report == ("ranks 0-2 transfer in all_reduce #1, since 20 s",)
    watch, _ = run(watch, transferring(23.0))
    assert watch.report == ("ranks 0-2 transfer in all_reduce #1, since 20 s", still)
    young, _ = run(watch, transferring(23.0, age_s=3.0))  # what was seen before it began says nothing about it
    assert not [line for line in young.report if "moved" in line]
    watch, _ = run(watch, *moved(23.5, 501, [1]), transferring(24.0))
    assert not [line for line in watch.report if "moved" in line]


def test_a_slow_broadcast_that_is_forwarded_moves():
    """Rank 2 has not received yet, while rank 0 sends to rank 1: asked or not, that is no standstill."""
    events = []
    for at_s in range(10, 60):
        events += [transferring(at_s), *moved(at_s, at_s, [0, 1]), *moved(at_s, 7, [2])]
        watch, _ = run(watch_of(), *events, transferring(at_s + 0.5))
        assert not [line for line in watch.report if "moved" in line]
    silent = [transferring(10.0), *moved(10.0, 7, [2]), transferring(60.0)]  # the others have not answered
    watch, _ = run(watch_of(), *silent)
    assert watch.report == ("ranks 0-2 transfer in all_reduce #1, since 20 s",)


def test_a_standstill_of_one_operation_is_told_beside_another_that_moves():
    facts = {
        0: inside([0, 1], 20.0),
        1: inside([0, 1], 20.0),
        2: inside([2, 3], 20.0, key=2),
        3: inside([2, 3], 20.0, key=2),
    }
    events = [*moved(10.0, 7, [0, 1, 2, 3]), *moved(29.0, 8, [3])]
    watch, _ = run(watch_of(4), *events, Looked(30.0, facts))
    assert watch.report[-1] == "nothing has moved between ranks 0,1 for 20 s"


def test_a_report_is_not_long():
    num_ranks = 20
    facts = {rank: inside([rank, rank + 10], 3.0, key=rank + 1, name=f"recv{rank}") for rank in range(10)}
    facts |= {rank: computing() for rank in range(10, num_ranks)}
    events = [Located(rank, 1.0, "is at line 5") for rank in range(num_ranks)]
    watch, _ = run(watch_of(num_ranks), *events, Looked(3.0, facts))
    assert len(watch.report) == 10
    assert watch.report[5:7] == ("rank 5 waits in recv5 #1 for rank 15, since 3 s", "rank 10 is at line 5")


def test_who_is_waited_for_is_looked_at_every_two_seconds():
    looks = [waiting_for([2], tenth / 10) for tenth in range(3, 60)]
    _, happened = run(watch_of(), *looks)
    assert {action for _, action in happened} == {LookAtRanks(ranks(2))}
    assert [at_s for at_s, _ in happened] == [1.1, 3.2, 5.3]


def test_nobody_looks_at_a_rank_that_does_not_run_the_cell():
    watch = Watch(ranks(0), CELL, ranks(0))
    assert run(watch, Looked(9.0, {0: inside([0, 1], 9.0), 1: replace(computing(), cell=4)}))[1] == []


# --- interrupts ---------------------------------------------------------------------------------------------------


def release(at_s, members=ALL, reason="the cell was interrupted"):
    """Ranks are let go, and looked at: should they not answer, where they are is told."""
    return [(at_s, ReleaseRanks(members, reason)), (at_s, LookAtRanks(members))]


ANSWERED = [replied(rank, 12.0, "raised KeyboardInterrupt") for rank in (0, 1, 2)]

INTERRUPTS = {
    "all stop at a step": (
        [InterruptAsked(10.0), BoundaryFound(True, 10.01), Tick(10.5), *(replied(rank, 10.6) for rank in ALL)],
        [(10.0, StopAtBoundary(ALL)), (10.6, CellEnds(ranks()))],
    ),
    "there is no step to stop at": (
        [InterruptAsked(10.0), BoundaryFound(False, 10.01), *ANSWERED],
        [(10.0, StopAtBoundary(ALL)), (10.01, InterruptRanks(ALL)), (12.0, CellEnds(ranks()))],
    ),
    "the step is not reached within a second": (
        [InterruptAsked(10.0), BoundaryFound(True, 10.01), Tick(10.9), Tick(11.0), *ANSWERED],
        [(10.0, StopAtBoundary(ALL)), (11.0, InterruptRanks(ALL)), (12.0, CellEnds(ranks()))],
    ),
    "nobody says whether there is a step": (
        [InterruptAsked(10.0), Tick(11.1), BoundaryFound(False, 11.2), *ANSWERED],
        [(10.0, StopAtBoundary(ALL)), (11.1, InterruptRanks(ALL)), (12.0, CellEnds(ranks()))],
    ),
    "only ranks that run are asked, interrupted and released": (
        [replied(0, 9.0), InterruptAsked(10.0), BoundaryFound(False, 10.0), replied(1, 10.1), Tick(10.25)],
        [
            (10.0, StopAtBoundary(ranks(1, 2))),
            (10.0, InterruptRanks(ranks(1, 2))),
            *release(10.25, ranks(2)),
        ],
    ),
    "ranks are released a quarter of a second after the signal, once": (
        [InterruptAsked(10.0), BoundaryFound(False, 10.0), Tick(10.2), Tick(10.25), Tick(10.3), Tick(11.5)],
        [(10.0, StopAtBoundary(ALL)), (10.0, InterruptRanks(ALL)), *release(10.25)],
    ),
    "the prompt comes back after three seconds": (
        [InterruptAsked(10.0), BoundaryFound(False, 10.0), Tick(10.25), replied(1, 11.0), Tick(12.9), Tick(13.0), Tick(14.0)],
        [(10.0, StopAtBoundary(ALL)), (10.0, InterruptRanks(ALL)), *release(10.25), (13.0, CellEnds(ranks(0, 2)))],
    ),
    "also when no time was seen to pass": (
        [InterruptAsked(10.0), Tick(20.0)],
        [(10.0, StopAtBoundary(ALL)), (20.0, InterruptRanks(ALL)), (20.0, CellEnds(ALL))],
    ),
    "a second press": (
        [InterruptAsked(10.0), BoundaryFound(True, 10.0), InterruptAsked(10.5), Tick(10.75), replied(1, 10.8), Tick(11.0)],
        [
            (10.0, StopAtBoundary(ALL)),
            (10.5, LookAtRanks(ALL, show=True)),
            (10.5, InterruptRanks(ALL)),
            *release(10.75),
            (11.0, EndRanks(ranks(0, 2), "it did not answer a second Ctrl-C")),
        ],
    ),
    "after a second press the prompt waits for the ranks that are ended": (
        [
            InterruptAsked(10.0), InterruptAsked(10.5), Tick(11.0), Tick(13.6),
            *(Exited(rank, 13.7, "was ended by SIGKILL") for rank in ALL),
        ],
        [
            (10.0, StopAtBoundary(ALL)),
            (10.5, LookAtRanks(ALL, show=True)),
            (10.5, InterruptRanks(ALL)),
            *release(11.0),
            (11.0, EndRanks(ALL, "it did not answer a second Ctrl-C")),
            (13.7, CellEnds(ranks())),
        ],
    ),
    "a second press that ranks obey ends nobody": (
        [InterruptAsked(10.0), InterruptAsked(10.5), *(replied(rank, 10.6) for rank in ALL), Tick(11.0)],
        [
            (10.0, StopAtBoundary(ALL)),
            (10.5, LookAtRanks(ALL, show=True)),
            (10.5, InterruptRanks(ALL)),
            (10.6, CellEnds(ranks())),
        ],
    ),
    "a third press at once does nothing": (
        [InterruptAsked(10.0), InterruptAsked(10.5), InterruptAsked(10.6)],
        [(10.0, StopAtBoundary(ALL)), (10.5, LookAtRanks(ALL, show=True)), (10.5, InterruptRanks(ALL))],
    ),
    "a rank that dies of the interrupt": (
        [replied(0), replied(1), InterruptAsked(10.0), Exited(2, 10.1)],
        [(10.0, StopAtBoundary(ranks(2))), (10.1, CellEnds(ranks()))],
    ),
    "a timeout": (
        [TimedOut(10.0), Tick(10.25), Tick(13.0)],
        [
            (10.0, InterruptRanks(ALL)),
            *release(10.25, reason="the cell ran longer than its timeout"),
            (13.0, CellEnds(ALL)),
        ],
    ),
    "a timeout that ranks obey": (
        [TimedOut(10.0), *(replied(rank, 10.1) for rank in ALL), Tick(10.25)],
        [(10.0, InterruptRanks(ALL)), (10.1, CellEnds(ranks()))],
    ),
    "a timeout while ranks are asked to stop at a step": (
        [InterruptAsked(10.0), TimedOut(10.5), Tick(11.0), Tick(13.4), Tick(13.5)],
        [
            (10.0, StopAtBoundary(ALL)),
            (10.5, InterruptRanks(ALL)),
            *release(11.0, reason="the cell ran longer than its timeout"),
            (13.5, CellEnds(ALL)),
        ],
    ),
    "an answer about steps that nobody asked for": ([BoundaryFound(False, 10.0), Tick(20.0)], []),
}  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), INTERRUPTS.values(), ids=INTERRUPTS)
def test_an_interrupt(events, expected):
    assert run(watch_of(), *events)[1] == expected


def test_an_interrupt_works_however_long_the_grace_period_is_and_in_the_debugger():
    for changes in ({"grace_s": NEVER}, {"is_debugging": True}):
        _, happened = run(
            watch_of(**changes), InterruptAsked(10.0), BoundaryFound(False, 10.0), Tick(10.25), Tick(13.0)
        )
        assert happened == [
            (10.0, StopAtBoundary(ALL)), (10.0, InterruptRanks(ALL)), *release(10.25), (13.0, CellEnds(ALL)),
        ]  # fmt: skip


def test_ranks_that_were_ended_are_remembered():
    events = [InterruptAsked(10.0), InterruptAsked(10.5), Tick(10.75), replied(1, 10.8), Tick(11.0)]
    assert run(watch_of(), *events[:4])[0].killed == ranks()
    assert run(watch_of(), *events)[0].killed == ranks(0, 2)


def test_a_mismatch_is_told_once_however_many_ranks_find_it():
    watch, (said, _) = run(watch_of(), mismatch(10.0))
    _, happened = run(watch, replied(1, 10.1, "raised CollectiveMismatch", "in other words"), mismatch(13.0))
    assert [action for _, action in happened if isinstance(action, Say)] == [said[1]]


# --- any order ------------------------------------------------------------------------------------------------

member = st.integers(0, 3)
times = st.floats(0.0, 4.0)
kinds = st.one_of(
    st.builds(lambda rank, how: lambda at_s: replied(rank, at_s, how), member, st.sampled_from(["", "raised ValueError"])),
    st.builds(lambda rank: lambda at_s: Exited(rank, at_s, "was ended"), member),
    st.builds(lambda rank: lambda at_s: Located(rank, at_s, "is at line 5"), member),
    st.builds(lambda found: lambda at_s: BoundaryFound(found, at_s), st.booleans()),
    st.builds(
        lambda missing, since_s, number: lambda at_s: waiting_for(missing, at_s, since_s=since_s, number=number),
        st.lists(st.integers(0, 2), max_size=2), times, st.integers(1, 3),
    ),
    st.builds(lambda make, since_s: lambda at_s: make(at_s, since_s=since_s), st.just(circle), times),
    st.builds(lambda members: lambda at_s: stopped(at_s, *members), st.lists(st.integers(0, 2))),
    st.just(lambda at_s: LetGo()),
    st.sampled_from([InterruptAsked, InterruptAsked, TimedOut, Tick, Tick, Tick, mismatch]),
)  # fmt: skip


@given(st.lists(st.tuples(times, kinds), max_size=30), st.sampled_from([0.0, 1.0, NEVER]), st.booleans())
def test_a_cell_ends_once_and_nothing_is_done_after_it(happenings, grace_s, is_debugging):
    watch, now_s, actions = watch_of(grace_s=grace_s, is_debugging=is_debugging), 0.0, []
    for later_s, make in happenings:
        now_s += later_s
        before = watch
        watch, new = advance(watch, make(now_s))
        actions += new
        assert watch.running.bits & ~before.running.bits == 0  # nobody comes back
        for action in new:
            if isinstance(
                action, StopAtBoundary | InterruptRanks | ReleaseRanks | ContinueRanks | LookAtRanks | EndRanks
            ):
                assert action.ranks
                assert not action.ranks - before.running
            if isinstance(action, ReleaseRanks | EndRanks):
                assert action.reason
        if grace_s == NEVER or is_debugging:  # then only a person or a timeout releases
            assert before.interrupted or not any(isinstance(action, ReleaseRanks) for action in new)
    ends = [number for number, action in enumerate(actions) if isinstance(action, CellEnds)]
    assert len(ends) == watch.ended
    if ends:
        assert ends == [len(actions) - 1]
        assert actions[-1] == CellEnds(watch.running)
    else:
        assert watch.running


@given(st.lists(st.tuples(times, kinds), max_size=20))
def test_the_prompt_comes_back_in_time(happenings):
    """After Ctrl-C within three seconds; after the second press when ranks have been ended."""
    watch, now_s = watch_of(), 0.0
    for later_s, make in happenings:
        now_s += later_s
        watch, _ = advance(watch, make(now_s))
    watch, actions = run(watch, InterruptAsked(now_s), Tick(now_s + 1.0), Tick(now_s + 1.25), Tick(now_s + 3.0))
    ended = [action.ranks for _, action in actions if isinstance(action, EndRanks)]
    assert watch.ended or ended == [watch.running]
