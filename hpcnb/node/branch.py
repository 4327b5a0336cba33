"""A node that is connected to this agent, and what is reached through it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.node.clock import ClockOffset

__all__ = ["Branch"]


@dataclass
class Branch:
    """A connection.

    Attributes:
        node: Number of the node.
        client: Name of the connection; empty for the ranks that this agent has itself.
        host: Name of the machine.
        nodes: That are reached through it, itself among them.
        ranks: Theirs.
        heard_s: When something was heard last.
        gone_s: When its connection was found to be gone.
        clock: Of the node, against ours.
        has_ended: It said so.
    """

    node: int
    client: bytes
    host: str
    heard_s: float
    nodes: set[int] = field(default_factory=set)
    ranks: RankSet = field(default_factory=RankSet)
    gone_s: float | None = None
    clock: ClockOffset = field(default_factory=ClockOffset)
    has_ended: bool = False
    _facts: dict[int, Any] = field(default_factory=dict)
    _facts_s: float = float("-inf")
    _waits_in: dict[int, str] = field(default_factory=dict)

    def looked(self, facts: dict[int, Any], now_s: float) -> None:
        """It says where its ranks are: RankFacts, packed."""
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
        return self.gone_s is not None and now_s - self.gone_s >= again_s
