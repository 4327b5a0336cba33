"""Batch jobs: what Slurm and torchrun are told; bash reads them."""

from __future__ import annotations

import subprocess

import pytest

from hpcnb.cluster.export.batch import batch_job
from hpcnb.cluster.export.setting import Setting
from hpcnb.core.errors import ExportError
from hpcnb.core.mesh import MeshSpec


def job(script="train.py", **fields):
    text = batch_job(Setting(MeshSpec.parse("dp=4"), **fields), script=script, job=script.replace(".py", ".sbatch"))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def options(text):
    return [line.removeprefix("#SBATCH ") for line in text.split("\n") if line.startswith("#SBATCH")]


def test_one_machine():
    text = job(threads_per_rank=2, python="/opt/my python/bin/python")
    assert options(text) == ["--job-name=train", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=8"]
    assert "'/opt/my python/bin/python' -m torch.distributed.run" in text
    assert "--nproc-per-node 4 " in text
    assert "export OMP_NUM_THREADS=2\n" in text


def test_what_the_cluster_was_started_with():
    given = {
        "partition": "debug", "time": "1:30:00", "account": "me", "constraint": "a100&nvlink", "gpus_per_node": 2,
        "cpus_per_node": 16, "setup": "source env.sh", "srun": "--reservation=x -q high --mpi=none", "nodes": 2,
    }  # fmt: skip
    text = job(layout=(2, 2), launcher="slurm", launcher_options=given)
    assert options(text) == [
        "--job-name=train", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=16", "--partition=debug",
        "--time=1:30:00", "--account=me", "--constraint='a100&nvlink'", "--gpus-per-node=2", "--reservation=x",
        "-q high",
    ]  # fmt: skip
    assert "\nsource env.sh\n" in text
    assert "--kill-on-bad-exit=1 --mpi=none \\\n" in text
    assert '--rdzv-backend c10d --rdzv-endpoint "$first:$port"' in text


def test_options_of_other_launchers_are_not_for_slurm():
    text = job(layout=(2, 2), launcher="ssh", launcher_options={"hosts": "n1,n2", "user": "me", "setup": "source e.sh"})
    assert options(text) == ["--job-name=train", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
    assert "\nsource e.sh\n" in text


def test_gpus_that_ranks_used():
    assert "--gpus-per-node=2" in options(job(devices=("cuda:0", "cuda:1", "cuda:0", "cuda:1")))
    assert "--gpus-per-node=1" in options(job(layout=(1,) * 4, devices=("cuda:0",) * 4))


def test_odd_names_are_quoted():
    text = job("my runs/it's.py")
    assert "'my runs/it'\"'\"'s.py'" in text
    assert options(text)[0] == "--job-name='it'\"'\"'s'"


def test_nodes_with_different_numbers_of_ranks():
    with pytest.raises(ExportError, match="have 2, 1, 1 ranks, and a batch job starts the same number on each"):
        job(layout=(2, 1, 1))
