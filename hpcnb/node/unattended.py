"""Cells that no notebook listens to: ranks that wait in vain are released all the same.

A laptop was closed, or the kernel restarted, while a cell runs. What to do about its ranks is decided by the same
watch as in a notebook; what it says is kept with the output of the cell. As soon as a notebook listens, that one
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.board import Activity
from hpcnb.core.exits import exit_words
from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.node.orders import Order

__all__ = ["Unattended"]


class Unattended:
    """The watches of the cells that run.

    Args:
        grace_s: Ranks that wait in vain for so long are released; infinite for never.
        is_attended: Whether a notebook listens to a cell.
        obey: Carries an order out.
        say: Says something of a cell, for notebooks that come later too.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        grace_s: float,
        is_attended: Callable[[int], bool],
        obey: Callable[[Order], object],
        say: Callable[[m.Message], None],
        clock: Callable[[], float],
    ) -> None:
        self._grace_s = grace_s
        self._is_attended = is_attended
        self._obey = obey
        self._say = say
        self._clock = clock
        self._watches: dict[int, watch.Watch] = {}

    def begin(self, cell: int, ranks: RankSet) -> None:
        """A cell begins on these ranks."""
        self._watches[cell] = watch.Watch(ranks, cell, ranks, self._grace_s)

    def forget(self, cell: int) -> None:
        """A cell is over."""
        self._watches.pop(cell, None)

    def heard(self, message: m.Message) -> None:
        """A rank said something."""
        if isinstance(message, m.CellReply):
            error = message.error or {}
            how = f"raised {error['ename']}" if error else ""
            mismatch = error["evalue"] if error.get("ename") == "CollectiveMismatch" else ""
            self._tell(message.cell, watch.Replied(RankSet([message.rank]), self._clock(), how, mismatch))
        elif isinstance(message, m.Seen):
            self._tell(message.cell, watch.Located(message.rank, self._clock(), "", message.moved_bytes))

    def exited(self, ended: m.RankExited) -> None:
        """A rank's process has ended."""
        how = exit_words(
            ended.status, memory_mb=ended.memory_mb, was_out_of_memory=ended.was_out_of_memory, how=ended.how
        )
        for cell, each in list(self._watches.items()):
            if ended.rank in each.ranks:
                self._tell(cell, watch.Exited(ended.rank, self._clock(), how))

    def looked(self, cell: int, facts: Mapping[int, RankFacts]) -> None:
        """Where ranks are, while some wait."""
        if (before := self._watches.get(cell)) is None or self._is_attended(cell):
            return
        is_debugging = any(each.activity == Activity.DEBUGGER for each in facts.values())
        self._watches[cell] = replace(before, is_debugging=is_debugging)
        self._tell(cell, watch.Looked(self._clock(), dict(facts)))

    def _tell(self, cell: int, event: watch.Event) -> None:
        if (before := self._watches.get(cell)) is None:
            return
        self._watches[cell], actions = watch.advance(before, event)
        if not self._is_attended(cell):
            for action in actions:
                self._do(cell, action)

    def _do(self, cell: int, action: watch.Action) -> None:
        match action:
            case watch.Say(words):
                self._say(m.Explained(cell, words))
            case watch.ReleaseRanks(ranks, reason, mismatch):
                self._obey(m.Release(cell, ranks, reason, mismatch))
            case watch.ContinueRanks(ranks):
                self._obey(m.Continue(ranks))
            case watch.LookAtRanks(ranks):
                self._obey(m.LookAt(cell, ranks))
            case _:
                pass  # nobody interrupts, and the relay knows when the cell is over
