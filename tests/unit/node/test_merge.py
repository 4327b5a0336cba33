"""One cell on many nodes: what they say is merged as if one node had said it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.gather import Gather
from hpcnb.node.merge import Merge

CELL = 5
ALL = RankSet.all(4)


def reply(rank, *, ok=True):
    values = {each.name: None for each in dataclasses.fields(m.CellReply)}
    return list((values | {"cell": CELL, "rank": rank, "ok": ok}).values())


def output(*entries):
    return m.Output(CELL, [(RankSet(ranks), [("stdout", text)]) for ranks, text in entries])


def done(*ranks, at_ns=7):
    return m.CellDone(CELL, [reply(rank) for rank in ranks], dict.fromkeys(ranks, b"s"), {}, {}, at_ns)


@pytest.fixture
def merge():
    return Merge(CELL, [0, 1])


def test_equal_output_of_all_nodes_is_said_once(merge):
    assert merge.hear(0, output(((0, 1), "loss 1\n")), 1.0) == []
    assert merge.hear(1, output(((2,), "loss 1\n"), ((3,), "odd\n")), 1.001) == []
    assert merge.due_s == 1.0 + Gather.WINDOW_S
    assert merge.tick(1.0) == []
    assert merge.tick(1.1) == [output(((0, 1, 2), "loss 1\n"), ((3,), "odd\n"))]
    assert merge.tick(9.0) == []


def test_a_picture_stands_after_what_was_said_before(merge):
    picture = m.Display(CELL, RankSet([1]), {}, {}, "", update=False)
    merge.hear(0, output(((1,), "before\n")), 1.0)
    assert merge.hear(0, picture, 1.0) == [output(((1,), "before\n")), picture]


def test_a_cell_is_over_when_all_nodes_have_ended_it(merge):
    merge.hear(1, output(((2, 3), "bye\n")), 1.0)
    assert merge.hear(1, done(2, 3), 1.0) == []
    (said, over) = merge.hear(0, done(0, 1, at_ns=9), 1.01)
    assert said == output(((2, 3), "bye\n"))
    assert [fields[1] for fields in over.replies] == [2, 3, 0, 1]
    assert set(over.spans) == set(ALL)
    assert over.done_ns == 9


@pytest.mark.parametrize(("ok", "due_s"), [(True, 1.3), (False, 1.05)])
def test_answers_are_told_while_other_nodes_run_on(merge, ok, due_s):
    assert merge.hear(0, m.Replies(CELL, [reply(0, ok=ok)]), 1.0) == []
    assert merge.due_s == pytest.approx(due_s)
    assert merge.tick(due_s + 0.001) == [m.Replies(CELL, [reply(0, ok=ok)])]
    merge.hear(0, done(1), 2.0)
    (over,) = merge.hear(1, done(2, 3), 2.0)
    assert [fields[1] for fields in over.replies] == [1, 2, 3]  # the first is not told again


def test_a_node_that_is_lost_is_not_waited_for(merge):
    assert merge.hear(0, done(0, 1), 1.0) == []
    (over,) = merge.ended(1, 11)
    assert [fields[1] for fields in over.replies] == [0, 1]
    assert over.done_ns == 11
    assert merge.ended(1, 12) == []  # told once


def test_bars_of_all_nodes_are_one_and_finish_together(merge):
    def bar(positions, *, finished):
        return m.Progress(CELL, 1, "train", 10, positions, finished)

    merge.hear(0, bar({0: (10, 1.0), 1: (10, 1.0)}, finished=True), 1.0)
    merge.hear(1, bar({2: (3, 1.0)}, finished=False), 1.0)
    assert merge.tick(1.2) == [bar({0: (10, 1.0), 1: (10, 1.0), 2: (3, 1.0)}, finished=False)]
    merge.hear(1, bar({2: (10, 2.0)}, finished=True), 2.0)
    assert merge.tick(2.2) == [bar({2: (10, 2.0)}, finished=True)]


def test_what_is_held_back_on_all_nodes_is_told_together(merge):
    merge.hear(0, m.Held(CELL, [(RankSet([0, 1]), 9, "x")]), 1.0)
    (held,) = merge.hear(1, m.Held(CELL, [(RankSet([2]), 9, "x"), (RankSet([3]), 4, "y")]), 1.0)
    assert held == m.Held(CELL, [(RankSet([0, 1, 2]), 9, "x"), (RankSet([3]), 4, "y")])
    (held,) = merge.hear(0, m.Held(CELL, [(RankSet([1]), 12, "z")]), 2.0)  # takes the place of what it said before
    assert [str(ranks) for ranks, *_ in held.entries] == ["1", "2", "3"]


#: (node, rank within it, text): two ranks on each of three nodes
spoken = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from(["a\n", "b", "c\n"])), max_size=30)


@given(spoken, st.lists(st.booleans(), min_size=30, max_size=30))
def test_every_rank_is_heard_in_its_own_order_however_messages_are_cut(words, ticks):
    merge = Merge(CELL, range(3))
    said, now_s = [], 0.0
    for (node, local, text), ticked in zip(words, ticks, strict=False):
        now_s += 0.1
        said += merge.hear(node, output(((2 * node + local,), text)), now_s)
        said += merge.tick(now_s + 0.05) if ticked else []
    for node in range(3):
        said += merge.hear(node, done(2 * node, 2 * node + 1), now_s)
    assert isinstance(said[-1], m.CellDone)
    heard = dict.fromkeys(range(6), "")
    for message in said[:-1]:
        for ranks, entries in message.entries:
            for rank in ranks:
                heard[rank] += "".join(text for _, text in entries)
    expected = dict.fromkeys(range(6), "")
    for node, local, text in words:
        expected[2 * node + local] += text
    assert heard == expected
