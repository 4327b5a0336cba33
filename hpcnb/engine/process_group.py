"""The ``hpcnb`` process group: the single place where every collective of a rank passes.

A ``ProcessGroup`` in Python over an inner group of torch's own backends (gloo, and NCCL where there are GPUs).
DDP, FSDP2, DTensor, functional collectives and ``torch.distributed`` calls all come through it, from Python or
through torch's trampolines from C++. It gives a group an identity that outlives its connections: the inner
group can be replaced under a new generation while meshes and wrappers keep the object they hold.

It forwards and records; it changes no number. The recorder decides what a record holds.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import Flag, Kind
from hpcnb.engine import devices

if TYPE_CHECKING:
    from hpcnb.engine.recorder import Backward, Operation, Recorder

__all__ = ["BACKEND", "HpcnbProcessGroup", "rebuild_groups", "register"]

BACKEND = "hpcnb"

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
_POINT_TO_POINT = ("send", "recv", "recv_anysource")
#: what a Work can do besides waiting; handed through to the inner work
_WORK_METHODS = ("is_completed", "is_success", "exception", "result", "source_rank", "synchronize", "abort", "boxed")


def num_bytes_of(tensors: object) -> int:
    """Bytes of a tensor, or of all tensors in nested lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    if isinstance(tensors, list | tuple):
        return sum(num_bytes_of(each) for each in tensors)
    return 0


class RecordedWork(dist.Work):
    """A Work whose waits are seen, from Python and, through torch's PyWork trampoline, from C++."""

    def __init__(self, inner: dist.Work, operation: Operation, recorder: Recorder) -> None:
        super().__init__()
        self._inner = inner
        self._operation = operation
        self._recorder = recorder
        self._watched = False

    def wait(self, *timeout: Any) -> bool:
        began_ns = self._recorder.begin_wait(self._operation)
        try:
            done: bool = self._inner.wait(*timeout)
        except BaseException:
            self._recorder.end_wait(self._operation, began_ns, failed=True)
            raise
        self._recorder.end_wait(self._operation, began_ns)
        return done

    def watch(self) -> None:
        """Learn of the completion from the backend, at the price of a callback on its thread."""
        if self._watched:
            return
        try:
            future = self._inner.get_future()
        except RuntimeError:
            return  # gloo's send, recv and reduce_scatter have no future; their wait tells
        self._watched = True
        operation, recorder = self._operation, self._recorder
        future.add_done_callback(lambda _: recorder.completed(operation))

    def get_future(self) -> torch.futures.Future[Any]:
        self._recorder.waited_through_future(self._operation)
        future = self._inner.get_future()
        self._operation.is_done = future.done
        return future

    def getFuture(self) -> torch.futures.Future[Any]:  # noqa: N802 - the name C++ looks for
        return self.get_future()


def _delegate(name: str) -> Callable[..., Any]:
    def method(self: RecordedWork, *args: Any) -> Any:
        return getattr(self._inner, name)(*args)

    method.__name__ = name
    return method


for _name in _WORK_METHODS:
    if hasattr(dist.Work, _name):
        setattr(RecordedWork, _name, _delegate(_name))


class HpcnbProcessGroup(dist.ProcessGroup):
    """A process group over a replaceable inner one.

    Args:
        store: Key-value store of the group, prefixed with its name.
        rank: This process in the group.
        size: Number of processes in the group.
        timeout: Of every operation.
    """

    recorder: Recorder | None = None  #: set once per rank, before the first group is made
    _num_made = 0

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg] # the stub has one signature of two
        self._store = store
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._name: Any = ""
        self._description: Any = ""
        self._cell = 0
        self._sequence = 0
        self._peer_sequence: dict[tuple[str, int], int] = {}
        self._label_number = 0
        self._members: list[int] = []
        self._inner = self._connect(store)
        HpcnbProcessGroup._num_made += 1
        self._made = HpcnbProcessGroup._num_made

    def _connect(self, store: dist.Store) -> Any:
        inner: Any = dist.ProcessGroup(store, self._rank, self._size)
        kinds = dist.ProcessGroup.BackendType
        gloo = c10d.ProcessGroupGloo(store, self._rank, self._size, timeout=self._timeout)
        gloo._set_sequence_number_for_group()
        inner._set_default_backend(kinds.GLOO)
        inner._register_backend(torch.device("cpu"), kinds.GLOO, gloo)
        accelerated = devices.accelerator_backend(store, self._rank, self._size, self._timeout)
        if accelerated is not None:
            device, kind, backend = accelerated
            inner._register_backend(device, kind, backend)
        inner._set_group_name(self._name or "hpcnb")
        inner._set_group_desc(self._description or "hpcnb")
        return inner

    def rebuild(self, generation: int) -> None:
        """Replace the connections by new ones. Every rank of the group must do so, in the same order.

        Objects that hold this group go on working; operations under way on the old connections fail.
        """
        self._inner = self._connect(dist.PrefixStore(f"generation{generation}", self._store))
        self._sequence = 0
        self._peer_sequence.clear()

    # --- what torch asks of a group -------------------------------------------------------------------------

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return BACKEND

    def name(self) -> str:
        return BACKEND

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    @property
    def group_name(self) -> Any:
        return self._name

    def _set_group_name(self, name: Any) -> None:
        self._name = name
        self._inner._set_group_name(name)

    @property
    def group_desc(self) -> Any:
        return self._description

    def _set_group_desc(self, description: Any) -> None:
        self._description = description
        self._inner._set_group_desc(description)

    def _get_backend(self, device: torch.device) -> Any:
        return self._inner._get_backend(device)

    def get_group_store(self) -> dist.Store:
        return self._store

    def set_timeout(self, timeout: datetime.timedelta) -> None:
        self._timeout = timeout
        self._inner.set_timeout(timeout)

    def monitored_barrier(self, timeout: datetime.timedelta | None = None, *, wait_all_ranks: bool = False) -> None:
        recorder = self.recorder
        if recorder is None or not recorder.enabled:
            self._inner.monitored_barrier(timeout, wait_all_ranks=wait_all_ranks)
            return
        operation = self._issue(recorder, "monitored_barrier", 0, -1, 0)
        began_ns = recorder.begin_wait(operation)
        failed = True
        try:
            self._inner.monitored_barrier(timeout, wait_all_ranks=wait_all_ranks)
            failed = False
        finally:
            recorder.end_wait(operation, began_ns, failed=failed)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def abort(self) -> None:
        self._inner.abort()

    # --- recording ------------------------------------------------------------------------------------------

    def _label(self, recorder: Recorder) -> int:
        """The group's name and members: the same text on its ranks and on no others."""
        if not self._label_number:
            members = c10d._world.pg_group_ranks.get(self)
            if members is None:  # asked before torch has registered the group
                return 0
            self._members = sorted(members, key=members.__getitem__)
            name = str(self._description or self._name)
            name = {"default_pg": "all ranks", "undefined": "group"}.get(name, name.removeprefix("mesh_"))
            self._label_number = recorder.ring.intern(f"{name} [{RankSet(self._members)}]")
        return self._label_number

    def _begin_cell(self, recorder: Recorder) -> None:
        # operations are matched cell by cell: one that a rank refused in an earlier cell must not shift all later ones
        if recorder.cell != self._cell:
            self._cell = recorder.cell
            self._sequence = 0
            self._peer_sequence.clear()

    def _issue(self, recorder: Recorder, name: str, num_bytes: int, root: int, flags: int) -> Operation:
        self._begin_cell(recorder)
        self._sequence += 1
        label = self._label(recorder)
        peer = self._members[root] if 0 <= root < len(self._members) else -1
        return recorder.issue(
            Kind.COLLECTIVE, recorder.ring.intern(name), label, self._sequence, peer, num_bytes, flags
        )

    def _issue_to_peer(self, recorder: Recorder, name: str, tensors: object, peer: int) -> Operation:
        self._begin_cell(recorder)
        key = (name, peer)
        sequence = self._peer_sequence[key] = self._peer_sequence.get(key, 0) + 1
        label = self._label(recorder)
        peer = self._members[peer] if 0 <= peer < len(self._members) else -1
        return recorder.issue(
            Kind.POINT_TO_POINT, recorder.ring.intern(name), label, sequence, peer, num_bytes_of(tensors), 0
        )


def _on_backward_end(recorder: Recorder, backward: Backward) -> None:
    """Tell the recorder when gradients are computed, and when DDP, which waits right after that, is done waiting.

    The engine runs callbacks in the order they were queued, also those queued by callbacks: ours, DDP's, ours.
    """
    queue = torch.autograd.Variable._execution_engine.queue_callback

    def computed() -> None:
        recorder.backward_ended(backward)
        queue(recorder.backward_settled)

    queue(computed)


def _recorded_collective(method: str, name: str, payload: int) -> Callable[..., Any]:
    def collective(self: HpcnbProcessGroup, *args: Any, **kwargs: Any) -> Any:
        recorder = self.recorder
        if recorder is None or not recorder.enabled:
            return getattr(self._inner, method)(*args, **kwargs)
        options = kwargs.get("opts", args[-1] if args else None)
        flags = Flag.ASYNC if getattr(options, "asyncOp", False) else 0
        root = getattr(options, "rootRank", -1)
        num_bytes = num_bytes_of(args[payload]) if 0 <= payload < len(args) else 0
        operation = self._issue(recorder, name, num_bytes, root, flags)
        task = torch._C._current_graph_task_id()
        if task != -1:
            backward, is_new = recorder.backward(task)
            operation.backward = backward
            if is_new:
                _on_backward_end(recorder, backward)
        inner = getattr(self._inner, method)(*args, **kwargs)
        if inner is None:
            return None
        work = RecordedWork(inner, operation, recorder)
        if flags & Flag.ASYNC:
            recorder.opened(operation)
            if operation.backward is None or not recorder.is_last_bucket(operation.backward):
                work.watch()
        return work

    collective.__name__ = method
    return collective


def _recorded_point_to_point(method: str) -> Callable[..., Any]:
    name = "recv" if method == "recv_anysource" else method

    def operation(self: HpcnbProcessGroup, *args: Any, **kwargs: Any) -> Any:
        recorder = self.recorder
        if recorder is None or not recorder.enabled:
            return getattr(self._inner, method)(*args, **kwargs)
        peer = args[1] if method != "recv_anysource" and len(args) > 1 else -1
        issued = self._issue_to_peer(recorder, name, args[0] if args else None, peer)
        inner = getattr(self._inner, method)(*args, **kwargs)
        return None if inner is None else RecordedWork(inner, issued, recorder)

    operation.__name__ = method
    return operation


for _method, (_readable, _payload) in _COLLECTIVES.items():
    if hasattr(dist.ProcessGroup, _method):  # torch renames some of them from release to release
        setattr(HpcnbProcessGroup, _method, _recorded_collective(_method, _readable, _payload))
for _method in _POINT_TO_POINT:
    setattr(HpcnbProcessGroup, _method, _recorded_point_to_point(_method))


def register(recorder: Recorder | None) -> None:
    """Make ``init_process_group("hpcnb")``, and every group and mesh axis after it, one of these."""
    HpcnbProcessGroup.recorder = recorder
    if BACKEND in dist.Backend.backend_list:
        return
    dist.Backend.register_backend(
        BACKEND,
        lambda options, _=None: HpcnbProcessGroup(
            options.store, options.group_rank, options.group_size, options.timeout
        ),
        extended_api=True,
        devices=devices.device_types(),
    )


def rebuild_groups(generation: int) -> int:
    """Replace the connections of all living groups of this rank, in the order they were made.

    Ranks: collective over all ranks; returns the number of groups that were rebuilt.
    """
    if not dist.is_initialized():
        msg = "the default process group was destroyed (dist.destroy_process_group) and is not made again; start anew"
        raise RuntimeError(msg)
    # those that torch knows: one that was destroyed may live on in a name of a single rank
    known = [group for group in c10d._world.pg_map if isinstance(group, HpcnbProcessGroup)]
    groups = sorted(known, key=lambda group: group._made)
    for group in groups:
        group.rebuild(generation)
    return len(groups)
