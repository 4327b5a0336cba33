"""A question to several nodes: answered when all have, or as far as they have in time."""

from __future__ import annotations

from hpcnb.node.question import Question


def test_all_answers_together():
    whole = []
    question = Question([0, 2], whole.append, 10.0)
    assert not question.hear(2, "b")
    assert question.hear(0, "a")
    assert whole == [{2: "b", 0: "a"}]
    assert question.number != Question([0], whole.append, 10.0).number


def test_a_node_that_is_lost_has_no_answer():
    whole = []
    question = Question([0, 1], whole.append, 10.0)
    assert not question.hear(0, None)
    assert question.hear(1, [1])
    assert whole == [{1: [1]}]


def test_who_is_late_is_not_waited_for():
    whole = []
    question = Question([0, 1], whole.append, 10.0)
    question.hear(1, "b")
    assert question.due_s > 10.0
    question.give_up()
    assert whole == [{1: "b"}]
