"""How a rank's process ended, in words. Both sides."""

from __future__ import annotations

import signal

__all__ = ["exit_words"]


def exit_words(status: int | None, *, memory_mb: float = 0.0, was_out_of_memory: bool = False, how: str = "") -> str:
    """``was ended by SIGKILL``: what is said of a rank.

    Args:
        status: As in ``Popen.returncode``: negative is the signal; None if nobody saw it.
        memory_mb: Its last known resident size.
        was_out_of_memory: The kernel killed it for want of memory.
        how: In words, where the status does not tell.
    """
    if how:
        return how
    if was_out_of_memory:
        return f"was killed: out of memory ({memory_mb:,.0f} MB resident when last seen)"
    if status is None:
        return "ended before it answered"
    if status >= 0:
        return f"ended its process with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
