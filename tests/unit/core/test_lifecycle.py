"""Start of a cluster: lists of events, and what they lead to."""

from __future__ import annotations

import pytest

from hpcnb.core.lifecycle import (
    AgentEnded,
    Deadline,
    Fail,
    Lifecycle,
    Linked,
    RankEnded,
    RankIsReady,
    Ready,
    Refusal,
    Resized,
    StageEnded,
    StartFailure,
    Tell,
    advance,
)
from hpcnb.core.ranks import RankSet


def run(world_size, *events):
    state, happened = Lifecycle(world_size), []
    for event in events:
        state, actions = advance(state, event)
        happened += actions
    return state, happened


CASES = {
    "a start": (
        [Linked(), StageEnded("import torch", 1840.0), RankIsReady(1), RankIsReady(0)],
        "running",
        [Tell("import torch 1.8 s"), Tell("ranks 1 of 2"), Ready()],
    ),
    "a rank that says twice that it is ready counts once": (
        [RankIsReady(0), RankIsReady(0)],
        "starting",
        [Tell("ranks 1 of 2"), Tell("ranks 1 of 2")],
    ),
    "an agent of another version": (
        [Refusal("the notebook runs hpcnb 1, the ranks run hpcnb 2")],
        "failed",
        [Fail("the notebook runs hpcnb 1, the ranks run hpcnb 2", version_mismatch=True)],
    ),
    "an agent that writes its refusal to its log": (
        [AgentEnded("the agent ended with status 3", ("starting", "VERSION notebook 1, ranks 2"))],
        "failed",
        [Fail("notebook 1, ranks 2", version_mismatch=True)],
    ),
    "an agent that ends": (
        [Linked(), AgentEnded("the agent ended with status 1", ("Traceback", "ImportError: torch"))],
        "failed",
        [Fail("the agent ended with status 1\n    Traceback\n    ImportError: torch")],
    ),
    "an agent that ends without a word": (
        [AgentEnded("the agent ended with status 1")],
        "failed",
        [Fail("the agent ended with status 1")],
    ),
    "ranks that cannot be started": (
        [Linked(), StartFailure("no port for the store", ("OSError: address in use",))],
        "failed",
        [Fail("no port for the store\n    OSError: address in use")],
    ),
    "a rank that is killed": (
        [RankEnded(1, -9, ("last words",))],
        "failed",
        [Fail("rank 1 ended with signal 9 before it was ready\n    last words")],
    ),
    "a rank that exits": (
        [RankIsReady(0), RankEnded(1, 2)],
        "failed",
        [Tell("ranks 1 of 2"), Fail("rank 1 ended with status 2 before it was ready")],
    ),
    "silence": (
        [Deadline(60.0)],
        "failed",
        [Fail("ranks 0,1 not ready after 60 s; done so far: nothing, the agent did not answer")],
    ),
    "an agent that answers and no more": (
        [Linked(), Deadline(60.0)],
        "failed",
        [Fail("ranks 0,1 not ready after 60 s; done so far: the agent answered")],
    ),
    "one rank that is late": (
        [Linked(), StageEnded("controller", 400.0), StageEnded("import torch", 2000.0), RankIsReady(0), Deadline(60.0)],
        "failed",
        [
            Tell("controller 0.4 s"),
            Tell("import torch 2.0 s"),
            Tell("ranks 1 of 2"),
            Fail("rank 1 not ready after 60 s; done so far: controller, import torch"),
        ],
    ),
    "a failure is the last word": (
        [RankEnded(1, 1), RankIsReady(0), Deadline(60.0), AgentEnded("gone")],
        "failed",
        [Fail("rank 1 ended with status 1 before it was ready")],
    ),
}


@pytest.mark.parametrize(("events", "phase", "expected"), CASES.values(), ids=CASES)
def test_events_lead_to_actions(events, phase, expected):
    state, actions = run(2, *events)
    assert actions == expected
    assert state.phase == phase


def test_ranks_that_end_later_are_noted_and_nothing_more():
    state, actions = run(2, RankIsReady(0), RankIsReady(1), RankEnded(1, -11), Deadline(60.0), Refusal("too late"))
    assert actions == [Tell("ranks 1 of 2"), Ready()]
    assert (state.phase, state.ready, state.ended) == ("running", RankSet([0]), RankSet([1]))


def test_a_cluster_of_one():
    assert run(1, RankIsReady(0))[1] == [Ready()]


def test_states_are_values():
    state = Lifecycle(2)
    assert advance(state, RankIsReady(0)) == advance(state, RankIsReady(0))
    assert state == Lifecycle(2)


def test_a_rank_that_was_lost_with_its_node_has_no_status_of_its_own():
    _, actions = advance(Lifecycle(2), RankEnded(1, -9, (), "was lost: the agent of node n2 ended"))
    assert actions == [Fail("rank 1 was lost: the agent of node n2 ended before it was ready")]


def test_a_cluster_that_has_another_size_than_its_file_said():
    """Who attaches while it is scaled waits for the ranks that there are."""
    state, happened = run(2, RankIsReady(0), Resized(3), RankIsReady(1), RankIsReady(2))
    assert (state.phase, state.world_size, happened[-1]) == ("running", 3, Ready())
    state, happened = run(3, RankIsReady(0), RankIsReady(1), Resized(2))
    assert (state.phase, happened[-1]) == ("running", Ready())
    state, _ = run(1, RankIsReady(0), Resized(2))
    assert (state.phase, state.world_size) == ("running", 2)
