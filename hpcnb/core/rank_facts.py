"""What is known of a rank at one moment, as agents tell it: what it waits in and what it has issued. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcnb.core.ranks import RankSet

__all__ = ["Inside", "Issues", "RankFacts"]


@dataclass(frozen=True)
class Inside:
    """The operation that a rank's main thread waits in.

    Attributes:
        what: ``all_reduce #17 (4.2 MB, line 6)``.
        key: Channel on the board; 0 if it has none.
        stamp: Order in that channel.
        members: Ranks that take part.
        age_s: How long ago it was issued.
        is_any: One of the others is enough; none of them has come yet.
    """

    what: str
    key: int
    stamp: int
    members: RankSet
    age_s: float
    is_any: bool = False


@dataclass(frozen=True)
class Issues:
    """What a rank has issued in one channel: the newest stamp, and ``{stamp: (signature, words)}`` of the last few."""

    newest: int
    last: dict[int, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RankFacts:
    """What is known of a rank at one moment.

    Attributes:
        activity: See :class:`hpcnb.core.board.Activity`.
        cell: The cell it runs; 0 if none.
        is_stopped: Somebody sent it SIGSTOP.
        inside: What it waits in.
        issues: What it has issued, by channel; only channels in which some rank waits.
        is_unwatched: It uses more channels than the board holds: what is missing in ``issues`` says nothing.
    """

    activity: int
    cell: int = 0
    is_stopped: bool = False
    inside: Inside | None = None
    issues: dict[int, Issues] = field(default_factory=dict)
    is_unwatched: bool = False

    def pack(self) -> list[Any]:
        """As msgpack values."""
        inside = self.inside
        return [
            self.activity, self.cell, self.is_stopped,
            None if inside is None else [
                inside.what, inside.key, inside.stamp, inside.members, inside.age_s, inside.is_any,
            ],
            {key: [issues.newest, issues.last] for key, issues in self.issues.items()}, self.is_unwatched,
        ]  # fmt: skip

    @classmethod
    def unpack(cls, packed: list[Any]) -> RankFacts:
        """Inverse of :meth:`pack`."""
        activity, cell, is_stopped, inside, issues, is_unwatched = packed
        return cls(
            activity, cell, is_stopped, None if inside is None else Inside(*inside),
            {key: Issues(newest, {stamp: tuple(each) for stamp, each in last.items()})
             for key, (newest, last) in issues.items()}, is_unwatched,
        )  # fmt: skip
