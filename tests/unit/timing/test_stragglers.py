"""Who was waited for, for how long, and where."""

import pytest

from hpcnb.core.spans import Flag
from hpcnb.timing.stragglers import slowest, waited_for
from tests.data.make_timelines import training
from tests.data.ranks import Rank, cell_of, plain_cell


def meeting(*starts, sequence=1, end=None, **fields):
    """Ranks that come to one all_reduce at these times, in ms."""
    ranks = [Rank(number) for number in range(len(starts))]
    meet(ranks, *starts, sequence=sequence, end=end, **fields)
    return ranks


def meet(ranks, *starts, end=None, **fields):
    for rank, start in zip(ranks, starts, strict=True):
        rank.collective(start, end or max(starts) + 1, **fields)


def cell(ranks, done=1000):
    return cell_of([rank.cell(0, done, child=0) for rank in ranks], done=done)


def test_the_last_rank_is_waited_for_and_the_longest_wait_is_what_it_cost():
    ranks = meeting(10, 60, 40, name="all_gather", line=7)
    (straggler,) = waited_for(cell(ranks))
    assert (straggler.rank, straggler.wait_ms, straggler.delay_ms) == (1, 70, 50)
    assert (straggler.operation, straggler.line, straggler.source) == ("all_gather", 7, "cell 3")
    assert (straggler.there_ms, straggler.num_operations) == (70, 1)


def test_every_rank_that_came_last_is_listed_the_most_expensive_first():
    ranks = meeting(10, 11, 30, sequence=1)
    meet(ranks, 100, 190, 120, sequence=2)
    meet(ranks, 205, 200, 204, sequence=3)
    assert [(each.rank, each.wait_ms) for each in waited_for(cell(ranks))] == [(1, 160), (2, 39), (0, 6)]


def test_the_place_is_where_most_of_the_waiting_was():
    ranks = meeting(10, 60, line=4, sequence=1)
    meet(ranks, 100, 180, line=9, name="barrier", sequence=2)
    (straggler,) = waited_for(cell(ranks))
    assert (straggler.operation, straggler.line) == ("barrier", 9)
    assert (straggler.wait_ms, straggler.there_ms, straggler.num_operations) == (130, 80, 2)


def test_in_a_training_with_one_slow_rank_it_is_that_one():
    (straggler,) = waited_for(training())
    assert (straggler.rank, straggler.num_operations) == (1, 8)
    assert straggler.delay_ms == pytest.approx(160)
    assert straggler.wait_ms == pytest.approx(480)


def test_nobody_waits_for_nobody():
    assert waited_for(plain_cell({0: (0, 10), 1: (0, 10)}, done=10)) == []
    assert waited_for(cell(meeting(20, 20, 20))) == []
    assert not slowest(cell(meeting(20, 20, 20)))


def test_whoever_was_missing_when_an_operation_failed_is_not_guessed():
    assert waited_for(cell(meeting(10, 60, flags=Flag.FAILED))) == []


def test_a_recv_waits_for_its_sender():
    ranks = [Rank(0), Rank(1)]
    ranks[0].recv(1, 10, 45, sequence=1)
    ranks[1].send(0, 40, 45, sequence=1)
    assert [(each.rank, each.wait_ms, each.operation) for each in waited_for(cell(ranks))] == [(1, 30, "recv")]


def test_slowest_are_those_within_half_of_the_worst():
    ranks = meeting(10, 60, sequence=1)
    meet(ranks, 130, 100, sequence=2)
    assert str(slowest(cell(ranks))) == "0,1"
    meet(ranks, 500, 300, sequence=3)
    assert str(slowest(cell_of([rank.cell(0, 900, child=0) for rank in meeting(10, 60)], done=900))) == "1"


def test_who_ends_last_costs_the_others_their_idle_time():
    assert str(slowest(plain_cell({0: (0, 50), 1: (0, 90), 2: (0, 60)}, done=95))) == "1"
    ranks = meeting(10, 60)  # rank 1 costs 50 in the operation, rank 0 costs 200 at the end
    late = cell_of([ranks[0].cell(0, 400, child=0), ranks[1].cell(0, 200, child=0)], done=400)
    assert str(slowest(late)) == "0"
