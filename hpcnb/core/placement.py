"""Which node each rank is on, when a cluster is given another number of ranks. Pure; both sides.

Ranks keep their numbers, so those that are added are the highest ones, on whichever node they are.
"""

from __future__ import annotations

__all__ = ["resized"]


def resized(placement: list[list[int]], world_size: int) -> list[list[int]]:
    """Ranks of each node for another number of ranks: the highest go, or new ones are spread.

    Nodes come to have as many ranks as each other, as far as that can be, and what is added to one follows each other.
    A node may be left without ranks; it gets some when the cluster grows again.

    Args:
        placement: Ranks of each node now; without nodes there is nothing to place.
        world_size: Number of ranks.
    """
    kept = [[rank for rank in ranks if rank < world_size] for ranks in placement]
    if not kept:
        return []
    counts = [len(ranks) for ranks in kept]
    first = sum(counts)
    for _ in range(first, world_size):
        counts[counts.index(min(counts))] += 1
    for ranks, count in zip(kept, counts, strict=True):
        num_new = count - len(ranks)
        ranks.extend(range(first, first + num_new))
        first += num_new
    return kept
