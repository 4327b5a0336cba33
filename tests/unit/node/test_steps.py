"""The step at which all nodes stop."""

from __future__ import annotations

import pytest

from hpcnb.node.steps import Steps

CELL = 5


@pytest.mark.parametrize(("proposed", "agreed"), [((3, 7, 4), 7), ((3, 0, 4), 0), ((1, 1, 1), 1)])
def test_the_last_proposal_is_taken_unless_a_node_has_none(proposed, agreed):
    steps = Steps()
    steps.ask(CELL, range(3))
    heard = [steps.hear(CELL, node, step) for node, step in enumerate(proposed)]
    assert heard == [None, None, agreed]
    assert steps.hear(CELL, 0, 9) is None  # it has been told


def test_who_was_not_asked_is_not_heard():
    steps = Steps()
    assert steps.hear(CELL, 0, 3) is None
    steps.ask(CELL, [1])
    assert steps.hear(CELL, 0, 3) is None
    assert steps.hear(CELL, 1, 4) == 4


def test_with_a_node_that_is_lost_no_step_can_be_agreed_on():
    steps = Steps()
    steps.ask(CELL, [0, 1])
    steps.ask(CELL + 1, [0, 2])
    steps.hear(CELL, 0, 8)
    assert steps.lost(1) == {CELL: 0}
    steps.forget(CELL + 1)
    assert steps.lost(2) == {}
