"""Small files of /proc, read often: without what pathlib and text files cost."""

from __future__ import annotations

import os

__all__ = ["read_proc"]

#: None of those that are read here is larger.
_MOST_BYTES = 4096


def read_proc(pid: int, name: str) -> bytes:
    """What ``/proc/PID/NAME`` holds; empty for a process that has ended."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MOST_BYTES)
    except OSError:  # it has just ended
        return b""
    finally:
        os.close(descriptor)
