"""Which ranks should hold equal numbers, and which of them do not. Both sides; pure: digests in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

__all__ = ["Digest", "Row", "advice", "compare", "default_axis", "groups_along", "size_words"]


@dataclass(frozen=True)
class Digest:
    """One tensor or value of one rank, as a hash.

    Attributes:
        path: Where it is, for example ``model.layers.0.weight``.
        digest: Hash of its bytes, with data type and shape.
        words: What a person reads: ``float32 (3, 4)``, or the value.
        num_bytes: Of the tensor; 0 for other values.
        shard: For a tensor that is spread over a mesh: ranks of that mesh, and those that hold the same piece.
        brought_as: The object that ``hpc.resync`` takes to bring it; "" if it does not bring it.
    """

    path: str
    digest: bytes
    words: str
    num_bytes: int = 0
    shard: tuple[RankSet, RankSet] | None = None
    brought_as: str = ""


@dataclass(frozen=True)
class Row:
    """One tensor or value, over the ranks that should hold the same.

    Attributes:
        path: Where it is.
        num_bytes: On one rank.
        parts: Ranks that agree with each other, and what they hold; the largest set first. One if all agree.
        brought_as: See Digest.
    """

    path: str
    num_bytes: int
    parts: tuple[tuple[RankSet, str], ...]
    brought_as: str = ""

    @property
    def same(self) -> bool:
        """Whether all ranks agree."""
        return len(self.parts) == 1

    @property
    def ranks(self) -> RankSet:
        """The ranks that should agree."""
        ranks = RankSet()
        for part, _ in self.parts:
            ranks |= part
        return ranks

    def __str__(self) -> str:
        if self.same:
            return f"{self.path}  {self.parts[0][1]}  the same on {self.ranks.words()}"
        words = {words for _, words in self.parts}
        if len(words) == 1:  # the numbers differ, what can be said of them does not
            sets = [ranks.words() for ranks, _ in self.parts]
            if len(sets) == 2 and len(self.parts[1][0]) < len(self.parts[0][0]):
                rest, most = self.parts[1][0], sets[0]
                return f"{self.path}  {words.pop()}: {rest.words()} differ{'s' if len(rest) == 1 else ''} from {most}"
            return f"{self.path}  {words.pop()}: {' and '.join(sets)} differ"
        return f"{self.path}: " + ", ".join(f"{said} on {ranks.words()}" for ranks, said in self.parts)


def default_axis(mesh: MeshSpec, axis: str | None) -> str | None:
    """The axis along which replicas lie: what was asked, else ``dp``; None (all ranks) where there is no such axis.

    Raises:
        MeshError: The mesh has no axis of that name.
    """
    if axis is None:
        return "dp" if "dp" in mesh.axes else None
    mesh.size_of(axis)
    return axis


def groups_along(mesh: MeshSpec, axis: str | None) -> list[RankSet]:
    """Groups of ranks along ``axis``, lowest rank first; one group of all ranks if it is None."""
    if axis is None:
        return [RankSet.all(mesh.num_ranks)]
    groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for rank in range(mesh.num_ranks):
        fixed = {name: at for name, at in mesh.coordinates(rank).items() if name != axis}
        groups.setdefault(tuple(fixed.items()), []).append(rank)
    return [RankSet(ranks) for ranks in groups.values()]


def compare(
    digests: Mapping[int, Iterable[Digest]], groups: Iterable[RankSet], *, shards_beyond: bool = True
) -> list[Row]:
    """Compare what ranks hold.

    Args:
        digests: ``{rank: its digests}``; of ranks that are missing nothing is said.
        groups: Ranks that should hold the same.
        shards_beyond: Whether tensors on a mesh are compared along all its axes with a ``Replicate`` placement, also
            where those lead out of the groups.

    Returns:
        A row per path and set of ranks that should agree, in the order of the first rank's digests.
    """
    groups = list(groups)
    by_path: dict[str, dict[int, Digest]] = {}
    for rank in sorted(digests):
        for digest in digests[rank]:
            by_path.setdefault(digest.path, {})[rank] = digest
    rows: list[Row] = []
    for path, held in by_path.items():
        for ranks in _expected(held, groups, RankSet(digests), shards_beyond=shards_beyond):
            if ranks & RankSet(held):
                rows.append(_row(path, held, ranks))  # noqa: PERF401 - two loops and a condition read better so
    return rows


def _expected(held: dict[int, Digest], groups: list[RankSet], known: RankSet, *, shards_beyond: bool) -> list[RankSet]:
    """Sets of ranks that should hold the same of one path."""
    expected: list[RankSet] = []
    for group in groups:
        for rank in group & known:
            peers = group
            digest = held.get(rank)
            if digest is not None and digest.shard is not None:
                members, same_piece = digest.shard
                # off its mesh the tensor is another one, a replica along the group; on it the placement decides
                peers = (group - members) | (same_piece if shards_beyond else same_piece & group)
            elif any(other.shard is not None and rank in other.shard[0] for other in held.values()):
                continue  # it lacks a piece of a tensor: that row is made by who has it
            peers &= known
            for other in [each for each in expected if each & peers]:  # who equals an equal is equal
                expected.remove(other)
                peers |= other
            expected.append(peers)
    return sorted(expected, key=RankSet.first)


def _row(path: str, held: dict[int, Digest], ranks: RankSet) -> Row:
    parts: dict[bytes, list[int]] = {}
    for rank in ranks:
        parts.setdefault(held[rank].digest if rank in held else b"", []).append(rank)
    ordered = sorted(parts.values(), key=lambda members: (-len(members), members[0]))
    num_bytes = max(held[rank].num_bytes for rank in ranks if rank in held)
    words = [held[members[0]].words if members[0] in held else "missing" for members in ordered]
    brought_as = {held[rank].brought_as for rank in ranks if rank in held}
    return Row(
        path,
        num_bytes,
        tuple((RankSet(members), said) for members, said in zip(ordered, words, strict=True)),
        brought_as.pop() if len(brought_as) == 1 else "",
    )


def advice(different: Iterable[Row]) -> str:
    """What to type so that these rows agree."""
    rows = list(different)
    parts = []
    if brought := list(dict.fromkeys(row.brought_as for row in rows if row.brought_as)):
        objects = ", ".join(brought) if all(name.replace(".", "").isidentifier() for name in brought) else "..."
        parts.append(f"To bring them from one rank to the others type  hpc.resync({objects})  in a cell")
    if rest := list(dict.fromkeys(row.path for row in rows if not row.brought_as)):
        words = "them" if not brought else ", ".join(rest[:3]) + (f" and {len(rest) - 3} more" if rest[3:] else "")
        parts.append(
            f"hpc.resync does not bring {words}: it takes modules, optimizers and tensors; set the rest in a cell"
        )
    return ". ".join(parts)


def size_words(num_bytes: float) -> str:
    """``4.1 MB``."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 10 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
