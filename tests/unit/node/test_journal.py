"""The journal: what a notebook that comes later is told, in order, and what is dropped when it is too much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.journal import Journal

R01 = RankSet([0, 1])
R0 = RankSet([0])


def began(cell=1):
    return m.CellBegan(cell, f"cell {cell}", R01, 1, 5)


def output(text, cell=1):
    return m.Output(cell, [[R01, [["stdout", text]]]])


def display(size=10, *, cell=1, display_id="", update=False, ranks=R0, mark="x"):
    return m.Display(cell, ranks, {"text/plain": mark * size}, {}, display_id, update)


def reply(rank, pickled=b"", cell=1, *, is_broken=False):
    return [cell, rank, True, 0, 1, "1", True, False, pickled, "", None, [], is_broken, []]


def done(cell=1, replies=(), spans=None):
    return m.CellDone(cell, list(replies), spans or {}, {}, {}, 9)


def say(journal, *messages, connected=()):
    for message in messages:
        journal.add(message, m.encode(message), connected)


def told(journal, cell=1, follower=b"new"):
    return [m.decode(packed) for packed in journal.follow(cell, follower)]


def test_a_running_cell_is_told_from_its_beginning_to_each_follower():
    journal = Journal()
    journal.begin(began(), b"a")
    said = [output("one\n"), display(), m.Clear(1, R0, wait=True), output("two\n"), m.Replies(1, [reply(0)])]
    say(journal, *said, output("of no cell", cell=7), m.Stage("x", 0, 1))
    assert journal.running == [began()]
    assert journal.unseen == []
    for _ in range(2):
        assert told(journal) == [began(), *said]
    assert told(journal, cell=2) == []


def test_a_cell_is_kept_after_its_end_only_if_nobody_followed_it():
    journal = Journal()
    for cell, connected in ((1, [b"a"]), (2, [b"b"]), (3, [])):
        journal.begin(began(cell), b"a")
        say(journal, output("x", cell), done(cell), connected=connected)
    assert journal.unseen == [began(2), began(3)]
    assert told(journal, 2) == [began(2), output("x", 2), done(2)]
    assert journal.unseen == [began(3)]  # it has been seen
    told(journal, 3)
    assert journal.num_bytes == 0


def test_who_joins_a_running_cell_follows_it():
    journal = Journal()
    journal.begin(began(), b"a")
    told(journal, follower=b"b")
    say(journal, done(), connected=[b"b"])
    assert journal.unseen == []


def asks(rank, request, *, in_debugger=False):
    return m.InputRequest(1, rank, request, "? ", in_debugger)


def test_an_answered_question_is_not_told_again():
    journal = Journal()
    journal.begin(began(), b"a")
    say(journal, asks(0, 7), asks(1, 7))
    journal.answered(m.InputReply(1, 0, 6, "late", ""))  # to an earlier question
    journal.answered(m.InputReply(2, 0, 7, "of another cell", ""))
    assert told(journal) == [began(), asks(0, 7), asks(1, 7)]
    journal.answered(m.InputReply(1, 0, 7, "yes", ""))
    journal.answered(m.InputReply(1, 0, 7, "twice", ""))
    assert told(journal) == [began(), asks(1, 7)]
    say(journal, asks(0, 8))
    assert told(journal) == [began(), asks(1, 7), asks(0, 8)]


def test_a_question_that_was_given_up_is_not_told_again():
    journal = Journal()
    journal.begin(began(), b"a")
    left = m.DebuggerLeft(1, 0)
    say(journal, asks(0, 1), asks(0, 2, in_debugger=True))
    assert told(journal) == [began(), asks(0, 2, in_debugger=True)]
    say(journal, left)
    assert told(journal) == [began(), left]
    answers = m.Replies(1, [reply(0)])
    say(journal, asks(0, 3), asks(1, 1), answers)
    assert told(journal) == [began(), left, asks(1, 1), answers]
    say(journal, done())
    assert told(journal) == [began(), left, answers, done()]


def test_ranks_are_broken_until_they_say_otherwise_in_whatever_cell():
    journal = Journal()
    journal.begin(began(), b"a")
    say(journal, m.Replies(1, [reply(1, is_broken=True)]))
    assert journal.broken == RankSet([1])
    say(journal, done(1, [reply(0, is_broken=True)]), connected=[b"a"])
    assert journal.broken == R01
    say(journal, done(2, [reply(0, cell=2)]))  # as of a Rebuild, which is not kept
    assert journal.broken == RankSet([1])
    say(journal, done(3, [reply(1, cell=3)]))
    assert not journal.broken


def test_who_answered_a_cell_that_another_rank_did_not_live_to_answer_is_broken():
    journal = Journal()
    journal.begin(began(), b"a")
    say(journal, m.Replies(1, [reply(0)]))
    assert not journal.broken
    say(journal, done())
    assert journal.broken == R0


def test_of_bars_and_held_lines_only_the_newest_is_kept():
    journal = Journal()
    journal.begin(began(), b"a")
    say(
        journal,
        m.Progress(1, 0, "outer", 5, {0: [1, 0.1], 1: [2, 0.1]}, finished=False),
        m.Progress(1, 0, "outer", 5, {0: [3, 0.2]}, finished=False),
        *(m.Progress(1, bar, "inner", 9, {0: [9, 0.1]}, finished=True) for bar in range(1, 50)),
        m.Held(1, [[R0, 5, "old"]]),
        m.Held(1, [[R0, 9, "new"]]),
    )
    outer = m.Progress(1, 0, "outer", 5, {0: [3, 0.2], 1: [2, 0.1]}, finished=False)
    inner = m.Progress(1, 49, "inner", 9, {0: [9, 0.1]}, finished=True)
    held = m.Held(1, [[R0, 9, "new"]])
    assert told(journal) == [began(), outer, inner, held]
    say(journal, done())
    assert told(journal) == [began(), outer, inner, done()]  # nothing is held back in the end


def test_of_an_animation_the_last_picture_is_kept():
    journal = Journal()
    journal.begin(began(), b"a")
    first = display(display_id="d")
    say(journal, first, *(display(mark=mark, display_id="d", update=True) for mark in "abc"))
    cleared = [m.Clear(1, R0, wait=True), display(mark="z")]
    other = display(ranks=RankSet([1]), mark="o")
    say(journal, other)
    assert told(journal) == [began(), first, display(mark="c", display_id="d", update=True), other]
    say(journal, *cleared)
    assert told(journal) == [began(), other, *cleared]


def test_too_many_pictures_lose_the_oldest_and_say_so():
    journal = Journal(limit_bytes=10_000)
    journal.begin(began(), b"a")
    say(journal, output("kept\n"), *(display(2000, mark=mark) for mark in "abcdef"))
    notice, *rest = told(journal)[1:]
    assert notice == m.Notice(
        1, R01, "the first 3 pictures or other rich outputs are lost: too much to keep until a notebook came"
    )
    assert rest == [output("kept\n"), *(display(2000, mark=mark) for mark in "def")]


def test_large_objects_and_spans_go_next_and_how_the_cell_ended_stays():
    journal = Journal(limit_bytes=5_000)
    journal.begin(began(), b"a")
    say(
        journal,
        output("kept\n"),
        m.Replies(1, [reply(0, bytes(9000))]),
        done(replies=[reply(1)], spans={0: bytes(9000)}),
    )
    _, text, replies, end = told(journal)
    assert text == output("kept\n")
    assert replies.replies[0][8:10] == [b"", "it was too large to be kept until a notebook came"]
    assert end == done(replies=[reply(1)])


def test_text_goes_last():
    journal = Journal(limit_bytes=5_000)
    journal.begin(began(), b"a")
    say(journal, *(output(str(i) * 1000) for i in range(9)), done())
    notice, *rest = told(journal)[1:]
    assert notice.words == "the beginning of the output is lost: too much to keep until a notebook came"
    assert rest[0].entries[0][1][0][1].startswith("6")
    assert rest[-1] == done()


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("odcbrep"), st.integers(0, 3000)), max_size=60))
def test_the_bound_holds_and_the_count_is_right(steps):
    journal = Journal(limit_bytes=8_000)
    begun = set()
    for cell, kind, size in steps:
        if kind == "b" and cell not in begun:
            begun.add(cell)
            journal.begin(began(cell), b"a")
        message = {
            "o": output("x" * size, cell), "d": display(size, cell=cell), "c": m.Clear(cell, R0, wait=False),
            "r": m.Replies(cell, [reply(0, bytes(size), cell)]), "e": done(cell, [reply(1, bytes(size), cell)]),
            "p": display(size, cell=cell, display_id="i", update=True), "b": output("", cell),
        }[kind]  # fmt: skip
        say(journal, message)
        answers = 450 + 4000  # answers without objects are always kept
        assert journal.num_bytes <= max(8_000, answers * len(steps))
    for cell in range(1, 4):
        say(journal, done(cell))
        told(journal, cell)
    assert journal.num_bytes == 0
