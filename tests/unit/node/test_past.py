"""What a notebook that connects later is told: no more than what is still true."""

from __future__ import annotations

from hpcnb.core import messages as m
from hpcnb.node.past import Past


def ready(rank, pid=1):
    return m.RankReady(rank, pid, "n1", "cpu", {})


def exited(rank):
    return m.RankExited(rank, 1, -9, [], False, "", "", 0.0, False)


def past(*messages):
    told = Past()
    for message in messages:
        told.add(message)
    return told.all()


def test_all_of_a_start():
    stage = m.Stage("import torch", 1, 2)
    assert past(stage, ready(0), ready(1)) == [stage, ready(0), ready(1)]


def test_how_earlier_processes_of_a_rank_ended_is_forgotten():
    assert past(ready(0), ready(1), exited(1), ready(1, pid=2)) == [ready(0), ready(1, pid=2)]
    assert past(ready(0), ready(1), exited(1)) == [ready(0), ready(1), exited(1)]


def test_who_died_is_told_after_all_who_are_ready():
    """While a cluster starts, a rank that ends is the end of the start."""
    grown = m.Scaled(3, "dp=3", [])
    assert past(ready(0), ready(1), grown, exited(1), ready(2)) == [grown, ready(0), ready(1), ready(2), exited(1)]


def test_ranks_that_were_removed_have_never_been_there():
    lost = m.NodeLost(1, "n2", "it ended")
    grown, shrunk = m.Scaled(3, "dp=3", []), m.Scaled(1, "dp=1", [])
    assert past(ready(0), ready(1), lost, grown, ready(2), exited(2), shrunk, exited(1)) == [shrunk, ready(0), lost]
    again = m.Scaled(2, "dp=2", [])
    assert past(ready(0), ready(1), shrunk, exited(1), again, ready(1, pid=2)) == [again, ready(0), ready(1, pid=2)]
