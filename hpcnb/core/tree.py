"""Which nodes of a large cluster speak with the head, and which through another node. Pure; both sides.

Nodes are numbered level by level: 0-15 are below the head, 16-31 below node 0, 32-47 below node 1. So nobody has more
than 16 connections to look after, and what is said the same everywhere is grouped at every level.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FANOUT", "HEAD", "Tree"]

#: Nodes below the head, and below each node.
FANOUT = 16
#: The number of the head, among nodes.
HEAD = -1


@dataclass(frozen=True)
class Tree:
    """Who is below whom.

    Attributes:
        num_nodes: Without the head.
        fanout: So many are below each.
    """

    num_nodes: int
    fanout: int

    def parent(self, node: int) -> int:
        """Who is above a node."""
        return node // self.fanout - 1

    def children(self, node: int) -> range:
        """Nodes right below this one, or below the head."""
        first = self.fanout * (node + 1)
        return range(min(first, self.num_nodes), min(first + self.fanout, self.num_nodes))

    def below(self, node: int) -> list[int]:
        """All nodes that speak with the head through this one, level by level."""
        found: list[int] = []
        level = list(self.children(node))
        while level:
            found += level
            level = [each for above in level for each in self.children(above)]
        return found
