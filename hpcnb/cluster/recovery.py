"""After a failure: process groups are built again, dead ranks are replaced, and what was lost is named.

Works on a cluster through its service messages; decides nothing about a running cell (core/watch.py does).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpcnb.cluster import waiting
from hpcnb.core import messages as m
from hpcnb.core.errors import CellFailed, ClusterStateError, OptionError
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.cluster import Cluster

__all__ = ["Restarted", "mend", "rebuild", "restart"]

#: Idle ranks build groups within milliseconds; then something is wrong.
_REBUILD_S = 10.0
#: A rank that is forked again runs cells within so long.
_RESTART_S = 30.0
#: Cells that are marked with --init may load data.
_REPLAY_S = 600.0
_NAMES_SHOWN = 12


def rebuild(cluster: Cluster, ranks: RankSet, dead: RankSet) -> tuple[int, list[str]]:
    """Build the process groups of ``ranks`` again; returns the new generation, and what ranks have to say.

    Raises:
        ClusterStateError: A rank is busy.
        CellFailed: Building failed on a rank.
    """
    held = _holdings(cluster, ranks)
    generation = cluster.next_generation()
    result = cluster.serve(
        lambda cell, on: m.Rebuild(cell, on, generation, dead, RankSet(), held.num_groups, held.partial),
        ranks,
        label="recover",
        timeout_s=_REBUILD_S,
    )
    result.raise_for_errors()
    return generation, [f"{noticing.words()}: {notice}" for notice, noticing in result.notices.items()]


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
        generation, notices = rebuild(cluster, alive, dead)
    except (CellFailed, ClusterStateError) as error:  # a rank died meanwhile, or is interrupted
        return False, [f"process groups could not be built again; type  %hpc recover  to try once more\n{error}"]
    lines = [f"process groups built again (generation {generation}, {time.perf_counter() - began_s:.2f} s)"]
    if dead:
        lines[0] += f"; {dead.words()} {'is' if len(dead) == 1 else 'are'} missing: type  %hpc restart-rank"
        lines.append(f"all names on {alive.words()} are intact")
    else:
        lines.append("all names on all ranks are intact")
    return True, lines + notices


@dataclass(frozen=True, repr=False)
class Restarted:
    """What became of ranks that were replaced.

    Attributes:
        ranks: Which.
        took_s: Seconds until the new processes ran cells.
        replayed: Labels of the init cells that were run again.
        failed: Labels of those that failed, with what went wrong.
        lost: Names that other ranks have and the new ones lack.
    """

    ranks: RankSet
    took_s: float
    replayed: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    def __repr__(self) -> str:
        verb = "was" if len(self.ranks) == 1 else "were"
        lines = [
            f"{self.ranks.words()} {verb} replaced in {self.took_s:.2f} s; process groups and mesh are whole again"
        ]
        if self.replayed:
            lines.append(f"run again there: {', '.join(self.replayed)}")
        lines += [f"{label} failed there: {problem}" for label, problem in self.failed.items()]
        if self.lost:
            shown = ", ".join(self.lost[:_NAMES_SHOWN])
            more = f" and {len(self.lost) - _NAMES_SHOWN} more" if len(self.lost) > _NAMES_SHOWN else ""
            lines.append(f"names that other ranks have and it lacks: {shown}{more}")
            lines.append("define them there (--on), and bring state from a peer with  hpc.resync(model, optimizer)")
        return "\n".join(lines)


def restart(cluster: Cluster, ranks: RankSet) -> Restarted:
    """Replace the processes of ``ranks``, dead or alive, by new ones that join groups and mesh.

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
        msg = "no rank has ended; to replace one that lives name it:  %hpc restart-rank 2"
        raise OptionError(msg)
    if busy := cluster.busy & others:
        msg = f"{busy.words()} still run{'s' if len(busy) == 1 else ''} a cell; wait for it, or type  %hpc interrupt"
        raise ClusterStateError(msg)
    began_s = time.perf_counter()
    held = _holdings(cluster, others)
    made = sorted(held.groups.items(), key=lambda group: (len(group[0]), group[0]))
    generation = cluster.next_generation()
    dead = RankSet.all(cluster.world_size) - cluster.alive - ranks
    with cluster.rejoining(ranks) as inbox:
        cluster.tell(m.RestartRanks(ranks, generation, [list(group) for group in made], held.num_groups))
        if others:
            result = cluster.serve(
                lambda cell, on: m.Rebuild(
                    cell, on, generation, dead, ranks, held.num_groups, held.partial
                ),
                others, label="recover",
                timeout_s=_RESTART_S, needs=ranks,
            )  # fmt: skip
        waiting.await_ranks(inbox, ranks, timeout_s=_RESTART_S)
        if others:
            result.raise_for_errors()
    took_s = time.perf_counter() - began_s
    replayed, failed = _replay(cluster, ranks)
    return Restarted(ranks, took_s, tuple(replayed), failed, _lost(cluster, others, ranks))


@dataclass(frozen=True)
class _Holdings:
    """What ranks have: number of groups counted, groups by name, those that some of their ranks lack, all names."""

    num_groups: int
    groups: dict[str, list[int]]
    partial: list[str]
    names: set[str]


def _holdings(cluster: Cluster, ranks: RankSet) -> _Holdings:
    if not ranks:
        return _Holdings(0, {}, [], set())
    listed = cluster.serve(m.ListGroups, ranks, label="list of groups", timeout_s=_REBUILD_S)
    listed.raise_for_errors()
    by_rank = listed.objects()
    groups = {name: members for _, known, _ in by_rank.values() for name, members in known}
    known_by = {rank: {name for name, _ in known} for rank, (_, known, _) in by_rank.items()}
    holders = {name: RankSet(rank for rank, known in known_by.items() if name in known) for name in groups}
    partial = [name for name, members in groups.items() if RankSet(members) & ranks != holders[name]]
    whole = {name: members for name, members in groups.items() if name not in partial}
    num_groups = max(counted for counted, *_ in by_rank.values())
    return _Holdings(num_groups, whole, partial, {name for *_, names in by_rank.values() for name in names})


def _replay(cluster: Cluster, ranks: RankSet) -> tuple[list[str], dict[str, str]]:
    """Run the cells that were marked with --init on new ranks; labels of all, and problems of those that failed."""
    replayed: list[str] = []
    failed: dict[str, str] = {}
    for source, label, first_line, of_ranks in cluster.init_cells():
        if not (on := ranks & of_ranks):
            continue
        replayed.append(label)

        def run(cell: int, ranks: RankSet, what: tuple[str, str, int] = (source, label, first_line)) -> m.Message:
            return m.RunCell(cell, ranks, *what, want_pickles=False, line_budget=200, byte_budget=20_000, is_init=False)

        result = cluster.serve(run, on, label=label, timeout_s=_REPLAY_S)
        if not result.ok:
            failed[label] = "; ".join(str(error) for error in result.errors.values()) or result.failure_text()
    return replayed, failed


def _lost(cluster: Cluster, others: RankSet, ranks: RankSet) -> tuple[str, ...]:
    """Names of the others that the new ranks lack."""
    if not others or ranks - cluster.alive:
        return ()
    return tuple(sorted(_holdings(cluster, others).names - _holdings(cluster, ranks).names))
