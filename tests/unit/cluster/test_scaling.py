"""What a change of size came to, in words; what it asks of a machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hpcnb.cluster import machine
from hpcnb.cluster.scaling import Scaled, check_room
from hpcnb.core.errors import OptionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet


def test_in_words():
    grown = Scaled(8, "dp=8", RankSet(range(4, 8)), RankSet(), 2, 0.91, lost=("model", "x"))
    assert repr(grown) == (
        "8 ranks (4 new: 4-7) · mesh dp=8 · groups rebuilt (generation 2) · 0.9 s · "
        "names that ranks 4-7 lack: model, x\n"
        "define them there (--on 4-7), then on all ranks  hpc.resync(model, optimizer)  and make DDP and the like again"
    )
    shrunk = Scaled(1, "dp=1", RankSet(), RankSet([1]), 3, 0.2)
    assert repr(shrunk) == "1 rank (1 removed) · mesh dp=1 · groups rebuilt (generation 3) · 0.2 s"
    both = Scaled(
        2, "dp=2", RankSet([1]), RankSet([2, 3]), 3, 0.2, ("cell 1", "cell 2"), {"cell 2": "NameError: x"},
        notices=("2 ranks share 1 core",),
    )  # fmt: skip
    assert repr(both).splitlines() == [
        "2 ranks (1 new: 1; 2,3 removed) · mesh dp=2 · groups rebuilt (generation 3) · 0.2 s",
        "run there: cell 1, cell 2",
        "cell 2 failed there: NameError: x",
        "2 ranks share 1 core",
    ]
    many = Scaled(2, "dp=2", RankSet([1]), RankSet(), 3, 0.2, lost=tuple(f"x{number}" for number in range(14)))
    assert "names that rank 1 lacks: x0, x1, " in repr(many)
    assert "x11 and 2 more" in repr(many)
    remade = Scaled(4, "dp=2,tp=2", RankSet(), RankSet(), 3, 0.2)
    assert repr(remade).startswith("4 ranks · mesh dp=2,tp=2 · ")


@pytest.fixture
def submitter(monkeypatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    described = {"room": 64, "threads_per_rank": 2}
    return SimpleNamespace(describe=lambda: described, world_size=2)


def mesh(num_ranks):
    return MeshSpec.for_world(num_ranks)


def test_more_ranks_than_cores_are_told_and_no_more(submitter):
    assert check_room(submitter, mesh(4), []) == ("4 ranks with 2 threads each share 4 cores",)
    assert check_room(submitter, mesh(1), []) == ()
    submitter.describe()["threads_per_rank"] = 1
    assert check_room(submitter, mesh(4), []) == ()
    assert check_room(submitter, mesh(5), []) == ("5 ranks share 4 cores",)
    assert check_room(submitter, mesh(6), [[0, 1, 2], [3, 4, 5]]) == ()  # cores of others are not known


def test_more_than_there_is_room_for(submitter):
    assert check_room(submitter, mesh(65), [list(range(33)), list(range(33, 65))]) == ()
    for placement in ([], [list(range(65)), []]):
        with pytest.raises(OptionError, match=r"room for 64 ranks on a node, .* %hpc start 65"):
            check_room(submitter, mesh(65), placement)
