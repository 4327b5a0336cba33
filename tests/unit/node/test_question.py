"""A question to several nodes: answered when all have, or as far as they have in time."""

from __future__ import annotations

from hpcnb.node.question import Questions


def test_all_answers_together():
    whole, questions = [], Questions()
    number = questions.ask([0, 2], whole.append, 10.0)
    questions.hear(number, 2, "b")
    questions.hear(number + 1, 0, "of another question")
    assert whole == []
    questions.hear(number, 0, "a")
    assert whole == [{2: "b", 0: "a"}]
    assert questions.due_s == float("inf")
    assert questions.ask([0], whole.append, 10.0) != number


def test_a_node_that_is_lost_has_no_answer():
    whole, questions = [], Questions()
    number = questions.ask([0, 1], whole.append, 10.0)
    questions.lost(0)
    questions.hear(number, 1, [1])
    assert whole == [{1: [1]}]


def test_who_is_late_is_not_waited_for():
    whole, questions = [], Questions()
    number = questions.ask([0, 1], whole.append, 10.0)
    questions.hear(number, 1, "b")
    questions.tick(10.1)
    assert whole == []
    questions.tick(questions.due_s)
    assert whole == [{1: "b"}]
    questions.hear(number, 0, "too late")
    assert len(whole) == 1


def test_without_nodes_there_is_nothing_to_wait_for():
    whole = []
    Questions().ask([], whole.append, 10.0)
    assert whole == [{}]
