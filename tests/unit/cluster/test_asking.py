"""Presses that meet a question: each counts once, and none is lost, whoever waits and whenever it comes."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace

import pytest

from hpcnb.cluster import asking
from hpcnb.cluster.asking import Asker
from hpcnb.cluster.cell_run import CellRun
from hpcnb.cluster.waiting import Inbox
from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.ranks import RankSet

ALL = RankSet.all(2)
CELL = 5


class Asked:
    """A cell of two ranks that ask; ``answer`` plays the person."""

    shows_answers = True

    def __init__(self, answer):
        self.sent, self.prompts, self.answer = [], [], answer
        self.inbox = Inbox()
        self.run = CellRun(CELL, "cell 5", ALL, 2)
        node = SimpleNamespace(link=SimpleNamespace(send=self.sent.append))
        self.asker = Asker(self.run, node, self.inbox, self)

    def ask(self, run, prompt):
        self.prompts.append(prompt)
        return self.answer()

    def press(self):
        self.inbox.put(watch.InterruptAsked(time.monotonic()))

    def question(self, rank):
        self.asker.step(m.InputRequest(CELL, rank, 1, "? ", False))

    def presses(self):
        """How many the wait will find."""
        found = 0
        while (event := self.inbox.take(0)) is not None:
            found += isinstance(event, watch.InterruptAsked)
        return found


@pytest.fixture(autouse=True)
def _ask_at_once(monkeypatch):
    """The first question does not wait for those of lower ranks."""
    monkeypatch.setattr(asking, "_GATHER_S", 0.0)


@pytest.fixture
def sigints():
    """What Ctrl-C is while a cell runs: an event, here counted."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    handler = signal.getsignal(signal.SIGINT)
    yield seen
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, before)


def test_a_press_from_another_thread_ends_the_asking_and_is_one_press(sigints):
    def answer():
        threading.Thread(target=asked.press).start()
        time.sleep(30)

    asked = Asked(answer)
    asked.question(0)
    assert asked.sent == []  # the interrupt will be sent when the press is taken
    asked.question(1)  # it was in the inbox before the press
    assert len(asked.prompts) == 1
    assert asked.presses() == 1
    assert sigints == []


def test_a_press_just_before_a_question_is_not_waited_for_by_a_person(sigints):
    asked = Asked(lambda: pytest.fail("the person was asked"))
    asked.press()
    asked.question(0)
    assert asked.sent == []
    assert asked.presses() == 1


def test_a_press_that_meets_the_answer_is_one_press(sigints):
    """It arrives while the asking ends by itself: its signal must not be taken for a Ctrl-C afterwards."""

    def answer():
        threads.append(threading.Thread(target=asked.press))
        threads[-1].start()
        until_s = time.monotonic() + len(threads) * 1e-5
        while time.monotonic() < until_s:
            pass
        return "typed"

    threads = []
    for _ in range(200):
        asked = Asked(answer)
        asked.question(0)
        threads[-1].join()
        assert asked.presses() == 1
        assert asked.sent in ([], [m.InputReply(CELL, 0, 1, "typed", "")])
    assert sigints == []


def test_ctrl_c_of_a_person_is_a_press_for_the_cell(sigints):
    asked = Asked(lambda: signal.raise_signal(signal.SIGINT))
    asked.question(0)
    asked.question(1)
    assert len(asked.prompts) == 1  # the other rank is not asked
    assert asked.sent == []  # the interrupt will be sent when the press is taken
    assert asked.presses() == 1
    assert sigints == []


def test_ranks_that_ask_at_the_same_moment_are_asked_from_the_lowest_on(monkeypatch):
    monkeypatch.setattr(asking, "_GATHER_S", 0.02)
    asked = Asked(lambda: "typed")
    asked.question(1)
    assert asked.prompts == []
    asked.question(0)
    assert asked.prompts == ["(rank 1 waits to ask too)\n[rank 0] ? "]
    time.sleep(0.03)  # rank 0 may ask again, but this long nobody waits for it
    asked.asker.step(None)
    time.sleep(0.03)
    asked.asker.step(None)
    assert asked.prompts[1:] == ["[rank 1] ? "]


def test_ctrl_c_beside_the_question_is_a_press_like_any(sigints):
    asked = Asked(None)
    with asked.asker._interruptible() as waking:
        assert not waking.is_asking
        signal.raise_signal(signal.SIGINT)
    assert sigints == [1]


def test_who_asks_on_another_thread_is_not_woken_but_ranks_are_interrupted_at_once():
    def answer():
        asked.press()
        return "late"

    asked = Asked(answer)
    thread = threading.Thread(target=asked.question, args=(0,))
    thread.start()
    thread.join(30)
    assert asked.sent == [m.Interrupt(CELL, ALL)]
    assert asked.presses() == 1


def test_an_answer_that_is_no_text_is_told_to_the_rank_which_does_not_wait_for_ever(sigints):
    asked = Asked(lambda: None)
    asked.question(0)
    words = "asking failed: TypeError: who was asked returned None (NoneType), not a line of text"
    assert [(each.text, each.ended) for each in asked.sent] == [("", words)]
    assert m.encode(asked.sent[0])
