"""Ranks that a smaller cluster has no place for: they are told to end, and ended if they do not.

Knows processes; what becomes of a place on the board when its rank has gone, the host decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpcnb.core import messages as m
from hpcnb.node.rank_process import RankProcess

__all__ = ["Leaver", "Leavers"]

#: A rank that was told to leave runs what was registered with atexit for so long.
_GRACE_S = 1.0


@dataclass
class Leaver:
    """A rank that ends.

    Attributes:
        process: Of the rank.
        place: Its region of the board.
        until_s: Then it is killed.
        then: To be done when it has ended.
    """

    process: RankProcess
    place: int
    until_s: float = float("inf")
    then: Callable[[], None] | None = None


class Leavers:
    """Those that have not ended yet.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leavers: list[Leaver] = []

    @property
    def due_s(self) -> float:
        """When :meth:`tick` has something to do; infinite if nobody leaves."""
        return min((each.until_s for each in self._leavers), default=float("inf"))

    @property
    def processes(self) -> list[RankProcess]:
        """Of ranks that leave, some not forked yet."""
        return [each.process for each in self._leavers]

    def send_off(self, process: RankProcess, place: int) -> None:
        """A rank is to end; one that nobody can tell so is killed as soon as it has been forked."""
        process.send_control(m.LeaveRank())
        grace_s = _GRACE_S if process.control >= 0 else 0.0
        self._leavers.append(Leaver(process, place, self._clock() + grace_s))

    def at(self, place: int) -> Leaver | None:
        """Who still has this place."""
        return next((each for each in self._leavers if each.place == place), None)

    def hurry(self, leaver: Leaver, then: Callable[[], None]) -> None:
        """Another rank is to have its place."""
        leaver.until_s = self._clock()
        leaver.then = then

    def tick(self, now_s: float) -> None:
        """Kill those whose time is over."""
        for leaver in self._leavers:
            if now_s >= leaver.until_s and leaver.process.pid:
                leaver.until_s = float("inf")
                leaver.process.kill_group()

    def ended(self, process: RankProcess) -> Leaver | None:
        """A process has ended: who left with it, if it was one of these."""
        leaver = next((each for each in self._leavers if each.process is process), None)
        if leaver is not None:
            self._leavers.remove(leaver)
        return leaver
