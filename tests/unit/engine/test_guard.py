"""Guards of several ranks on one board, in one process: what may be issued, and what is said about the rest."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from hpcnb.core.board import (
    HISTORY,
    NUM_CHANNELS,
    NUM_SLOTS,
    Board,
    ChannelReader,
    generation_of,
    message_key,
    new_board,
    number_of,
    stamp,
)
from hpcnb.core.errors import CollectiveAborted, CollectiveError, CollectiveMismatch
from hpcnb.core.messages import GroupMade
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RingWriter
from hpcnb.engine import guard as guard_module
from hpcnb.engine.guard import Guard

AHEAD = HISTORY - 8  # a rank waits before it is further ahead of a peer


class Rank:
    def __init__(self, board, rank):
        self.rank = rank
        self.told = []
        self.ring = RingWriter(board.ring(rank), NUM_SLOTS)
        self.guard = Guard(board, rank, self.ring, self.told.append)

    def issue(self, channel, name="all_reduce", tensors=(), details=("sum",), *, line=6):
        guard = self.guard
        return guard.issue(channel, guard.signature(name, list(tensors), details), line, 0)

    def all_reduce(self, num_elements=8, *, group="0", members=(0, 1), dtype=torch.float32, details=("sum",), line=6):
        channel = self.guard.collectives(group, list(members))
        return self.issue(channel, "all_reduce", [torch.empty(num_elements, dtype=dtype)], details, line=line)

    def message(self, sender, receiver, num_elements=8, *, tag=0, dtype=torch.float32, line=6):
        channel = self.guard.messages("0", sender, receiver, tag)
        return self.issue(channel, "message", [torch.empty(num_elements, dtype=dtype)], (), line=line)


@pytest.fixture
def board():
    return Board(new_board(4), RankSet.all(4))


@pytest.fixture
def ranks(board):
    return [Rank(board, rank) for rank in range(4)]


# --- operations that are the same -----------------------------------------------------------------------------


def test_the_same_operations_pass(ranks):
    for number in range(1, 5):
        stamps = [rank.all_reduce(members=range(4), line=rank.rank) for rank in ranks]  # lines may differ
        assert stamps == [stamp(0, number)] * 4
    assert all(not rank.guard.broken for rank in ranks)
    channel = ranks[0].guard.collectives("0", [0, 1, 2, 3])
    assert ranks[0].guard.num_issued(channel) == 4


def test_ranks_may_be_ahead_of_each_other(ranks):
    one, other = ranks[:2]
    for _ in range(AHEAD):
        one.all_reduce()
    assert [other.all_reduce() for _ in range(AHEAD)][-1] == stamp(0, AHEAD)


@pytest.mark.parametrize("shapes", [((2, 4), (8,)), ((8,), (8, 1)), ((0,), (0, 3))])
def test_shapes_may_differ_where_the_number_of_elements_does_not(ranks, shapes):
    for rank, shape in zip(ranks, shapes, strict=False):
        rank.issue(rank.guard.collectives("0", [0, 1]), "all_reduce", [torch.empty(shape)])
    assert not ranks[1].guard.broken


def test_groups_are_numbered_apart(ranks):
    one, other = ranks[:2]
    assert one.all_reduce(group="0") == one.all_reduce(group="1") == one.all_reduce(members=(0, 2)) == stamp(0, 1)
    other.all_reduce(5, group="2")  # nobody else is in it yet
    assert other.all_reduce(group="1") == stamp(0, 1)
    assert other.all_reduce(group="0") == stamp(0, 1)


def test_the_agent_is_told_of_a_group_and_not_of_messages(ranks):
    channel = ranks[0].guard.collectives("0", [0, 2])
    assert ranks[0].told == [GroupMade(channel.key, RankSet([0, 2]))]
    ranks[0].guard.messages("0", 0, 2, 0)
    assert len(ranks[0].told) == 1
    assert ranks[2].guard.collectives("0", [0, 2]).key == channel.key
    assert ranks[0].guard.collectives("0", [0, 2]) is channel


def test_messages_of_a_group_are_found_by_who_knows_the_group(ranks):
    group = ranks[0].guard.collectives("0", [0, 2]).key
    assert ranks[0].guard.messages("0", 0, 2, 5).key == message_key(group, 0, 2, 5)


def test_making_groups_is_an_operation_of_their_ranks(ranks):
    one, other = ranks[:2]
    channel = one.guard.making([0, 1])
    assert one.told == [GroupMade(channel.key, RankSet([0, 1]))]
    assert channel.key == other.guard.making([0, 1]).key != one.guard.collectives("0", [0, 1]).key
    assert one.issue(channel, "new_group", (), ("named 3",)) == stamp(0, 1)
    assert other.issue(other.guard.making([0, 1]), "new_group", (), ("named 3",)) == stamp(0, 1)
    one.issue(channel, "new_group", (), ("named 4",))
    with pytest.raises(
        CollectiveMismatch, match=r"rank 0 called new_group\(named 4\) .* rank 1 called new_group\(named 5\)"
    ):
        other.issue(other.guard.making([0, 1]), "new_group", (), ("named 5",))


def test_ranks_of_other_nodes_are_not_compared(board):
    rank = Rank(board, 0)
    channel = rank.guard.collectives("0", [0, 9])
    assert channel.peers == []
    assert [rank.issue(channel) for _ in range(2 * HISTORY)][-1] == stamp(0, 2 * HISTORY)
    assert rank.guard.sent("0", 9, 0) == 0


# --- operations that differ -------------------------------------------------------------------------------------

DIFFERENT = {
    "size": ({"num_elements": 9}, "all_reduce(float32[9], sum)"),
    "type": ({"dtype": torch.int64}, "all_reduce(int64[8], sum)"),
    "reduce operation": ({"details": ("max",)}, "all_reduce(float32[8], max)"),
    "root": ({"details": ("sum", "root 1")}, "all_reduce(float32[8], sum, root 1)"),
}


@pytest.mark.parametrize(("changes", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_later_rank_is_refused_and_told_what_both_called(ranks, changes, words):
    one, other = ranks[:2]
    one.all_reduce()
    other.all_reduce()
    one.all_reduce(line=6)
    with pytest.raises(CollectiveMismatch) as caught:
        other.all_reduce(**changes, line=9)
    assert str(caught.value) == (
        f"as operation 2 of ranks 0,1, rank 0 called all_reduce(float32[8], sum) (line 6) and rank 1 called {words} (line 9)"
    )
    assert caught.value.operation == words
    assert (other.guard.broken, other.guard.mismatch) == (str(caught.value), True)
    assert not one.guard.broken


def test_another_operation_of_the_same_size_differs(ranks):
    tensor = torch.empty(8)
    ranks[1].issue(ranks[1].guard.collectives("0", [0, 1]), "broadcast", [tensor], ("root 0",), line=0)
    with pytest.raises(CollectiveMismatch) as caught:
        ranks[0].issue(ranks[0].guard.collectives("0", [0, 1]), "reduce", [tensor], ("root 0",), line=0)
    assert str(caught.value) == (
        "as operation 1 of ranks 0,1, rank 0 called reduce(float32[8], root 0) and rank 1 called broadcast(float32[8], root 0)"
    )


def test_lists_of_tensors_are_compared_one_by_one_and_told_briefly(ranks):
    one, other = ([torch.empty(number) for number in sizes] for sizes in ((2, 3, 4, 5), (2, 3, 5, 4)))
    ranks[0].issue(ranks[0].guard.collectives("0", [0, 1]), "all_gather", one, ())
    channel = ranks[1].guard.collectives("0", [0, 1])
    with pytest.raises(CollectiveMismatch) as caught:
        ranks[1].issue(channel, "all_gather", other, ())
    assert "rank 1 called all_gather(float32[2], float32[3], float32[5], ... 4 tensors) (line 6)" in str(caught.value)


def test_of_four_the_one_that_differs_is_refused(ranks):
    for rank in ranks[:3]:
        rank.all_reduce(members=range(4))
    with pytest.raises(
        CollectiveMismatch, match=r"as operation 1 of ranks 0-3, ranks 0-2 called .*\[8\].* and rank 3 called .*\[9\]"
    ):
        ranks[3].all_reduce(9, members=range(4))


def test_what_was_refused_stays_on_the_board(ranks, board):
    ranks[0].all_reduce()
    with pytest.raises(CollectiveMismatch):
        ranks[1].all_reduce(9)
    reader = ChannelReader(board.channels(1))  # so that the one that waits is told what rank 1 called
    assert reader.newest(reader.find(ranks[1].guard.collectives("0", [0, 1]).key)) == stamp(0, 1)


def test_an_operation_that_is_overwritten_is_not_compared(ranks):
    one, other = ranks[:2]
    channel = one.guard.collectives("0", [0, 1])
    for number in range(1, HISTORY + 3):
        one.guard._own.publish(channel.at, stamp(0, number), (1, 0, 0, 0))
    assert [other.all_reduce() for _ in range(2)] == [stamp(0, 1), stamp(0, 2)]  # nobody knows what rank 0 called
    assert not other.guard.broken
    with pytest.raises(CollectiveMismatch, match="as operation 3 of ranks 0,1"):
        other.all_reduce()  # the oldest that can still be looked up


def test_an_operation_that_is_overwritten_while_it_is_told_is_something_older(ranks, monkeypatch):
    ranks[0].all_reduce(9)
    monkeypatch.setattr(ChannelReader, "issued", lambda *_: None)
    with pytest.raises(CollectiveMismatch, match=r"rank 0 called something older and rank 1 called all_reduce"):
        ranks[1].all_reduce()


# --- messages ----------------------------------------------------------------------------------------------------


def test_messages_that_are_expected_pass(ranks):
    for number in (1, 2):
        assert ranks[0].message(0, 1) == ranks[1].message(0, 1) == stamp(0, number)
    assert ranks[1].message(1, 0, 5) == ranks[0].message(1, 0, 5) == stamp(0, 1)  # the other direction
    assert ranks[0].message(0, 1, 3, tag=7) == ranks[1].message(0, 1, 3, tag=7) == stamp(0, 1)
    assert ranks[0].message(0, 2, 4) == ranks[2].message(0, 2, 4) == stamp(0, 1)


@pytest.mark.parametrize("sender_first", [True, False])
def test_a_message_of_another_size_than_expected(ranks, sender_first):
    send, receive = lambda: ranks[0].message(0, 1, 8, line=6), lambda: ranks[1].message(0, 1, 9, line=7)
    first, second = (send, receive) if sender_first else (receive, send)
    first()
    with pytest.raises(CollectiveMismatch) as caught:
        second()
    assert str(caught.value) == (
        "message 1 from rank 0 is send(float32[8]) (line 6), and rank 1 expects recv(float32[9]) (line 7)"
    )


def test_how_many_messages_have_been_sent(ranks):
    receiver = ranks[1].guard
    assert receiver.sent("0", 0, 0) == 0
    for tag in (0, 0, 5):
        ranks[0].message(0, 1, tag=tag)
    assert [receiver.sent("0", 0, tag) for tag in (0, 5, 6)] == [2, 1, 0]
    assert receiver.sent("1", 0, 0) == receiver.sent("0", 2, 0) == 0
    ranks[1].message(0, 1)
    assert receiver.num_issued(receiver.messages("0", 0, 1, 0)) == 1
    for rank in ranks:
        rank.guard.mend(1)
    assert receiver.sent("0", 0, 0) == 0
    assert receiver.num_issued(receiver.messages("0", 0, 1, 0)) == 0


# --- generations, and operations that were not issued -------------------------------------------------------------


def test_a_new_generation_counts_anew(ranks):
    one, other = ranks[:2]
    one.all_reduce()
    one.all_reduce()
    other.all_reduce()
    for rank in (one, other):
        rank.guard.break_groups("x")
        rank.guard.mend(3)
    assert one.all_reduce(9) == other.all_reduce(9) == stamp(3, 1)
    assert one.all_reduce(2) == stamp(3, 2)
    with pytest.raises(CollectiveMismatch, match="operation 2 of ranks 0,1"):
        other.all_reduce(3)


def test_a_rank_of_an_earlier_generation_is_behind(ranks):
    for _ in range(5):
        ranks[1].all_reduce()
    ranks[0].guard.mend(1)
    assert ranks[0].all_reduce(9) == stamp(1, 1)
    ranks[1].guard.mend(1)
    with pytest.raises(CollectiveMismatch):
        ranks[1].all_reduce(8)


def test_a_new_process_in_the_place_of_a_rank(ranks, board):
    ranks[0].all_reduce(group="5")
    ranks[0].all_reduce()
    ranks[1].all_reduce()  # rank 0 is found at its second channel
    board.clear(0)
    new = Rank(board, 0)
    for rank in (new, ranks[1]):
        rank.guard.mend(1)
    assert new.all_reduce(9) == stamp(1, 1)
    with pytest.raises(
        CollectiveMismatch, match=r"rank 0 called all_reduce\(float32\[9\], sum\) .* and rank 1 called .*\[8\]"
    ):
        ranks[1].all_reduce()


@pytest.mark.parametrize("generation", [0, 2])
def test_what_the_backend_refused_was_never_issued(ranks, generation):
    one, other = ranks[:2]
    for rank in (one, other):
        rank.guard.mend(generation)
    channel = one.guard.collectives("0", [0, 1])
    for num_issued in (0, 1):
        stamped = one.all_reduce(9)
        one.guard.refused(channel, stamped)
        assert one.guard.num_issued(channel) == num_issued
        assert one.all_reduce() == other.all_reduce() == stamped
    assert generation_of(stamped) == generation


@pytest.mark.parametrize("generation", [0, 2])
def test_what_was_given_up_is_not_met(ranks, board, generation):
    one, other, third = ranks[:3]
    for rank in ranks:
        rank.guard.mend(generation)
    channel = one.guard.collectives("0", [0, 1, 2])
    first, second = one.all_reduce(members=range(3)), one.all_reduce(9, members=range(3))
    other.all_reduce(members=range(3))
    one.guard.given_up(channel, second)
    with pytest.raises(CollectiveAborted, match=r"^all_reduce\(float32\[9\], sum\) \(line 6\) .* rank 0 does not wait"):
        other.all_reduce(9, members=range(3))
    assert third.all_reduce(members=range(3)) == first
    with pytest.raises(
        CollectiveMismatch, match=r"operation 2 .* ranks 0,1 called .*\[9\].* and rank 2 called .*\[8\]"
    ):
        third.all_reduce(members=range(3))
    assert one.guard.num_issued(channel) == 2  # it is not issued under this number again
    for rank in (0, 1):  # who waits for them waits in vain
        reader = ChannelReader(board.channels(rank))
        at = reader.find(channel.key)
        assert (reader.newest(at), reader.newest_kept(at)) == (second, first)


def test_what_was_given_up_is_forgotten_with_its_generation(ranks, board):
    one, other = ranks[:2]
    channel = one.guard.collectives("0", [0, 1])
    stamped = one.all_reduce(9)
    for rank in (one, other):
        rank.guard.mend(1)
    one.guard.given_up(channel, stamped)  # late: of connections that are not there any more
    assert one.all_reduce() == other.all_reduce() == stamp(1, 1)
    reader = ChannelReader(board.channels(0))
    assert reader.newest_kept(reader.find(channel.key)) == stamp(1, 1)


def test_what_was_given_up_and_overwritten_is_not_met(ranks):
    one, other = ranks[:2]
    channel = one.guard.messages("0", 0, 1, 0)
    first = one.message(0, 1)
    for _ in range(HISTORY):
        one.message(0, 1)
    one.guard.given_up(channel, first)
    with pytest.raises(CollectiveAborted, match="rank 0 does not wait for it any more"):
        other.message(0, 1)


# --- a rank that runs ahead -----------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch):
    """What happens while a rank waits for a peer: a function."""
    happenings = []
    monkeypatch.setattr(guard_module.time, "sleep", lambda _: happenings.pop(0)())
    return happenings


@pytest.mark.parametrize("begun", [False, True])
def test_a_rank_waits_before_it_runs_too_far_ahead(ranks, pauses, begun):
    one, other = ranks[:2]
    if begun:
        other.all_reduce()
    for _ in range(AHEAD + begun):
        one.all_reduce()
    pauses += [lambda: None, lambda: None, *[other.all_reduce] * 2]
    assert one.all_reduce() == stamp(0, AHEAD + begun + 1)
    assert len(pauses) == 1  # one operation of the other was enough


def test_both_sides_pass_all_their_operations_however_they_run(ranks):
    num_operations, failed = 4 * HISTORY, []

    def run(rank):
        try:
            for number in range(num_operations):
                rank.all_reduce(1 + number % 3)
        except CollectiveError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert failed == []
    assert [rank.guard.num_issued(rank.guard.collectives("0", [0, 1])) for rank in ranks[:2]] == [num_operations] * 2


def test_a_rank_that_waits_for_a_peer_can_be_let_go(ranks, pauses):
    one = ranks[0]
    for _ in range(AHEAD):
        one.all_reduce()
    pauses += [lambda: None, lambda: one.guard.break_groups("rank 1 raised ValueError")]
    with pytest.raises(CollectiveAborted, match=r"^this operation cannot be completed: rank 1 raised ValueError$"):
        one.all_reduce()
    assert pauses == []


def test_who_waits_for_a_peer_has_said_nothing_yet(ranks, pauses, board):
    one = ranks[0]
    for _ in range(AHEAD):
        one.all_reduce()
    channel, reader = one.guard.collectives("0", [0, 1]), ChannelReader(board.channels(0))

    def newest():
        return reader.newest(reader.find(channel.key))

    said = []
    pauses += [lambda: said.append(newest()), lambda: one.guard.break_groups("the cell was interrupted")]
    with pytest.raises(CollectiveAborted):
        one.all_reduce()
    assert said == [newest()] == [stamp(0, AHEAD)]
    assert one.guard.num_issued(channel) == AHEAD


def test_a_rank_waits_for_a_second_and_goes_on(ranks, monkeypatch):
    one, now_s = ranks[0], [100.0]
    monkeypatch.setattr(guard_module.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(guard_module.time, "sleep", lambda _: now_s.__setitem__(0, now_s[0] + 0.125))
    for _ in range(AHEAD):
        one.all_reduce(members=range(4))
    assert now_s == [100.0]
    assert one.all_reduce(members=range(4)) == stamp(0, AHEAD + 1)
    assert now_s == [101.125]  # the same second for all three that are behind


def test_many_messages_may_be_sent_before_they_are_received(ranks, pauses):
    for number in range(1, 2 * HISTORY):
        assert ranks[0].message(0, 1) == stamp(0, number)
    assert [ranks[1].message(0, 1) for _ in range(3)][-1] == stamp(0, 3)  # what they were is not known any more
    assert not ranks[1].guard.broken


def test_ranks_without_room_for_more_channels_are_not_compared(ranks, board):
    one, other = ranks[:2]
    for number in range(NUM_CHANNELS):
        other.guard.messages("0", 1, 0, number)
    assert ChannelReader(board.channels(1)).full
    for _ in range(2 * HISTORY):  # nor does anybody wait for them
        one.all_reduce()
    assert other.all_reduce(9) == stamp(0, 1)
    assert other.guard.collectives("0", [0, 1]).at == -1


def test_a_rank_waits_once_until_peers_have_caught_up(ranks, monkeypatch):
    one, other, now_s = ranks[0], ranks[1], [100.0]
    monkeypatch.setattr(guard_module.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(guard_module.time, "sleep", lambda _: now_s.__setitem__(0, now_s[0] + 0.125))
    for _ in range(3 * HISTORY):
        one.all_reduce()
    assert now_s == [101.125]  # a second in all, not one for every operation
    one.all_reduce(group="1")
    for _ in range(3 * HISTORY):
        other.all_reduce()
    for _ in range(2 * AHEAD):
        one.all_reduce()
    assert now_s == [102.25]  # they had caught up, and are behind again
    for _ in range(AHEAD):
        one.all_reduce(group="1")
    assert now_s == [103.375]  # other channels have a second of their own


# --- more channels than the board holds -----------------------------------------------------------------------------


def test_channels_of_destroyed_groups_make_room(ranks, board):
    one, other = ranks[:2]
    for rank in (one, other):
        rank.guard.living = {"0"}.copy
        rank.all_reduce()
    for number in range(1, 3 * NUM_CHANNELS):
        for rank in (one, other):
            rank.all_reduce(5, group=str(number))
        one.all_reduce(5, group=str(number))
        with pytest.raises(CollectiveMismatch):
            other.all_reduce(6, group=str(number))
        other.guard.broken, other.guard.mismatch = "", False
    assert one.guard.take_notices() == []
    one.all_reduce(5)
    with pytest.raises(CollectiveMismatch):
        other.all_reduce(6)  # one that has been there all the time


def test_a_group_of_the_same_name_goes_on_where_the_destroyed_one_ended(ranks):
    one, other = ranks[:2]
    living = {"0"}
    one.guard.living = lambda: living
    for rank in (one, other):
        assert [rank.all_reduce(group="again") for _ in range(3)][-1] == stamp(0, 3)
    for number in range(2 * NUM_CHANNELS):
        one.all_reduce(group=str(number))  # the other rank has none of them, and keeps its places
    assert one.guard._channels[one.guard._groups["again"]].at == -1
    assert one.all_reduce(group="again") == stamp(0, 4)
    with pytest.raises(CollectiveMismatch, match="operation 4"):
        other.all_reduce(9, group="again")


def test_no_channel_has_two_places(ranks, board):
    one = ranks[0]
    living = {str(number) for number in range(NUM_CHANNELS + 1)}
    one.guard.living = living.copy
    for number in range(NUM_CHANNELS + 1):
        one.all_reduce(group=str(number))
    living -= {"5", "6"}
    one.all_reduce(group=str(NUM_CHANNELS))
    one.all_reduce(group="one more")
    channels = one.guard._channels.values()
    assert len({channel.at for channel in channels} - {-1}) == NUM_CHANNELS
    reader = ChannelReader(board.channels(0))
    assert reader.full
    assert [reader.find(channel.key) for channel in channels] == [channel.at for channel in channels]


def test_a_channel_in_use_has_a_place_soon_after_others_were_destroyed(ranks):
    one, other = ranks[:2]
    living = {str(number) for number in range(NUM_CHANNELS + 1)}
    for rank in (one, other):
        rank.guard.living = living.copy
        for number in range(NUM_CHANNELS + 1):
            rank.all_reduce(group=str(number))
    (notice,) = one.guard.take_notices()
    assert "destroy_process_group for groups that are done makes room" in notice
    living -= {"7"}
    last = one.guard.collectives(str(NUM_CHANNELS), [0, 1])
    for _ in range(HISTORY):
        for rank in (one, other):
            rank.issue(rank.guard._channels[last.key])
    assert last.at >= 0
    one.issue(last, "barrier")
    with pytest.raises(CollectiveMismatch, match="called barrier"):
        other.issue(other.guard._channels[last.key])


def test_a_place_that_was_taken_by_another_channel_is_not_compared(ranks, board):
    one, other = ranks[:2]
    one.guard.living = set
    for rank in (one, other):
        rank.all_reduce(group="first")
    for number in range(NUM_CHANNELS):
        one.all_reduce(9, group=f"more {number}")
        one.all_reduce(9, group=f"more {number}")
    assert other.all_reduce(group="first") == stamp(0, 2)
    assert not other.guard.broken


def test_channels_are_given_back_when_groups_are_built_again(ranks, board):
    one = ranks[0]
    living = {"0"}
    one.guard.living = lambda: living
    one.all_reduce()
    for tag in range(NUM_CHANNELS):
        one.message(0, 1, tag=tag)
    one.all_reduce(group="destroyed")
    assert one.guard.collectives("late", [0, 1]).at == -1
    one.guard.mend(1)
    reader = ChannelReader(board.channels(0))
    assert not reader.full
    assert one.guard.collectives("0", [0, 1]).at >= 0  # also before it is used: a receive from anybody is seen there
    for number in (1, 2):
        assert one.message(0, 1, tag=5) == stamp(1, number)
    assert reader.newest(reader.find(one.guard.messages("0", 0, 1, 5).key)) == stamp(1, 2)
    assert "destroyed" not in {channel.group for channel in one.guard._channels.values()}


def test_that_there_is_no_more_room_is_told_once(ranks):
    one = ranks[0]
    one.guard.living = lambda: {"0"}
    for tag in range(NUM_CHANNELS + 5):
        one.message(0, 1, tag=tag)
    (notice,) = one.guard.take_notices()
    assert "more process groups, or messages with more tags, than hpcnb compares (256)" in notice
    one.message(0, 1, tag=9999)
    one.guard.mend(1)
    for tag in range(NUM_CHANNELS + 5):
        one.message(0, 1, tag=tag)
    assert one.guard.take_notices() == []


def test_a_channel_without_a_place_has_one_as_soon_as_there_is_room(ranks):
    one, other = ranks[:2]
    living = {"0"} | {str(number) for number in range(NUM_CHANNELS + 1)}
    for rank in (one, other):
        rank.guard.living = living.copy
        for number in range(NUM_CHANNELS + 1):
            rank.all_reduce(group=str(number))
    last = str(NUM_CHANNELS)
    assert one.guard._channels[one.guard._groups[last]].at == -1
    living -= {"7"}
    for rank in (one, other):
        rank.guard._make_room("")
    one.all_reduce(8, group=last)
    with pytest.raises(CollectiveMismatch, match="operation 2"):
        other.all_reduce(9, group=last)


def test_an_interrupt_never_leaves_the_fence_taken(ranks):
    """The next operation of this rank would wait for it without an end, and be seen by nobody."""
    guard, main, over, armed = ranks[0].guard, threading.get_ident(), threading.Event(), [False]
    channel, signature = guard.collectives("0", [0]), guard.signature("all_reduce", [], ())

    def interrupted(*_):
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    def press():
        while not over.wait(0.0005):
            signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupted)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        for _ in range(150):
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - wherever it is
                armed[0] = True
                while True:
                    guard.issue(channel, signature, 1, 0)
            assert not guard._fence.locked()
    finally:
        armed[0] = False
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


# --- broken groups ------------------------------------------------------------------------------------------------


def test_broken_groups_refuse_at_once(ranks, board):
    guard = ranks[0].guard
    channel = guard.collectives("0", [0, 1])
    guard.check()
    guard.break_groups("rank 1 was ended by SIGKILL")
    guard.break_groups("a later reason", mismatch=True)
    with pytest.raises(CollectiveAborted) as caught:
        ranks[0].all_reduce()
    assert str(caught.value) == (
        "all_reduce(float32[8], sum) cannot be completed: rank 1 was ended by SIGKILL"
    )  # fmt: skip
    assert (caught.value.operation, caught.value.waited_s) == ("all_reduce(float32[8], sum)", 0.0)
    assert ChannelReader(board.channels(0)).newest(channel.at) == 0
    with pytest.raises(CollectiveAborted, match=r"^this operation cannot be completed: rank 1 was") as caught:
        guard.check()
    assert caught.value.operation == ""
    with pytest.raises(CollectiveAborted, match=r"^barrier #3 \(line 6\) cannot be completed: rank 1 was") as caught:
        guard.check("barrier #3 (line 6)")
    assert caught.value.operation == "barrier #3 (line 6)"
    guard.mend(1)
    guard.check()
    assert ranks[0].all_reduce() == stamp(1, 1)


def test_after_a_mismatch_every_operation_is_refused_with_its_words(ranks):
    guard = ranks[0].guard
    guard.break_groups("operation 7 of ranks 0,1 is ...", mismatch=True)
    with pytest.raises(CollectiveMismatch, match=r"^operation 7 of ranks 0,1 is \.\.\.$"):
        guard.check()
    guard.mend(1)
    assert (guard.broken, guard.mismatch) == ("", False)


WAITED = "all_reduce #17 (4.2 MB, line 6)"

LOST = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:2345",
    "Read error [127.0.0.1]:2345: Connection reset by peer",
    "writev: Broken pipe",
    "Socket closed",
    "Socket is not connected",
    "connection refused",
]


@pytest.mark.parametrize("text", LOST)
def test_a_lost_connection_breaks_the_groups(ranks, text):
    guard = ranks[0].guard
    explained = guard.explained(RuntimeError(text), WAITED, 2.5)
    assert type(explained) is CollectiveAborted
    assert str(explained) == f"{WAITED} cannot be completed: the connection to another rank is lost"
    assert (explained.operation, explained.waited_s) == (WAITED, 2.5)
    assert guard.broken == "the connection to another rank is lost"


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Read timed out [127.0.0.1]:2345: Connection closed by peer",
    ],
)
def test_an_operation_that_the_backend_gave_up_has_timed_out(ranks, text):
    guard = ranks[0].guard
    explained = guard.explained(RuntimeError(text), WAITED, 2.5)
    assert type(explained) is CollectiveAborted
    assert str(explained) == f"{WAITED} cannot be completed: it timed out"
    assert (explained.operation, explained.waited_s) == (WAITED, 2.5)
    assert guard.broken == "it timed out"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), RuntimeError("Invalid scalar type")])
@pytest.mark.parametrize("broken", ["", "rank 1 raised ValueError"])
def test_what_a_cell_raises_outside_of_a_wait_is_its_own(ranks, error, broken):
    guard = ranks[0].guard
    if broken:
        guard.break_groups(broken)
    assert guard.explained(error, WAITED, 2.5, in_wait=False) is error
    assert guard.broken == broken


@pytest.mark.parametrize("operation", [WAITED, ""])
def test_what_broke_the_groups_explains_also_what_c_code_raises_outside_of_a_wait(ranks, operation):
    guard = ranks[0].guard
    guard.break_groups("rank 1 raised ValueError")
    explained = guard.explained(RuntimeError(LOST[0]), operation, 2.5, in_wait=False)
    assert str(explained) == f"{operation or 'communication'} cannot be completed: rank 1 raised ValueError"
    guard.mend(1)
    explained = guard.explained(RuntimeError(LOST[0]), operation, 2.5, in_wait=False)
    assert str(explained).endswith(" cannot be completed: the connection to another rank is lost")
    assert guard.broken == "the connection to another rank is lost"


def test_a_connection_that_was_shut_to_release_the_rank_has_the_reason_of_the_release(ranks):
    guard = ranks[0].guard
    guard.break_groups("rank 1 raised ValueError")
    explained = guard.explained(RuntimeError(LOST[0]), WAITED, 2.5)
    assert str(explained) == f"{WAITED} cannot be completed: rank 1 raised ValueError"
    guard.mend(1)
    guard.break_groups("operation 7 ...", mismatch=True)
    explained = guard.explained(RuntimeError("anything"), WAITED, 2.5)
    assert (type(explained), str(explained)) == (CollectiveMismatch, "operation 7 ...")


@pytest.mark.parametrize("text", ["Invalid scalar type", "Operation timed out", "CUDA error: out of memory"])
def test_other_errors_of_an_operation_are_left_as_they_are(ranks, text):
    guard, error = ranks[0].guard, RuntimeError(f"{text}\nException raised from ...")
    assert guard.explained(error, WAITED, 2.5, in_wait=False) is error
    assert not guard.broken
    assert guard.explained(error, WAITED, 2.5) is error
    assert guard.broken == f"it failed ({text})"  # others have issued it, and what is under way is not received


def test_an_error_without_a_word_breaks_the_groups_too(ranks):
    ranks[0].guard.explained(RuntimeError(), WAITED, 2.5)
    assert ranks[0].guard.broken == "it failed (without a word)"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("x"), GeneratorExit()])
def test_a_wait_that_is_given_up_breaks_the_groups(ranks, error):
    guard = ranks[0].guard
    assert guard.explained(error, WAITED, 2.5) is error
    assert guard.broken == f"a wait was given up ({type(error).__name__})"


def test_an_error_of_ours_is_told_what_was_waited_for(ranks):
    guard = ranks[0].guard
    guard.break_groups("rank 1 raised ValueError")
    bare = guard.error("")
    explained = guard.explained(bare, WAITED, 2.5)
    assert str(explained) == f"{WAITED} cannot be completed: rank 1 raised ValueError"
    assert (explained.operation, explained.waited_s) == (WAITED, 2.5)
    assert guard.explained(explained, "something around it", 9.0) is explained
    guard.mend(1)
    assert guard.explained(bare, WAITED, 2.5) is bare


def test_the_reason_may_come_from_another_thread(ranks):
    guard = ranks[0].guard
    thread = threading.Thread(target=guard.break_groups, args=("the cell was interrupted",))
    thread.start()
    thread.join()
    with pytest.raises(CollectiveAborted, match="the cell was interrupted"):
        guard.check()


# --- signatures -------------------------------------------------------------------------------------------------


def test_signatures_are_remembered_and_forgotten(ranks):
    guard = ranks[0].guard
    first = guard.signature("all_reduce", [torch.empty(3)], ("sum",))
    assert guard.signature("all_reduce", [torch.empty(3)], ("sum",)) is first
    tensor = torch.empty(0)
    for number in range(5000):
        guard.signature("all_reduce", [tensor], (f"root {number % 4500}",))
    assert len(guard._signatures) <= 4097
    assert guard.signature("all_reduce", [torch.empty(3)], ("sum",)) == first
    other = ranks[1].guard.signature("all_reduce", [torch.empty(3)], ("sum",))
    assert other[0] == first[0]  # on every rank


@pytest.mark.parametrize(
    ("name", "tensors", "details", "words"),
    [
        ("barrier", [], (), "barrier()"),
        ("all_reduce", [torch.empty(2, 3)], ("sum",), "all_reduce(float32[2, 3], sum)"),
        ("broadcast", [torch.tensor(1, dtype=torch.bool)], ("root 2",), "broadcast(bool[], root 2)"),
        ("all_gather", [torch.empty(1)] * 3, (), "all_gather(float32[1], float32[1], float32[1])"),
        ("all_gather", [torch.empty(1)] * 9, (), "all_gather(float32[1], float32[1], float32[1], ... 9 tensors)"),
    ],
)
def test_words_of_an_operation(ranks, name, tensors, details, words):
    _, string = ranks[0].guard.signature(name, tensors, details)
    assert ranks[0].ring.text(string) == words


def test_numbers_of_stamps_are_those_of_the_channel(ranks):
    assert [number_of(ranks[0].all_reduce()) for _ in range(3)] == [1, 2, 3]
