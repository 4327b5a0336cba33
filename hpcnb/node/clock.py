"""How far the clock of another node is from ours, estimated from questions and answers. Pure.

Of several exchanges the quickest says most: the answer was made between the question and its arrival, and halfway is
off by half of that time at most (Cristian 1989).
"""

from __future__ import annotations

from collections import deque

__all__ = ["ClockOffset"]

#: Exchanges that are remembered; older ones would hide that clocks drift.
_REMEMBERED = 60


class ClockOffset:
    """The other clock less ours."""

    def __init__(self) -> None:
        self._exchanges: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)

    def exchanged(self, asked_ns: int, theirs_ns: int, answered_ns: int) -> None:
        """They read ``theirs_ns`` at some time between ``asked_ns`` and ``answered_ns`` of our clock."""
        took_ns = answered_ns - asked_ns
        self._exchanges.append((took_ns, theirs_ns - (asked_ns + took_ns // 2)))

    @property
    def estimate_ns(self) -> int:
        """Nanoseconds; 0 where nothing is known, and where it may as well be the same clock."""
        took_ns, offset_ns = min(self._exchanges, default=(0, 0))
        return offset_ns if abs(offset_ns) > took_ns else 0

    @property
    def error_ns(self) -> int:
        """It is off by so much at most, unless the way there takes longer than the way back."""
        return min(self._exchanges, default=(0, 0))[0] // 2
