"""Whose question comes next: fed with what ranks ask, no clock."""

from __future__ import annotations

from hpcnb.core.questions import Question, Questions
from hpcnb.core.ranks import RankSet


def question(rank, request=1, *, in_debugger=True):
    return Question(rank, request, "(Pdb) ", in_debugger=in_debugger)


def served(questions, now_s=0.0):
    """Answer the next question; returns its rank, None if there is none now."""
    following = questions.next(now_s)
    if following is None:
        return None
    questions.answered(following, now_s)
    return following.rank


def test_the_lowest_rank_goes_first_and_is_stayed_with_until_it_leaves():
    questions = Questions()
    for rank in (2, 0, 1):
        questions.asked(question(rank))
    assert questions.next(0.0) == question(0)
    assert questions.others(0) == RankSet([1, 2])
    assert served(questions) == 0
    assert served(questions, 0.1) is None  # it may ask again at once
    questions.asked(question(0, 2))
    assert served(questions, 0.2) == 0
    questions.left(0)
    assert served(questions, 0.3) == 1
    questions.left(1)
    assert served(questions, 0.4) == 2
    assert questions.ranks == RankSet([2])  # in the debugger still


def test_a_rank_that_steps_for_long_gives_way_to_those_it_may_wait_for():
    questions = Questions()
    questions.asked(question(0))
    questions.asked(question(1))
    assert served(questions, 0.0) == 0  # a step over a collective that rank 1 has not reached
    assert served(questions, 1.0) is None
    assert served(questions, 2.0) == 1
    questions.asked(question(0, 2))
    questions.asked(question(1, 2))
    assert served(questions, 2.1) == 1  # now rank 1 is stayed with


def test_ranks_that_ask_again_and_again_take_turns():
    questions = Questions()
    turns = []
    for request in range(1, 4):
        for rank in range(3):
            questions.asked(question(rank, request, in_debugger=False))
        turns.append(served(questions))
    assert turns == [0, 1, 2]


def test_every_round_begins_with_the_lowest_rank():
    questions = Questions()
    turns = []
    for request in (1, 2):
        for rank in (2, 1, 0):  # the first asks before the others
            questions.asked(question(rank, request, in_debugger=False))
            if rank == 2 and request == 1:
                turns.append(served(questions))
        while (rank := served(questions)) is not None:
            turns.append(rank)
    assert turns == [2, 0, 1, 0, 1, 2]


def test_input_is_one_question_and_holds_nobody():
    questions = Questions()
    questions.asked(question(1, in_debugger=False))
    questions.asked(question(3, in_debugger=False))
    assert questions.ranks == RankSet([1, 3])
    assert [served(questions), served(questions), served(questions)] == [1, 3, None]
    assert not questions.ranks


def test_ranks_that_have_ended_the_cell_ask_no_more():
    questions = Questions()
    questions.asked(question(0))
    questions.asked(question(1))
    assert served(questions) == 0
    questions.keep(RankSet([1]))
    assert questions.ranks == RankSet([1])
    assert served(questions) == 1
    questions.keep(RankSet())
    assert not questions.ranks
    assert served(questions) is None


def test_a_later_question_of_a_rank_makes_the_earlier_one_void():
    questions = Questions()
    questions.asked(question(0, 1))
    first = questions.next(0.0)
    questions.asked(question(0, 2))  # an interrupt came between
    questions.answered(first, 0.0)
    assert questions.next(0.0) == question(0, 2)
