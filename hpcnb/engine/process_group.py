"""The ``hpcnb`` process group: the single place where every collective of a rank passes.

A ``ProcessGroup`` in Python over an inner group of torch's own backends (gloo, and NCCL where there are GPUs).
DDP, FSDP2, DTensor, functional collectives and ``torch.distributed`` calls all come through it, from Python or
through torch's trampolines from C++. It gives a group an identity that outlives its connections: the inner
group can be replaced under a new generation while meshes and wrappers keep the object they hold.

It asks the guard, forwards and records; it changes no number. The recorder decides what a record holds. Which method is
which collective is in collectives.py.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from hpcnb.core.board import ANYBODY, stamp
from hpcnb.core.errors import CollectiveAborted
from hpcnb.core.messages import Rebuild, Scale
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import Kind
from hpcnb.engine import collectives, devices, sockets
from hpcnb.engine.guard import raise_instead
from hpcnb.engine.work import AnySourceWork, RecordedWork

if TYPE_CHECKING:
    from hpcnb.engine.guard import Channel, Guard
    from hpcnb.engine.recorder import Operation, Recorder

__all__ = ["BACKEND", "HpcnbProcessGroup", "num_bytes_of"]

BACKEND = "hpcnb"

#: Instead of a tag: what ranks send each other within an all_to_all.
_ALL_TO_ALL = -1


def num_bytes_of(tensors: object) -> int:
    """Bytes of a tensor, or of all tensors in nested lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    if isinstance(tensors, list | tuple):
        return sum(num_bytes_of(each) for each in tensors)
    return 0


class HpcnbProcessGroup(dist.ProcessGroup):
    """A process group over a replaceable inner one.

    Args:
        store: Key-value store of the group, prefixed with its name.
        rank: This process in the group.
        size: Number of processes in the group.
        timeout: Of every operation.
        is_hollow: It is not connected, and will not be.
    """

    recorder: Recorder  #: set once per rank, before the first group is made
    guard: Guard

    def __init__(
        self, store: dist.Store, rank: int, size: int, timeout: datetime.timedelta, *, is_hollow: bool = False
    ) -> None:
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
        self._channel: Channel | None = None
        self._peer_channels: dict[tuple[int, int, int], Channel] = {}
        #: Listening ports of the connections, of all ranks: what tells them from other sockets of the process.
        self.ports: frozenset[int] = frozenset()
        self._lost = ""  #: why this group was not built again; "" if it was
        self.is_given_up = False  #: ... and will never be
        self._has_accelerator = False
        self._keys: list[str] = []  # that this rank has set to be found, under the last generations
        self._inner = self._hollow() if is_hollow else self._connect()

    def _connect(self) -> Any:
        """Connect to the other ranks, under the generation that all are in."""
        store = self.guard.store
        with contextlib.nullcontext() if store is None else store.remembering(self._keys):
            return self._new_inner()

    def _hollow(self) -> Any:
        """Instead of a group that is connected."""
        self.ports, self._has_accelerator = frozenset(), False
        return dist.ProcessGroup(self._store, self._rank, self._size)

    def _new_inner(self) -> Any:
        store = dist.PrefixStore(f"generation{self.guard.generation}", self._store)
        inner: Any = dist.ProcessGroup(store, self._rank, self._size)
        kinds = dist.ProcessGroup.BackendType
        before = sockets.listening_ports()
        gloo = c10d.ProcessGroupGloo(store, self._rank, self._size, timeout=self._timeout)
        gloo._set_sequence_number_for_group()
        mine = sockets.listening_ports() - before
        store.set(f"ports/{self._rank}", ",".join(map(str, mine)))
        told = store.multi_get([f"ports/{rank}" for rank in range(self._size)])
        self.ports = frozenset(int(port) for ports in told for port in ports.decode().split(",") if port)
        inner._set_default_backend(kinds.GLOO)
        inner._register_backend(torch.device("cpu"), kinds.GLOO, gloo)
        accelerated = devices.accelerator_backend(store, self._rank, self._size, self._timeout)
        if accelerated is not None:
            device, kind, backend = accelerated
            inner._register_backend(device, kind, backend)
            self._has_accelerator = True
        inner._set_group_name(self._name or "hpcnb")
        inner._set_group_desc(self._description or "hpcnb")
        return inner

    def resize(self, size: int) -> None:
        """The group of all ranks has so many from now on; to be followed by :meth:`rebuild` on all of them."""
        self._size = size
        c10d._world.pg_group_ranks[self] = {rank: rank for rank in range(size)}
        # another size is another sequence of operations: what the board and the spans call it holds the ranks
        self._label_number, self._members, self._channel = 0, [], None
        self._peer_channels.clear()

    def give_up(self, gone: RankSet, world_size: int) -> Any:
        """Some of its ranks are gone for good, and the cluster has so many now; returns what was connected."""
        self.is_given_up = True
        are = "is" if len(gone) == 1 else "are"
        self._lost = (
            f"{gone.words()} of its group of ranks {RankSet(self.members())} {are} gone, since the cluster was "
            f"brought to {world_size} rank{'' if world_size == 1 else 's'}; make the group or mesh again, and what was "
            "made with it (DDP, fully_shard)"
        )
        before, self._inner = self._inner, self._hollow()
        return before

    def rebuild(self, order: Rebuild | Scale) -> Any:
        """Replace the connections by new ones; returns what was connected before.

        Every rank of the group must do so, in the same order. Objects that hold this group go on working;
        operations under way on the old connections fail. A group with a dead rank stays without connections.
        """
        self._sequence = 0
        self._peer_sequence.clear()
        if isinstance(order, Scale) and (gone := RankSet(self.members()) - RankSet.all(order.world_size)):
            return self.give_up(gone, order.world_size)
        missing = RankSet(self.members()) & order.dead
        if missing:
            self._lost = f"{missing.words()} ended; %hpc restart-rank brings {_pronoun(missing)} back"
            return None
        if str(self._name) in order.partial:
            self._lost = "not all of its ranks have it any more; make it again on all of them"
            return None
        num_stale = len(self._keys)
        before, self._inner = self._inner, self._connect()
        # all ranks of the group have set keys of this generation, so none of them reads earlier ones any more
        for key in self._keys[:num_stale]:
            self.guard.store.delete_key(key)
        del self._keys[:num_stale]
        self._lost = ""
        return before

    def members(self) -> list[int]:
        """Global ranks, in the order of the group."""
        members = c10d._world.pg_group_ranks.get(self, {})
        return sorted(members, key=members.__getitem__)

    def accelerated(self) -> list[Any]:
        """The connected group, if an accelerator's backend is in it."""
        return [self._inner] if self._has_accelerator else []

    # --- what torch asks of a group -------------------------------------------------------------------------

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return BACKEND

    def name(self) -> str:
        return BACKEND

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def getSize(self) -> int:  # noqa: N802 - what C++ asks: DDP divides by it
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
        operation = self._issue("monitored_barrier", [], (), -1, 0)
        limit = timeout or self._timeout
        with self._waiting(operation):
            try:
                self._inner.monitored_barrier(limit, wait_all_ranks=wait_all_ranks)
            except RuntimeError:
                # gloo names them on the first rank only, and in its own words; the board knows them on all of one node
                if operation.channel is not None and (late := self.guard.missing(operation.channel, operation.stamp)):
                    verb = "has" if len(late) == 1 else "have"
                    self.guard.break_groups(f"{late.words()} {verb} not called it within {limit.total_seconds():g} s")
                raise

    @contextlib.contextmanager
    def _waiting(self, operation: Operation) -> Iterator[None]:
        """The body blocks in this operation."""
        recorder, guard = self.recorder, self.guard
        began_ns = recorder.begin_wait(operation)
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - raised again, in the words of a person
            recorder.end_wait(operation, began_ns, failed=True)
            if operation.channel is not None:
                guard.given_up(operation.channel, operation.stamp)
            waited_s = recorder.seconds_since(began_ns)
            raise_instead(error, guard.explained(error, recorder.words(operation), waited_s))
        recorder.end_wait(operation, began_ns)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def abort(self) -> None:
        self._inner.abort()

    # --- before an operation --------------------------------------------------------------------------------

    def _identify(self) -> int:
        """String of the group's name and members: the same text on its ranks and on no others."""
        self._members = self.members()
        if not self._members:  # asked before torch has registered the group
            return 0
        name = str(self._description or self._name)
        name = {"default_pg": "all ranks", "undefined": "group"}.get(name, name.removeprefix("mesh_"))
        self._label_number = self.recorder.ring.intern(f"{name} [{RankSet(self._members)}]")
        self._channel = self.guard.collectives(str(self._name), self._members)
        return self._label_number

    def _begin_cell(self, cell: int) -> None:
        # operations are counted cell by cell: one that a rank refused in an earlier cell must not shift all later ones
        self._cell = cell
        self._sequence = 0
        self._peer_sequence.clear()

    def _issue(
        self, name: str, tensors: list[torch.Tensor], details: tuple[str, ...], root: int, flags: int
    ) -> Operation:
        """Ask the guard about a collective and begin its record.

        Raises:
            CollectiveError: It cannot be issued.
        """
        recorder, guard = self.recorder, self.guard
        if recorder.cell != self._cell:
            self._begin_cell(recorder.cell)
        if self._lost:
            raise CollectiveAborted(f"{name} cannot be called: {self._lost}")
        label = self._label_number or self._identify()
        signature = guard.signature(name, tensors, details)
        line, source = recorder.place(2)
        channel = self._channel
        stamped = guard.issue(channel, signature, line, source) if channel is not None else 0
        self._sequence += 1
        peer = self._members[root] if 0 <= root < len(self._members) else -1
        operation = recorder.issue(
            Kind.COLLECTIVE, recorder.ring.intern(name), label, self._sequence, peer, num_bytes_of(tensors), flags
        )
        operation.line, operation.source = line, source
        operation.stamp, operation.channel = stamped, channel
        return operation

    def _issue_to_peer(self, name: str, tensors: list[torch.Tensor], peer: int, tag: int) -> Operation:
        """The same for a message to or from a peer (its rank in the group)."""
        recorder, guard = self.recorder, self.guard
        if recorder.cell != self._cell:
            self._begin_cell(recorder.cell)
        if self._lost:
            raise CollectiveAborted(f"{name} cannot be called: {self._lost}")
        label = self._label_number or self._identify()
        signature = guard.signature("message", tensors, ())
        line, source = recorder.place(2)
        is_send = name == "send"
        channel = self._peer_channels.get((is_send, peer, tag))
        if channel is None:
            ends = (self._members[self._rank], self._members[peer])
            sender, receiver = ends if is_send else ends[::-1]
            channel = guard.messages(str(self._name), sender, receiver, tag)
            self._peer_channels[is_send, peer, tag] = channel
        stamped = guard.issue(channel, signature, line, source)
        key = (name, peer)
        sequence = self._peer_sequence[key] = self._peer_sequence.get(key, 0) + 1
        operation = recorder.issue(
            Kind.POINT_TO_POINT, recorder.ring.intern(name), label, sequence, self._members[peer],
            num_bytes_of(tensors), 0,
        )  # fmt: skip
        operation.line, operation.source = line, source
        operation.stamp, operation.channel = stamped, channel
        return operation

    def _receive_from_anybody(self, tensors: list[torch.Tensor], tag: int) -> Operation:
        """What a rank is in until somebody has sent: nothing is issued before that."""
        recorder, key = self.recorder, ("recv", ANYBODY)
        if recorder.cell != self._cell:
            self._begin_cell(recorder.cell)
        self._peer_sequence[key] = self._peer_sequence.get(key, 0) + 1
        operation = recorder.issue(
            Kind.POINT_TO_POINT, recorder.ring.intern("recv from any rank"), self._label_number,
            self._peer_sequence[key], ANYBODY, num_bytes_of(tensors), 0,
        )  # fmt: skip
        operation.line, operation.source = recorder.place(2)
        operation.stamp, operation.channel = stamp(self.guard.generation, tag), self._channel
        return operation

    def _compare_parts(self, dtype: torch.dtype, received: list[int], sent: list[int]) -> list[tuple[Channel, int]]:
        """Compare with every peer what this rank sends to it and expects from it in an all_to_all.

        Returns:
            Channels and stamps under which that was published.

        Raises:
            CollectiveError: It cannot be issued.
        """
        if not self._label_number:
            self._identify()
        guard, name, me = self.guard, str(self._name), self._rank
        line, source = self.recorder.place(2)
        published = []
        for peer, member in enumerate(self._members):
            if peer != me:
                outgoing = guard.messages(name, self._members[me], member, _ALL_TO_ALL)
                published.append((outgoing, guard.issue(outgoing, guard.part(dtype, sent[peer]), line, source)))
                incoming = guard.messages(name, member, self._members[me], _ALL_TO_ALL)
                published.append((incoming, guard.issue(incoming, guard.part(dtype, received[peer]), line, source)))
        return published

    def _hand_over(
        self,
        operation: Operation,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parts: Iterable[tuple[Channel, int]] = (),
    ) -> Any:
        """Give the operation to the backend; what the backend refuses at once was never issued."""
        guard = self.guard
        try:
            return getattr(self._inner, method)(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised again, in the words of a person
            is_refused = isinstance(error, Exception)  # an interrupt arrives when the backend has it
            published = [*parts, (operation.channel, operation.stamp)]
            for channel, stamped in published:
                if channel is not None:
                    (guard.refused if is_refused else guard.given_up)(channel, stamped)
            explained = guard.explained(
                error, self.recorder.words(operation), 0.0, in_wait=not is_refused or bool(guard.broken)
            )
            try:
                if explained is error:
                    raise
                raise explained from None
            finally:
                del explained  # it would hold this frame, and the frame it

    def _next_sender(self, tag: int) -> int:
        """Rank in the group of somebody whose message to this rank has not been received; -1 if there is none."""
        for peer, sender in enumerate(self._members):
            received = self._peer_channels.get((False, peer, tag))
            num_received = self.guard.num_issued(received) if received is not None else 0
            if peer != self._rank and self.guard.sent(str(self._name), sender, tag) > num_received:
                return peer
        return -1


def _pronoun(ranks: RankSet) -> str:
    return "it" if len(ranks) == 1 else "them"


def _point_to_point(method: str) -> Callable[..., Any]:
    def operation(self: HpcnbProcessGroup, *args: Any, **kwargs: Any) -> Any:
        tensors, peer, tag = args[0], int(args[1]), int(args[2] if len(args) > 2 else kwargs.get("tag", 0))
        issued = self._issue_to_peer(method, collectives.tensors_of(tensors), peer, tag)
        inner = self._hand_over(issued, method, args, kwargs)
        return None if inner is None else RecordedWork(inner, issued, self.recorder, self.guard, in_slices=False)

    operation.__name__ = method
    return operation


def _recv_anysource(self: HpcnbProcessGroup, tensors: list[torch.Tensor], tag: int) -> dist.Work:
    if not self._label_number:
        self._identify()
    return AnySourceWork(
        lambda: self._next_sender(tag),
        lambda sender: self.recv(tensors, sender, tag),  # type: ignore[no-any-return, unused-ignore]
        self._receive_from_anybody(tensors, tag),
        self.recorder,
        self.guard,
    )


for _method, _function in collectives.methods().items():
    setattr(HpcnbProcessGroup, _method, _function)
for _method in ("send", "recv"):
    setattr(HpcnbProcessGroup, _method, _point_to_point(_method))
HpcnbProcessGroup.recv_anysource = _recv_anysource  # type: ignore[method-assign,assignment]
