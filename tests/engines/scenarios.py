"""What goes wrong on one rank, and where the others are when it does: the table of test_scenarios.py.

A program is three turns of a loop over one communication; in the second turn the last rank gets into trouble.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

SETUP = """
import os, signal, time
import torch, torch.distributed as dist, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
kept = {"rank": rank, "tensor": torch.full((5,), float(rank))}
last = world_size - 1
"""


@dataclass(frozen=True)
class Place:
    """A communication: what is made before the loop, and what every turn does."""

    setup: str
    turn: str
    #: Names of operations that the explanation may say the others were in.
    operations: tuple[str, ...]


PLACES = {
    "all_reduce": Place("x = torch.ones(1000)", "{trouble}\ndist.all_reduce(x)", ("all_reduce",)),
    "barrier": Place("", "{trouble}\ndist.barrier()", ("barrier",)),
    "ddp_backward": Place(
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "model = DDP(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)))",
        "loss = model(torch.randn(16, 64)).square().mean()\n{trouble}\nloss.backward()",
        ("all_reduce",),
    ),
    "fsdp": Place(
        "from torch.distributed.fsdp import fully_shard\n"
        "model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))\n"
        "for layer in model:\n"
        "    if isinstance(layer, nn.Linear): fully_shard(layer)\n"
        "fully_shard(model)",
        "{trouble}\nmodel(torch.randn(16, 64)).square().mean().backward()",
        ("all_gather", "reduce_scatter", "all_reduce"),
    ),
    "pipeline": Place(
        "from torch.distributed.pipelining import PipelineStage, ScheduleGPipe\n"
        "stage = PipelineStage(nn.Linear(32, 32), rank, world_size, torch.device('cpu'))\n"
        "schedule = ScheduleGPipe(stage, 2, loss_fn=F.mse_loss)",
        "{trouble}\n"
        "arguments = [torch.randn(8, 32)] if rank == 0 else []\n"
        "schedule.step(*arguments, **({'target': torch.randn(8, 32)} if rank == last else {}))",
        ("send", "recv", "all_gather", "broadcast"),
    ),
}

#: What the last rank does in the second turn, and a word that the cell must say about it.
TROUBLES = {
    "raises": ("raise ValueError('trouble')", "raised  ValueError: trouble"),
    "exits": ("os._exit(3)", "ended its process with status 3"),
    "leaves": ("break", "ended the cell without it"),
    "desyncs": ("dist.broadcast(torch.ones(7), 0)", ""),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "SIGSTOP"),
}


def setup_of(place: str) -> str:
    """Source of the cell that makes what the program needs."""
    return SETUP + PLACES[place].setup


def program_of(place: str, trouble: str) -> str:
    """Source of the cell that gets into trouble."""
    source, _ = TROUBLES[trouble]
    trouble_lines = f"if turn == 1 and rank == last:\n    {source}"
    turn = PLACES[place].turn.replace("{trouble}", trouble_lines)
    return f"for turn in range(3):\n{textwrap.indent(turn, '    ')}\n'through'"


CHECK = """
import torch, torch.distributed as dist
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
(total.item(), "kept" in globals() and kept["rank"] == rank and bool((kept["tensor"] == rank).all()))
"""
