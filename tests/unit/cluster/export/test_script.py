"""The text of scripts: what stands in them, that they compile, and what is said about cells that no script can have."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.cluster.export.ran import RanCell
from hpcnb.cluster.export.script import ranks_test, script
from hpcnb.cluster.export.setting import Setting
from hpcnb.core.errors import ExportError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from tests.unit.cluster.export.programs import programs

FOUR = Setting(
    MeshSpec.parse("dp=2,tp=2"),
    "mine",
    "2026-11-24 10:00 UTC",
    {"python": "3.12.1", "torch": "2.13.0", "hpcnb": "0.1.0"},
)


def cell(source, on="all", ranks=range(4), number=2, how=""):
    return RanCell(f"cell In[{number}]", source, on, RankSet(ranks), how, first_line=2)


def written(*cells, setting=FOUR, **options):
    return script(cells, setting, **options)


def test_head():
    text = written(cell("x = 1"), left_out=["In[3] (failed on rank 1)"], file="my train.py")
    assert text.startswith(
        "# Parallel cells of a notebook, written by hpcnb 0.1.0, 2026-11-24 10:00 UTC.\n"
        "# In[2] on cluster 'mine': 4 ranks, mesh dp=2,tp=2, Python 3.12.1, torch 2.13.0\n"
        "# Not in it: In[3] (failed on rank 1)\n#\n"
        "#     torchrun --nproc-per-node 4 'my train.py'    # as in the notebook\n"
        "#     python 'my train.py'                         # one rank, mesh dp=1,tp=1\n"
    )
    assert 'axes, sizes = ("dp", "tp"), (1, 1) if world_size == 1 else (world_size // 2, 2)' in text
    assert "hpcnb" not in text[text.index("def _set_up") :]  # it runs where only torch is
    assert max(map(len, text.split("\n"))) <= 120


def test_names_of_variables_are_told_and_not_their_values():
    setting = Setting(MeshSpec.parse("dp=2"), environment=("TOKEN",))
    assert "environment variables that are to be set first: TOKEN" in written(cell("x"), setting=setting)


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        ("dp=4", '("dp",), (world_size,)'),
        ("dp=1,tp=2", '("dp", "tp"), (1, 1) if world_size == 1 else (world_size // 2, 2)'),
        ("pp=2,tp=1", '("pp", "tp"), (world_size, 1)'),
    ],
)
def test_meshes_of_other_world_sizes(mesh, sizes):
    assert f"axes, sizes = {sizes}\n" in written(cell("x"), setting=Setting(MeshSpec.parse(mesh)))


def test_cells_of_some_ranks():
    text = written(cell("x = 1\nx", on="dp=1 & tp=0", ranks=[2]), cell("y", on="~0", ranks=[1, 2, 3], number=3))
    assert "# ---- In[2] --on dp=1 & tp=0 ---" in text
    assert "if rank == 2:\n    x = 1\n    _show(x, rank=2)\n" in text
    assert "if rank in range(1, 4):\n    _show(y, rank=1)\n" in text
    assert "run on the ranks that have the same number" in text


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([1], "rank == 1"), ([0, 1], "rank in {0, 1}"), ([0, 2, 3], "rank in {0, 2, 3}"),
     (range(512), "rank in range(0, 512)"), ([*range(8), 12], "rank in {*range(0, 8), 12}")],
)  # fmt: skip
def test_ranks_as_python(ranks, text):
    assert ranks_test(RankSet(ranks)) == text
    assert [rank for rank in range(600) if eval(text, {"rank": rank})] == list(ranks)


def test_a_cell_that_rebinds_names_of_ours():
    text = written(cell("rank = 7"), cell("_show = 1\n_show", on="0", ranks=[0], number=3))
    assert "_rank = rank  # which a cell gives another value" in text
    assert "if _rank == 0:\n    _show = 1\n    _show_(_show)" in text
    assert "def _show_(value, rank=0)" in text


def test_what_is_needed_is_imported_and_no_more():
    text = written(cell("from __future__ import annotations\n!ls\nawait f()\nhpc.barrier()\ndisplay(1)"))
    for line in ("from __future__ import annotations", "import asyncio", "import subprocess",
                 "from IPython.display import display", "from hpcnb.engine.script import hpc_of_script"):  # fmt: skip
        assert f"\n{line}\n" in text
    assert "_loop.run_until_complete(_cell_2())" in text
    bare = written(cell("x = 1"))
    assert not [word for word in ("asyncio", "subprocess", "IPython", "_show", "_loop") if word in bare]


def test_a_failed_cell_that_was_chosen_says_so():
    assert "# in the notebook it was interrupted\nx = 1\n" in written(cell("x = 1", how="was interrupted"))


@given(st.lists(programs, min_size=1, max_size=3))
def test_cells_stand_in_the_script_as_they_were(sources):
    body = [node for source in sources for node in ast.parse(source).body]
    try:
        text = written(*(cell(f"{source}\n0;", number=number) for number, source in enumerate(sources)))
    except ExportError:
        return  # a name that is global in one cell and assigned in another: together they are no program
    shown = [ast.dump(node) for node in ast.parse(text).body]
    at = 0
    for node in body:  # all, in order
        at = shown.index(ast.dump(node), at) + 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x\n%pip install y",
         r"^In\[3\] line 3: %pip install y means nothing in a script\..* or leave the cell out:  --cells 2,5$"),
        ("x\nget_ipython().run_line_magic('ls', '')", r"^In\[3\] line 3: get_ipython\(\) is not there in a script\. Change"),
        ("from os import *\nawait x", r"^In\[3\] cannot be part of a script: import \* only allowed at module level"),
        ("def f():\n    global x\nglobal x", r"^In\[3\] cannot be part of a script: name 'x' is assigned to before global"),
        ("ls -l x", r"^In\[3\] line 2: 'ls -l x' is no Python"),
        ("'\ud800'", r"^In\[3\] cannot be part of a script|^In\[3\] line"),
    ],
)  # fmt: skip
def test_cells_that_no_script_can_have(source, words):
    with pytest.raises(ExportError, match=words):
        written(cell("x = 1"), cell(source, number=3), cell("z", number=5))
