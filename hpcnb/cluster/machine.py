"""What this machine offers, asked without importing torch or waking an accelerator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpcnb.core.errors import UnsupportedPlatform

__all__ = ["check_platform", "default_num_ranks", "num_accelerators", "num_cores", "threads_per_rank"]

#: Without accelerators, a start that names no number uses at most so many ranks.
_MAX_DEFAULT_RANKS = 4


def check_platform(platform: str = sys.platform) -> None:
    """Raise UnsupportedPlatform where ranks cannot run."""
    if platform != "linux":
        msg = (
            f"ranks need Linux (fork, memfd, pidfd), and this is {platform}; notebooks, saved timelines and plots work "
            "here. Start the cluster on a Linux machine: JupyterHub, a container, WSL 2 or a remote server"
        )
        raise UnsupportedPlatform(msg)


def num_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_accelerators() -> int:
    """NVIDIA GPUs that processes started from here will see: CUDA_VISIBLE_DEVICES, else what the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = []
        for device in visible.split(","):
            if device.strip() in ("", "-1"):
                break  # CUDA ignores what follows an invalid entry
            devices.append(device)
        return len(devices)
    listed = Path("/proc/driver/nvidia/gpus")
    return len(list(listed.iterdir())) if listed.is_dir() else 0


def default_num_ranks() -> int:
    """One rank per accelerator, else one per core up to four."""
    return num_accelerators() or min(num_cores(), _MAX_DEFAULT_RANKS)


def threads_per_rank(num_ranks: int) -> int:
    """Cores divided by ranks, at least 1."""
    return max(1, num_cores() // num_ranks)
