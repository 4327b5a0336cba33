"""Digests of ranks -> which of them do not agree, with hand-made digests."""

from __future__ import annotations

import pytest

from hpcnb.core.errors import MeshError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from hpcnb.core.replicas import Digest, compare, default_axis, groups_along, size_words

ALL4 = [RankSet.all(4)]
DP_TP = MeshSpec(("dp", "tp"), (2, 2))


def held(content, path="w", *, words="float32 (2,)", shard=None):
    return [Digest(path, content.encode(), words, 8, shard)]


def shard(members, same):
    return RankSet(members), RankSet(same)


def parts(rows):
    return [[str(ranks) for ranks, _ in row.parts] for row in rows]


def test_axes():
    assert default_axis(DP_TP, None) == "dp"
    assert default_axis(DP_TP, "tp") == "tp"
    assert default_axis(MeshSpec(("tp",), (4,)), None) is None
    with pytest.raises(MeshError, match="no axis 'pp'; this mesh has dp, tp"):
        default_axis(DP_TP, "pp")
    assert groups_along(DP_TP, "dp") == [RankSet([0, 2]), RankSet([1, 3])]
    assert groups_along(DP_TP, "tp") == [RankSet([0, 1]), RankSet([2, 3])]
    assert groups_along(DP_TP, None) == ALL4


def test_equal_digests_are_one_row_that_agrees():
    (row,) = compare({rank: held("a") for rank in range(4)}, ALL4)
    assert row.same
    assert row.ranks == RankSet.all(4)
    assert str(row) == "w  float32 (2,)  the same on ranks 0-3"


def test_the_rank_that_differs_is_named():
    (row,) = compare({rank: held("b" if rank == 2 else "a") for rank in range(4)}, ALL4)
    assert not row.same
    assert str(row) == "w  float32 (2,): rank 2 differs from ranks 0,1,3"


def test_who_is_wrong_cannot_be_told_when_sides_are_equal():
    (row,) = compare({rank: held("ab"[rank // 2]) for rank in range(4)}, ALL4)
    assert str(row) == "w  float32 (2,): ranks 0,1 and ranks 2,3 differ"


def test_shapes_values_and_what_is_missing_are_said():
    (row,) = compare({0: held("a", words="0.1"), 1: held("b", words="0.2")}, [RankSet([0, 1])])
    assert str(row) == "w: 0.1 on rank 0, 0.2 on rank 1"
    (row,) = compare({0: held("a"), 1: [], 2: held("a")}, [RankSet([0, 1, 2])])
    assert str(row) == "w: float32 (2,) on ranks 0,2, missing on rank 1"


def test_only_ranks_of_one_group_are_compared():
    rows = compare({rank: held("ab"[rank % 2]) for rank in range(4)}, groups_along(DP_TP, "dp"))
    assert parts(rows) == [["0,2"], ["1,3"]]


def test_ranks_that_were_not_asked_are_not_missing():
    assert parts(compare({rank: held("a") for rank in (0, 3)}, ALL4)) == [["0,3"]]


def test_pieces_of_a_sharded_tensor_are_not_compared_with_each_other():
    rows = compare({rank: held(str(rank), shard=shard(range(4), [rank])) for rank in range(4)}, ALL4)
    assert parts(rows) == [["0"], ["1"], ["2"], ["3"]]


def test_pieces_along_tp_are_compared_along_dp():
    meshes = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    digests = {rank: held("ab"[rank % 2], shard=shard(meshes[rank], [rank])) for rank in range(4)}
    assert parts(compare(digests, groups_along(DP_TP, "dp"))) == [["0,2"], ["1,3"]]
    digests[3] = held("c", shard=shard(meshes[3], [3]))
    assert parts(compare(digests, groups_along(DP_TP, "dp"))) == [["0,2"], ["1", "3"]]


def test_replicated_tensors_are_compared_over_their_whole_mesh_unless_an_axis_was_asked_for():
    digests = {rank: held("a" if rank < 3 else "b", shard=shard(range(4), range(4))) for rank in range(4)}
    assert parts(compare(digests, groups_along(DP_TP, "dp"))) == [["0-2", "3"]]
    assert parts(compare(digests, groups_along(DP_TP, "dp"), shards_beyond=False)) == [["0,2"], ["1", "3"]]


def test_who_equals_an_equal_is_equal():
    # replicated on the two tp meshes, and along dp: all four hold the same
    meshes = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    digests = {rank: held("a", shard=shard(meshes[rank], meshes[rank])) for rank in range(4)}
    assert parts(compare(digests, groups_along(DP_TP, "dp"))) == [["0-3"]]


def test_a_rank_that_lacks_its_piece_makes_no_row_of_its_own():
    digests = {rank: held(str(rank), shard=shard(range(4), [rank])) for rank in range(3)}
    digests[3] = []
    assert parts(compare(digests, ALL4)) == [["0"], ["1"], ["2"]]


@pytest.mark.parametrize(("size", "words"), [(12, "12 B"), (1234, "1.2 kB"), (56_789_000, "57 MB"), (2e9, "2.0 GB")])
def test_sizes(size, words):
    assert size_words(size) == words
