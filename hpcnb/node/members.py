"""The nodes of a cluster as its head knows them: who is here, and through whom. Pure.

A node that spoke through another one which is lost is an orphan: it is given some time to come to the head itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hpcnb.core.ranks import RankSet

__all__ = ["NOBODY", "Member", "Members"]

#: Through whom a node is reached that is not.
NOBODY = -2
#: Orphans have so long to come; they notice as late as we do that who was between is silent.
ADOPT_S = 10.0


@dataclass
class Member:
    """A node.

    Attributes:
        node: Its number in the layout.
        ranks: That belong on it.
        host: Name of the machine.
        started_ns: When its agent began, by its own clock: another process of the same node is told apart.
        address: Where it listens for nodes below it; "" if it has none.
        public: Its CURVE public key for them.
        via: The node that is connected to the head and through which this one is reached, perhaps itself.
        until_s: Of an orphan: it is given up then.
    """

    node: int
    ranks: RankSet
    host: str = ""
    started_ns: int = 0
    address: str = ""
    public: str = ""
    via: int = NOBODY
    until_s: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether its agent belongs to the cluster now, or is expected to come back."""
        return self.via != NOBODY or self.until_s is not None


class Members:
    """Those of one cluster.

    Args:
        ranks: Of each node.
    """

    def __init__(self, ranks: Iterable[RankSet]) -> None:
        self._members = [Member(node, theirs) for node, theirs in enumerate(ranks)]
        self._orphans: set[int] = set()  # looked through at every turn, however many nodes there are
        self._pids: dict[int, int] = {}  # of ranks that live; a rank may move to another node
        self._ended: set[tuple[int, int]] = set()

    def __getitem__(self, node: int) -> Member:
        return self._members[node]

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, node: object) -> bool:
        return isinstance(node, int) and 0 <= node < len(self._members)

    def place(self, ranks: Iterable[RankSet]) -> None:
        """The cluster has another number of ranks: those of each node."""
        for member, theirs in zip(self._members, ranks, strict=True):
            member.ranks = theirs

    def begin(self, rank: int, pid: int) -> bool:
        """A rank is ready; whether that is new. What was told to a node that is lost is told again."""
        is_new = self._pids.get(rank) != pid and (rank, pid) not in self._ended
        if is_new:
            self._pids[rank] = pid
        return is_new

    def end(self, rank: int, pid: int) -> bool:
        """Its process has ended; whether that is new."""
        is_new = (rank, pid) not in self._ended
        self._ended.add((rank, pid))
        if self._pids.get(rank) == pid:
            del self._pids[rank]
        return is_new

    def reached(self, via: int) -> list[Member]:
        """Those that are reached through a node, itself among them."""
        return [each for each in self._members if each.via == via]

    def orphaned(self, via: int, now_s: float) -> list[Member]:
        """Who is between is lost: those that were reached through it are expected to come; returns these."""
        orphans = [each for each in self._members if each.via == via and each.node != via]
        for each in orphans:
            each.via, each.until_s = NOBODY, now_s + ADOPT_S
        self._orphans.update(each.node for each in orphans)
        return orphans

    def come(self, nodes: Iterable[int], via: int) -> list[Member]:
        """These are reached through a node from now on; those that are not of the cluster any more are left out."""
        found = [self._members[node] for node in nodes if node in self and self._members[node].is_here]
        for each in found:
            each.via, each.until_s = via, None
        self._orphans.difference_update(each.node for each in found)
        return found

    def lose(self, node: int) -> dict[int, int]:
        """A node does not belong to the cluster any more; returns the processes of its ranks."""
        member = self._members[node]
        member.via, member.until_s = NOBODY, None
        self._orphans.discard(node)
        self._ended = {each for each in self._ended if each[0] not in member.ranks}  # numbers begin anew there
        return {rank: self._pids.pop(rank) for rank in member.ranks if rank in self._pids}

    def overdue(self, now_s: float) -> list[Member]:
        """Orphans that have not come in time."""
        orphans = (self._members[node] for node in sorted(self._orphans))
        return [each for each in orphans if each.until_s is not None and now_s >= each.until_s]
