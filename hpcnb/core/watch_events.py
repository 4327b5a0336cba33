"""What happens to a running cell, and what is to be done about it: values that the watch takes and gives.

Events carry their times. Both sides; nothing here decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet

__all__ = [
    "Action",
    "BoundaryFound",
    "CellEnds",
    "ContinueRanks",
    "EndRanks",
    "Event",
    "Exited",
    "InterruptAsked",
    "InterruptRanks",
    "LetGo",
    "Located",
    "LookAtRanks",
    "Looked",
    "ReleaseRanks",
    "Replied",
    "Say",
    "StopAtBoundary",
    "Tick",
    "TimedOut",
]


@dataclass(frozen=True)
class Replied:
    """Ranks answered, all the same way; ``how`` in words if they raised: ``raised ValueError``."""

    ranks: RankSet
    at_s: float = 0.0
    how: str = ""
    mismatch: str = ""  # the words of a CollectiveMismatch


@dataclass(frozen=True)
class Exited:
    """A rank's process ended, in words: ``was ended by SIGKILL``."""

    rank: int
    at_s: float = 0.0
    how: str = "ended"


@dataclass(frozen=True)
class Looked:
    """Where ranks are."""

    at_s: float
    facts: dict[int, RankFacts]


@dataclass(frozen=True)
class Located:
    """What a rank's Python code does, in words: ``is at line 5: x = f(x)``; and bytes moved so far, -1 if unknown."""

    rank: int
    at_s: float
    words: str
    moved_bytes: int = -1


@dataclass(frozen=True)
class InterruptAsked:
    """The person pressed Ctrl-C, or called interrupt()."""

    at_s: float = 0.0


@dataclass(frozen=True)
class BoundaryFound:
    """Whether ranks can agree on a step to stop at."""

    found: bool
    at_s: float = 0.0


@dataclass(frozen=True)
class TimedOut:
    """The cell ran longer than its timeout."""

    at_s: float = 0.0


@dataclass(frozen=True)
class LetGo:
    """The notebook lets go of the cluster; nothing more will be heard."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    at_s: float


Event = Replied | Exited | Looked | Located | InterruptAsked | BoundaryFound | TimedOut | LetGo | Tick


@dataclass(frozen=True)
class StopAtBoundary:
    """Ask these ranks to stop at a step that all can agree on."""

    ranks: RankSet


@dataclass(frozen=True)
class InterruptRanks:
    """Send SIGINT to these ranks."""

    ranks: RankSet


@dataclass(frozen=True)
class ReleaseRanks:
    """Let these ranks go from what they wait in."""

    ranks: RankSet
    reason: str
    mismatch: bool = False


@dataclass(frozen=True)
class ContinueRanks:
    """Send SIGCONT to these ranks."""

    ranks: RankSet


@dataclass(frozen=True)
class LookAtRanks:
    """Find out what the Python code of these ranks does; ``show`` their stacks in the cell."""

    ranks: RankSet
    show: bool = False


@dataclass(frozen=True)
class EndRanks:
    """Send SIGKILL to these ranks."""

    ranks: RankSet
    reason: str


@dataclass(frozen=True)
class Say:
    """Something the person must know about this cell."""

    words: str


@dataclass(frozen=True)
class CellEnds:
    """The notebook gets its prompt back; ``busy`` ranks have not answered and still run the cell."""

    busy: RankSet


Action = (
    StopAtBoundary | InterruptRanks | ReleaseRanks | ContinueRanks | LookAtRanks | EndRanks | Say | CellEnds
)  # fmt: skip
