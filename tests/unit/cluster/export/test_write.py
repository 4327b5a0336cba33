"""Files: both or neither, whole, and never over another unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcnb.cluster.export import write
from hpcnb.cluster.export.ran import RanCells
from hpcnb.cluster.export.setting import Setting
from hpcnb.cluster.result import CellResult
from hpcnb.core.errors import ExportError, OptionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

SETTING = Setting(MeshSpec.parse("dp=2"))


@pytest.fixture
def ran():
    cells = RanCells()
    for number in (2, 3):
        cells.add(f"x = {number}", "all", 2, CellResult(number, f"cell In[{number}]", RankSet([0, 1]), 2))
    return cells


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_told(ran, here):
    ran.add_other("call of f (cluster.call; put it into a cell)")
    ran.has_earlier = True
    exported = write.export("train.py", ran, SETTING, sbatch=True)
    assert files(here) == ["train.py", "train.sbatch"]
    assert repr(exported) == (
        "train.py: In[2]-In[3] (2 cells)\n"
        "    torchrun --nproc-per-node 2 train.py\n"
        "    python train.py\n"
        "    sbatch train.sbatch\n"
        "not in it: call of f (cluster.call; put it into a cell)\n"
        "not in it: cells that ran before this notebook attached to the cluster"
    )
    umask = os.umask(0)
    os.umask(umask)
    assert Path("train.py").stat().st_mode & 0o777 == 0o666 & ~umask


def test_cells_that_are_not_kept_are_told(ran):
    ran.num_dropped = 3
    assert write.export("train.py", ran, SETTING).left_out == ("the first 3 cells, which are not kept any more",)


@pytest.mark.parametrize("there", ["train.py", "train.sbatch"])
def test_files_are_overwritten_only_when_asked(ran, here, there):
    Path(there).write_text("mine")
    with pytest.raises(ExportError, match=rf"^{there} exists already; .*--force"):
        write.export("train.py", ran, SETTING, sbatch=True)
    assert (files(here), Path(there).read_text()) == ([there], "mine")
    write.export("train.py", ran, SETTING, sbatch=True, force=True)
    assert files(here) == ["train.py", "train.sbatch"]
    assert Path(there).read_text() != "mine"


def test_a_link_stays_one(ran, here):
    (here / "sub").mkdir()
    Path("train.py").symlink_to("sub/real.py")
    with pytest.raises(ExportError, match="exists already"):
        write.export("train.py", ran, SETTING)
    write.export("train.py", ran, SETTING, force=True)
    assert Path("train.py").is_symlink()
    assert "x = 3" in Path("sub/real.py").read_text()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (".", r"^\. is a folder; name a file in it, for example train.py"),
        ("train", r"^'train': a script is a file that ends in .py"),
        ("book.ipynb", "ends in .py"),
        ("", "is a folder|ends in .py"),
        ("a\nb.py", "ends in .py"),
        ("none/train.py", "^there is no folder none to write train.py to; make it first"),
    ],
)
def test_names_that_cannot_be(ran, here, file, words):
    with pytest.raises(ExportError, match=words):
        write.export(file, ran, SETTING)
    assert files(here) == []


def test_a_name_that_is_no_text(ran):
    with pytest.raises(OptionError, match=r"not a int; for example cluster.export\('train.py'\)"):
        write.export(3, ran, SETTING)


def test_nothing_is_written_when_one_file_cannot_be(ran, here, monkeypatch):
    monkeypatch.setattr(write, "batch_job", lambda *_, **__: "\ud800")
    with pytest.raises(ExportError, match=r"train\.py and train\.sbatch cannot be written"):
        write.export("train.py", ran, SETTING, sbatch=True)
    assert files(here) == []
