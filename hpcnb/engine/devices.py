"""The device of a rank and the backend its collectives use: the only module that names accelerators.

The template imports it and calls :func:`check_untouched`; everything else here is called after the fork only.
"""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

__all__ = ["abort", "accelerator_backend", "check_untouched", "device_types", "select_device"]


def check_untouched() -> None:
    """Before a fork: an accelerator that was initialised here could not be used in any rank."""
    assert not torch.cuda.is_initialized(), "the template must not initialise CUDA: forked ranks could not use it"


def select_device(local_rank: int) -> torch.device:
    """One accelerator per rank by local rank, the CPU where there is none.

    Ranks share accelerators in turn when there are more ranks than devices. ``CUDA_VISIBLE_DEVICES`` is left as
    it is, so that it can still be read: ranks choose by index among what it shows.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    device = torch.device(accelerator.type, local_rank % torch.accelerator.device_count())
    torch.accelerator.set_device_index(device.index)
    return device


def device_types() -> list[str]:
    """Device types that the process group serves on this machine."""
    types = ["cpu"]
    if torch.cuda.is_available() and dist.is_nccl_available():
        types.append("cuda")
    return types


def accelerator_backend(
    store: dist.Store, rank: int, size: int, timeout: datetime.timedelta
) -> tuple[torch.device, Any, Any] | None:
    """NCCL beside gloo where there are GPUs: (device, backend type, backend); None without."""
    if "cuda" not in device_types():
        return None
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    backend = c10d.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)
    return torch.device("cuda"), dist.ProcessGroup.BackendType.NCCL, backend


def abort(group: Any) -> None:
    """End what waits in the accelerator's backend of this group; from any thread."""
    backend = group._get_backend(torch.device("cuda"))
    backend.abort()
