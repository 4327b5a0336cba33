"""Memory of ranks: what they use, and whether one that was killed had run out of it."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from pathlib import Path

from hpcnb.node.proc import read_proc

__all__ = ["Memory"]

#: The proportional size is looked up at most so often: the kernel walks all pages of the process for it.
_PROPORTIONAL_S = 3.0
#: Kills of the kernel are counted anew so often.
_KILLS_S = 2.0
#: Memory of the agent itself is given back so long after a cell has begun.
_TRIM_S = 10.0


class Memory:
    """What ranks of this node use.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._proportional: dict[int, tuple[float, float]] = {}
        self._resident_mb: dict[int, float] = {}
        # two looks, the older one for comparison: what the kernel did long before a rank ended was not about that rank
        self._num_kills = self._num_recent = _num_kills()
        self._looked_s = clock()
        self._trim_due_s = float("inf")

    def proportional_mb(self, pid: int) -> float:
        """PSS: memory of the process, shared pages divided by who shares them."""
        asked_s, memory_mb = self._proportional.get(pid, (float("-inf"), 0.0))
        if self._clock() - asked_s > _PROPORTIONAL_S:
            asked_s, memory_mb = self._clock(), round(_proportional_mb(pid), 1)
            self._proportional[pid] = (asked_s, memory_mb)
        return memory_mb

    def used(self) -> None:
        """The agent held output and records of a cell."""
        self._trim_due_s = min(self._trim_due_s, self._clock() + _TRIM_S)

    def trim(self) -> None:
        """Give back to the kernel what the agent has held and needs no more: its C library would keep all of it."""
        if self._clock() < self._trim_due_s:
            return
        self._trim_due_s = float("inf")
        if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # not with musl
            malloc_trim(0)

    def note(self, pid: int) -> None:
        """Look up the resident size, which is gone when the process is."""
        if sizes := read_proc(pid, "statm").split():  # else it has just ended; the last size is what is told
            self._resident_mb[pid] = int(sizes[1]) * 4096 / 1e6
        if self._clock() - self._looked_s > _KILLS_S:
            self._looked_s = self._clock()
            self._num_kills, self._num_recent = self._num_recent, _num_kills()

    def ended(self, pid: int, status: int) -> tuple[float, bool]:
        """The last known resident size of a process in MB, and whether the kernel killed it for want of memory."""
        self._proportional.pop(pid, None)
        was_out_of_memory = status == -signal.SIGKILL and _num_kills() > self._num_kills
        if was_out_of_memory:
            self._num_kills += 1  # one kill for one process
        return self._resident_mb.pop(pid, 0.0), was_out_of_memory


def _num_kills() -> int:
    """How often the kernel's out-of-memory killer has struck on this machine."""
    try:
        with Path("/proc/vmstat").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        return 0  # not told on this kernel
    return 0


def _proportional_mb(pid: int) -> float:
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        return 0.0  # it has just ended
    return 0.0
