"""Which nodes belong to a cluster, and through whom they are reached."""

from __future__ import annotations

import pytest

from hpcnb.core.ranks import RankSet
from hpcnb.node.members import ADOPT_S, Members


@pytest.fixture
def members():
    """Node 0 speaks with the head, 1 and 2 through it; 3 has not come."""
    members = Members([RankSet([node]) for node in range(4)])
    for node in range(3):
        members[node].via, members[node].started_ns = 0, 5
    return members


def test_who_spoke_through_a_lost_node_is_expected(members):
    orphans = members.orphaned(0, 100.0)
    assert [each.node for each in orphans] == [1, 2]
    assert members[1].is_here
    assert not members[3].is_here
    assert members.overdue(100.0 + ADOPT_S - 0.1) == []
    assert members.overdue(100.0 + ADOPT_S) == orphans


def test_an_orphan_comes_with_those_below_it(members):
    members.orphaned(0, 100.0)
    assert [each.node for each in members.come([1, 2, 3, 77], 1)] == [1, 2]
    assert members.reached(1) == [members[1], members[2]]
    assert members.overdue(999.0) == []


def test_a_lost_node_tells_its_processes_once(members):
    assert members[1].begin(1, 501)
    assert not members[1].begin(1, 501)
    assert members.lose(1) == {1: 501}
    assert members.lose(1) == {}
    assert not members[1].is_here


def test_an_end_that_is_told_again_is_not_new(members):
    members[2].begin(2, 600)
    assert members[2].end(2, 600)
    assert not members[2].end(2, 600)
    assert not members[2].begin(2, 600)  # told again, late
    assert members[2].begin(2, 601)
    assert members.of_rank(2).pids == {2: 601}
