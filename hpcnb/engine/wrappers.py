"""Makes torch's own wrappers ready again after communication was cut in the middle of a step.

A group keeps its identity when it is built again, so meshes, DTensors and whatever holds a group go on working.
Wrappers that keep the state of a step need more: FSDP2 and DDP have functions for it, pipelines forget the microbatches
that were under way.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["make_ready"]


def make_ready(names: Mapping[str, Any]) -> list[str]:
    """Make all wrappers of this process ready; says which could not be, and what to type.

    Args:
        names: The user's, to say which object is meant.
    """
    words = {id(value): name for name, value in names.items() if not name.startswith("_")}
    notices = []
    for wrapper, mend in list(_wrappers(gc.get_objects())):
        try:
            mend(wrapper)
        except Exception as error:  # noqa: BLE001 - private parts of torch: what fails is told with the remedy
            kind = type(wrapper).__name__
            name = words.get(id(wrapper), "")
            again = f"run  {name} = {kind}({name}.module)" if hasattr(wrapper, "module") and name else "make it again"
            notices.append(
                f"`{name or kind}` ({kind}) was in the middle of a step and cannot be made ready "
                f"({type(error).__name__}: {error}): {again}"
            )
    return notices


def _wrappers(objects: Iterable[object]) -> Iterable[tuple[Any, Callable[[Any], None]]]:
    mend_of: dict[type, Callable[[Any], None]] = {}
    for kind, mend in _kinds():
        kinds = [kind]
        while kinds:
            each = kinds.pop()
            mend_of[each] = mend
            kinds += type.__subclasses__(each)
    # looked up by exact type: isinstance asks proxies, which may do anything, and there are many objects
    return [(each, mend_of[type(each)]) for each in objects if type(each) in mend_of]


def _kinds() -> list[tuple[type, Callable[[Any], None]]]:
    """Wrappers whose modules have been imported: nobody has others."""
    kinds: list[tuple[type, Callable[[Any], None]]] = []
    for module, name, mend in (
        ("torch.nn.parallel.distributed", "DistributedDataParallel", _mend_ddp),
        ("torch.distributed.fsdp", "FSDPModule", _mend_fsdp),
        ("torch.distributed.pipelining.stage", "_PipelineStageBase", _mend_stage),
        ("torch.distributed.pipelining.schedules", "_PipelineSchedule", _mend_schedule),
    ):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            kinds.append((kind, mend))
    return kinds


def _mend_ddp(ddp: Any) -> None:
    # made for a group that changes: forgets the step that was under way, and rebuilds its buckets on all ranks alike
    ddp._update_process_group(ddp.process_group)


def _mend_fsdp(module: Any) -> None:
    state = module._get_fsdp_state()
    if state._is_root:  # others are reached through it; None before the first forward pass
        module.reset_iter_state()


def _mend_stage(stage: Any) -> None:
    stage.clear_runtime_states()
    stage.fwd_cache.clear()
    stage.bwd_cache.clear()


def _mend_schedule(schedule: Any) -> None:
    schedule._internal_losses.clear()
