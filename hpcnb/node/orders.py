"""What notebooks order the ranks of this node to do beside running cells: stop, be released, be looked at, end."""

from __future__ import annotations

import logging
import signal

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.looks import Looks
from hpcnb.node.rank_process import RankProcess
from hpcnb.node.stop import Stop

__all__ = ["Order", "Orders", "interrupt"]

LOG = logging.getLogger(__name__)

#: What notebooks may order.
Order = m.Interrupt | m.StopAtBoundary | m.Release | m.LookAt | m.Continue | m.EndRanks | m.InputReply


def interrupt(process: RankProcess) -> None:
    """Stop the cell that this rank runs."""
    # first the number of the cell: the rank may be about to begin it, or have ended it when the signal arrives
    process.num_interrupts += 1
    process.send_control(m.InterruptCell(process.cell, process.num_interrupts))
    process.signal(signal.SIGINT)  # the link thread cannot run while C code holds the interpreter lock


class Orders:
    """Carries orders out.

    Args:
        ranks: By global rank; entries change when ranks are replaced.
        stop: Chooses the step to stop at.
        looks: Finds out what ranks do.
    """

    def __init__(self, ranks: dict[int, RankProcess], stop: Stop, looks: Looks) -> None:
        self._ranks = ranks
        self._stop = stop
        self._looks = looks

    def _chosen(self, ranks: RankSet) -> list[RankProcess]:
        """Those of these ranks that live on this node."""
        return [self._ranks[rank] for rank in ranks if rank in self._ranks and self._ranks[rank].alive]

    def obey(self, order: Order | m.StopAtStep) -> m.Message | None:
        """Carry an order out; returns what is to be answered, if anything is."""
        if isinstance(order, m.StopAtStep):
            self._stop.choose(order.cell, order.step)
            return None
        if isinstance(order, m.StopAtBoundary):
            ranks = [process.rank for process in self._chosen(order.ranks) if process.cell == order.cell]
            return None if self._stop.ask(order.cell, ranks) else m.StepProposed(order.cell, 0)
        if isinstance(order, m.Interrupt):
            self._stop.withdraw(order.cell)
        chosen = RankSet([order.rank]) if isinstance(order, m.InputReply) else order.ranks
        for process in self._chosen(chosen):
            self._obey(process, order)
        return None

    def _obey(self, process: RankProcess, order: Order) -> None:
        match order:
            case m.Interrupt() if process.cell and order.cell in (0, process.cell):  # else it comes too late
                interrupt(process)
            case m.Release() if process.cell == order.cell:
                process.send_control(m.ReleaseRank(order.cell, order.reason, order.mismatch))
            case m.LookAt():
                self._looks.ask(process, order.cell)
            case m.Continue():
                process.signal(signal.SIGCONT)
            case m.EndRanks() if process.cell == order.cell:
                LOG.info("rank %d is ended: %s", process.rank, order.reason)
                process.kill_group()
            case m.InputReply() if process.cell == order.cell:
                process.send_control(order)  # its main thread waits, its link thread listens
