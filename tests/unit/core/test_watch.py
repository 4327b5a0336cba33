"""A running cell: lists of events, and what they lead to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.ranks import RankSet
from hpcnb.core.watch import (
    CellEnds,
    Exited,
    GraceOver,
    InterruptAsked,
    InterruptRanks,
    Replied,
    StartGrace,
    TimedOut,
    Watch,
    advance,
)


def run(num_ranks, *events):
    watch, happened = Watch(RankSet.all(num_ranks)), []
    for event in events:
        watch, actions = advance(watch, event)
        happened += actions
    return watch, happened


def ranks(*members):
    return RankSet(members)


CASES = {
    "all answer": ([Replied(2), Replied(0), Replied(1)], [CellEnds(ranks())]),
    "two have answered": ([Replied(2), Replied(0)], []),
    "one answers twice": ([Replied(2), Replied(2)], []),
    "one dies": ([Replied(0), Exited(1), Replied(2)], [CellEnds(ranks())]),
    "all die": ([Exited(0), Exited(1), Exited(2)], [CellEnds(ranks())]),
    "a rank that is not in the cell dies": ([Exited(7)], []),
    "an interrupt that ranks obey": (
        [Replied(0), InterruptAsked(), Replied(1), Replied(2)],
        [InterruptRanks(ranks(1, 2)), StartGrace(), CellEnds(ranks())],
    ),
    "an interrupt that a rank does not obey": (
        [InterruptAsked(), Replied(0), Replied(2), GraceOver()],
        [InterruptRanks(ranks(0, 1, 2)), StartGrace(), CellEnds(ranks(1))],
    ),
    "a second press": (
        [InterruptAsked(), Replied(0), InterruptAsked(), GraceOver()],
        [InterruptRanks(ranks(0, 1, 2)), StartGrace(), InterruptRanks(ranks(1, 2)), CellEnds(ranks(1, 2))],
    ),
    "a timeout": (
        [TimedOut(), Replied(0), Replied(1), Replied(2)],
        [InterruptRanks(ranks(0, 1, 2)), StartGrace(), CellEnds(ranks())],
    ),
    "a timeout after an interrupt": (
        [InterruptAsked(), TimedOut(), GraceOver()],
        [InterruptRanks(ranks(0, 1, 2)), StartGrace(), InterruptRanks(ranks(0, 1, 2)), CellEnds(ranks(0, 1, 2))],
    ),
    "a rank that dies of the interrupt": (
        [Replied(0), Replied(1), InterruptAsked(), Exited(2)],
        [InterruptRanks(ranks(2)), StartGrace(), CellEnds(ranks())],
    ),
    "nothing happens after the end": (
        [Replied(0), Replied(1), Replied(2), InterruptAsked(), TimedOut(), GraceOver(), Exited(1)],
        [CellEnds(ranks())],
    ),
}


@pytest.mark.parametrize(("events", "expected"), CASES.values(), ids=CASES)
def test_events_lead_to_actions(events, expected):
    assert run(3, *events)[1] == expected


def test_what_is_remembered():
    watch, _ = run(3, Exited(1), Exited(7), TimedOut(), Replied(0))
    assert watch == Watch(ranks(2), exited=ranks(1), interrupted=True, timed_out=True)
    assert not run(1, InterruptAsked())[0].timed_out
    assert run(1, InterruptAsked(), TimedOut())[0].timed_out


member = st.integers(0, 3)
events = st.one_of(
    st.builds(Replied, member), st.builds(Exited, member), *map(st.just, [InterruptAsked(), TimedOut(), GraceOver()])
)


@given(st.lists(events))
def test_a_cell_ends_once_and_says_who_is_busy(happened):
    watch, actions = run(3, *happened)
    ends = [action for action in actions if isinstance(action, CellEnds)]
    assert len(ends) == watch.ended
    assert [type(action) for action in actions].count(StartGrace) <= 1
    if ends:
        assert actions[-1] == CellEnds(watch.running)
    else:
        assert watch.running
    for action in actions:
        if isinstance(action, InterruptRanks):
            assert action.ranks
