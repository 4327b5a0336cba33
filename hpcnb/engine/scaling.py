"""What a rank does when its cluster gets another number of ranks: groups, mesh, names and environment follow.

The group of all ranks is the same object with another size, so what was made over it (DDP) goes on. Groups with ranks
that are gone are given up. A mesh is a shape, and keeps it: the name ``mesh`` gets a new one, and an old one that
somebody holds keeps the ranks it was made for.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import torch.distributed.distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hpcnb.core.mesh import MeshSpec
from hpcnb.core.messages import Scale
from hpcnb.core.ranks import RankSet
from hpcnb.engine import groups

if TYPE_CHECKING:
    from hpcnb.core.board import Board
    from hpcnb.engine.guard import Guard
    from hpcnb.engine.hpc import Hpc
    from hpcnb.engine.process_group import HpcnbProcessGroup

__all__ = ["make_mesh", "scale", "tell_environment"]


def make_mesh(device_type: str, text: str) -> DeviceMesh:
    """The mesh with these axes, ``dp=2,tp=2``, over all ranks.

    Ranks: collective over all ranks.
    """
    spec = MeshSpec.parse(text)
    with groups.making_alone():
        return init_device_mesh(device_type, spec.sizes, mesh_dim_names=spec.axes)


def tell_environment(world_size: int, num_local: int) -> None:
    """Sizes as torchrun names them."""
    os.environ.update(WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(num_local))


def scale(order: Scale, rank: int, board: Board, guard: Guard, hpc: Hpc) -> tuple[int, DeviceMesh]:
    """Become a rank of a cluster of ``order.world_size``; returns how many groups were built again, and the new mesh.

    May be done again, also with the size that was before, when it was broken off.

    Ranks: collective over all ranks of the new size; those that are new join in their own way.
    Blocks: until all of them are there.
    """
    world: HpcnbProcessGroup = c10d._get_default_group()  # type: ignore[assignment]
    placement = [RankSet(ranks) for ranks in order.placement]
    local = next((ranks for ranks in placement if rank in ranks), RankSet.all(order.world_size))
    board.seat(local)
    if world.size() != order.world_size:
        guard.reseat(RankSet.all(order.world_size), str(world.group_name))
        world.resize(order.world_size)
    made: list[tuple[DeviceMesh, HpcnbProcessGroup]] = []

    def make() -> None:
        is_resized = order.size_before not in (0, order.world_size)
        kept = groups.make_kept(list(range(order.size_before)), order) if is_resized else world
        made.append((make_mesh(hpc.device.type, order.mesh), kept))

    count = groups.rebuild_groups(order, between=make)
    ((mesh, kept),) = made
    if kept is not world:
        _settle_meshes(world, kept)
    if "torch.distributed.tensor" in sys.modules:  # it finds meshes that are equal, and their groups are not
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache

        _clear_sharding_prop_cache()
    tell_environment(order.world_size, len(local))
    hpc.world_size, hpc.mesh = order.world_size, mesh
    return count, mesh


def _settle_meshes(world: HpcnbProcessGroup, kept: HpcnbProcessGroup) -> None:
    """Meshes over all ranks used the group of all ranks, which has another size now: they get one of their own."""
    old: list[DeviceMesh] = []
    for each in _instances(DeviceMesh):
        names = getattr(each, "_dim_group_names", [])
        for axis, name in enumerate(names):
            if str(name) == str(world.group_name) and each.size(axis) == kept.size():
                names[axis] = kept.group_name
                old.append(each)
    for each in old:
        getattr(each._get_root_mesh(), "_pg_registry", {})[kept.group_name] = kept
    for info in _fsdp_meshes():
        if any(info.mesh is each for each in old):
            for role, held in vars(info).items():
                if held is world:
                    setattr(info, role, kept)


def _fsdp_meshes() -> list[Any]:
    """What FSDP2 has looked up in meshes."""
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_common")
    return _instances(module.DataParallelMeshInfo) if module is not None else []


def _instances(kind: type) -> list[Any]:
    kinds: set[type] = set()
    more = [kind]
    while more:
        kinds.add(each := more.pop())
        more += type.__subclasses__(each)
    # by exact type: isinstance asks proxies, which may do anything
    return [each for each in gc.get_objects() if type(each) in kinds]
