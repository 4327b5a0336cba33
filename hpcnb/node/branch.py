"""One node as the head of its cluster holds it: its agent's connection, its ranks, what was heard of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.node.clock import ClockOffset

__all__ = ["Branch"]


@dataclass
class Branch:
    """A node.

    Attributes:
        node: Its number in the layout.
        ranks: That belong on it.
        host: Name of the machine.
        client: Name of the connection; empty while no agent has joined, and when it is lost.
        started_ns: When its agent began, by its own clock: another process of the same node is told apart.
        heard_s: When something was heard last.
        gone_s: When its connection was found to be gone.
        pids: Processes of the ranks that live.
        clock: Of the node, against ours.
        has_ended: It said so.
    """

    node: int
    ranks: RankSet
    host: str = ""
    client: bytes = b""
    started_ns: int = 0
    heard_s: float = 0.0
    gone_s: float | None = None
    pids: dict[int, int] = field(default_factory=dict)
    clock: ClockOffset = field(default_factory=ClockOffset)
    has_ended: bool = False
    _facts: dict[int, Any] = field(default_factory=dict)
    _facts_s: float = float("-inf")
    _waits_in: dict[int, str] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether its agent belongs to the cluster now."""
        return bool(self.client)

    def join(self, client: bytes, host: str, started_ns: int, now_s: float) -> None:
        """An agent belongs to the cluster from now on."""
        self.client, self.host, self.started_ns = client, host, started_ns
        self.heard_s, self.gone_s, self.clock, self.has_ended = now_s, None, ClockOffset(), False

    def lose(self) -> dict[int, int]:
        """It does not any more; returns the processes of its ranks."""
        self.client = b""
        self._facts, self._waits_in = {}, {}
        pids, self.pids = self.pids, {}
        return pids

    def looked(self, facts: dict[int, Any], now_s: float) -> None:
        """The node says where its ranks are: RankFacts, packed."""
        self._facts, self._facts_s = facts, now_s
        for rank, packed in facts.items():
            inside = RankFacts.unpack(packed).inside
            self._waits_in[rank] = "" if inside is None else inside.what

    def facts(self, now_s: float, not_older_s: float) -> dict[int, Any]:
        """What it said last of where its ranks are, unless that is old."""
        return self._facts if now_s - self._facts_s < not_older_s else {}

    def waits_in(self, rank: int) -> str:
        """What a rank waited in when that was last told, in words."""
        return self._waits_in.get(rank, "")

    def is_over(self, now_s: float, again_s: float) -> bool:
        """Whether its connection has been gone for so long."""
        return self.is_here and self.gone_s is not None and now_s - self.gone_s >= again_s
