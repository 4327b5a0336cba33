"""Digests of what a rank holds, and the collective comparison. What should agree is decided in core/replicas.py."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hpcnb.core.errors import OptionError, ReplicasDiffer
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from hpcnb.core.replicas import Digest, Row, advice, compare, default_axis, groups_along

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "Leaf", "check_same", "digests", "group_of", "labels", "leaves", "local", "mesh_spec", "named", "named_digests",
    "rng_states", "shard_of", "unwrapped",
]  # fmt: skip

#: Tensors that differ are brought together in pieces of so many elements.
_PIECE = 1 << 20
_VALUES = (bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device, torch.Size)


class Leaf(NamedTuple):
    """A tensor or plain value and where it is."""

    path: str
    value: Any
    is_state: bool = False  # of what has state_dict: resync brings it, also where it is a number


# --- what an object holds -----------------------------------------------------------------------------------


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile's wrapper."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def leaves(path: str, held: Any) -> Iterator[Leaf]:
    """Tensors and plain values of modules, optimizers, tensors, arrays, and dicts and lists of those.

    Raises:
        OptionError: Something else.
    """
    if isinstance(held, nn.Module):
        module = unwrapped(held)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield Leaf(f"{path}.{name}", tensor)
    elif isinstance(held, (torch.Tensor, np.ndarray, *_VALUES)):
        yield Leaf(path, held)
    elif isinstance(held, Mapping):
        for key in held:
            yield from leaves(f"{path}.{key}" if isinstance(key, str | int) else f"{path}[{key!r}]", held[key])
    elif isinstance(held, list | tuple):
        for index, each in enumerate(held):
            yield from leaves(f"{path}.{index}", each)
    elif callable(getattr(held, "state_dict", None)):  # optimizers, schedulers, gradient scalers
        for leaf in leaves(path, held.state_dict()):
            yield leaf._replace(is_state=True)
    elif callable(held):  # functions in the state of a scheduler: nothing to compare
        return
    else:
        msg = (
            f"{path} is a {type(held).__name__}: what can be compared are modules, optimizers, tensors, arrays, "
            "numbers, and dicts and lists of those"
        )
        raise OptionError(msg)


def rng_states() -> dict[str, Any]:
    """States of the random number generators that code draws from: python, numpy, torch and this rank's device."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - what users' code draws from
    states: dict[str, Any] = {
        "rng.python": repr(random.getstate()),
        "rng.numpy": {**numpy_state, **numpy_state["state"]},
        "rng.torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["rng.cuda"] = torch.cuda.get_rng_state()
    return states


def labels(objects: tuple[object, ...], names: Mapping[str, object]) -> list[str]:
    """What a person calls these objects: the name that holds each, else its class and position."""
    called = {
        id(value): name
        for name, value in reversed(list(names.items()))
        if not name.startswith("_") and not isinstance(value, _VALUES)  # small numbers are one object everywhere
    }
    return [
        called.get(id(each), f"{type(each).__name__}" if len(objects) == 1 else f"{type(each).__name__}{index}")
        for index, each in enumerate(objects)
    ]


# --- digests ------------------------------------------------------------------------------------------------


def _is_dtensor(tensor: object) -> bool:
    # where nobody has imported it there is none, and importing it takes a while
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def shard_of(tensor: Any) -> tuple[RankSet, RankSet] | None:
    """Of a DTensor: ranks of its mesh, and those that hold the same piece as this rank; None of a plain tensor."""
    if not _is_dtensor(tensor):
        return None
    ranks, coordinate = tensor.device_mesh.mesh, tensor.device_mesh.get_coordinate()
    members = RankSet(int(rank) for rank in ranks.flatten())
    if coordinate is None:  # this rank is not on the mesh
        return members, RankSet()
    where = tuple(
        slice(None) if placement.is_replicate() else at
        for placement, at in zip(tensor.placements, coordinate, strict=True)
    )
    return members, RankSet(int(rank) for rank in ranks[where].flatten())


def local(tensor: Any) -> torch.Tensor:
    """What this rank holds of a tensor, without autograd; shares its memory."""
    held: torch.Tensor = tensor.detach().to_local() if _is_dtensor(tensor) else tensor.detach()
    return held


def _digest(leaf: Leaf) -> Digest:
    value = leaf.value
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return Digest(leaf.path, _hash(repr(value).encode()), f"array of objects {value.shape}")
        hashed = _hash(f"{value.dtype} {value.shape}".encode(), np.ascontiguousarray(value).tobytes())
        return Digest(leaf.path, hashed, f"{value.dtype} {value.shape}", value.nbytes)
    if not isinstance(value, torch.Tensor):
        said = repr(value)
        return Digest(leaf.path, _hash(type(value).__name__.encode(), said.encode()), said[:60])
    held = local(value)
    dtype = str(held.dtype).removeprefix("torch.")
    words = f"{dtype} {tuple(held.shape)}"
    if (placements := getattr(value, "placements", None)) is not None:
        words += f" of {tuple(value.shape)} {' '.join(map(str, placements))}"
    if held.is_meta:
        return Digest(leaf.path, _hash(words.encode(), b"meta"), f"{words} without data", 0, shard_of(value))
    if held.layout != torch.strided:
        held = held.to_dense()
    plain = held.resolve_conj().resolve_neg().cpu().contiguous()
    raw = plain.reshape(-1).view(torch.uint8).numpy()
    return Digest(leaf.path, _hash(words.encode(), raw.data), words, raw.nbytes, shard_of(value))


def _hash(*pieces: Any) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        made.update(piece)
    return made.digest()


def digests(held: Mapping[str, object], *, rng: bool) -> list[Digest]:
    """Digests of these objects, and of the random number generators if asked for."""
    found = []
    for path, each in held.items():
        parts = list(leaves(path, each))
        is_brought = all(leaf.is_state or isinstance(leaf.value, torch.Tensor) for leaf in parts)
        found += [replace(_digest(leaf), brought_as=path if is_brought else "") for leaf in parts]
    if rng:
        for path, state in rng_states().items():  # a state is long and says nothing to a person
            pieces = [_digest(leaf).digest for leaf in leaves(path, state)]
            found.append(Digest(path, _hash(*pieces), "state"))
    return found


def named_digests(names_of_rank: Mapping[str, Any], wanted: list[str], *, rng: bool) -> list[Digest]:
    """Digests of what these names hold on this rank; a name that is not here has none.

    Args:
        names_of_rank: The user's namespace.
        wanted: Names, also with attributes (``trainer.model``); none for all modules and optimizers.
        rng: Also the random number generators.

    Raises:
        OptionError: A name holds what cannot be compared.
    """
    found: dict[str, object] = {}
    if wanted:
        for name in wanted:
            first, _, rest = name.partition(".")
            try:
                held = names_of_rank[first]
                found[name] = attrgetter(rest)(held) if rest else held
            except (KeyError, AttributeError):
                pass  # other ranks may have it: the comparison tells that it is missing here
    else:
        seen: set[int] = set()
        for name, held in list(names_of_rank.items()):
            if name.startswith("_") or not isinstance(held, nn.Module | torch.optim.Optimizer):
                continue
            inner = unwrapped(held) if isinstance(held, nn.Module) else held
            if id(inner) not in seen:
                seen.add(id(inner))
                found[name] = inner
    return digests(found, rng=rng)


# --- the collective comparison ------------------------------------------------------------------------------


def mesh_spec(mesh: DeviceMesh) -> MeshSpec:
    """The mesh as a value."""
    return MeshSpec(tuple(mesh.mesh_dim_names or ()), tuple(mesh.mesh.shape))


def group_of(mesh: DeviceMesh, axis: str | None) -> Any:
    """The process group along an axis; that of all ranks (None) without one."""
    return None if axis is None else mesh.get_group(axis)


def named(objects: tuple[object, ...], names: Mapping[str, object], group: Any) -> dict[str, object]:
    """The objects by what a person calls them: on all ranks of the group as on its first, whatever names they have."""
    words: list[Any] = [labels(objects, names)]
    first = dist.get_process_group_ranks(group or dist.group.WORLD)[0]
    dist.broadcast_object_list(words, src=first, group=group)
    called = list(words[0])
    called += [f"argument {index}" for index in range(len(called), len(objects))]  # the others will lack it
    return dict(zip(called, objects, strict=False))


def check_same(
    objects: tuple[object, ...], names: Mapping[str, object], mesh: DeviceMesh, *, axis: str | None, rng: bool
) -> str:
    """Compare objects over the ranks that should hold the same; see ``Hpc.check_same``."""
    spec = mesh_spec(mesh)
    along = default_axis(spec, axis)
    group = group_of(mesh, axis)  # of all ranks unless an axis was asked for: pieces on meshes lead beyond dp
    held = named(objects, names, group)
    mine: list[Digest] | OptionError
    try:
        mine = digests(held, rng=rng)
    except OptionError as error:
        mine = error  # raised after the exchange, so that no rank waits for this one
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, mine, group=group)
    members = dist.get_process_group_ranks(group or dist.group.WORLD)
    for found in gathered:
        if isinstance(found, OptionError):
            raise found
    groups = [each for each in groups_along(spec, along) if each & RankSet(members)]
    rows = compare(dict(zip(members, gathered, strict=True)), groups, shards_beyond=axis is None)
    where = f"along axis {along}" if along else "over all ranks"
    different = [row for row in rows if not row.same]
    if not different:
        num_compared = len({row.path for row in rows if len(row.ranks) > 1})
        if not num_compared:
            return f"nothing to compare {where}: every rank holds pieces of its own"
        return f"{num_compared} tensor{'s' if num_compared > 1 else ''} and values are the same {where}"
    first = different[0]
    values = {leaf.path: leaf.value for path, each in held.items() for leaf in leaves(path, each)}
    words = f"{first}"
    if first.num_bytes and len({said for _, said in first.parts}) == 1:  # tensors of one shape
        words += f"; largest difference {_largest_difference(first, values.get(first.path), group)}"
    if len(different) > 1:
        words += f" ({len(different) - 1} more differ)"
    msg = f"{words}. {advice(different)}"
    raise ReplicasDiffer(msg)


def _largest_difference(row: Row, value: Any, group: Any) -> str:
    """Largest |a - b| between the parts of a row. Collective over the group: every part is sent by its lowest rank."""
    rank = dist.get_rank()
    sources = [ranks.first() for ranks, _ in row.parts]
    num_elements = [0]
    plain = None
    if rank in sources:
        plain = local(value) if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        plain = (torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain).reshape(-1)
        num_elements = [plain.numel()]
    dist.broadcast_object_list(num_elements, src=sources[0], group=group)
    largest = 0.0
    for start in range(0, num_elements[0], _PIECE):
        size = min(_PIECE, num_elements[0] - start)
        pieces = []
        for source in sources:
            piece = torch.empty(size, dtype=torch.float64)
            if rank == source and plain is not None:
                piece.copy_(plain[start : start + size])
            dist.broadcast(piece, src=source, group=group)
            pieces.append(piece)
        for other in pieces[1:]:
            equal = (pieces[0] == other) | (pieces[0].isnan() & other.isnan())
            difference = torch.where(equal, 0.0, (pieces[0] - other).abs()).max().item()
            largest = difference if not difference <= largest else largest  # NaN is larger than anything
            if largest != largest:  # noqa: PLR0124 - a NaN
                return "NaN: only some ranks hold a number there"
    return f"{largest:.3g}" if largest else "0: the numbers are equal, their bits are not (signs of zero, NaNs)"
