"""The invariants of merged output: order, exact rank sets, and nothing that depends on timing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpcnb.core.grouping import Grouper, Item
from hpcnb.core.ranks import RankSet

STREAMS = ("stdout", "stderr")
lines = st.sampled_from(["loss 1", "loss 2", "a", "b", "c", "", " ", "é\u2028x"])
#: what programs do to a line while they are in it, beside text
controls = st.sampled_from(["\r", "\n", "\r\n", "\x1b[K", "\x1b[2K", "\x1b[", "K", "10%|# |", "20%|##|", "a", "b", " "])


def outputs_of(text, kinds=STREAMS, max_ranks=4):
    """``{rank: [(kind, text), ...]}``."""
    entries = st.lists(st.tuples(st.sampled_from(kinds), text), max_size=6)
    return st.dictionaries(st.integers(0, 9), entries, min_size=1, max_size=max_ranks)


def said(outputs, *, finish=True):
    """The layout when ranks speak one after the other, each entry in one piece."""
    grouper = Grouper(RankSet(outputs))
    for rank, entries in sorted(outputs.items()):
        for kind, text in entries:
            grouper.add(RankSet([rank]), kind, text)
    if finish:
        grouper.finish()
    return grouper.layout()


def said_otherwise(draw, outputs, *, finish=True):
    """The same output in other pieces and another order between ranks; equal pieces together, as from a node."""
    grouper = Grouper(RankSet(outputs))
    queues = {}
    for rank, entries in outputs.items():
        queues[rank] = pieces = []
        for kind, text in entries:
            if kind not in STREAMS or not text:
                pieces.append((kind, text))
                continue
            cuts = draw(st.lists(st.integers(0, len(text)), max_size=4).map(sorted))
            pieces += [(kind, text[a:b]) for a, b in itertools.pairwise([0, *cuts, len(text)])]
    while left := sorted(rank for rank in queues if queues[rank]):
        rank = draw(st.sampled_from(left))
        piece = queues[rank][0]
        together = [each for each in left if queues[each][0] == piece and (each == rank or draw(st.booleans()))]
        for each in together:
            del queues[each][0]
        grouper.add(RankSet(together), *piece)
    if finish:
        grouper.finish()
    return grouper.layout()


def lines_of(items, rank):
    return [(item.kind, item.text) for item in items if rank in item.ranks]


@given(outputs_of(lines.map(lambda line: f"{line}\n")))
def test_every_rank_finds_its_own_lines_in_its_own_order(outputs):
    items = said(outputs)
    assert all(item.ranks for item in items)
    assert all(item.complete for item in items)
    for rank, entries in outputs.items():
        assert lines_of(items, rank) == [(kind, text[:-1]) for kind, text in entries]
    assert not RankSet(rank for item in items for rank in item.ranks) - RankSet(outputs)


@given(outputs_of(st.lists(lines, max_size=4).map("\n".join)), st.data())
def test_pieces_and_order_of_arrival_do_not_matter(outputs, data):
    assert said_otherwise(data.draw, outputs) == said(outputs)


@given(outputs_of(st.lists(controls, max_size=8).map("".join), max_ranks=3), st.data())
@example({0: [("stdout", "a\r\x1b[K\n")], 1: [("stdout", "a\r\x1b[K"), ("stdout", "\n")]}, None)
def test_neither_do_they_for_lines_that_rewrite_themselves(outputs, data):
    if data is None:
        first, second = said({0: outputs[0]}), said({0: outputs[1]})
        assert first == second == [Item(RankSet([0]), "stdout", "")]
    else:
        assert said_otherwise(data.draw, outputs, finish=False) == said(outputs, finish=False)
        assert said_otherwise(data.draw, outputs) == said(outputs)


@given(outputs_of(st.sampled_from(["1", "a\n", "b", "c\nd"]), kinds=(*STREAMS, "display", "cut", "value")), st.data())
def test_neither_do_they_with_pictures_in_between(outputs, data):
    assert said_otherwise(data.draw, outputs) == said(outputs)
    assert all(item.ranks for item in said(outputs))


@given(st.sets(st.integers(0, 40), min_size=1), st.lists(st.tuples(st.sampled_from(STREAMS), lines), max_size=10))
def test_ranks_that_say_the_same_are_one_item_per_line(ranks, spoken):
    items = said({rank: [(kind, f"{line}\n") for kind, line in spoken] for rank in ranks})
    assert items == [Item(RankSet(ranks), kind, line) for kind, line in spoken]


@given(
    st.lists(st.integers(0, 30), unique=True),
    st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 30)), min_size=1),
)
def test_equal_lines_are_one_item_wherever_orders_allow_it(order, holders):
    # every rank says some of the lines, all in one order: then no line needs to be shown twice
    outputs = {rank: [("stdout", f"{line}\n") for line in order if line in wanted] for rank, wanted in holders.items()}
    items = said(outputs)
    assert len({item.text for item in items}) == len(items)
    for item in items:
        assert item.ranks == RankSet(rank for rank in holders if int(item.text) in holders[rank])


def texts(items):
    return [f"[{item.ranks}] {item.text}" for item in items]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({0: "a\nb\n", 1: "a\nb\n"}, ["[0,1] a", "[0,1] b"]),
        ({0: "a\nx\nb\n", 1: "a\nb\n"}, ["[0,1] a", "[0] x", "[0,1] b"]),
        ({0: "a\nb\n", 1: "b\na\n"}, ["[0] a", "[0,1] b", "[1] a"]),  # orders that contradict each other
        ({0: "a\na\n", 1: "a\n"}, ["[0,1] a", "[0] a"]),
        ({0: "norm 1\nend\n", 1: "norm 2\nend\n"}, ["[0] norm 1", "[1] norm 2", "[0,1] end"]),
        ({0: "", 1: "a\n"}, ["[1] a"]),
        ({0: "no newline", 1: "no newline\n"}, ["[0,1] no newline"]),
        ({0: "", 1: ""}, []),
        ({0: "a\r\nb\r\n", 1: "a\nb\n"}, ["[0,1] a", "[0,1] b"]),
    ],
)
def test_examples(outputs, expected):
    assert texts(said({rank: [("stdout", text)] for rank, text in outputs.items()})) == expected


def test_streams_are_lines_of_their_own():
    spoken = [("stdout", "sum "), ("stderr", "careful\n"), ("stdout", "3\n")]
    assert [(item.kind, item.text) for item in said({0: spoken})] == [("stderr", "careful"), ("stdout", "sum 3")]


def test_a_line_that_has_not_ended_is_shown_as_such():
    grouper = Grouper(RankSet.all(3))
    grouper.add(RankSet.all(3), "stdout", "done\nepoch ")
    grouper.add(RankSet([2]), "stderr", "hm")
    assert grouper.layout() == [
        Item(RankSet.all(3), "stdout", "done"),
        Item(RankSet.all(3), "stdout", "epoch ", complete=False),
        Item(RankSet([2]), "stderr", "hm", complete=False),
    ]
    grouper.add(RankSet.all(3), "stdout", "1\n")
    assert [item.text for item in grouper.layout()] == ["done", "epoch 1", "hm"]


def test_unfinished_lines_of_both_streams_are_in_one_order_whoever_came_first():
    orders = [("stdout", "stderr"), ("stderr", "stdout")]
    layouts = []
    for ranks in ((0, 1), (1, 0)):
        grouper = Grouper(RankSet.all(2))
        for rank in ranks:
            for kind in orders[rank]:
                grouper.add(RankSet([rank]), kind, "x")
        layouts.append(grouper.layout())
    assert layouts[0] == layouts[1]
    assert [item.kind for item in layouts[0]] == ["stdout", "stderr"]


def test_bars_of_ranks_collapse_into_the_slowest():
    bars = {rank: [("stderr", f"\r{percent}%|{'#' * (percent // 10)}| {percent}/100")] for rank, percent in
            ((0, 50), (1, 30), (2, 40))}  # fmt: skip
    (item,) = said(bars, finish=False)
    assert item == Item(RankSet.all(3), "stderr", "30%|###| 30/100", complete=False, slowest=1)
    (item,) = said({rank: [*bar, ("stderr", "\r100%|##########| 100/100\n")] for rank, bar in bars.items()})
    assert item == Item(RankSet.all(3), "stderr", "100%|##########| 100/100")


def test_a_bar_that_clears_itself_leaves_nothing():
    assert said({0: [("stderr", "\r50%|#"), ("stderr", "\r\x1b[2K")]}) == []
    assert said({0: [("stderr", "\r50%|#"), ("stderr", "\r\x1b[K"), ("display", "0")]}) == [
        Item(RankSet([0]), "display", "0")
    ]


def test_a_picture_ends_the_line_it_comes_in():
    items = said({0: [("stdout", "before"), ("display", "0"), ("stdout", "after\n")]})
    assert [(item.kind, item.text) for item in items] == [("stdout", "before"), ("display", "0"), ("stdout", "after")]


def test_values_follow_all_output_lowest_rank_first():
    items = said({1: [("value", "repr 1"), ("stdout", "late\n")], 0: [("stdout", "x\n"), ("value", "repr 0")]})
    assert texts(items) == ["[0] x", "[1] late", "[0] repr 0", "[1] repr 1"]


def test_output_of_ranks_that_were_not_asked_is_not_taken():
    grouper = Grouper(RankSet([0]))
    grouper.add(RankSet([5]), "stdout", "who?\n")
    assert grouper.layout() == []


def test_of_finished_bars_the_one_with_the_lowest_rate_is_the_slowest():
    grouper = Grouper(RankSet([0, 1]))
    for rank, rate in ((0, "49.17it/s"), (1, "25.02it/s")):
        grouper.add(RankSet([rank]), "stderr", f"\r100%|████| 20/20 [00:00<00:00, {rate}]\n")
    (item,) = grouper.layout()
    assert item.slowest == 1
    assert "25.02it/s" in item.text
