"""How long to sleep between two looks at what others do: short at first, since most waits are, then longer."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["pauses_s"]

_FIRST_S, _LONGEST_S, _GROWTH = 0.0002, 0.005, 1.5


def pauses_s() -> Iterator[float]:
    """Seconds of each pause, without an end."""
    pause_s = _FIRST_S
    while True:
        yield pause_s
        pause_s = min(pause_s * _GROWTH, _LONGEST_S)
