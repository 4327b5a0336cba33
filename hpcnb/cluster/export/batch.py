"""Setting -> the text of a batch job for Slurm that runs a script on as many nodes as the cells had. Pure."""

from __future__ import annotations

import shlex

from hpcnb.cluster.export.setting import Setting
from hpcnb.core.errors import ExportError

__all__ = ["batch_job"]

#: Options of srun that sbatch does not know.
_OF_STEPS = ("--mpi", "--cpu-bind", "--mem-bind", "--gpu-bind", "--label", "-l", "--unbuffered", "-u", "--overlap",
             "--exact", "--network", "--resv-ports", "--input", "--multi-prog")  # fmt: skip

_JOB = """\
#!/bin/bash
# {title}
# Submit it in the folder that the notebook ran in:  sbatch {job}
{options}

set -euo pipefail
{setup}export OMP_NUM_THREADS={threads}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# a port that another job of the same node does not take
port=$((20000 + SLURM_JOB_ID % 10000))
srun --ntasks-per-node=1 --cpus-per-task={cpus} --kill-on-bad-exit=1{step_options} \\
    {python} -m torch.distributed.run \\
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node {ranks_per_node} \\
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:$port" \\
    {script}
"""


def batch_job(setting: Setting, *, script: str, job: str) -> str:
    """The text of ``train.sbatch``.

    Args:
        setting: What the cells ran in.
        script: Path of the script, as seen from the folder that the job is submitted in.
        job: Path of the batch job.

    Raises:
        ExportError: Nodes have different numbers of ranks, which torchrun does not place as the notebook did.
    """
    layout = setting.layout or (setting.world_size,)
    if len(set(layout)) > 1:
        msg = (
            f"--sbatch: the nodes of this cluster have {', '.join(map(str, layout))} ranks, and a batch job starts the "
            "same number on each; export without --sbatch, or start the cluster with --ranks-per-node"
        )
        raise ExportError(msg)
    given = setting.launcher_options
    of_slurm = given if setting.launcher == "slurm" else {}
    cpus = of_slurm.get("cpus_per_node") or layout[0] * setting.threads_per_rank
    gpus = of_slurm.get("gpus_per_node") or _num_gpus(setting, layout[0])
    of_job, of_step = _sorted(of_slurm.get("srun") or "")
    lines = [
        f"--job-name={shlex.quote(job.rpartition('/')[2].removesuffix('.sbatch'))}",
        f"--nodes={len(layout)}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}",
        *(
            f"--{name}={shlex.quote(str(value))}" for name in ("partition", "time", "account", "constraint")
            if (value := of_slurm.get(name)) is not None
        ),
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        *of_job,
    ]  # fmt: skip
    nodes = f"{len(layout)} node{'s' if len(layout) > 1 else ''} x {layout[0]} rank{'s' if layout[0] > 1 else ''}"
    setup = given.get("setup")
    when = f", {setting.written}" if setting.written else ""
    return _JOB.format(
        title=f"{script} on {nodes}, as in the notebook; written by hpcnb{when}",
        job=shlex.quote(job), script=shlex.quote(script), options="\n".join(f"#SBATCH {line}" for line in lines),
        setup=f"{setup}\n" if setup else "", threads=setting.threads_per_rank, cpus=cpus, ranks_per_node=layout[0],
        step_options="".join(f" {shlex.quote(word)}" for word in of_step), python=shlex.quote(setting.python),
    )  # fmt: skip


def _num_gpus(setting: Setting, ranks_per_node: int) -> int:
    """GPUs that the ranks of a node used."""
    return len({device for device in setting.devices[:ranks_per_node] if device.partition(":")[0] not in ("", "cpu")})


def _sorted(options: str) -> tuple[list[str], list[str]]:
    """More options of srun: lines for the job, and words for the step."""
    of_job: list[str] = []
    of_step: list[str] = []
    flags: list[list[str]] = []
    for word in options.split():  # as the launcher takes them apart
        if word.startswith("-") or not flags:
            flags.append([word])
        else:
            flags[-1].append(word)
    for words in flags:
        if words[0].partition("=")[0] in _OF_STEPS:
            of_step += words
        else:
            of_job.append(" ".join(map(shlex.quote, words)))
    return of_job, of_step
