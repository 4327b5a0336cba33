"""Whether the agent of a cluster's folder lives: it holds a lock on a file there. Both sides.

The kernel lets go of the lock when the agent ends, however it ends. The file appears in one step, locked and with
the agent's process id in it: where it is missing, the agent has not got so far yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpcnb.core.launch import RunFolder

__all__ = ["Pulse", "feel", "hold"]


def hold(folder: RunFolder) -> int:
    """Lock the folder for the life of this process; returns the descriptor, which no child may inherit."""
    import fcntl

    unnamed = folder.lock.with_suffix(f".{os.getpid()}")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, str(os.getpid()).encode())
    unnamed.rename(folder.lock)
    return descriptor


@dataclass(frozen=True)
class Pulse:
    """What the lock of a folder says.

    Attributes:
        began: Whether there is or was an agent.
        pid: Process id of the agent that lives; 0 if none does.
    """

    began: bool
    pid: int = 0


def feel(folder: RunFolder) -> Pulse:
    """Look at the lock without taking it from anybody.

    Raises:
        OSError: The file cannot be read.
    """
    import fcntl

    try:
        descriptor = os.open(folder.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return Pulse(began=False)
    try:
        # shared: two that look at the same time are not taken for an agent
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 20)
        return Pulse(began=True, pid=int(text) if text.isdigit() else 0)
    finally:
        os.close(descriptor)
    return Pulse(began=True)
