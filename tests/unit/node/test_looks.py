"""What a rank does, said by its link thread or, when that cannot, by a dump of its stack."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hpcnb.core import messages as m
from hpcnb.core.launch import STACK_SIGNAL
from hpcnb.node.looks import Looks, frames_of

DUMP = """Current thread 0x00007f (most recent call first):
  File "/lib/numpy/core.py", line 70 in dot
  File "<cell 5>", line 4 in f
  File "<cell 5>", line 7 in <module>
  File "/lib/IPython/interactiveshell.py", line 3000 in run_code
"""


def test_frames_of_a_dump_from_the_cell_inwards():
    assert frames_of(DUMP) == [
        ("<cell 5>", 7, "<module>", ""),
        ("<cell 5>", 4, "f", ""),
        ("/lib/numpy/core.py", 70, "dot", ""),
    ]


@pytest.mark.parametrize(("num_frames", "num_told"), [(0, 0), (3, 3), (30, 10)])
def test_without_a_cell_the_innermost_frames_are_told(num_frames, num_told):
    dump = "".join(f'  File "/lib/a b.py", line {number} in f\n' for number in range(num_frames))
    assert frames_of(f"Thread 0x1:\n{dump}") == [("/lib/a b.py", number, "f", "") for number in range(num_told)][::-1]


class Looked:
    def __init__(self):
        self.now_s, self.said, self.done = 100.0, [], []
        self.looks = Looks(self.said.append, lambda: self.now_s)
        self.process = SimpleNamespace(
            rank=1, pid=77, alive=True, send_control=self.done.append, signal=self.done.append
        )

    def tick(self, later_s):
        self.now_s += later_s
        self.looks.tick(self.now_s)
        said, self.said[:] = self.said[:], []
        return said


@pytest.fixture
def looked():
    return Looked()


def test_a_link_thread_that_answers_is_enough(looked):
    assert looked.looks.due_s == float("inf")
    looked.looks.ask(looked.process, 5)
    assert looked.looks.due_s == pytest.approx(100.15)
    seen = m.Seen(5, 1, [], 0)
    looked.looks.seen(seen)
    assert looked.tick(1.0) == [seen]
    assert looked.done == [m.LookAtRank(5)]
    assert looked.looks.due_s == float("inf")


def test_a_rank_whose_link_thread_is_silent_is_asked_by_signal(looked):
    looked.looks.ask(looked.process, 5)
    assert looked.tick(0.1) == []
    assert looked.tick(0.1) == []
    assert looked.done == [m.LookAtRank(5), STACK_SIGNAL]
    looked.looks.dumped(1, DUMP[:50])
    assert looked.tick(0.02) == []  # more may come
    looked.looks.dumped(1, DUMP[50:])
    assert looked.tick(0.04) == [m.Seen(5, 1, frames_of(DUMP), -1)]
    assert looked.looks.due_s == float("inf")


def test_a_rank_that_does_not_even_write_its_stack_is_given_up(looked):
    looked.looks.ask(looked.process, 5)
    looked.tick(0.2)
    assert looked.tick(1.1) == []
    assert looked.looks.due_s == float("inf")


def test_a_rank_that_ended_meanwhile_is_not_signalled(looked):
    looked.looks.ask(looked.process, 5)
    looked.process.alive = False
    assert looked.tick(0.2) == []
    assert looked.done == [m.LookAtRank(5)]
    assert looked.looks.due_s == float("inf")


def test_a_rank_that_owes_an_answer_is_not_asked_again_but_its_stack_is_dumped_again(looked):
    for _ in range(3):
        looked.looks.ask(looked.process, 5)
        assert looked.tick(0.2) == []
        looked.looks.dumped(1, DUMP)
        assert looked.tick(0.04) == [m.Seen(5, 1, frames_of(DUMP), -1)]
    assert looked.done == [m.LookAtRank(5)] + [STACK_SIGNAL] * 3
    looked.looks.seen(m.Seen(5, 1, [], 0))  # its link thread runs again
    looked.looks.ask(looked.process, 5)
    assert looked.done[-1] == m.LookAtRank(5)
