"""What notebooks order reaches the ranks it is meant for, in the cell it is meant for."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.orders import Orders

ALL = RankSet.all(3)


class Node:
    """Rank 0 runs cell 5, rank 1 cell 6, rank 2 nothing."""

    def __init__(self):
        self.done, self.withdrawn = [], []
        self.processes = {
            rank: SimpleNamespace(
                rank=rank, cell=cell, alive=True, num_interrupts=0,
                send_control=lambda message, rank=rank: self.done.append((rank, message)),
                signal=lambda number, rank=rank: self.done.append((rank, number)),
                kill_group=lambda rank=rank: self.done.append((rank, "killed")),
            )
            for rank, cell in enumerate((5, 6, 0))
        }  # fmt: skip
        stop = SimpleNamespace(withdraw=self.withdrawn.append)
        looks = SimpleNamespace(ask=lambda process, cell: self.done.append((process.rank, "looked at", cell)))
        self.orders = Orders(self.processes, stop, looks)

    def after(self, order):
        assert self.orders.obey(order) is None
        done, self.done[:] = self.done[:], []
        return done


@pytest.mark.parametrize(("cell", "ranks"), [(5, [0]), (6, [1]), (4, []), (7, []), (0, [0, 1])])
def test_an_interrupt_reaches_ranks_that_still_run_its_cell(cell, ranks):
    """The order first: it says what the signal is for."""
    node = Node()
    numbers = {0: 5, 1: 6}
    for number in (1, 2):  # each is one of its own
        expected = [
            each for rank in ranks for each in ((rank, m.InterruptCell(numbers[rank], number)), (rank, signal.SIGINT))
        ]
        assert node.after(m.Interrupt(cell, ALL)) == expected
    assert node.withdrawn == [cell, cell]


def test_orders_for_a_cell_do_not_reach_another_one():
    node = Node()
    assert node.after(m.Release(5, ALL, "why", False)) == [(0, m.ReleaseRank(5, "why", False))]
    assert node.after(m.EndRanks(6, ALL, "why")) == [(1, "killed")]
    reply = m.InputReply(5, 1, 1, "text", "")
    assert node.after(reply) == []
    assert node.after(m.Continue(ALL)) == [(rank, signal.SIGCONT) for rank in ALL]
    assert node.after(m.LookAt(5, RankSet([1, 9]))) == [(1, "looked at", 5)]


def test_the_dead_are_left_alone():
    node = Node()
    node.processes[0].alive = False
    assert node.after(m.Interrupt(0, RankSet([0]))) == []
