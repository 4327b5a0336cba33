"""Which ranks there are, and which of them can run a cell now: what agents have said, kept for the next question."""

from __future__ import annotations

import dataclasses

from hpcnb.core import messages as m
from hpcnb.core.errors import ClusterStateError
from hpcnb.core.ranks import RankSet

__all__ = ["Roster", "still_run"]

#: Places of these fields in the list that a CellReply travels as.
_RANK, _OK, _IS_BROKEN = (
    [each.name for each in dataclasses.fields(m.CellReply)].index(name) for name in ("rank", "ok", "is_broken")
)
#: What a notebook's orders to build groups again are called to the others, see CellBegan.
_REBUILDS = (m.Rebuild.__name__.lower(), m.Scale.__name__.lower())


def still_run(ranks: RankSet) -> str:
    """``rank 1 still runs``, to be followed by what."""
    return f"{ranks.words()} still run{'s' if len(ranks) == 1 else ''}"


def _drop(busy: dict[int, int], cell: int, ranks: RankSet | None = None) -> None:
    for rank, running in list(busy.items()):
        if running == cell and (ranks is None or rank in ranks):
            busy.pop(rank, None)


class Roster:
    """The ranks of a cluster. Told on the link thread, asked on any.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._ready: dict[int, m.RankReady] = {}
        self._exited: dict[int, m.RankExited] = {}
        self._joining: set[int] = set()  # whose process is being replaced
        # ranks that have not answered: the cell, as far as this notebook has submitted it, and as agents say of others
        self._ours: dict[int, int] = {}
        self._theirs: dict[int, int] = {}
        self._broken: set[int] = set()  # ranks whose last answer said so of their groups
        self._rebuilds: dict[int, RankSet] = {}  # by another notebook: ranks that have not said that theirs are whole
        self.num_rebuilt = 0  #: How often another notebook has built groups again.

    def clear(self) -> None:
        """The cluster starts anew."""
        self._ready.clear()
        self._exited.clear()
        self._joining.clear()
        self._ours.clear()
        self._theirs.clear()
        self._broken.clear()
        self._rebuilds.clear()

    def resize(self, world_size: int) -> None:
        """The cluster has another number of ranks; those that are new are dead until they are ready."""
        self._joining |= set(range(self._world_size, world_size))
        self._world_size = world_size
        everybody = RankSet.all(world_size)
        for known in (self._ready, self._exited, self._ours, self._theirs):
            for rank in [rank for rank in known if rank not in everybody]:
                known.pop(rank, None)
        self._joining = {rank for rank in self._joining if rank in everybody}
        self._broken = {rank for rank in self._broken if rank in everybody}

    @property
    def alive(self) -> RankSet:
        """Ranks that have a process."""
        return RankSet.all(self._world_size) - self.dead

    @property
    def dead(self) -> RankSet:
        """Ranks whose process ended."""
        return RankSet([*self._exited, *self._joining])  # a copy: the link thread changes it

    @property
    def busy(self) -> RankSet:
        """Ranks that have not answered a cell."""
        return RankSet([*self._ours, *self._theirs])

    @property
    def busy_elsewhere(self) -> RankSet:
        """Those of them that run a cell of another notebook."""
        return RankSet([*self._theirs])

    @property
    def broken(self) -> RankSet:
        """Ranks that cannot communicate until groups are built again, by what they said last, whoever asked."""
        return RankSet(list(self._broken)) - self.dead

    def exited(self, ranks: RankSet) -> list[m.RankExited]:
        """How those of these ranks ended that have no process."""
        return [self._exited[rank] for rank in ranks if rank in self._exited]

    def hosts(self) -> tuple[str, ...]:
        """Host of each rank, by rank; "" where it is not known."""
        return tuple(self._ready[rank].host if rank in self._ready else "" for rank in range(self._world_size))

    def devices(self) -> tuple[str, ...]:
        """Device of each rank, by rank; "" where it is not known."""
        return tuple(self._ready[rank].device if rank in self._ready else "" for rank in range(self._world_size))

    def versions(self) -> dict[str, str]:
        """Of python, torch and hpcnb on the ranks, which all have the same; empty where it is not known."""
        return next((dict(ready.versions) for ready in list(self._ready.values())), {})

    def hear(self, message: m.Message) -> None:
        """Something an agent said."""
        match message:
            case m.Scaled():
                self.resize(message.world_size)
            case m.RankReady():
                self._ready[message.rank] = message
                self._exited.pop(message.rank, None)
                self._joining.discard(message.rank)
                self._broken.discard(message.rank)
            case m.RankExited() if not message.expected and message.rank < self._world_size:
                self._exited[message.rank] = message
                self._ours.pop(message.rank, None)
                self._theirs.pop(message.rank, None)
            case m.CellBegan():  # of another notebook; ours of this number, if there was one, is refused
                self.take_back(message.cell)
                for rank in message.ranks:
                    self._theirs[rank] = max(message.cell, self._theirs.get(rank, 0))
                if message.label in _REBUILDS:
                    self._rebuilds[message.cell] = message.ranks
            case m.CellRefused():
                self.take_back(message.cell)
            case m.CellDone():
                self._answered(message)
                self._free(message.cell)
                if self._rebuilds.pop(message.cell, None) == RankSet():
                    self.num_rebuilt += 1
            case m.Replies():
                self._answered(message)
                self._free(message.cell, RankSet(fields[_RANK] for fields in message.replies))

    def _answered(self, message: m.Replies | m.CellDone) -> None:
        for fields in message.replies:
            rank = fields[_RANK]
            (self._broken.add if fields[_IS_BROKEN] else self._broken.discard)(rank)
            if message.cell in self._rebuilds and fields[_OK] and not fields[_IS_BROKEN]:
                self._rebuilds[message.cell] -= RankSet([rank])

    def begin(self, ranks: RankSet, cell: int) -> None:
        """These ranks run a cell until they answer, however the wait for it ends."""
        self._ours.update(dict.fromkeys(ranks, cell))

    def take_back(self, cell: int) -> None:
        """A cell of this notebook has not begun; what another one runs under the same number goes on."""
        _drop(self._ours, cell)

    def _free(self, cell: int, ranks: RankSet | None = None) -> None:
        """Ranks, all if none are named, do not run this cell any more, whosever it was."""
        _drop(self._ours, cell, ranks)
        _drop(self._theirs, cell, ranks)

    def forget(self, ranks: RankSet) -> None:
        """Their processes are being replaced."""
        for rank in ranks:
            self._ours.pop(rank, None)
            self._theirs.pop(rank, None)
            self._joining.add(rank)  # dead until it is ready, however the replacement goes

    def check(self, ranks: RankSet) -> None:
        """Raise ClusterStateError if one of these ranks is dead or busy."""
        if dead := self.dead & ranks:
            exited = self._exited.get(dead.first())
            status = 0 if exited is None else exited.status
            how = f"signal {-status}" if status < 0 else f"status {status}"
            if len(self.dead) == self._world_size:
                msg = f"all ranks have ended ({how}); replace them:  %hpc restart-rank"
                raise ClusterStateError(msg)
            has, them = ("has", "it") if len(dead) == 1 else ("have", "them")
            msg = (
                f"{dead.words()} of {self._world_size} {has} ended ({how}); run on the others with  --on ~({dead})  or "
                f"replace {them}:  %hpc restart-rank"
            )
            raise ClusterStateError(msg)
        if busy := self.busy & ranks:
            msg = (
                f"{still_run(busy)} an earlier cell; "
                "type %hpc interrupt to stop it, %hpc join to see it, or choose other ranks with --on"
            )
            raise ClusterStateError(msg)
