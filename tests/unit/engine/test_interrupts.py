"""SIGINT in a rank: only cell code is stopped, nothing that must not be torn, and no cell but the one meant."""

from __future__ import annotations

import _thread
import ctypes
import random
import signal
import sys
import threading
import time
import weakref

import pytest

from hpcnb.engine import interrupts as interrupts_module
from hpcnb.engine.interrupts import Interrupts


@pytest.fixture
def interrupts():
    before = signal.getsignal(signal.SIGINT)
    installed = Interrupts()
    installed.install()
    yield installed
    installed.end()
    signal.signal(signal.SIGINT, before)


def late_signal():
    signal.raise_signal(signal.SIGINT)


def test_a_running_cell_is_stopped(interrupts):
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(3, 1)


def test_between_cells_nothing_happens(interrupts):
    interrupts.begin(3)
    interrupts.end()
    interrupts.interrupt(3, 1)
    interrupts.begin(4)


def test_an_interrupt_that_is_faster_than_its_cell_stops_it_at_once(interrupts):
    interrupts.interrupt(3, 1)
    with pytest.raises(KeyboardInterrupt):
        interrupts.begin(3)


def test_an_interrupt_of_an_earlier_cell_does_not_stop_the_next(interrupts):
    interrupts.begin(4)
    interrupts.interrupt(3, 1)


def test_what_is_held_is_finished_first(interrupts):
    interrupts.begin(3)
    finished = []

    def send():
        with interrupts:
            interrupts.interrupt(3, 1)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        send()
    assert finished


def test_two_signals_of_one_interrupt_are_one(interrupts):
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(3, 1)
    interrupts.interrupt(3, 1)
    signal.raise_signal(signal.SIGINT)


def test_the_next_cell_can_be_interrupted_at_once(interrupts):
    for number, cell in enumerate((3, 4), 1):
        interrupts.begin(cell)
        with pytest.raises(KeyboardInterrupt):
            interrupts.interrupt(cell, number)
        interrupts.end()


def test_every_order_is_carried_out_however_soon_it_comes(interrupts):
    interrupts.begin(3)
    for number in range(1, 4):
        with pytest.raises(KeyboardInterrupt):
            interrupts.interrupt(3, number)
        late_signal()  # of the same order
    interrupts.end()


def test_orders_that_come_while_c_code_runs_are_carried_out_one_by_one(interrupts):
    interrupts.begin(3)
    for number in (1, 2):
        interrupts.hear(3, number)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            late_signal()
    late_signal()


def test_orders_of_earlier_cells_are_not_counted(interrupts):
    interrupts.hear(3, 1)
    interrupts.hear(3, 2)
    interrupts.begin(4)
    late_signal()
    interrupts.hear(4, 3)
    with pytest.raises(KeyboardInterrupt):
        late_signal()
    late_signal()


def test_an_order_that_is_heard_after_its_signal_was_obeyed_is_that_one_and_the_next_is_not(interrupts):
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        late_signal()
    interrupts.interrupt(3, 1)
    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(3, 2)


def deleted():
    class Deleted:
        def __del__(self):
            time.sleep(30)

    return Deleted()


def in_del():
    kept = deleted()
    del kept


def in_weakref_callback():
    kept = threading.Event()
    weak = weakref.ref(kept, lambda _: time.sleep(30))
    del kept
    return weak


def in_callback_of_c_code():
    ctypes.CFUNCTYPE(None)(lambda: time.sleep(30))()


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("hidden", [in_del, in_weakref_callback, in_callback_of_c_code])
def test_an_interrupt_that_python_swallows_comes_again(interrupts, hidden, is_ordered):
    interrupts.begin(3)
    main_thread = threading.get_ident()
    press = threading.Timer(
        0.05, *((interrupts.interrupt, (3, 1)) if is_ordered else (signal.pthread_kill, (main_thread, signal.SIGINT)))
    )
    press.start()
    hidden()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)
    press.join()
    if is_ordered:
        late_signal()


def test_other_errors_that_python_swallows_are_told_as_ever(interrupts, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    interrupts.begin(3)

    class Deleted:
        def __del__(self):
            raise KeyboardInterrupt  # nobody's press

    Deleted()
    assert len(told) == 1
    mine = lambda _: None  # noqa: E731
    sys.unraisablehook = mine  # by the cell
    interrupts.end()
    assert sys.unraisablehook is mine


# --- which cell a signal is for ------------------------------------------------------------------------------------


def test_a_signal_that_arrives_in_the_next_cell_does_not_stop_it(interrupts):
    """The order was carried out, or came when its cell was over; the signal that belongs to it comes afterwards."""
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(3, 1)
    interrupts.end()
    interrupts.begin(4)
    late_signal()
    interrupts.end()
    interrupts.interrupt(4, 2)
    interrupts.begin(5)
    late_signal()


def test_a_cell_that_was_stopped_as_it_began_is_not_stopped_again(interrupts):
    interrupts.interrupt(3, 1)
    with pytest.raises(KeyboardInterrupt):
        interrupts.begin(3)
    late_signal()


def test_a_signal_that_is_faster_than_its_order_waits_for_it(interrupts):
    interrupts.begin(4)
    order = threading.Timer(0.02, interrupts.hear, (4, 1))
    order.start()
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert time.monotonic() - began_s >= 0.02
    order.join()
    interrupts.end()
    interrupts.begin(5)
    order = threading.Timer(0.02, interrupts.interrupt, (4, 2))  # for the cell before
    order.start()
    signal.raise_signal(signal.SIGINT)
    order.join()


@pytest.mark.parametrize("is_first", [True, False])
def test_a_signal_that_nobody_ordered_stops_what_runs(interrupts, is_first):
    if not is_first:
        interrupts.interrupt(2, 1)
        interrupts._heard_s -= 1.0
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        _thread.interrupt_main()


def test_a_signal_that_did_not_wake_the_main_thread_is_sent_again(interrupts, monkeypatch):
    """One that comes between the last bytecode and a wait in C is only seen when the wait is over."""
    sent = []
    monkeypatch.setattr(interrupts_module.signal, "pthread_kill", lambda *call: sent.append(call))
    monkeypatch.setattr(interrupts_module, "_FIRST_PAUSE_S", 0.001)
    interrupts.begin(3)
    for number in range(1, 6):
        interrupts.interrupt(3, number)
    insisting = [thread for thread in threading.enumerate() if thread.name == "hpcnb-interrupt"]
    assert len(insisting) <= 1
    deadline_s = time.monotonic() + 20
    while len(sent) < 9 and time.monotonic() < deadline_s:
        time.sleep(0.001)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            late_signal()
    num_sent = len(sent)
    assert num_sent >= 9
    for thread in insisting:
        thread.join(5)
    assert len(sent) <= num_sent + 1


def test_a_late_signal_while_something_is_held_stops_nothing(interrupts):
    interrupts.interrupt(3, 1)
    interrupts.begin(4)
    with interrupts:
        late_signal()


def test_any_order_of_orders_signals_and_cells_stops_the_cells_that_were_meant(interrupts):
    """Orders and signals from a thread, as from the agent, with cells that begin and end meanwhile."""
    rng = random.Random(3)
    meant, stopped = set(), []
    for cell in range(1, 200):
        late_s, is_ordered, is_early = rng.random() / 500, rng.random() < 0.5, rng.random() < 0.3

        def press(cell=cell, late_s=late_s):
            interrupts.interrupt(cell, cell)
            time.sleep(late_s)  # the kernel may give the signal to another thread
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        presser = threading.Thread(target=press)
        if is_ordered:
            meant.add(cell)
            presser.start()
        if is_early:
            time.sleep(0.001)
        try:
            try:
                interrupts.begin(cell)
                deadline_s = time.monotonic() + (20.0 if is_ordered else 0.001)
                while time.monotonic() < deadline_s:
                    pass
            finally:
                interrupts.end()
        except KeyboardInterrupt:
            stopped.append(cell)
        if is_ordered and rng.random() < 0.5:
            presser.join()
    assert stopped == sorted(meant)
