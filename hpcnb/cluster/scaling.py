"""Another number of ranks for a cluster that runs: ranks are added or ended, the others keep their names.

Coroutines over a Submitter, as in recovery.py. A change that cannot be completed is undone, so that a cluster works
with the old size or with the new one; where even that fails, the next cell begins with completing it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hpcnb.cluster import machine, recovery, waiting
from hpcnb.cluster.roster import still_run
from hpcnb.core import messages as m
from hpcnb.core.errors import CellFailed, CellInterrupted, ClusterStateError, HpcnbError, LaunchError, OptionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.inbox import Inbox
    from hpcnb.cluster.submission import Submitter

__all__ = ["Scaled", "check_room", "scale", "settle"]

#: New ranks run cells within so long, and so much more for each: they are forked from one process.
_START_S, _PER_RANK_S = 30.0, 1.0
#: Ranks that are ended have so long for it; their agent does not wait longer.
_LEAVE_S = 3.0
#: What an agent has said of a rank that ended arrives within so long.
_LAG_S = 0.3
_NAMES_SHOWN = 12

Placement = list[list[int]]


@dataclass(frozen=True, repr=False)
class Scaled:
    """What became of a cluster that was given another number of ranks.

    Attributes:
        world_size: Number of ranks now.
        mesh: Axis names and sizes now.
        new: Ranks that are new processes.
        removed: Ranks that were ended.
        generation: Of the process groups.
        took_s: Seconds until all ranks could communicate.
        replayed: Labels of the init cells that were run on new ranks.
        failed: Labels of those that failed, with what went wrong.
        lost: Names that other ranks have and the new ones lack.
        notices: What ranks and machine have to say about it.
    """

    world_size: int
    mesh: str
    new: RankSet
    removed: RankSet
    generation: int
    took_s: float
    replayed: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def __repr__(self) -> str:
        changes = [f"{len(self.new)} new: {self.new}"] if self.new else []
        changes += [f"{self.removed} removed"] if self.removed else []
        plural = "" if self.world_size == 1 else "s"
        parts = [
            f"{self.world_size} rank{plural}" + (f" ({'; '.join(changes)})" if changes else ""), f"mesh {self.mesh}",
            f"groups rebuilt (generation {self.generation})", f"{self.took_s:.1f} s",
        ]  # fmt: skip
        lack = "lacks" if len(self.new) == 1 else "lack"
        if self.lost:
            shown = ", ".join(self.lost[:_NAMES_SHOWN])
            more = f" and {len(self.lost) - _NAMES_SHOWN} more" if len(self.lost) > _NAMES_SHOWN else ""
            parts.append(f"names that {self.new.words()} {lack}: {shown}{more}")
        lines = [" · ".join(parts)]
        if self.replayed:
            lines.append(f"run there: {', '.join(self.replayed)}")
        lines += [f"{label} failed there: {problem}" for label, problem in self.failed.items()]
        if self.lost:
            lines.append(
                f"define them there (--on {self.new}), then on all ranks  hpc.resync(model, optimizer)  and make DDP "
                "and the like again"
            )
        return "\n".join([*lines, *self.notices])


async def scale(
    submitter: Submitter,
    mesh: MeshSpec,
    placement: Placement,
    *,
    tell: Callable[[str], None],
    notices: tuple[str, ...] = (),
) -> Scaled:
    """Give the cluster the ranks of ``mesh``; those that are dead and stay are replaced as well.

    Args:
        submitter: Of the cluster.
        mesh: The new one.
        placement: Ranks of each node; empty where there is one.
        tell: Called with words whenever something has been done.
        notices: Of the machine, for the result.

    Raises:
        CellInterrupted: Ctrl-C was pressed; the text says which size the cluster has.
        ClusterStateError: A rank is busy, or ended meanwhile.
        LaunchError: A new rank did not start; the cluster has its old size.
    """
    if busy := submitter.busy & submitter.alive:
        msg = f"{still_run(busy)} a cell; wait for it, or type  %hpc interrupt"
        raise ClusterStateError(msg)
    staying = submitter.alive & RankSet.all(mesh.num_ranks)
    if not staying:
        msg = "none of the ranks that would stay is alive; replace them first:  %hpc restart-rank"
        raise ClusterStateError(msg)
    before, before_placement, had = submitter.mesh, submitter.placement, submitter.alive
    began_s = time.perf_counter()
    change = _Change(submitter, tell)
    try:
        generation, new, said = await change.to(mesh, placement, size_before=before.num_ranks)
    except (CellFailed, ClusterStateError, LaunchError) as error:
        if not change.is_sent or isinstance(error, waiting.TakenElsewhere):
            raise
        if mesh.num_ranks > before.num_ranks:
            raise await _undone(submitter, error, before, before_placement, size_before=0) from None
        raise await _undone(submitter, error, mesh, placement, size_before=before.num_ranks) from None
    scaled = Scaled(
        mesh.num_ranks, str(mesh), new, had - RankSet.all(mesh.num_ranks), generation,
        time.perf_counter() - began_s, notices=(*notices, *said),
    )  # fmt: skip
    if not new:
        return scaled
    tell(f"ranks {new} ready")
    replayed, failed = await recovery.replay(submitter, new)
    try:
        lost = await recovery.lost_names(submitter, staying, new)
    except (CellInterrupted, ClusterStateError):  # an init cell was given up, or still runs: the ranks are there
        lost = ()
    return replace(scaled, replayed=tuple(replayed), failed=failed, lost=lost)


def check_room(submitter: Submitter, mesh: MeshSpec, placement: Placement) -> tuple[str, ...]:
    """What a person should know of the machine before it has so many ranks.

    Raises:
        OptionError: The cluster has no room for them.
    """
    described = submitter.describe()
    room, num_ranks = described["room"], mesh.num_ranks
    if max(map(len, placement), default=num_ranks) > room:
        msg = (
            f"this cluster has room for {room} ranks on a node, which was decided when it was started; for {num_ranks} "
            f"start another one:  %hpc stop  and then  %hpc start {num_ranks}"
        )
        raise OptionError(msg)
    threads, num_cores = described["threads_per_rank"], machine.num_cores()
    if placement:  # of other machines the cores are not known
        return ()
    if num_ranks <= submitter.world_size or num_ranks * threads <= num_cores:
        return ()
    each = f" with {threads} threads each" if threads > 1 else ""
    return (f"{num_ranks} ranks{each} share {num_cores} core{'' if num_cores == 1 else 's'}",)


async def settle(submitter: Submitter) -> tuple[int, list[str]]:
    """Complete a change of size that was broken off; returns the generation, and what ranks have to say."""
    change = _Change(submitter, lambda _: None)
    generation, _, said = await change.to(submitter.mesh, submitter.placement, size_before=0)
    return generation, said


async def _undone(
    submitter: Submitter, error: HpcnbError, mesh: MeshSpec, placement: Placement, *, size_before: int
) -> HpcnbError:
    """Bring all ranks to one size after a failure; what to raise, which says so."""
    submitter.resume()
    has = f"{mesh.num_ranks} rank{'' if mesh.num_ranks == 1 else 's'}"
    try:
        _, new, _ = await _Change(submitter, lambda _: None).to(mesh, placement, size_before=size_before)
    except (CellFailed, ClusterStateError, LaunchError) as again:
        return type(error)(
            f"{error}\nthe cluster is between two sizes ({again}); the next cell brings it to {has}, or type  %hpc stop"
        )
    kept = RankSet.all(mesh.num_ranks) - new
    return type(error)(f"{error}\nthe cluster has {has}; all names on {kept.words()} are intact")


class _Change:
    """One attempt to bring the ranks to another number.

    Args:
        submitter: Of the cluster.
        tell: Called with words whenever something has been done.
    """

    def __init__(self, submitter: Submitter, tell: Callable[[str], None]) -> None:
        self._submitter = submitter
        self._tell = tell
        self.is_sent = False  #: Whether the agents know of it.

    async def to(self, mesh: MeshSpec, placement: Placement, *, size_before: int) -> tuple[int, RankSet, list[str]]:
        """Returns the generation of the groups, the ranks that are new processes, and what ranks have to say."""
        submitter, everybody = self._submitter, RankSet.all(mesh.num_ranks)
        staying, removed = submitter.alive & everybody, submitter.alive - everybody
        new = everybody - staying
        await submitter.bring_back(everybody, timeout_s=_START_S)
        held = await recovery.holdings(submitter, staying)
        groups = sorted(held.groups.items(), key=lambda group: (len(group[0]), group[0]))
        kept = [[name, members] for name, members in groups if not RankSet(members) - everybody]
        generation = submitter.next_generation()
        timeout_s = _START_S + _PER_RANK_S * len(new)
        if new or removed:
            self._tell(f"{'forking' if new else 'ending'} {(new or removed).words()}")
        with submitter.rejoining(new) as inbox:
            self.is_sent = True
            result = await submitter.serve(
                lambda cell, on: m.Scale(
                    # names of groups are numbers: one is for what stays of the group of all ranks as it is now
                    cell, on, generation, RankSet(), new, held.num_groups + 1, held.partial, kept, len(everybody),
                    str(mesh), placement, size_before,
                ),
                staying, label="scale", timeout_s=timeout_s, needs=staying | new,
            )  # fmt: skip
            if not result.ok or result.interrupted:
                await _raise_exit(inbox, new)
                if result.interrupted:
                    msg = "scaling was interrupted"
                    raise CellInterrupted(msg)
                recovery.raise_for_errors(result)
            self._tell("groups rebuilt")
            await waiting.await_ranks(inbox, new, timeout_s=timeout_s)
            await waiting.await_gone(inbox, removed, timeout_s=_LEAVE_S)
        submitter.mended()
        return generation, new, [f"{ranks.words()}: {notice}" for notice, ranks in result.notices.items()]


async def _raise_exit(inbox: Inbox, ranks: RankSet) -> None:
    """Raise LaunchError if one of these ranks has ended: that is why the others could not go on."""
    while (message := await inbox.next(_LAG_S)) is not None:
        if isinstance(message, m.RankExited) and message.rank in ranks and not message.expected:
            lines = "".join(f"\n    {line}" for line in message.last_lines)
            msg = f"rank {message.rank} ended with status {message.status} before it was ready{lines}"
            raise LaunchError(msg)
