"""A set of ranks as one integer bitmap: cheap to combine, to send and to print. Both sides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["RankSet"]


class RankSet:
    """An immutable, hashable set of ranks.

    Args:
        ranks: Global ranks, each >= 0.

    Costs one integer however many ranks there are, so that grouping output of 1,024 ranks does not
    walk over 1,024 entries.
    """

    __slots__ = ("bits",)

    bits: int

    def __init__(self, ranks: Iterable[int] = ()) -> None:
        bits = 0
        for rank in ranks:
            bits |= 1 << rank
        self.bits = bits

    @classmethod
    def of_bits(cls, bits: int) -> RankSet:
        """The set whose member r is bit r of ``bits``."""
        new = cls.__new__(cls)
        new.bits = bits
        return new

    @classmethod
    def all(cls, world_size: int) -> RankSet:
        """Ranks 0 ... world_size - 1."""
        return cls.of_bits((1 << world_size) - 1)

    @classmethod
    def of_bytes(cls, packed: bytes) -> RankSet:
        """Inverse of :meth:`to_bytes`."""
        return cls.of_bits(int.from_bytes(packed, "little"))

    def to_bytes(self) -> bytes:
        """Little-endian bitmap, as short as possible."""
        return self.bits.to_bytes((self.bits.bit_length() + 7) // 8, "little")

    def __iter__(self) -> Iterator[int]:
        bits = self.bits
        while bits:
            low = bits & -bits
            yield low.bit_length() - 1
            bits ^= low

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __bool__(self) -> bool:
        return self.bits != 0

    def __contains__(self, rank: object) -> bool:
        return isinstance(rank, int) and rank >= 0 and bool(self.bits >> rank & 1)

    def __or__(self, other: RankSet) -> RankSet:
        return RankSet.of_bits(self.bits | other.bits)

    def __and__(self, other: RankSet) -> RankSet:
        return RankSet.of_bits(self.bits & other.bits)

    def __sub__(self, other: RankSet) -> RankSet:
        return RankSet.of_bits(self.bits & ~other.bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankSet) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash(self.bits)

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return RankSet.of_bits, (self.bits,)

    def first(self) -> int:
        """The lowest rank; ValueError if there is none."""
        if not self.bits:
            msg = "the empty rank set has no first rank"
            raise ValueError(msg)
        return (self.bits & -self.bits).bit_length() - 1

    def runs(self) -> list[tuple[int, int]]:
        """Maximal runs (first, last) of consecutive ranks, ascending."""
        runs: list[tuple[int, int]] = []
        bits, offset = self.bits, 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            length = (~bits & (bits + 1)).bit_length() - 1
            runs.append((offset + skip, offset + skip + length - 1))
            bits >>= length
            offset += skip + length
        return runs

    def __str__(self) -> str:
        """``0-3,7``: readable, and a valid ``--on`` selection."""
        parts = []
        for first, last in self.runs():
            if first == last:
                parts.append(str(first))
            elif last == first + 1:
                parts.append(f"{first},{last}")
            else:
                parts.append(f"{first}-{last}")
        return ",".join(parts)

    def __repr__(self) -> str:
        return f"RankSet({str(self)!r})"

    def words(self) -> str:
        """``rank 3`` or ``ranks 0-3``: for sentences."""
        return f"rank {self}" if len(self) == 1 else f"ranks {self or '(none)'}"
