"""Waits of operations under way, over works that a test plays: seen by the recorder, cut in slices, given up."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest
import torch

from hpcnb.core.board import NUM_SLOTS, Board, new_board, stamp
from hpcnb.core.errors import CollectiveAborted
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import SPAN, Flag, Kind, RingReader, RingWriter, SpanRecord
from hpcnb.engine import futures as futures_module
from hpcnb.engine import recorder as recorder_module
from hpcnb.engine import work as work_module
from hpcnb.engine.guard import Guard
from hpcnb.engine.recorder import Recorder
from hpcnb.engine.work import AnySourceWork, RecordedWork

SLICE_OVER = RuntimeError("[0] Operation timed out!")


class Inner:
    """A work of a backend: what its waits do, one after the other."""

    def __init__(self, *waits, future=None):
        self.waits, self.timeouts, self.future = list(waits), [], future

    def wait(self, *timeout):
        self.timeouts.append(timeout)
        happens = self.waits.pop(0)
        if isinstance(happens, BaseException):
            raise happens
        return happens() if callable(happens) else happens

    def get_future(self):
        if self.future is None:
            raise RuntimeError("no future")
        return self.future

    def is_completed(self):
        return True

    def is_success(self):
        return True

    def source_rank(self):
        return 3


class Rank:
    def __init__(self):
        self.board = Board(new_board(1), RankSet.all(1))
        ring = RingWriter(self.board.ring(0), NUM_SLOTS)
        self.recorder = Recorder(ring)
        self.guard = Guard(self.board, 0, ring, lambda _: None)
        self.reader = RingReader(self.board.ring(0))
        self.recorder.begin_cell(3)

    def work(self, inner, *, in_slices=True):
        ring = self.recorder.ring
        self.operation = self.recorder.issue(Kind.COLLECTIVE, ring.intern("all_reduce"), 0, 1, -1, 32, 0)
        return RecordedWork(inner, self.operation, self.recorder, self.guard, in_slices=in_slices)

    def flags(self):
        (record,) = [SpanRecord(*each) for each in SPAN.iter_unpack(self.reader.drain()[0])]
        return record.flags


@pytest.fixture
def rank():
    return Rank()


def test_a_wait_is_seen(rank):
    states = []
    inner = Inner(lambda: states.append(rank.reader.state()) or True)
    assert rank.work(inner).wait()
    assert states[0].in_communication
    assert states[0].name == "all_reduce"
    assert not rank.reader.state().in_communication
    assert rank.flags() == 0


def test_a_wait_goes_on_when_a_slice_is_over(rank):
    inner = Inner(SLICE_OVER, SLICE_OVER, True)
    assert rank.work(inner).wait()
    assert inner.timeouts == [(datetime.timedelta(milliseconds=100),)] * 3


@pytest.mark.parametrize("timeout", [(), (datetime.timedelta(0),), (datetime.timedelta(seconds=9),)])
def test_a_wait_with_a_timeout_of_its_own(rank, timeout, monkeypatch):
    now_s = iter(range(100))
    monkeypatch.setattr(work_module, "monotonic", lambda: next(now_s))
    inner = Inner(*[SLICE_OVER] * 20, True)
    if not timeout or not timeout[0]:
        assert rank.work(inner).wait(*timeout)  # C++ says zero for "none"
        return
    with pytest.raises(RuntimeError, match="Operation timed out"):
        rank.work(inner).wait(*timeout)
    assert len(inner.timeouts) == 10
    assert rank.flags() == Flag.FAILED


def test_waits_that_must_not_be_cut(rank):
    inner = Inner(True)
    assert rank.work(inner, in_slices=False).wait(datetime.timedelta(seconds=9))
    assert inner.timeouts == [(datetime.timedelta(seconds=9),)]


def test_a_released_rank_comes_out_after_the_slice(rank):
    def release():
        rank.guard.break_groups("rank 1 raised ValueError")
        raise SLICE_OVER

    with pytest.raises(CollectiveAborted) as caught:
        rank.work(Inner(SLICE_OVER, release, True)).wait()
    assert str(caught.value) == "all_reduce #1 (32 B) cannot be completed: rank 1 raised ValueError"
    assert caught.value.operation == "all_reduce #1 (32 B)"
    assert caught.value.waited_s >= 0.0
    assert rank.flags() == Flag.FAILED
    assert not rank.reader.state().in_communication


def test_an_interrupt_breaks_the_groups(rank):
    with pytest.raises(KeyboardInterrupt):
        rank.work(Inner(KeyboardInterrupt())).wait()
    assert rank.guard.broken == "a wait was given up (KeyboardInterrupt)"


def test_an_error_of_the_backend_is_left_as_it_is(rank):
    error = RuntimeError("Invalid scalar type")
    with pytest.raises(RuntimeError) as caught:
        rank.work(Inner(error), in_slices=False).wait()
    assert caught.value is error


@pytest.mark.parametrize("in_slices", [True, False])
@pytest.mark.parametrize("error", [SLICE_OVER, RuntimeError("Connection closed by peer"), KeyboardInterrupt()])
def test_groups_that_are_built_again_during_a_wait_stay_whole(rank, in_slices, error):
    def build_again():
        rank.guard.mend(1)
        raise error

    work = rank.work(Inner(build_again), in_slices=in_slices)
    rank.operation.channel, rank.operation.stamp = rank.guard.collectives("0", [0]), stamp(0, 1)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CollectiveAborted
    with pytest.raises(expected) as caught:
        work.wait()
    if expected is CollectiveAborted:
        assert str(caught.value) == (
            "all_reduce #1 (32 B) cannot be completed: process groups have been built again since it was called"
        )
    assert not rank.guard.broken


def test_who_asks_the_work_asks_the_inner_one(rank):
    work = rank.work(Inner())
    assert work.is_completed()
    assert work.source_rank() == 3


def test_the_end_is_learned_from_the_future(rank):
    future = torch.futures.Future()
    work = rank.work(Inner(future=future))
    rank.recorder.opened(rank.operation)
    work.watch()
    work.watch()
    assert rank.operation.end_ns == 0
    future.set_result(None)
    assert rank.operation.end_ns > 0


def test_works_without_a_future_tell_by_their_wait(rank):
    rank.work(Inner()).watch()
    assert rank.operation.end_ns == 0


def test_who_takes_the_future_waits_through_it(rank):
    future = torch.futures.Future()
    work = rank.work(Inner(future=future))
    assert not work.getFuture().done()
    assert rank.operation.flags & Flag.FUTURE
    assert not rank.operation.is_done()
    future.set_result(None)
    assert rank.operation.is_done()


# --- other ways to wait ------------------------------------------------------------------------------------------


def test_the_wait_of_the_future_is_seen(rank, monkeypatch):
    inner, states = torch.futures.Future(), []
    future = rank.work(Inner(future=inner)).get_future()

    def sleep(_):
        states.append(rank.reader.state())
        inner.set_result([1, 2])

    monkeypatch.setattr(futures_module.time, "sleep", sleep)
    assert future.wait() == [1, 2]
    assert [(state.in_communication, state.name) for state in states] == [(True, "all_reduce")]
    assert not rank.reader.state().in_communication
    assert rank.flags() == Flag.FUTURE
    assert future.then(lambda done: sum(done.value())).wait() == 3


@pytest.mark.parametrize("follows", [False, True])
def test_the_wait_of_the_future_is_given_up(rank, monkeypatch, follows):
    inner = torch.futures.Future()
    future = rank.work(Inner(future=inner)).get_future()
    if follows:
        future = future.then(lambda done: done.value())
    monkeypatch.setattr(futures_module.time, "sleep", lambda _: rank.guard.break_groups("rank 1 raised ValueError"))
    with pytest.raises(CollectiveAborted, match=r"all_reduce #1 .* cannot be completed: rank 1 raised ValueError"):
        future.wait()
    assert not rank.reader.state().in_communication
    inner.set_result(None)  # the backend is late
    assert future.done()


def test_what_the_backend_raises_in_the_future_is_told_in_words(rank):
    lost, odd = torch.futures.Future(), torch.futures.Future()
    odd.set_exception(ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        rank.work(Inner(future=odd)).get_future().wait()
    lost.set_exception(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    with pytest.raises(CollectiveAborted, match="connection"):
        rank.work(Inner(future=lost)).get_future().wait()


@pytest.mark.parametrize("how", ["is never over", "has failed"])
def test_the_future_of_connections_that_were_replaced_breaks_nothing(rank, how):
    inner = torch.futures.Future()
    future = rank.work(Inner(future=inner)).get_future()
    rank.guard.mend(2)
    if how == "has failed":
        inner.set_exception(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    with pytest.raises(CollectiveAborted, match=r"process groups have been built again since it was called$"):
        future.wait()
    assert rank.guard.broken == ""


def test_asking_again_and_again_is_a_wait(rank, monkeypatch):
    now_ns = iter([1, 2_000_000_000, 2_100_000_000, 2_100_000_001, 2_200_000_000, 5_000_000_000])
    work = rank.work(Inner())
    monkeypatch.setattr(recorder_module, "perf_counter_ns", lambda: next(now_ns))
    recorder = rank.recorder

    def asked(*, is_over=False):
        recorder.asked(rank.operation, is_over=is_over)
        return rank.reader.state().in_communication

    monkeypatch.setattr(recorder, "begin_wait", lambda operation: enter(recorder, operation))
    assert [asked() for _ in range(4)] == [False, False, False, True]
    assert not asked(is_over=True)
    monkeypatch.undo()
    rank.guard.break_groups("rank 1 raised ValueError")
    assert work.is_completed()
    for answer in ("is_completed", "is_success"):
        setattr(work._inner, answer, lambda: False)
        with pytest.raises(CollectiveAborted, match="rank 1 raised ValueError"):
            work.is_completed()
        work._inner.is_completed = lambda: True


def enter(recorder, operation):
    recorder.ring.enter_communication(operation.name, 0, 1, 0, 0, 0, 0, -1, 0, -1)


# --- a receive from whoever sends first -----------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch):
    import time

    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_a_receive_from_anybody_waits_for_a_sender(rank, pauses):
    senders, received, states = iter([-1, -1, -1, 2]), [], []

    def find():
        states.append(rank.reader.state().in_communication)
        return next(senders)

    def receive(sender):
        return SimpleNamespace(wait=lambda *timeout: received.append((sender, timeout)))

    rank.work(None)
    work = AnySourceWork(find, receive, rank.operation, rank.recorder, rank.guard)
    assert not work.is_completed()
    assert work.source_rank() == -1
    assert work.wait(datetime.timedelta(seconds=9))
    assert work.wait()  # once is enough
    assert received == [(2, (datetime.timedelta(seconds=9),))]
    assert work.is_completed()
    assert work.source_rank() == work._source_rank() == 2
    assert pauses == [0.0002, pytest.approx(0.0003)]
    assert states == [False, True, True, True]  # it says that it waits once it does
    assert not rank.reader.state().in_communication


def test_a_receive_from_anybody_can_be_given_up(rank, pauses):
    def find():
        if len(pauses) == 20:
            rank.guard.break_groups("the cell was interrupted")
        return -1

    rank.work(None)
    work = AnySourceWork(find, None, rank.operation, rank.recorder, rank.guard)
    with pytest.raises(CollectiveAborted, match="the cell was interrupted") as caught:
        work.wait()
    assert caught.value.operation == "all_reduce #1 (32 B)"
    assert max(pauses) == 0.005
    assert not rank.reader.state().in_communication
    assert not work.is_completed()
