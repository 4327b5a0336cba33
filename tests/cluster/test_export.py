"""A batch job that was exported computes on the same nodes what the notebook did."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpcnb import Cluster
from hpcnb.cluster.cell_run import CellRequest
from tests.cluster import slurm as virtual_slurm
from tests.cluster.hosts import Hosts, why_not
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are virtual hosts"),
    pytest.mark.skipif(bool(virtual_slurm.why_not()), reason=virtual_slurm.why_not() or "there is Slurm"),
]

CELLS = [
    ("import torch, socket, torch.distributed as dist\ntorch.manual_seed(rank)\nx = torch.randn(1000)", "all"),
    ("dist.all_reduce(x, group=mesh['dp'].get_group())\nx.sum().item()", "all"),
    ("dist.all_reduce(x, group=mesh['tp'].get_group())\nx.sum().item()", "dp=1"),
    ("(socket.gethostname(), rank, local_rank, str(mesh))", "2"),
]


def test_a_batch_job_on_two_nodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    with Hosts(2) as hosts, virtual_slurm.Slurm(hosts) as slurm:
        options = {"mesh": "dp=2,tp=2", "name": "export", "threads_per_rank": 1, "idle_timeout_s": 0}
        with Cluster(
            4, launcher="slurm", nodes=2, partition="debug", time="5", start_timeout_s=60, **options
        ) as cluster:
            values = []
            for number, (source, on) in enumerate(CELLS, start=1):
                result = cluster.execute(CellRequest(source, on=on, label=f"cell In[{number}]"))
                assert result.ok, result.failure_text()
                values += [result.values[result.ranks.first()]] if result.values else []
            cluster.export("train.py", sbatch=True)
        wait_until(lambda: not slurm.jobs())
        job = Path("train.sbatch").read_text()
        for line in ("--nodes=2", "--cpus-per-task=2", "--partition=debug", "--time=5"):
            assert f"#SBATCH {line}\n" in job
        subprocess.run(["sbatch", "--wait", "--output=said", "train.sbatch"], check=True, timeout=120)
        said = Path("said").read_text()
        assert [line for line in values if line not in said] == [], said
        assert "('n2', 2, 0, " in said
