"""Brings the state of one healthy rank to the other ranks of its group: numbers in place, structure as values.

Every step is collective, and a problem of one rank is told to all before any tensor moves, so that nobody waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hpcnb.core.errors import OptionError
from hpcnb.core.ranks import RankSet
from hpcnb.core.replicas import default_axis, size_words
from hpcnb.engine import replicas

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["resync"]

#: Tensors are sent together up to so many bytes, as DDP does.
_BUCKET_BYTES = 25 << 20
_LOAD = "load a checkpoint on all ranks instead (torch.distributed.checkpoint)"


class _Slot(NamedTuple):
    """Where a tensor belongs in a state that is sent without its tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_device: bool  # where its parameter is; else in the host's memory, as Adam's step


class _Offer(NamedTuple):
    """What a rank says of itself before anything moves."""

    problem: str
    is_replacement: bool
    wants_rng: bool
    shapes: dict[str, tuple[tuple[int, ...], str]]  # path -> shape, data type


def resync(
    objects: tuple[object, ...], names: Mapping[str, object], mesh: DeviceMesh, *, axis: str | None,
    source: int | None, rng: bool, is_replacement: bool, wants_rng: bool,
) -> str:  # fmt: skip
    """Bring state from one rank to its group; see ``Hpc.resync``."""
    along = default_axis(replicas.mesh_spec(mesh), axis)
    group = replicas.group_of(mesh, along)
    members = RankSet(dist.get_process_group_ranks(group or dist.group.WORLD))
    found = _Found(members)
    problem = ""
    try:
        for path, held in replicas.named(objects, names, group).items():
            found.add(path, held)
    except OptionError as error:
        problem = str(error)
    offer = _Offer(problem, is_replacement, wants_rng, found.shapes)
    offers: list[Any] = [None] * len(members)
    dist.all_gather_object(offers, offer, group=group)
    by_rank: dict[int, _Offer] = dict(zip(members, offers, strict=True))
    chosen = _choose(by_rank, source, along)
    _compare(by_rank, chosen)
    # names may have been made in another order elsewhere
    states = [_State(found.stateful[path], chosen, group) for path in sorted(found.stateful)]
    moved = [found.tensors[path] for path in sorted(found.tensors)]
    moved += [tensor for state in states for tensor in state.tensors]
    num_bytes = _broadcast(moved, chosen, group)
    for state in states:
        state.load()
    # other ranks go on with numbers of their own, which dropout and shuffling on replicas need
    wanting = RankSet(rank for rank, each in by_rank.items() if each.wants_rng and rank != chosen)
    if rng and wanting:
        _bring_rng(chosen, wanting, group)
    rest = members - RankSet([chosen])
    if not rest:
        return f"rank {chosen} has no other rank to bring anything to"
    words = f"{len(moved)} tensors, {size_words(num_bytes)}, from rank {chosen} to {rest.words()}"
    return f"{words}; random number states to {wanting.words()}" if rng and wanting else words


# --- what is to be brought ----------------------------------------------------------------------------------


class _Found:
    """What a rank is asked to bring or take.

    Args:
        members: Ranks of the group.
    """

    def __init__(self, members: RankSet) -> None:
        self._members = members
        self.tensors: dict[str, torch.Tensor] = {}
        self.stateful: dict[str, Any] = {}
        #: What must be equal on all ranks before anything moves: also the parameters of optimizers.
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}

    def add(self, path: str, held: object) -> None:
        """One object; OptionError if it cannot be brought."""
        if isinstance(held, nn.Module | torch.Tensor):
            for leaf in replicas.leaves(path, held):
                self.tensors[leaf.path] = self._member(leaf)
        elif isinstance(held, Mapping):
            for key, each in held.items():
                self.add(f"{path}.{key}", each)
        elif isinstance(held, list | tuple):
            for index, each in enumerate(held):
                self.add(f"{path}.{index}", each)
        elif callable(getattr(held, "state_dict", None)) and callable(getattr(held, "load_state_dict", None)):
            for number, entry in enumerate(getattr(held, "param_groups", ())):
                for position, parameter in enumerate(entry["params"]):
                    self._member(replicas.Leaf(f"{path}.param_groups.{number}.params.{position}", parameter))
            for leaf in replicas.leaves(path, held):
                if isinstance(leaf.value, torch.Tensor):
                    _replica(leaf, self._members)
            self.stateful[path] = held
        else:
            msg = (
                f"resync: {path} is a {type(held).__name__}; it brings modules, optimizers, tensors, dicts and lists "
                "of those, and what has state_dict and load_state_dict"
            )
            raise OptionError(msg)

    def _member(self, leaf: replicas.Leaf) -> torch.Tensor:
        tensor = _replica(leaf, self._members)
        self.shapes[leaf.path] = (tuple(tensor.shape), str(tensor.dtype))
        return tensor


def _replica(leaf: replicas.Leaf, members: RankSet) -> torch.Tensor:
    """The tensor that is written to; what other ranks of the group hold must be the same piece."""
    tensor: torch.Tensor = leaf.value
    if type(tensor).__name__ == "FlatParameter":
        msg = f"resync: {leaf.path} is sharded by FSDP, no other rank holds these numbers; {_LOAD}"
        raise OptionError(msg)
    shard = replicas.shard_of(tensor)
    if shard is None:
        return tensor.detach()
    on_mesh, same_piece = shard
    if (members & on_mesh) - same_piece:
        placements = ", ".join(map(str, tensor.placements))  # type: ignore[attr-defined]
        msg = f"resync: {leaf.path} is a DTensor with {placements}: no other rank holds this piece; {_LOAD}"
        raise OptionError(msg)
    return replicas.local(tensor)


def _choose(offers: dict[int, _Offer], source: int | None, axis: str | None) -> int:
    where = f"along axis {axis}" if axis else "in the cluster"
    problems: dict[str, list[int]] = {}
    for rank, offer in offers.items():
        if offer.problem:
            problems.setdefault(offer.problem, []).append(rank)
    if problems:
        everywhere = [len(ranks) == len(offers) for ranks in problems.values()] == [True]
        told = (words if everywhere else f"{words} (on {RankSet(ranks).words()})" for words, ranks in problems.items())
        raise OptionError("; ".join(told))
    if source is not None:
        if source not in offers:
            msg = (
                f"resync: source={source!r} is none of the ranks {where}: {RankSet(offers)}; leave it out, or name one"
            )
            raise OptionError(msg)
        return source
    healthy = [rank for rank, offer in offers.items() if not offer.is_replacement]
    if not healthy:
        msg = (
            f"resync: {RankSet(offers).words()} {where} are all new, no rank has the state of before; "
            "load a checkpoint, or choose a rank: source=0"
        )
        raise OptionError(msg)
    return min(healthy)


def _compare(offers: dict[int, _Offer], chosen: int) -> None:
    expected = offers[chosen].shapes
    for rank, offer in offers.items():
        for path in dict.fromkeys([*expected, *offer.shapes]):
            one, other = expected.get(path), offer.shapes.get(path)
            if one == other:
                continue
            if one is None or other is None:
                has, lacks = (chosen, rank) if other is None else (rank, chosen)
                missing = [path for path in offers[has].shapes if path not in offers[lacks].shapes]
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                words = f"rank {lacks} lacks {', '.join(missing[:3])}{more}, which rank {has} has"
            else:
                words = f"{path} is {_shape(one)} on rank {chosen} and {_shape(other)} on rank {rank}"
            msg = f"resync: {words}; build the same modules on both ranks first, then resync brings the numbers"
            raise OptionError(msg)


def _shape(said: tuple[tuple[int, ...], str]) -> str:
    return f"{said[1].removeprefix('torch.')} {said[0]}"


# --- bringing it --------------------------------------------------------------------------------------------


def _broadcast(tensors: list[torch.Tensor], source: int, group: Any) -> int:
    """Broadcast in buckets of one data type and device, in place; returns the number of bytes."""
    num_bytes = 0
    bucket: list[torch.Tensor] = []
    size = 0
    # the order is that of the source's names, the same on all ranks
    for tensor in [*sorted(tensors, key=lambda each: (str(each.dtype), each.device.type)), None]:
        is_new = bucket and (
            tensor is None or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
            or size + tensor.nbytes > _BUCKET_BYTES
        )  # fmt: skip
        if is_new:
            _send(bucket, source, group)
            bucket, size = [], 0
        if tensor is not None:
            bucket.append(tensor)
            size += tensor.nbytes
            num_bytes += tensor.nbytes
    return num_bytes


@torch.no_grad()
def _send(bucket: list[torch.Tensor], source: int, group: Any) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.broadcast(flat.view(torch.uint8), src=source, group=group)  # as bytes: gloo does not know every data type
    if dist.get_rank() == source:
        return
    at = 0
    for tensor in bucket:
        tensor.copy_(flat[at : at + tensor.numel()].view(tensor.shape))
        at += tensor.numel()


class _State:
    """The state of an optimizer (or scheduler): its structure is broadcast at once, its tensors with all others.

    Collective over the group.
    """

    def __init__(self, held: Any, source: int, group: Any) -> None:
        self._held = held
        self._is_source = dist.get_rank() == source
        self.tensors: list[torch.Tensor] = []
        mine = held.state_dict()
        sent = [_without_tensors(mine) if self._is_source else None]
        dist.broadcast_object_list(sent, src=source, group=group)
        # what fits is written in place; what this rank lacks, a fresh optimizer's state, is made
        self._filled = self._fill(sent[0], mine, self._device())

    def _device(self) -> torch.device:
        for entry in getattr(self._held, "param_groups", ()):
            for parameter in entry["params"]:
                device: torch.device = parameter.device
                return device
        return torch.device("cpu")

    def _fill(self, skeleton: Any, mine: Any, device: torch.device) -> Any:
        if isinstance(skeleton, _Slot):
            fits = (
                isinstance(mine, torch.Tensor)
                and (tuple(mine.shape), mine.dtype) == (skeleton.shape, skeleton.dtype)
                and not mine.is_meta
            )
            place = device if skeleton.on_device else torch.device("cpu")
            tensor = mine if fits else torch.empty(skeleton.shape, dtype=skeleton.dtype, device=place)
            self.tensors.append(replicas.local(tensor))
            return tensor
        if isinstance(skeleton, dict):
            held = mine if isinstance(mine, dict) else {}
            return {key: self._fill(each, held.get(key), device) for key, each in skeleton.items()}
        if isinstance(skeleton, list | tuple):
            held_list = list(mine) if isinstance(mine, list | tuple) else []
            held_list += [None] * (len(skeleton) - len(held_list))
            return type(skeleton)(self._fill(each, own, device) for each, own in zip(skeleton, held_list, strict=False))
        return skeleton

    def load(self) -> None:
        """Give the optimizer what came; its own tensors stay the objects they are."""
        if self._is_source:
            return
        if not isinstance(self._held, torch.optim.Optimizer):
            self._held.load_state_dict(self._filled)
            return
        # not load_state_dict: it copies every tensor, and casts to the parameter's data type
        parameters = [parameter for entry in self._held.param_groups for parameter in entry["params"]]
        state = {
            parameters[key] if isinstance(key, int) and key < len(parameters) else key: each
            for key, each in self._filled["state"].items()
        }
        self._held.state.clear()
        self._held.state.update(state)
        for entry, came in zip(self._held.param_groups, self._filled["param_groups"], strict=True):
            entry.update({key: each for key, each in came.items() if key != "params"})


def _without_tensors(state: Any) -> Any:
    """The state with slots in the place of tensors."""
    if isinstance(state, torch.Tensor):
        return _Slot(tuple(state.shape), state.dtype, state.device.type != "cpu")
    if isinstance(state, dict):
        return {key: _without_tensors(each) for key, each in state.items()}
    if isinstance(state, list | tuple) and not isinstance(state, torch.Size):
        return type(state)(_without_tensors(each) for each in state)
    return state


def _bring_rng(source: int, wanting: RankSet, group: Any) -> None:
    """States of the random number generators, to ranks that are new or differ."""
    states: list[Any] = [None]
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    if dist.get_rank() == source:
        states = [
            {
                "python": random.getstate(),
                "numpy": np.random.get_state(),  # noqa: NPY002 - what users' code draws from
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state() if cuda else None,
            }
        ]
    dist.broadcast_object_list(states, src=source, group=group)
    if dist.get_rank() not in wanting:
        return
    setters: dict[str, Callable[[Any], None]] = {
        "python": random.setstate,
        "numpy": np.random.set_state,
        "torch": torch.set_rng_state,
    }
    for name, put in setters.items():
        put(states[0][name])
    if states[0]["cuda"] is not None and cuda:
        torch.cuda.set_rng_state(states[0]["cuda"])
