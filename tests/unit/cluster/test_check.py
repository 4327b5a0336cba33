"""What a check prints, and what is said about names that nobody has."""

from __future__ import annotations

import pickle

import pytest

from hpcnb import Cluster
from hpcnb.cluster.check import compared
from hpcnb.core.errors import ClusterStateError, OptionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from hpcnb.core.replicas import Digest

MESH = MeshSpec(("dp",), (3,))


def sent(*per_rank):
    return {rank: pickle.dumps(held) for rank, held in enumerate(per_rank)}


def tensor(path, content="a"):
    return Digest(path, content.encode(), "float32 (4,)", 16)


def test_agreement():
    result = compared(sent(*[[tensor("model.w"), tensor("model.b")]] * 3), MESH, ("model",), None)
    assert result.ok
    assert result
    assert repr(result) == "ranks 0-2 agree: 2 tensors and values, 32 B, along axis dp"


def test_differences_are_listed():
    rows = [tensor("model.w"), tensor("model.b")]
    result = compared(sent(rows, rows, [tensor("model.w", "b"), tensor("model.b")]), MESH, (), None)
    assert not result.ok
    assert not result
    assert [row.path for row in result.different] == ["model.w"]
    assert repr(result).splitlines()[:2] == [
        "1 of 2 tensors and values, 32 B, along axis dp, differ:",
        "  model.w  float32 (4,): rank 2 differs from ranks 0,1",
    ]
    assert "hpc.resync" in repr(result)


def test_a_name_that_whole_groups_lack_is_told():
    """With dp=2,tp=2 and ranks 1 and 3 replaced, nobody whom rank 1 should agree with has the model."""
    mesh = MeshSpec(("dp", "tp"), (2, 2))
    new = [tensor("other.w")]
    result = compared(sent([tensor("model.w"), *new], new, [tensor("model.w"), *new], new), mesh, (), None)
    assert not result
    assert result.lacking == {"model": RankSet([1, 3])}
    assert repr(result).splitlines() == [
        "ranks 0,2 agree: 2 tensors and values, 32 B, along axis dp",
        "model is missing on ranks 1,3",
        "(modules and optimizers only; name tensors and numbers to compare them too:  %hpc check step)",
    ]
    # where a row says that it is missing, it is not said again
    result = compared(
        sent([tensor("a.model.w")], [], [tensor("a.model.w")], [tensor("a.model.w")]), mesh, ("a.model",), None
    )
    assert not result.lacking
    assert "a.model.w: missing on rank 1, float32 (4,) on rank 3" in repr(result)


def test_only_what_resync_brings_is_advised():
    def repr_of(*rows):
        return repr(compared(sent(*([row(rank) for row in rows] for rank in range(3))), MESH, ("model", "step"), None))

    def weight(rank):
        return Digest("model.w", bytes([rank]), "float32 (4,)", 16, brought_as="model")

    def number(rank):
        return Digest("step", bytes([rank]), str(rank))

    assert repr_of(weight, lambda _: Digest("step", b"", "1")).endswith("type  hpc.resync(model)  in a cell")
    told = repr_of(lambda _: weight(0), number)
    assert "hpc.resync(" not in told
    assert told.endswith(
        "hpc.resync does not bring them: it takes modules, optimizers and tensors; set the rest in a cell"
    )
    told = repr_of(weight, number)
    assert "type  hpc.resync(model)  in a cell. hpc.resync does not bring step: it takes" in told


def test_a_long_list_is_cut():
    rows = [[tensor(f"w{number}", str(rank)) for number in range(20)] for rank in range(3)]
    assert "and 8 more" in repr(compared(sent(*rows), MESH, (), None))


def test_nothing_to_compare_is_said():
    assert repr(compared(sent([tensor("w")]), MESH, (), None)) == "nothing to compare along axis dp: no two of these ranks should hold the same"  # fmt: skip
    with pytest.raises(OptionError, match="no rank has anything to compare under the name 'modl'"):
        compared(sent([tensor("model.w")]), MESH, ("modl",), None)
    with pytest.raises(OptionError, match="no rank has a module or optimizer"):
        compared(sent([]), MESH, (), None)


def test_what_is_given_is_looked_at_before_anybody_is_asked():
    cluster = Cluster(2)  # not started, which would be told next
    with pytest.raises(
        OptionError, match=r"takes the name .* as text, not a dict; for example  cluster\.check\('model'\)"
    ):
        cluster.check("model", {"w": 1})
    with pytest.raises(OptionError, match="takes rng as True or False, not 1"):
        cluster.check("model", rng=1)
    with pytest.raises(ClusterStateError, match="is not running"):
        cluster.check("model", rng=True)
