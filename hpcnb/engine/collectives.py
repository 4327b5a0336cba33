"""The collectives as methods of a process group: what each is called, what ranks must agree on, how its work is seen.

Knows the arguments of torch's methods; the group itself issues an operation and hands it over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hpcnb.core.spans import Flag
from hpcnb.engine.work import RecordedWork

if TYPE_CHECKING:
    from hpcnb.engine.guard import Channel, Guard
    from hpcnb.engine.process_group import HpcnbProcessGroup
    from hpcnb.engine.recorder import Backward, Recorder

__all__ = ["methods", "tensors_of"]

#: method of ProcessGroup: (name a person reads, position of the tensors that this rank contributes)
_COLLECTIVES: dict[str, tuple[str, int]] = {
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce", 0),
    "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0),
    "allgather": ("all_gather", 1),
    "_allgather_base": ("all_gather", 1),
    "all_gather_single": ("all_gather", 1),
    "all_gather_single_coalesced": ("all_gather", 1),
    "allgather_into_tensor_coalesced": ("all_gather", 1),
    "allgather_coalesced": ("all_gather", 1),
    "reduce_scatter": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1),
    "alltoall": ("all_to_all", 1),
    "alltoall_base": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 1),
    "gather": ("gather", 1),
    "scatter": ("scatter", 0),
    "barrier": ("barrier", -1),
}

#: Methods whose options hold a reduce operation, or a root.
_REDUCING = frozenset(name for name in _COLLECTIVES if "reduce" in name)
_ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})
_REDUCE_OPERATIONS = {value: (name.lower(),) for name, value in dist.ReduceOp.RedOpType.__members__.items()}


def methods() -> dict[str, Callable[..., Any]]:
    """The methods of a group, by the name that torch calls them; some are renamed from release to release."""
    return {
        method: _collective(method, name, payload)
        for method, (name, payload) in _COLLECTIVES.items()
        if hasattr(dist.ProcessGroup, method)
    }


def tensors_of(given: object) -> list[torch.Tensor]:
    """Tensors of an argument, in order."""
    if isinstance(given, torch.Tensor):
        return [given]
    if isinstance(given, list | tuple):
        if len(given) == 1 and isinstance(given[0], torch.Tensor):
            return [given[0]]
        return [tensor for each in given for tensor in tensors_of(each)]
    return []


def _collective(method: str, name: str, payload: int) -> Callable[..., Any]:
    is_reducing, is_rooted, has_splits = method in _REDUCING, method in _ROOTED, name == "all_to_all"

    def collective(self: HpcnbProcessGroup, *args: Any, **kwargs: Any) -> Any:
        recorder = self.recorder
        options = kwargs.get("opts", args[-1] if args else None)
        flags = Flag.ASYNC if getattr(options, "asyncOp", False) else 0
        tensors = tensors_of(args[payload]) if 0 <= payload < len(args) else []
        details: tuple[str, ...] = ()
        root = -1
        if is_reducing and (reduce_operation := getattr(options, "reduceOp", None)) is not None:
            details = _REDUCE_OPERATIONS[reduce_operation.op]
        if is_rooted:
            root = getattr(options, "rootRank", -1)
            details = (*details, f"root {root}")
        published: list[tuple[Channel, int]] = []
        if has_splits:
            if method == "alltoall":
                parts = [[tensor.numel() for tensor in given] for given in args[:2]]
            else:
                parts = [_num_sent(args[0], args[2], self._size), _num_sent(args[1], args[3], self._size)]
            published = self._compare_parts(tensors[0].dtype, *parts)
            details, compared = (str(tensors[0].dtype).removeprefix("torch."),) if tensors else (), []
        else:
            compared = tensors
        operation = self._issue(name, compared, details, root, flags)
        task = torch._C._current_graph_task_id()
        if task != -1:
            backward, is_new = recorder.backward(task)
            operation.backward = backward
            if is_new:
                _on_backward_end(recorder, self.guard, backward)
        inner = self._hand_over(operation, method, args, kwargs, published)
        if inner is None:
            return None
        in_slices = not self._has_accelerator or (bool(tensors) and tensors[0].device.type == "cpu")
        work = RecordedWork(inner, operation, recorder, self.guard, in_slices=in_slices)
        if flags & Flag.ASYNC:
            work.tensors = tensors
            recorder.opened(operation)
            if operation.backward is None or not recorder.is_last_bucket(operation.backward):
                work.watch()
        return work

    collective.__name__ = method
    return collective


def _num_sent(tensor: torch.Tensor, splits: Any, size: int) -> list[int]:
    """Elements of ``tensor`` for each rank of the group; equal parts where no splits are given."""
    if not splits:
        return [tensor.numel() // size] * size
    rows = max(1, tensor.shape[0]) if tensor.dim() else 1
    return [tensor.numel() // rows * int(split) for split in splits]


def _on_backward_end(recorder: Recorder, guard: Guard, backward: Backward) -> None:
    """Tell the recorder when gradients are computed, and when DDP, which waits right after that, is done waiting.

    The engine runs callbacks in the order they were queued, also those queued by callbacks: ours, DDP's, ours.
    """
    queue = torch.autograd.Variable._execution_engine.queue_callback

    def computed() -> None:
        recorder.backward_ended(backward)
        queue(settled)

    def settled() -> None:
        recorder.backward_settled()
        if backward.is_abandoned:  # DDP went on with gradients that nobody has reduced
            raise guard.error(*recorder.last_wait())

    queue(computed)
