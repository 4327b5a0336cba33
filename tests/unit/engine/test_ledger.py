"""Ranks far ahead of each other: what the board has no room for is compared all the same."""

from __future__ import annotations

import pytest
import torch

from hpcnb.core.board import HISTORY, NUM_SLOTS, Board, ChannelReader, new_board
from hpcnb.core.errors import CollectiveMismatch
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RingWriter
from hpcnb.engine.guard import Guard
from hpcnb.engine.ledger import BLOCK


class Store:
    def __init__(self):
        self.values = {}
        self.num_gets = 0

    def set(self, key, value):
        self.values[key] = value

    def check(self, keys):
        return all(key in self.values for key in keys)

    def get(self, key):
        self.num_gets += 1
        return self.values[key]

    def delete_key(self, key):
        return self.values.pop(key, None) is not None


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def guards(store):
    board = Board(new_board(2), RankSet.all(2))
    made = [Guard(board, rank, RingWriter(board.ring(rank), NUM_SLOTS), lambda _: None) for rank in range(2)]
    for guard in made:
        guard.store = store
    return made


def message(guard, num_elements, *, dtype=torch.float32, line=6):
    channel = guard.messages("0", 0, 1, 0)
    return guard.issue(channel, guard.signature("message", [torch.empty(num_elements, dtype=dtype)], ()), line, 0)


def run_ahead(guard, num_messages):
    for number in range(1, num_messages + 1):
        message(guard, number % 7)


@pytest.mark.parametrize("ahead", [0, 1])  # the sender, or the receiver
@pytest.mark.parametrize("num_messages", [HISTORY - 1, HISTORY, HISTORY + 1, 5 * HISTORY + 3])
def test_what_is_the_same_passes(guards, store, ahead, num_messages):
    run_ahead(guards[ahead], num_messages)
    run_ahead(guards[1 - ahead], num_messages)
    assert store.num_gets <= len(store.values) <= num_messages // BLOCK
    assert (store.num_gets > 0) == (num_messages > HISTORY)  # one look for a block, and none where the board knows
    message(guards[ahead], 1)
    for _ in range(2 * BLOCK):  # both go on together: what was kept goes
        message(guards[1 - ahead], 1)
        message(guards[ahead], 1)
    assert store.values == {}


@pytest.mark.parametrize("odd", [1, BLOCK - 1, BLOCK, BLOCK + 1, HISTORY, 300, 999, 1000])
def test_what_differs_is_told_at_the_right_message(guards, odd):
    run_ahead(guards[0], 1000)
    run_ahead(guards[1], odd - 1)
    size = odd % 7
    with pytest.raises(CollectiveMismatch) as caught:
        message(guards[1], size + 1, line=9)
    assert str(caught.value) == (
        f"message {odd} from rank 0 is send(float32[{size}]) (line 6), "
        f"and rank 1 expects recv(float32[{size + 1}]) (line 9)"
    )


def test_ranks_that_are_close_ask_and_keep_nothing(guards, store):
    for _ in range(10 * HISTORY):
        for guard in guards:
            message(guard, 3)
    assert (store.values, store.num_gets) == ({}, 0)


def test_groups_that_are_built_again_forget(guards, store):
    run_ahead(guards[0], 5 * HISTORY)
    assert store.values
    for guard in guards:
        guard.mend(1)
    assert store.values == {}
    assert message(guards[0], 3) == message(guards[1], 3)


@pytest.mark.parametrize("then", ["overwritten", "there"])
def test_a_look_at_the_moment_of_overwriting_is_no_mismatch(guards, monkeypatch, then):
    message(guards[0], 3)
    looks = [12345, *([None] * 9 if then == "overwritten" else [])]
    real = ChannelReader.signature
    monkeypatch.setattr(
        ChannelReader, "signature", lambda reader, *where: looks.pop(0) if looks else real(reader, *where)
    )
    message(guards[1], 3)
    assert not guards[1].broken


def test_sizes_are_told_when_there_are_too_many_for_the_strings(guards):
    for number in range(400):
        for guard in guards:
            guard.signature("message", [torch.empty(number)], ())
    message(guards[0], 12_345)
    with pytest.raises(CollectiveMismatch, match=r"is send\(float32\[12345\]\) .* expects recv\(int64\[4321\]\) "):
        message(guards[1], 4321, dtype=torch.int64)


def test_parts_of_2_to_the_32_elements_are_compared_and_not_told(guards):
    channels = [guard.messages("0", 0, 1, -1) for guard in guards]
    guards[0].issue(channels[0], guards[0].part(torch.float32, 1 << 32), 6, 0)
    with pytest.raises(CollectiveMismatch, match=r"float32\[2\^32 or more\] .* all_to_all: float32\[0\] "):
        guards[1].issue(channels[1], guards[1].part(torch.float32, 0), 6, 0)
