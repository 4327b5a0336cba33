"""RankSet against Python's sets."""

from __future__ import annotations

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from hpcnb.core.selection import SelectionContext, select

sets = st.sets(st.integers(0, 70)) | st.sets(st.integers(0, 2000), max_size=20)


@given(sets, sets)
def test_behaves_as_a_set(a, b):
    left, right = RankSet(a), RankSet(b)
    assert set(left) == a
    assert list(left) == sorted(a)
    assert len(left) == len(a)
    assert bool(left) == bool(a)
    assert set(left | right) == a | b
    assert set(left & right) == a & b
    assert set(left - right) == a - b
    assert (left == right) == (a == b)
    assert all((rank in left) == (rank in a) for rank in a | b)
    if a == b:
        assert hash(left) == hash(right)


def test_contains_takes_anything():
    ranks = RankSet([0, 3])
    assert -1 not in ranks
    assert "0" not in ranks
    assert None not in ranks
    assert ranks != {0, 3}


@given(sets)
def test_bytes_and_pickles_come_back(a):
    ranks = RankSet(a)
    assert RankSet.of_bytes(ranks.to_bytes()) == ranks
    assert pickle.loads(pickle.dumps(ranks)) == ranks
    assert RankSet.of_bits(ranks.bits) == ranks


@given(sets)
def test_runs_are_maximal_and_cover_the_set(a):
    runs = RankSet(a).runs()
    assert {rank for first, last in runs for rank in range(first, last + 1)} == a
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(runs))


@given(sets.filter(bool), st.integers(1, 50))
def test_text_is_a_selection_of_exactly_these_ranks(a, more):
    context = SelectionContext(MeshSpec(("dp",), (max(a) + more,)))
    assert select(str(RankSet(a)), context) == RankSet(a)


@pytest.mark.parametrize(
    ("ranks", "text", "words"),
    [
        ([], "", "ranks (none)"),
        ([3], "3", "rank 3"),
        ([0, 1], "0,1", "ranks 0,1"),
        ([0, 1, 2, 3, 7], "0-3,7", "ranks 0-3,7"),
        (range(1024), "0-1023", "ranks 0-1023"),
    ],
)
def test_words(ranks, text, words):
    assert str(RankSet(ranks)) == text
    assert RankSet(ranks).words() == words
    assert repr(RankSet(ranks)) == f"RankSet({text!r})"


def test_all_and_first():
    assert list(RankSet.all(3)) == [0, 1, 2]
    assert RankSet([9, 5, 7]).first() == 5
    with pytest.raises(ValueError, match="empty rank set"):
        RankSet().first()
