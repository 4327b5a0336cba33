"""Whose question a person answers next when several ranks ask at once: pure decisions, no clock, no socket.

A rank in a debugger is stayed with until it leaves: the next lines are for it. But one that runs on under the
debugger may wait for ranks that have not had their turn (a step over a collective), so after a while they have.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcnb.core.ranks import RankSet

__all__ = ["Question", "Questions"]

#: A rank that steps has so long to come back before another one is served.
_STAY_S = 1.5


@dataclass(frozen=True)
class Question:
    """A rank waits for a line of text.

    Attributes:
        rank: Who asks.
        request: Number of the request on that rank.
        prompt: What it asks.
        in_debugger: Whether it stays in a debugger after the answer.
    """

    rank: int
    request: int
    prompt: str
    in_debugger: bool


class Questions:
    """The questions of one cell."""

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}
        self._in_debugger: set[int] = set()
        self._served: dict[int, int] = {}  # rank -> how often it had its turn
        self._stays = -1
        self._until_s = 0.0

    @property
    def ranks(self) -> RankSet:
        """Ranks that wait for an answer or are in a debugger: they are not stuck, and their clock is held."""
        return RankSet(self._open) | RankSet(self._in_debugger)

    def asked(self, question: Question) -> None:
        """A rank asks; an earlier question of it is void."""
        self._open[question.rank] = question
        if question.in_debugger:
            self._in_debugger.add(question.rank)

    def left(self, rank: int) -> None:
        """A rank runs on without the debugger."""
        self._in_debugger.discard(rank)
        if self._stays == rank:
            self._stays = -1

    def keep(self, running: RankSet) -> None:
        """Ranks other than these have ended the cell."""
        for rank in self.ranks - running:
            self.left(rank)
            self._open.pop(rank, None)

    def next(self, now_s: float) -> Question | None:
        """The question to put to the person now; None if there is none, or if it should wait for a moment.

        The rank that is stayed with goes first, then who has been served least often, then the lowest rank.
        """
        if self._stays in self._open:
            return self._open[self._stays]
        if not self._open or (self._stays >= 0 and now_s < self._until_s):
            return None
        return self._open[min(self._open, key=lambda rank: (self._served.get(rank, 0), rank))]

    def stays_with(self, question: Question) -> bool:
        """Whether it goes on with the rank that was served last."""
        return self._stays == question.rank

    def drop(self) -> None:
        """The cell was interrupted: what has been asked so far needs no answer."""
        self._open.clear()

    def others(self, rank: int) -> RankSet:
        """Ranks that wait for their turn while this one is served."""
        return RankSet(self._open) - RankSet([rank])

    def answered(self, question: Question, now_s: float) -> None:
        """The person has answered."""
        if self._open.get(question.rank) == question:
            del self._open[question.rank]
        if self._stays != question.rank:
            self._served[question.rank] = self._served.get(question.rank, 0) + 1
        if question.rank in self._in_debugger:
            self._stays, self._until_s = question.rank, now_s + _STAY_S
