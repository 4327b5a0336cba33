"""A script computes what the notebook computed, to the last bit: under torchrun, and as one rank under plain python."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hpcnb import Cluster, attach
from hpcnb.cluster.cell_run import CellRequest
from hpcnb.core.errors import ExportError

pytestmark = pytest.mark.engines

SEEDED = """\
from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

torch.manual_seed(7 + rank)
TEXT = '''
  lines of a string
stay where they are
'''"""
TRAINING = """\
model = DDP(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1)))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
losses: list[float] = []
for _ in hpc.progress(range(5)):
    x = torch.randn(32, 8)
    loss = nn.functional.mse_loss(model(x), x.sum(dim=1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"{rank} losses {losses}")
str([parameter.sum().item() for parameter in model.parameters()])"""
GROUPS = """\
mine = torch.tensor([float(sum(losses) + rank)])
dist.all_reduce(mine, group=mesh["tp"].get_group())
own = dist.new_group(list(range(0, world_size, 2)))
if rank % 2 == 0:
    dist.all_reduce(mine, group=own)
print(f"{rank} groups {mine.item()!r} {mesh.get_coordinate()} {len(TEXT)}")"""
SELECTED = """\
chosen = torch.tensor([losses[-1]])
dist.all_reduce(chosen, group=mesh["tp"].get_group())
text = '''
 a
'''
if True:
\tprint(f"{rank} chosen {chosen.item()!r} {text!r}")
rank, text"""
AWAITING = """\
import asyncio
await asyncio.sleep(0)
found = !echo from rank {rank} of $world_size
print(f"{rank} found {found}")
rank * 0.5"""

CELLS = [(SEEDED, "all"), (TRAINING, "all"), (GROUPS, "all"), (SELECTED, "dp=0"), (AWAITING, "all"),
         ("hpc.check_same(model, optimizer)", "all")]  # fmt: skip


@pytest.fixture
def cluster(cluster4):
    cluster4._ran.clear()  # of other tests
    yield cluster4
    cluster4._ran.clear()


def run_cells(cluster, cells=CELLS):
    """Run them as cells of a notebook; returns what all ranks printed, as lines, and what the last values were."""
    said, values = [], []
    for number, (source, on) in enumerate(cells, start=1):
        result = cluster.execute(CellRequest(source, on=on, label=f"cell In[{number}]", first_line=2))
        assert result.ok, result.failure_text()
        said += [line for rank in result.ranks for line in result.outputs.get(rank, "").splitlines()]
        if result.values:
            values.append(result.values[result.ranks.first()])
    return sorted(said), values


def run_script(*words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def torchrun(num_ranks, *, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks), "--master-port", str(port)]
    # one file for each rank: torchrun has them write unbuffered, so that lines would mix
    words += ["--redirects", "1", "--log-dir", "logs", "train.py"]
    _, stderr = run_script(*words, folder=folder)
    return [line for log in folder.glob("logs/**/stdout.log") for line in log.read_text().splitlines()], stderr


def test_torchrun_computes_what_the_notebook_did(cluster, tmp_path):
    said, values = run_cells(cluster)
    exported = cluster.export(tmp_path / "train.py")
    assert exported.left_out == ()
    assert len(exported.cells) == 6
    lines, stderr = torchrun(4, folder=tmp_path)
    assert [line for line in sorted(lines) if line in said] == said
    shown = [line for line in lines if line not in said]
    assert sorted(shown) == sorted(values)
    assert "world size" not in stderr  # it is as in the notebook, so nothing is said about it


def test_plain_python_is_one_rank_of_the_same_mesh(cluster, tmp_path):
    run_cells(cluster)
    cluster.export(tmp_path / "train.py")
    lines, stderr = run_script("train.py", folder=tmp_path)
    assert stderr.startswith(
        "world size 1, mesh dp=1,tp=1; the notebook had 4, dp=2,tp=2\n"
        "cells of some ranks (--on) run on the ranks that have the same number\n"
    )
    with Cluster(1, mesh="dp=1,tp=1", name="one", threads_per_rank=1, idle_timeout_s=0) as one:
        said, values = run_cells(one)
    assert sorted(line for line in lines if line in said) == said
    assert [line for line in lines if line not in said] == values


def test_what_is_left_out_and_what_a_number_chooses(cluster, tmp_path):
    cells = ["kept = rank", "raise ValueError(rank)", "kept + 1", "print(kept)\nif rank == 1: raise ValueError"]
    for number, source in enumerate(cells, start=1):
        cluster.execute(CellRequest(source, label=f"cell In[{number}]", first_line=2))
    assert cluster.call(os.getpid)
    cluster.run("1 + 1")
    exported = cluster.export(tmp_path / "all.py")
    assert exported.cells[:2] == ("In[1]", "In[3]")
    assert exported.cells[2].startswith("cell ")  # of cluster.run
    assert exported.left_out == (
        "In[2] (failed on ranks 0-3)", "In[4] (failed on rank 1)", "call of getpid (cluster.call; put it into a cell)"
    )  # fmt: skip
    assert cluster.export(tmp_path / "some.py", cells="1,4").cells == ("In[1]", "In[4]")
    assert "# in the notebook it failed on rank 1\nprint(kept)" in (tmp_path / "some.py").read_text()
    with pytest.raises(ExportError, match=r"no parallel cell In\[9\] has run; there are: In\[1\]-In\[4\]"):
        cluster.export(tmp_path / "none.py", cells="9")


def test_another_number_of_ranks_scales_the_first_axis_or_is_refused(cluster, tmp_path):
    cluster.execute(CellRequest("print(rank, mesh.shape)", label="cell In[1]"))
    cluster.export(tmp_path / "train.py")
    assert "hpcnb." not in (tmp_path / "train.py").read_text()  # torch is enough
    lines, stderr = torchrun(2, folder=tmp_path)
    assert sorted(lines) == ["0 (1, 2)", "1 (1, 2)"]
    assert "world size 2, mesh dp=1,tp=2; the notebook had 4, dp=2,tp=2" in stderr
    with pytest.raises(AssertionError, match="does not fit 3 ranks; it was dp=2,tp=2 on 4 ranks"):
        torchrun(3, folder=tmp_path)


def test_after_attach_what_ran_before_is_said_to_be_missing(tmp_path):
    with Cluster(1, name="attached", threads_per_rank=1) as cluster:
        assert cluster.run("x = 1").ok
        cluster.detach()
    with attach("attached") as cluster:
        with pytest.raises(ExportError, match="no parallel cell has ended well on this cluster"):
            cluster.export(tmp_path / "train.py")
        assert cluster.run("x + 1").ok
        exported = cluster.export(tmp_path / "train.py")
        assert exported.left_out == ("cells that ran before this notebook attached to the cluster",)
