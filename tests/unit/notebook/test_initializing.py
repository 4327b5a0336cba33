"""A cell that was edited takes the place of its earlier version."""

from __future__ import annotations

import pytest

from hpcnb.cluster.result import CellResult, RankError
from hpcnb.core.ranks import RankSet
from hpcnb.notebook.initializing import Versions


class Cluster:
    """Keeps init cells as an agent does."""

    def __init__(self):
        self.sources = []

    def init_cells(self):
        return [("cell", source) for source in self.sources]

    def forget_init_cells(self, number):
        del self.sources[number - 1]


@pytest.fixture
def run():
    cluster, versions = Cluster(), Versions()

    def ran(source, cell_id="a", *, is_init=True, fails=()):
        errors = {rank: RankError("ValueError", "", "", 0, "", "", "") for rank in fails}
        if is_init and len(fails) < 2:
            cluster.sources = [each for each in cluster.sources if each != source] + [source]
        result = CellResult(1, "cell", RankSet.all(2), 2, errors=errors)
        versions.ran(lambda: cluster, source, result, is_init=is_init, cell_id=cell_id)
        return cluster.sources

    return ran


def test_an_edited_cell_takes_the_place_of_its_earlier_version(run):
    run("x = 1")
    run("y = 1", "b")
    assert run("x = 2") == ["y = 1", "x = 2"]
    assert run("x = 2") == ["y = 1", "x = 2"]
    assert run("x = 3", fails=(0,)) == ["y = 1", "x = 3"]


def test_one_that_fails_everywhere_takes_no_place(run):
    run("x = 1")
    assert run("x = 1 / 0", fails=(0, 1)) == ["x = 1"]
    assert run("x = 2") == ["x = 2"]


def test_one_that_is_marked_no_more_is_forgotten(run):
    run("x = 1")
    run("y = 1", "b")
    assert run("x = 1", is_init=False) == ["y = 1"]
    assert run("x = 1", is_init=False) == ["y = 1"]


def test_without_names_of_cells_nothing_is_forgotten(run):
    run("x = 1", "")
    assert run("x = 2", "") == ["x = 1", "x = 2"]
