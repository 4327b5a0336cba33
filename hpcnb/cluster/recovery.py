"""After a failure: process groups are built again, dead ranks are replaced, and what was lost is named.

Works on a cluster through its service messages; decides nothing about a running cell (core/watch.py does).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hpcnb.cluster import waiting
from hpcnb.core import messages as m
from hpcnb.core.errors import CellFailed, ClusterStateError, OptionError
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.cluster import Cluster

__all__ = ["mend", "rebuild", "restart"]

#: Idle ranks build groups within milliseconds; then something is wrong.
_REBUILD_S = 10.0
#: A rank that is forked again runs cells within so long.
_RESTART_S = 30.0


def rebuild(cluster: Cluster, ranks: RankSet, dead: RankSet) -> int:
    """Build the process groups of ``ranks`` again; returns the new generation.

    Raises:
        ClusterStateError: A rank is busy.
        CellFailed: Building failed on a rank.
    """
    generation = cluster.next_generation()
    cluster.serve(
        lambda cell, on: m.Rebuild(cell, on, generation, dead), ranks, label="recover", timeout_s=_REBUILD_S
    ).raise_for_errors()
    return generation


def mend(cluster: Cluster) -> tuple[bool, list[str]]:
    """Build groups again after a cell broke them; whether that is done, and what was done, in words."""
    alive = cluster.alive
    if busy := cluster.busy & alive:
        verb = "has" if len(busy) == 1 else "have"
        return False, [f"process groups are built again when {busy.words()} {verb} answered"]
    if not alive:
        return False, []
    dead = RankSet.all(cluster.world_size) - alive
    began_s = time.perf_counter()
    try:
        generation = rebuild(cluster, alive, dead)
    except CellFailed as error:
        return False, [f"process groups could not be built again; type  %hpc recover  to try once more\n{error}"]
    lines = [f"process groups built again (generation {generation}, {time.perf_counter() - began_s:.2f} s)"]
    if dead:
        lines[0] += f"; {dead.words()} {'is' if len(dead) == 1 else 'are'} missing: type  %hpc restart-rank {dead}"
        lines.append(f"all names on {alive.words()} are intact")
    else:
        lines.append("all names on all ranks are intact")
    return True, lines


def restart(cluster: Cluster, ranks: RankSet) -> float:
    """Replace the processes of ``ranks``, dead or alive, by new ones that join groups and mesh.

    Returns:
        Seconds until the new ranks ran cells.

    Raises:
        OptionError: No such rank, or no rank.
        ClusterStateError: Another rank is busy.
        LaunchError: A new rank ended before it was ready.
    """
    others = cluster.alive - ranks
    if outside := ranks - RankSet.all(cluster.world_size):
        msg = f"no {outside.words()}; the cluster has ranks 0-{cluster.world_size - 1}"
        raise OptionError(msg)
    if not ranks:
        msg = "no rank to restart; for example  %hpc restart-rank 2"
        raise OptionError(msg)
    if busy := cluster.busy & others:
        msg = f"{busy.words()} still run{'s' if len(busy) == 1 else ''} a cell; wait for it, or type  %hpc interrupt"
        raise ClusterStateError(msg)
    began_s = time.perf_counter()
    groups: dict[str, list[int]] = {}
    num_groups = 0
    if others:
        listed = cluster.serve(m.ListGroups, others, label="list of groups", timeout_s=_REBUILD_S)
        listed.raise_for_errors()
        for counted, known in listed.objects().values():
            num_groups = max(num_groups, counted)
            groups.update((name, members) for name, members in known)
    made = sorted(groups.items(), key=lambda group: (len(group[0]), group[0]))
    generation = cluster.next_generation()
    dead = RankSet.all(cluster.world_size) - cluster.alive - ranks
    with cluster.rejoining(ranks) as inbox:
        cluster.tell(m.RestartRanks(ranks, generation, [list(group) for group in made], num_groups))
        if others:
            cluster.serve(
                lambda cell, on: m.Rebuild(cell, on, generation, dead), others, label="recover", timeout_s=_RESTART_S
            ).raise_for_errors()
        waiting.await_ranks(inbox, ranks, timeout_s=_RESTART_S)
    return time.perf_counter() - began_s
