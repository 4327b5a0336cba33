"""The board in memory: what a rank writes is what its peers and the agent read, and nobody else's region changes."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core import board as board_module
from hpcnb.core.board import (
    HISTORY,
    NUM_CHANNELS,
    NUM_SLOTS,
    Activity,
    ActivityState,
    Board,
    ChannelReader,
    ChannelWriter,
    Issued,
    StopState,
    channel_key,
    generation_of,
    new_board,
    number_of,
    room_for,
    stamp,
)
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RingReader, RingWriter, ring_bytes

FIRST = 4  # this node holds ranks 4 and 5
FIELDS = len(Issued._fields) - 1


@pytest.fixture
def board():
    return Board(new_board(2), RankSet(range(FIRST, FIRST + 2)))


@pytest.fixture
def writer(board):
    return ChannelWriter(board.channels(FIRST))


@pytest.fixture
def reader(board):
    return ChannelReader(board.channels(FIRST))


# --- layout ---------------------------------------------------------------------------------------------------


def test_a_node_holds_its_ranks(board):
    assert board.room == 2
    assert [rank for rank in range(8) if board.holds(rank)] == [4, 5]


@pytest.mark.parametrize("num_ranks", [1, 3, 17])
def test_room_for_every_rank(num_ranks):
    memory = new_board(num_ranks)
    board = Board(memory, RankSet.all(num_ranks))
    assert board.room == num_ranks
    assert len(board.ring(num_ranks - 1)) == ring_bytes(NUM_SLOTS)
    assert len(board.channels(num_ranks - 1)) == NUM_CHANNELS * (24 + HISTORY * 24)
    assert len(memory) % mmap.PAGESIZE == 0


def fill(board, rank, byte):
    """Everything that a rank writes, with as many bytes as there are."""
    board.ring(rank)[:] = bytes([byte]) * len(board.ring(rank))
    board.tell_activity(rank, ActivityState(byte, True, True, byte, byte, byte))
    board.channels(rank)[:] = bytes([byte]) * len(board.channels(rank))


def contents(board, rank):
    return bytes(board.ring(rank)), board.activity(rank), bytes(board.channels(rank))


def test_regions_do_not_overlap(board):
    before = contents(board, 5)
    board.ask_stop(3, StopState.DECIDED, 9)
    fill(board, 4, 255)
    assert contents(board, 5) == before
    assert board.stop_asked() == (3, StopState.DECIDED, 9)
    mine = contents(board, 4)
    fill(board, 5, 7)
    assert contents(board, 4) == mine
    assert board.stop_asked() == (3, StopState.DECIDED, 9)


def test_parts_of_a_region_do_not_overlap(board):
    ring, channels = board.ring(4), board.channels(4)
    board.tell_activity(4, ActivityState(3, True, True, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    assert not any(ring)
    assert not any(channels)
    ring[-1] = channels[0] = 255
    assert board.activity(4) == ActivityState(3, True, True, 2**32 - 1, 2**32 - 1, 2**32 - 1)


def test_processes_share_it(board):
    writer = ChannelWriter(board.channels(5))
    writer.publish(writer.open(7), stamp(0, 1), (1, 2, 3, 4))
    other = Board(board._view.obj, RankSet(range(FIRST, FIRST + 2)))  # as a forked process has it
    assert ChannelReader(other.channels(5)).newest(0) == stamp(0, 1)


def test_what_an_earlier_process_wrote_is_forgotten(board):
    for rank in (4, 5):
        ring = RingWriter(board.ring(rank), NUM_SLOTS)
        ring.intern("all_reduce")
        ring.enter_communication(1, 0, 1, 0, 0, 8, 0, 0, stamp(0, 1), -1)
        board.tell_activity(rank, ActivityState(Activity.CELL, False, True, 3, 2, 1))
        writer = ChannelWriter(board.channels(rank))
        writer.publish(writer.open(7), stamp(0, 1), (1, 2, 3, 4))
    before = contents(board, 5)
    board.clear(4)
    assert board.activity(4) == ActivityState(Activity.IDLE, False, False, 0, 0, 0)
    assert ChannelReader(board.channels(4)).find(7) == -1
    with pytest.raises(ValueError, match="not a span ring"):
        RingReader(board.ring(4))
    RingWriter(board.ring(4), NUM_SLOTS)
    assert not RingReader(board.ring(4)).state().in_communication
    assert contents(board, 5) == before


# --- stamps ---------------------------------------------------------------------------------------------------

generations = st.integers(0, 2**24 - 1)
numbers = st.integers(0, 2**40 - 1)


@given(generations, numbers)
def test_a_stamp_is_generation_and_number(generation, number):
    stamped = stamp(generation, number)
    assert (generation_of(stamped), number_of(stamped)) == (generation, number)
    assert 0 <= stamped < 2**64


@given(st.lists(st.tuples(generations, numbers)))
def test_stamps_grow_over_generations(pairs):
    assert [stamp(*pair) for pair in sorted(pairs)] == sorted(stamp(*pair) for pair in pairs)


@given(generations, st.integers(1, 2**40 - 1))
def test_the_stamp_before_stays_in_the_generation(generation, number):
    assert generation_of(stamp(generation, number) - 1) == generation  # withdraw() relies on it


def test_channels_have_the_same_key_everywhere_and_others_for_others():
    parts = [
        ("collectives", "0", (0, 1)), ("collectives", "0", (0, 1, 2)), ("collectives", "1", (0, 1)),
        ("messages", "0", 0, 1, 0), ("messages", "0", 1, 0, 0), ("messages", "0", 0, 1, 1),
    ]  # fmt: skip
    keys = [channel_key(*each) for each in parts]
    assert len(set(keys)) == len(keys)
    assert keys == [channel_key(*each) for each in parts]
    assert channel_key("collectives", "0", (0, 1)) == 10871787292072076896  # in other processes too


def test_no_key_is_zero(monkeypatch):
    class Zero:
        def __init__(self, *_, **__):
            pass

        def digest(self):
            return bytes(8)

    monkeypatch.setattr(board_module.hashlib, "blake2b", Zero)
    assert channel_key("any") == 1  # 0 is a channel that is not there


# --- channels -------------------------------------------------------------------------------------------------


def test_an_operation_that_was_published_is_found(writer, reader):
    first, second = writer.open(11), writer.open(22)
    writer.publish(second, stamp(3, 1), (0xDEADBEEF, 6, 2, 5))
    assert (reader.find(11), reader.find(22), reader.find(33)) == (first, second, -1)
    assert (reader.newest(first), reader.newest(second)) == (0, stamp(3, 1))
    assert reader.signature(second, stamp(3, 1)) == 0xDEADBEEF
    assert reader.issued(second, stamp(3, 1)) == Issued(stamp(3, 1), 0xDEADBEEF, 6, 2, 5)
    assert reader.signature(second, stamp(3, 2)) is None
    assert reader.issued(second, stamp(2, 1)) is None


@given(generations, st.integers(1, 3 * HISTORY), st.integers(1, 3 * HISTORY))
def test_the_last_operations_can_be_looked_up(generation, num_issued, asked):
    board = Board(new_board(1), RankSet.all(1))
    writer, reader = ChannelWriter(board.channels(0)), ChannelReader(board.channels(0))
    at = writer.open(11)
    for number in range(1, num_issued + 1):
        writer.publish(at, stamp(generation, number), (number, number + 1, number + 2, number + 3))
    assert reader.newest(at) == stamp(generation, num_issued)
    expected = asked if num_issued - HISTORY < asked <= num_issued else None
    assert reader.signature(at, stamp(generation, asked)) == expected
    issued = reader.issued(at, stamp(generation, asked))
    if expected is None:
        assert issued is None
    else:
        assert issued == Issued(stamp(generation, asked), asked, asked + 1, asked + 2, asked + 3)


def test_operations_of_an_earlier_generation_are_not_taken_for_those_of_the_next(writer, reader):
    at = writer.open(11)
    for number in range(1, 6):
        writer.publish(at, stamp(1, number), (number, 0, 0, 0))
    writer.publish(at, stamp(2, 1), (9, 0, 0, 0))
    assert reader.newest(at) == stamp(2, 1) > stamp(1, 5)
    assert reader.signature(at, stamp(2, 2)) is None
    assert reader.signature(at, stamp(2, 1)) == 9
    assert reader.signature(at, stamp(1, 5)) == 5


@pytest.mark.parametrize(("generation", "number"), [(0, 1), (0, 5), (3, 1)])
def test_what_was_refused_is_withdrawn(writer, reader, generation, number):
    at = writer.open(11)
    writer.publish(at, stamp(generation, number), (1, 0, 0, 0))
    writer.withdraw(at, stamp(generation, number))
    assert reader.newest(at) == stamp(generation, number - 1)
    writer.publish(at, stamp(generation, number), (2, 0, 0, 0))
    assert reader.signature(at, stamp(generation, number)) == 2


@pytest.mark.parametrize("generation", [0, 3, 2**24 - 1])
def test_what_was_given_up_stays_and_is_marked(writer, reader, generation):
    at = writer.open(11)
    for number in range(1, 5):
        writer.publish(at, stamp(generation, number), (number, 6, 2, 5))
    assert reader.newest_kept(at) == reader.newest(at) == stamp(generation, 4)
    for number in (3, 2, 4):
        writer.give_up(at, stamp(generation, number))
    assert reader.newest(at) == stamp(generation, 4)
    assert reader.newest_kept(at) == stamp(generation, 1)
    assert [reader.given_up(at, stamp(generation, number)) for number in range(1, 5)] == [False, True, True, True]
    assert [reader.signature(at, stamp(generation, number)) for number in range(1, 5)] == [1, None, None, None]
    assert reader.issued(at, stamp(generation, 3)) == Issued(stamp(generation, 3), 3, 6, 2, 5)


def test_what_was_given_up_in_an_earlier_generation_says_nothing_of_the_next(writer, reader):
    at = writer.open(11)
    writer.publish(at, stamp(1, 1), (1, 0, 0, 0))
    writer.give_up(at, stamp(1, 1))
    writer.publish(at, stamp(2, 1), (1, 0, 0, 0))
    assert not reader.given_up(at, stamp(2, 1))
    assert reader.newest_kept(at) == reader.newest(at) == stamp(2, 1)
    writer.publish(at, stamp(2, 2), (1, 0, 0, 0))
    writer.give_up(at, stamp(2, 2))
    assert reader.newest_kept(at) == stamp(2, 1)


def test_channels_of_a_rank_are_limited(writer, reader):
    opened = [writer.open(key) for key in range(1, NUM_CHANNELS)]
    assert len(set(opened)) == NUM_CHANNELS - 1
    assert not reader.full
    assert reader.find(NUM_CHANNELS) == -1
    last = writer.open(NUM_CHANNELS)
    assert reader.full
    assert writer.open(NUM_CHANNELS + 1) == -1
    assert reader.find(NUM_CHANNELS) == last
    assert reader.find(NUM_CHANNELS + 1) == -1


def test_the_last_entry_of_the_last_channel_stays_inside(board, writer, reader):
    at = [writer.open(key) for key in range(1, NUM_CHANNELS + 1)][-1]
    for number in range(HISTORY):
        writer.publish(at, stamp(0, number), (2**32 - 1, 2**32 - 1, 2**16 - 1, 2**16 - 1))
    assert reader.issued(at, stamp(0, HISTORY - 1)) == Issued(HISTORY - 1, 2**32 - 1, 2**32 - 1, 2**16 - 1, 2**16 - 1)
    assert not any(board.ring(5))


# --- what a rank says, and the request to stop ------------------------------------------------------------------

counts = st.integers(0, 2**32 - 1)


@given(st.sampled_from(Activity), st.booleans(), st.booleans(), counts, counts, counts)
def test_what_a_rank_says_of_itself_comes_back(activity, waits, in_loop, cell, reached, passed):
    board = Board(new_board(2), RankSet(range(FIRST, FIRST + 2)))
    said = ActivityState(activity, waits, in_loop, cell, reached, passed)
    board.tell_activity(5, said)
    assert board.activity(5) == said
    assert board.activity(4) == ActivityState(Activity.IDLE, False, False, 0, 0, 0)


@given(counts, st.sampled_from(StopState), counts)
def test_the_request_to_stop_comes_back(cell, state, boundary):
    board = Board(new_board(1), RankSet.all(1))
    assert board.stop_asked() == (0, StopState.NONE, 0)
    board.ask_stop(cell, state, boundary)
    assert board.stop_asked() == (cell, state, boundary)


# --- channels that are closed -----------------------------------------------------------------------------------


def test_the_place_of_a_closed_channel_is_used_again_and_shows_nothing_of_it(writer, reader):
    first, second = writer.open(11), writer.open(22)
    writer.publish(first, stamp(0, 1), (1, 2, 3, 4))
    writer.give_up(first, stamp(0, 1))
    writer.close(first)
    assert reader.find(11) == -1
    assert reader.find(22) == second  # behind the gap
    assert reader.newest_of(first, 11) == -1
    assert writer.open(33, stamp(0, 7)) == first
    assert (reader.find(33), reader.find(11)) == (first, -1)
    assert (reader.newest_of(first, 11), reader.newest_of(first, 33)) == (-1, stamp(0, 7))
    assert reader.issued(first, stamp(0, 1)) is None
    assert not reader.given_up(first, stamp(0, 7))
    assert reader.newest_of(-1, 33) == -1


def test_closed_channels_make_room(writer, reader):
    opened = [writer.open(key) for key in range(1, NUM_CHANNELS + 1)]
    assert (writer.has_room, reader.full) == (False, True)
    writer.close(opened[7])
    assert (writer.has_room, reader.full) == (True, False)
    assert writer.open(1000) == opened[7]
    assert (writer.has_room, reader.full) == (False, True)
    assert writer.open(1001) == -1


def test_no_key_says_that_there_is_no_channel(monkeypatch):
    class Ones:
        def __init__(self, *_, **__):
            pass

        def digest(self):
            return b"\xff" * 8

    monkeypatch.setattr(board_module.hashlib, "blake2b", Ones)
    assert channel_key("any") == 1


def test_ranks_that_come_and_go_leave_the_places_of_others_alone():
    board = Board(new_board(4), RankSet([2, 3]))
    board.channels(3)[0] = 7
    board.tell_activity(3, ActivityState(Activity.CELL, False, False, 5, 1, 1))
    board.seat(RankSet([2, 3, 8]))
    assert (board.room, board.place(8), board.holds(8), board.holds(4)) == (4, 2, True, False)
    board.tell_activity(8, ActivityState(Activity.CELL, False, False, 6, 1, 1))
    assert (board.channels(3)[0], board.activity(3).cell, board.activity(8).cell) == (7, 5, 6)
    board.seat(RankSet([2, 3]))
    board.free(2)
    assert not board.holds(8)
    assert board.activity(3).cell == 5
    board.seat(RankSet([2, 3, 9]))
    assert board.activity(9).cell == 0  # nothing is left of who was there


def test_there_is_room_to_grow_for_little():
    assert (room_for(2), room_for(16), room_for(100)) == (64, 64, 400)
