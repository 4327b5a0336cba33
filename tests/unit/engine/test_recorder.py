"""The recorder with a clock of ours and a ring of its own: what a rank does, as records."""

from __future__ import annotations

import mmap
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.spans import SPAN, Category, Flag, Kind, RingReader, RingWriter, SpanRecord, ring_bytes
from hpcnb.engine import recorder as recorder_module
from hpcnb.engine.recorder import Recorder

SLOTS = 512


class Rank:
    """A recorder, its clock and its ring."""

    def __init__(self, *, enabled=True):
        self.now = 0
        memory = mmap.mmap(-1, ring_bytes(SLOTS))
        self.recorder = Recorder(RingWriter(memory, SLOTS), enabled=enabled)
        self.reader = RingReader(memory)

    def at(self, now):
        """It is ``now``; the recorder, to call it."""
        self.now = now
        return self.recorder

    def records(self):
        return [SpanRecord(*each) for each in SPAN.iter_unpack(self.reader.drain()[0])]

    def named(self):
        """``{name: (start, end, child)}`` of new records; the cell is called "cell"."""
        strings = self.reader.strings()
        return {strings[each.name] or "cell": (each.start_ns, each.end_ns, each.child_ns) for each in self.records()}

    def string(self, number):
        return self.reader.strings()[number]

    def issue(self, now, name="all_reduce", flags=0, sequence=1):
        intern = self.recorder.ring.intern
        return self.at(now).issue(Kind.COLLECTIVE, intern(name), intern("dp"), sequence, -1, 4096, flags)


@pytest.fixture
def rank(monkeypatch):
    rank = Rank()
    monkeypatch.setattr(recorder_module, "perf_counter_ns", lambda: rank.now)
    return rank


def exclusive(record):
    return record.end_ns - record.start_ns - record.child_ns


def test_nested_spans_account_for_their_time_once(rank):
    rank.at(0).begin_cell(7)
    load = rank.at(10).begin(Kind.USER, "load")
    forward = rank.at(15).begin(Kind.USER, "forward")
    rank.at(25).end(forward)
    rank.at(40).end(load)
    rank.at(100).end_cell()
    records = rank.records()
    assert [(each.kind, each.start_ns, each.end_ns, each.child_ns) for each in records] == [
        (Kind.USER, 15, 25, 0),
        (Kind.USER, 10, 40, 10),
        (Kind.CELL, 0, 100, 30),
    ]
    assert {each.cell for each in records} == {7}
    assert [rank.string(each.name) for each in records] == ["forward", "load", ""]
    assert sum(map(exclusive, records)) == 100


events = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from(["begin", "begin", "end", "wait", "background", "data", "odd end"])),
    max_size=40,
)


@given(events, st.integers(0, 50))
def test_exclusive_and_exposed_time_add_up_to_the_cell(happened, rest):
    rank, open_spans = Rank(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "perf_counter_ns", lambda: rank.now)
        rank.recorder.begin_cell(1)
        for duration, what in happened:
            now = rank.now + duration
            if what in ("begin", "data"):
                open_spans.append(rank.at(now).begin(Kind.USER if what == "begin" else Kind.DATA, what))
            elif what == "end" and open_spans:
                rank.at(now).end(open_spans.pop())
            elif what == "odd end" and open_spans:
                rank.at(now).end(open_spans.pop(0))  # closes what is inside it too
            elif what in ("wait", "background"):
                operation = rank.issue(rank.now)
                if what == "background":
                    operation.flags |= Flag.OTHER_THREAD
                began = rank.recorder.begin_wait(operation)
                rank.at(now).end_wait(operation, began)
        end = rank.at(rank.now + rest).end_cell()
    records = rank.records()
    exposed = sum(each.wait_end_ns - each.wait_start_ns for each in records if each.kind == Kind.COLLECTIVE)
    inside = sum(exclusive(each) for each in records if each.kind != Kind.COLLECTIVE)
    assert all(exclusive(each) >= 0 for each in records)
    assert inside + exposed == end
    assert [each.kind for each in records].count(Kind.CELL) == 1


def test_a_span_that_is_ended_late_or_twice_does_no_harm(rank):
    rank.at(0).begin_cell(1)
    outer = rank.at(1).begin(Kind.USER, "outer")
    inner = rank.at(2).begin(Kind.USER, "inner")
    rank.at(5).end(outer)
    rank.at(6).end(inner)
    rank.at(7).end(outer)
    rank.at(8).end(None)
    left_open = rank.at(9).begin(Kind.USER, "left open")
    rank.at(10).end_cell()
    rank.at(11).end(left_open)
    assert rank.named() == {"inner": (2, 5, 0), "outer": (1, 5, 3), "left open": (9, 10, 0), "cell": (0, 10, 5)}


def test_nothing_is_recorded_outside_of_a_cell_or_of_the_main_thread(rank):
    assert rank.recorder.begin(Kind.USER, "x") is None
    rank.at(0).begin_cell(1)
    spans = []
    thread = threading.Thread(target=lambda: spans.append(rank.recorder.begin(Kind.USER, "x")))
    thread.start()
    thread.join()
    assert spans == [None]
    rank.at(1).end_cell()
    assert rank.named() == {"cell": (0, 1, 0)}


def test_a_recorder_that_is_off_writes_nothing(monkeypatch):
    rank = Rank(enabled=False)
    monkeypatch.setattr(recorder_module, "perf_counter_ns", lambda: rank.now)
    assert rank.at(5).begin_cell(1) == 5
    assert rank.recorder.begin(Kind.USER, "x") is None
    assert rank.at(9).end_cell() == 9
    assert rank.records() == []


@pytest.mark.parametrize(
    ("kind", "names", "category"),
    [
        (Kind.USER, ["forward"], Category.FORWARD),
        (Kind.USER, ["backward"], Category.BACKWARD),
        (Kind.USER, ["optimizer"], Category.OPTIMIZER),
        (Kind.USER, ["data"], Category.DATA),
        (Kind.USER, ["mine"], Category.COMPUTATION),
        (Kind.USER, ["forward", "mine"], Category.FORWARD),  # a name of one's own is what surrounds it
        (Kind.USER, ["forward", "mine", "data"], Category.DATA),
        (Kind.DATA, ["train"], Category.DATA),
        (Kind.STEP, ["train"], Category.COMPUTATION),
    ],
)
def test_categories(rank, kind, names, category):
    rank.recorder.begin_cell(1)
    for name in names:
        span = rank.recorder.begin(kind, name)
    rank.recorder.end(span)
    assert rank.records()[0].category == category


def steps_of(recorder, turns):
    """Steps as records would carry them, for loops nested as ``turns``: a number of turns, or one list per turn."""
    depth, seen = recorder.begin_loop(), []
    for inner in range(turns) if isinstance(turns, int) else turns:
        recorder.next_step(depth)
        seen += steps_of(recorder, inner) if isinstance(inner, list) or not isinstance(turns, int) else [recorder.step]
    recorder.end_loop()
    return seen


def test_turns_of_the_innermost_loop_are_the_steps(rank):
    rank.recorder.begin_cell(1)
    assert rank.recorder.step == -1
    assert steps_of(rank.recorder, 3) == [0, 1, 2]
    assert rank.recorder.step == -1
    rank.recorder.begin_cell(2)
    assert steps_of(rank.recorder, [2, 3]) == [0, 1, 2, 3, 4]  # two epochs of batches are numbered on
    rank.recorder.begin_cell(3)
    assert steps_of(rank.recorder, 2) == [0, 1]  # a new cell begins at 0


def test_a_collective_that_is_waited_for(rank):
    rank.at(0).begin_cell(3)
    span = rank.at(5).begin(Kind.USER, "backward")
    operation = rank.issue(10, sequence=4)
    began = rank.at(12).begin_wait(operation)
    state = rank.reader.state()
    assert state[:4] == (True, "all_reduce", "dp", 4)
    assert (state.num_bytes, state.since_ns) == (4096, 10)
    rank.at(30).end_wait(operation, began)
    assert not rank.reader.state().in_communication
    rank.at(40).end(span)
    rank.at(50).end_cell()
    collective, backward, cell = rank.records()
    assert (collective.start_ns, collective.end_ns) == (10, 30)
    assert (collective.wait_start_ns, collective.wait_end_ns) == (12, 30)
    assert (collective.category, collective.flags, collective.cell) == (Category.COMMUNICATION_TRANSFER, 0, 3)
    assert (rank.string(collective.name), rank.string(collective.group)) == ("all_reduce", "dp")
    assert backward.child_ns == 18
    assert cell.child_ns == 35
    assert exclusive(backward) + exclusive(cell) + 18 == 50


def test_a_wait_for_what_is_over_already_keeps_the_end(rank):
    rank.at(0).begin_cell(1)
    operation = rank.issue(10)
    rank.recorder.opened(operation)
    rank.at(20).completed(operation)
    assert rank.records() == []  # somebody will wait for it
    began = rank.at(25).begin_wait(operation)
    rank.at(26).end_wait(operation, began)
    rank.at(27).end_wait(operation, began)  # a second wait adds nothing
    (record,) = rank.records()
    assert (record.end_ns, record.wait_start_ns, record.wait_end_ns) == (20, 25, 26)


def test_a_collective_that_raises(rank):
    rank.at(0).begin_cell(1)
    operation = rank.issue(1)
    rank.at(9).end_wait(operation, rank.recorder.begin_wait(operation), failed=True)
    (record,) = rank.records()
    assert record.flags == Flag.FAILED
    assert record.end_ns == 9


def test_a_wait_that_an_interrupt_tore_is_none_of_the_next_cell(rank):
    """KeyboardInterrupt comes between any two bytecodes: also between begin_wait and the wait, or before end_wait."""
    rank.at(0).begin_cell(1)
    rank.recorder.begin_wait(rank.issue(1))
    rank.at(9).end_cell()
    rank.at(10).begin_cell(2)
    assert not rank.reader.state().in_communication


def test_another_thread_is_never_exposed(rank):
    rank.at(0).begin_cell(1)
    issued = []
    thread = threading.Thread(target=lambda: issued.append(rank.issue(1)))
    thread.start()
    thread.join()
    (operation,) = issued
    began = rank.at(2).begin_wait(operation)
    assert not rank.reader.state().in_communication
    rank.at(9).end_wait(operation, began)
    rank.at(10).end_cell()
    record, cell = rank.records()
    assert record.flags == Flag.OTHER_THREAD
    assert record.wait_start_ns == record.wait_end_ns == 9
    assert cell.child_ns == 0


def test_operations_that_nobody_waited_for_are_written_when_the_cell_ends(rank):
    rank.at(0).begin_cell(1)
    ended, running = rank.issue(1), rank.issue(2)
    rank.recorder.opened(ended)
    rank.recorder.opened(running)
    rank.at(5).completed(ended)
    rank.at(10).end_cell()
    cell, record = rank.records()
    assert cell.kind == Kind.CELL
    assert (record.start_ns, record.end_ns, record.wait_start_ns, record.wait_end_ns) == (1, 5, 5, 5)
    rank.at(11).begin_cell(2)
    rank.at(12).completed(running)
    rank.at(13).end_cell()
    _, late = rank.records()
    assert (late.start_ns, late.end_ns, late.cell) == (2, 12, 1)  # it belongs to the cell that issued it


def test_a_future_is_written_when_it_is_over(rank):
    rank.at(0).begin_cell(1)
    operation = rank.issue(1, flags=Flag.FUTURE)
    rank.at(5).completed(operation)
    rank.at(6).completed(operation)
    (record,) = rank.records()
    assert (record.end_ns, record.wait_start_ns, record.wait_end_ns) == (5, 5, 5)


def test_waits_at_the_end_of_backward_are_shared_by_the_buckets_that_end_them(rank):
    recorder = rank.recorder
    recorder.begin_cell(1)
    backward, is_new = recorder.backward(11)
    assert is_new
    assert recorder.backward(11) == (backward, False)
    buckets = [rank.issue(10 + number, flags=Flag.FUTURE, sequence=number) for number in range(3)]
    for bucket in buckets:
        bucket.backward = backward
        backward.operations.add(bucket)
    rank.at(20).completed(buckets[0])  # hidden by computation
    rank.at(30).backward_ended(backward)
    assert rank.reader.state().in_communication
    rank.at(42).completed(buckets[2])
    assert rank.reader.state().in_communication
    rank.at(50).completed(buckets[1])
    assert not rank.reader.state().in_communication
    rank.at(60).end_cell()
    hidden, second, last, cell = rank.records()
    assert hidden.wait_start_ns == hidden.wait_end_ns
    assert (second.sequence, second.wait_start_ns, second.wait_end_ns) == (2, 30, 42)
    assert (last.sequence, last.wait_start_ns, last.wait_end_ns) == (1, 42, 50)
    assert exclusive(cell) == 40
    assert recorder.backward(12)[1]


def test_lines_are_those_of_the_cell(rank):
    def library(function):
        return function()

    source = "\n\nspan = recorder.begin(2, 'x')\ndef f():\n    return place(1)\nplace_of_call = library(f)\n"
    names = {"recorder": rank.recorder, "place": rank.recorder.place, "library": library}
    rank.recorder.begin_cell(3)
    exec(compile(source, "<cell 3>", "exec"), names)
    assert (names["span"].line, rank.string(names["span"].source)) == (3, "cell 3")
    line, text = names["place_of_call"]
    assert (line, rank.string(text)) == (5, "cell 3")
    assert rank.recorder.place(1) == (0, 0)


def test_a_recorder_that_is_off_still_says_what_the_rank_is_in(monkeypatch):
    rank = Rank(enabled=False)
    monkeypatch.setattr(recorder_module, "perf_counter_ns", lambda: rank.now)
    rank.at(0).begin_cell(1)
    operation = rank.issue(10)
    began = rank.at(12).begin_wait(operation)
    assert rank.reader.state()[:4] == (True, "all_reduce", "dp", 1)
    rank.at(30).end_wait(operation, began)
    assert not rank.reader.state().in_communication
    assert (operation.wait_start_ns, operation.wait_end_ns) == (12, 30)
    rank.at(40).end_cell()
    assert rank.records() == []


@pytest.mark.parametrize(
    ("kind", "channel", "found"),
    [
        (Kind.COLLECTIVE, None, (-1, 7, -1)),
        (Kind.COLLECTIVE, SimpleNamespace(at=3000), (3000, 7, -1)),  # the peer is a root: it concerns the whole group
        (Kind.POINT_TO_POINT, SimpleNamespace(at=3000), (3000, 7, 5)),
    ],
)
def test_where_the_board_tells_of_an_operation(rank, kind, channel, found):
    rank.at(0).begin_cell(1)
    operation = rank.issue(1)
    operation.kind, operation.channel, operation.stamp, operation.peer = kind, channel, 7, 5
    rank.recorder.begin_wait(operation)
    state = rank.reader.state()
    assert (state.channel, state.stamp, state.peer) == found


def test_operations_in_words(rank):
    operation = rank.issue(1, sequence=17)
    assert rank.recorder.words(operation) == "all_reduce #17 (4.1 kB)"
    operation.line = 6
    assert rank.recorder.words(operation) == "all_reduce #17 (4.1 kB, line 6)"


def test_what_ddp_waited_for_is_told(rank):
    recorder = rank.recorder
    assert recorder.last_wait() == ("", 0.0)
    recorder.begin_cell(1)
    backward, _ = recorder.backward(11)
    assert recorder.last_wait() == ("", 0.0)
    for number in (1, 2):
        bucket = rank.issue(number, flags=Flag.FUTURE, sequence=number)
        bucket.backward, bucket.stamp = backward, number
        backward.operations.add(bucket)
    rank.at(1_000_000_000).backward_ended(backward)
    rank.now = 3_500_000_000
    assert recorder.last_wait() == ("all_reduce #2 (4.1 kB)", 2.5)
