"""``%hpc export`` in a real kernel: cells by the numbers that a person sees, and one clear line where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.notebook

SOURCES = [
    "%load_ext hpcnb",
    "%hpc start 2 --threads 1",
    "%hpc export train.py",
    "%%hpc_parallel --no-time\nimport torch\ntorch.manual_seed(rank)\ntotal = torch.rand(3).sum()",
    "%%hpc_parallel --no-time --on 1\nraise RuntimeError('only here')",
    "%%hpc_parallel --no-time\n%pip --version",
    "%%hpc_parallel --no-time --init\ntorch.distributed.all_reduce(total)\ntotal.item()",
    "%hpc export train.py",
    "%hpc export train.py --cells 4,7 --sbatch",
    "%hpc export train.py --cells 4,7",
    "%hpc export train.py --cells 4-7 --force",
    "%hpc export train.py --cells=7,4 --force",
    "%hpc export --help",
    "%hpc stop",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def texts(folder):
    """What each cell showed, as text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in SOURCES])
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [
        "\n".join(
            "\n".join(each["traceback"]) if each.output_type == "error"
            else each.get("text") or each.get("data", {}).get("text/plain", "")
            for each in cell.outputs
        ).strip()
        for cell in notebook.cells
    ]  # fmt: skip


def test_a_script_with_the_numbers_that_the_notebook_shows(texts, folder):
    assert texts[8] == (
        "train.py: In[4], In[7] (2 cells)\n"
        "    torchrun --nproc-per-node 2 train.py\n"
        "    python train.py\n"
        "    sbatch train.sbatch"
    )
    assert texts[11].startswith("train.py: In[4], In[7] (2 cells)")
    assert sorted(path.name for path in folder.iterdir()) == ["train.py", "train.sbatch"]
    script = (folder / "train.py").read_text()
    assert "# ---- In[4] ---" in script
    assert "_show(total.item())" in script
    subprocess.run(["bash", "-n", folder / "train.sbatch"], check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert f"Out[0,1]: {done.stdout.strip()}" == texts[6], done.stderr


def test_what_cannot_be_exported_is_said_in_one_line(texts):
    assert texts[2] == "ExportError: no parallel cell has ended well on this cluster. Run one first, then export"
    assert texts[7] == (
        "ExportError: In[6] line 2: %pip --version means nothing in a script. Change the cell and run it again, or leave "
        "the cell out:  --cells 4,7"
    )
    assert texts[9] == (
        "ExportError: train.py exists already; choose another name, or overwrite:  --force (force=True)"
    )
    assert texts[10].startswith("ExportError: In[6] line 2: %pip")


def test_help(texts):
    assert texts[12].startswith("%hpc export FILE [--cells 3-7,9] [--sbatch] [--force]")
