"""Which node added ranks go to: evenly, in runs, and never another for those that are there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.placement import resized


@pytest.mark.parametrize(
    ("before", "world_size", "after"),
    [
        ([[0, 1], [2, 3]], 8, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ([[0, 1], [2, 3]], 5, [[0, 1, 4], [2, 3]]),
        ([[0, 1, 4], [2, 3]], 6, [[0, 1, 4], [2, 3, 5]]),
        ([[0, 1], [2, 3]], 3, [[0, 1], [2]]),
        ([[0, 1], [2, 3]], 1, [[0], []]),
        ([[0], []], 3, [[0, 1], [2]]),
        ([[0, 1, 2], [3]], 5, [[0, 1, 2], [3, 4]]),
        ([], 7, []),
    ],
)
def test_placements(before, world_size, after):
    assert resized(before, world_size) == after


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(st.integers(1, 30), max_size=6))
def test_every_rank_has_one_node_and_keeps_it(counts, sizes):
    firsts = [sum(counts[:node]) for node in range(len(counts))]
    placement = [list(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)]
    for size in sizes:
        before = {rank: node for node, ranks in enumerate(placement) for rank in ranks}
        placement = resized(placement, size)
        after = {rank: node for node, ranks in enumerate(placement) for rank in ranks}
        assert sorted(after) == list(range(size))
        assert all(after[rank] == node for rank, node in before.items() if rank < size)
        assert all(ranks == sorted(ranks) for ranks in placement)  # the place among them is the local rank
