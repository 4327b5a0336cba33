"""After a failure: process groups are built again, dead ranks are replaced, and what was lost is named.

Works on ranks through service messages; decides nothing about a running cell (core/watch.py does). Coroutines, whose
waits cluster/inbox.py carries out: a notebook kernel answers its widgets meanwhile, and Ctrl-C ends them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpcnb.cluster import waiting
from hpcnb.cluster.roster import still_run
from hpcnb.core import messages as m
from hpcnb.core.errors import CellFailed, CellInterrupted, ClusterStateError, LaunchError, OptionError
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.result import CellResult
    from hpcnb.cluster.submission import Submitter

__all__ = [
    "Holdings", "Restarted", "built", "holdings", "lost_names", "mend", "raise_for_errors", "rebuild", "replay",
    "restart",
]  # fmt: skip

#: Idle ranks build groups within milliseconds; then something is wrong.
_REBUILD_S = 10.0
#: A rank that is forked again runs cells within so long.
_RESTART_S = 30.0
#: Cells that are marked with --init may load data.
_REPLAY_S = 600.0
_NAMES_SHOWN = 12


async def rebuild(submitter: Submitter, ranks: RankSet, dead: RankSet) -> tuple[int, list[str]]:
    """Build the process groups of ``ranks`` again; returns the new generation, and what ranks have to say.

    Raises:
        ClusterStateError: A rank is busy, or ended meanwhile.
        CellFailed: Building failed on a rank.
    """
    held = await holdings(submitter, ranks)
    generation = submitter.next_generation()
    result = await submitter.serve(
        lambda cell, on: m.Rebuild(cell, on, generation, dead, RankSet(), held.num_groups, held.partial),
        ranks,
        label="recover",
        timeout_s=_REBUILD_S,
        needs=ranks,  # each waits for all others
    )
    raise_for_errors(result)
    return generation, [f"{noticing.words()}: {notice}" for notice, noticing in result.notices.items()]


def raise_for_errors(result: CellResult) -> None:
    """As ``raise_for_errors``, but where a rank ended, the others were given up because of that."""
    if result.exit_details:
        ended = " and ".join(f"rank {rank} {how}" for rank, how in sorted(result.exit_details.items()))
        msg = f"{ended} meanwhile"
        raise ClusterStateError(msg)
    result.raise_for_errors()


async def mend(submitter: Submitter) -> tuple[bool, list[str]]:
    """Build groups again after a cell broke them; whether that is done, and what was done, in words.

    Raises:
        TakenElsewhere: Another notebook is at it.
    """
    alive = submitter.alive
    if busy := submitter.busy & alive:
        verb = "has" if len(busy) == 1 else "have"
        return False, [f"process groups are built again when {busy.words()} {verb} answered"]
    if not alive:
        return False, []
    began_s = time.perf_counter()
    try:
        generation, notices = await submitter.rebuild()
    except CellInterrupted:
        return False, ["building process groups again was interrupted; the next cell begins with it"]
    except waiting.TakenElsewhere:
        raise
    except (CellFailed, ClusterStateError, LaunchError) as error:  # a rank died meanwhile
        return False, [f"process groups could not be built again; type  %hpc recover  to try once more\n{error}"]
    how = f"(generation {generation}, {time.perf_counter() - began_s:.2f} s)"
    return True, built(how, submitter.alive, RankSet.all(submitter.world_size) - submitter.alive) + notices


def built(how: str, alive: RankSet, dead: RankSet, new: RankSet | None = None) -> list[str]:
    """Groups were built again: so in words, and what a person has now.

    Args:
        how: By whom or how fast.
        alive: Ranks that have a process.
        dead: Those that have none.
        new: Those whose process has taken the place of one that ended.
    """
    if new:
        are = "is a new process" if len(new) == 1 else "are new processes"
        intact = f"; all names on {kept.words()} are intact" if (kept := alive - new) else ""
        return [f"process groups built again {how}", f"{new.words()} {are}{intact}"]
    if not dead:
        return [f"process groups built again {how}", "all names on all ranks are intact"]
    are = "is" if len(dead) == 1 else "are"
    return [
        f"process groups built again {how}; {dead.words()} {are} missing: type  %hpc restart-rank",
        f"all names on {alive.words()} are intact",
    ]


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
            lack = "it lacks" if len(self.ranks) == 1 else "they lack"
            lines.append(f"names that other ranks have and {lack}: {shown}{more}")
            lines.append("define them there (--on), and bring state from a peer with  hpc.resync(model, optimizer)")
        return "\n".join(lines)


async def restart(submitter: Submitter, ranks: RankSet) -> Restarted:
    """Replace the processes of ``ranks``, dead or alive, by new ones that join groups and mesh.

    Raises:
        OptionError: No such rank, or no rank.
        CellInterrupted: Ctrl-C was pressed before the new ranks were ready.
        ClusterStateError: Another rank is busy, or ended meanwhile.
        LaunchError: A new rank ended before it was ready.
    """
    others = submitter.alive - ranks
    if outside := ranks - RankSet.all(submitter.world_size):
        msg = f"no {outside.words()}; the cluster has ranks 0-{submitter.world_size - 1}"
        raise OptionError(msg)
    if not ranks:
        msg = "no rank has ended; to replace one that lives name it:  %hpc restart-rank 2"
        raise OptionError(msg)
    if busy := submitter.busy & others:
        msg = f"{still_run(busy)} a cell; wait for it, or type  %hpc interrupt"
        raise ClusterStateError(msg)
    began_s = time.perf_counter()
    await submitter.bring_back(ranks, timeout_s=_RESTART_S)
    held = await holdings(submitter, others)
    made = sorted(held.groups.items(), key=lambda group: (len(group[0]), group[0]))
    generation = submitter.next_generation()
    dead = RankSet.all(submitter.world_size) - submitter.alive - ranks
    with submitter.rejoining(ranks) as inbox:
        submitter.tell(m.RestartRanks(ranks, generation, [list(group) for group in made], held.num_groups))
        if others:
            result = await submitter.serve(
                lambda cell, on: m.Rebuild(
                    cell, on, generation, dead, ranks, held.num_groups, held.partial
                ),
                others, label="recover",
                timeout_s=_RESTART_S, needs=ranks | others,
            )  # fmt: skip
            if result.exit_details:  # then the new ones wait in vain as well
                raise_for_errors(result)
        await waiting.await_ranks(inbox, ranks, timeout_s=_RESTART_S)
        if others:
            raise_for_errors(result)
    took_s = time.perf_counter() - began_s
    replayed, failed = await replay(submitter, ranks)
    try:
        lost = await lost_names(submitter, others, ranks)
    except (CellInterrupted, ClusterStateError):  # an init cell was given up, or still runs: the ranks are there
        lost = ()
    return Restarted(ranks, took_s, tuple(replayed), failed, lost)


@dataclass(frozen=True)
class Holdings:
    """What ranks have: number of groups counted, groups by name, those that some of their ranks lack, all names."""

    num_groups: int
    groups: dict[str, list[int]]
    partial: list[str]
    names: set[str]


async def holdings(submitter: Submitter, ranks: RankSet) -> Holdings:
    """Ask these ranks."""
    if not ranks:
        return Holdings(0, {}, [], set())
    listed = await submitter.serve(m.ListGroups, ranks, label="list of groups", timeout_s=_REBUILD_S)
    raise_for_errors(listed)
    by_rank = listed.objects()
    groups = {name: members for _, known, _ in by_rank.values() for name, members in known}
    known_by = {rank: {name for name, _ in known} for rank, (_, known, _) in by_rank.items()}
    holders = {name: RankSet(rank for rank, known in known_by.items() if name in known) for name in groups}
    partial = [name for name, members in groups.items() if RankSet(members) & ranks != holders[name]]
    whole = {name: members for name, members in groups.items() if name not in partial}
    num_groups = max(counted for counted, *_ in by_rank.values())
    return Holdings(num_groups, whole, partial, {name for *_, names in by_rank.values() for name in names})


async def replay(submitter: Submitter, ranks: RankSet) -> tuple[list[str], dict[str, str]]:
    """Run the cells that were marked with --init on new ranks; labels of all, and problems of those that failed."""
    replayed: list[str] = []
    failed: dict[str, str] = {}
    for source, label, first_line, of_ranks in submitter.init_cells():
        if not (on := ranks & of_ranks):
            continue
        replayed.append(label)

        def run(cell: int, ranks: RankSet, what: tuple[str, str, int] = (source, label, first_line)) -> m.Message:
            return m.RunCell(cell, ranks, *what, want_pickles=False, line_budget=200, byte_budget=20_000, is_init=False)

        try:
            result = await submitter.serve(run, on, label=label, timeout_s=_REPLAY_S)
        except (CellInterrupted, ClusterStateError) as error:
            failed[label] = f"it was not run: {error}"
            continue
        if result.interrupted:
            failed[label] = "it was interrupted"
        elif not result.ok:
            failed[label] = "; ".join(str(error) for error in result.errors.values()) or result.failure_text()
    return replayed, failed


async def lost_names(submitter: Submitter, others: RankSet, ranks: RankSet) -> tuple[str, ...]:
    """Names of the others that the new ranks lack."""
    if not others or ranks - submitter.alive:
        return ()
    theirs = await holdings(submitter, others)
    return tuple(sorted(theirs.names - (await holdings(submitter, ranks)).names))
