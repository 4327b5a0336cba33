"""Output of a node's ranks, held for a few milliseconds and sent once where it is equal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.ranks import RankSet
from hpcnb.node.gather import Gather

entries = st.tuples(st.sampled_from(["stdout", "stderr", "cut"]), st.sampled_from(["a", "b\n", "", "long line\n"]))


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.lists(entries, max_size=3))))
def test_everything_is_taken_once_in_each_ranks_order(additions):
    gather = Gather()
    for ranks, spoken in additions:
        gather.add(RankSet(ranks), spoken, 0.0)
    taken = gather.take()
    assert gather.take() == []
    for rank in range(6):
        wanted = [entry for each, spoken in additions if rank in each for entry in spoken]
        got = [entry for ranks, each in taken if rank in ranks for entry in each]
        for kind in ("stdout", "stderr"):
            assert "".join(text for each, text in got if each == kind) == "".join(
                text for each, text in wanted if each == kind
            )
        assert [text for kind, text in got if kind == "cut"] == [text for kind, text in wanted if kind == "cut"]
        kinds = [kind for kind, _ in wanted]
        assert [kind for kind, _ in got] == [
            kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before or kind == "cut"
        ]
    assert len({tuple(each) for _, each in taken}) == len(taken)  # equal output is there once
    firsts = [ranks.first() for ranks, _ in taken]
    assert firsts == sorted(set(firsts))
    assert sum(len(ranks) for ranks, _ in taken) == len(
        {rank for ranks, spoken in additions if spoken for rank in ranks}
    )


def test_equal_output_of_ranks_is_one_entry_however_it_was_cut():
    gather = Gather()
    for rank in (2, 0):
        gather.add(RankSet([rank]), [("stdout", "lo"), ("stdout", "ss 1\n")], 1.0)
    gather.add(RankSet([1]), [("stdout", "loss 1\n")], 1.0)
    gather.add(RankSet([3]), [("stdout", "loss 1\n"), ("stderr", "hm")], 1.0)
    assert gather.take() == [
        (RankSet([0, 1, 2]), [("stdout", "loss 1\n")]),
        (RankSet([3]), [("stdout", "loss 1\n"), ("stderr", "hm")]),
    ]


def test_when_it_is_due():
    gather = Gather()
    assert gather.due_s is None
    gather.add(RankSet([0]), [], 1.0)
    assert gather.due_s is None
    gather.add(RankSet([0]), [("stdout", "x")], 1.0)
    gather.add(RankSet([1]), [("stdout", "x")], 2.0)  # does not move it
    assert gather.due_s == 1.0 + Gather.WINDOW_S
    gather.take()
    assert gather.due_s is None


def test_a_flood_waits_longer_and_stops_doing_so():
    gather = Gather()
    gather.add(RankSet([0]), [("stdout", "x" * 20_000)], 0.0)
    gather.take()
    gather.add(RankSet([0]), [("stdout", "x")], 1.0)
    assert gather.due_s == 1.0 + Gather.LONG_WINDOW_S
    gather.take()
    gather.add(RankSet([0]), [("stdout", "x")], 2.0)
    assert gather.due_s == 2.0 + Gather.WINDOW_S
