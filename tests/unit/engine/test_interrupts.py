"""SIGINT in a rank: only cell code is stopped, nothing that must not be torn, and no cell but the one meant."""

from __future__ import annotations

import signal

import pytest

from hpcnb.engine.interrupts import Interrupts


@pytest.fixture
def interrupts():
    before = signal.getsignal(signal.SIGINT)
    installed = Interrupts()
    installed.install()
    yield installed
    signal.signal(signal.SIGINT, before)


def test_a_running_cell_is_stopped(interrupts):
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(3)


def test_between_cells_nothing_happens(interrupts):
    interrupts.begin(3)
    interrupts.end()
    interrupts.interrupt(3)
    interrupts.begin(4)


def test_an_interrupt_that_is_faster_than_its_cell_stops_it_at_once(interrupts):
    interrupts.interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        interrupts.begin(3)


def test_an_interrupt_of_an_earlier_cell_does_not_stop_the_next(interrupts):
    interrupts.begin(4)
    interrupts.interrupt(3)


def test_what_is_held_is_finished_first(interrupts):
    interrupts.begin(3)
    finished = []

    def send():
        with interrupts:
            interrupts.interrupt(3)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        send()
    assert finished


def test_two_signals_of_one_interrupt_are_one(interrupts):
    interrupts.begin(3)
    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(3)
    interrupts.interrupt(3)
    signal.raise_signal(signal.SIGINT)


def test_the_next_cell_can_be_interrupted_at_once(interrupts):
    for cell in (3, 4):
        interrupts.begin(cell)
        with pytest.raises(KeyboardInterrupt):
            interrupts.interrupt(cell)
        interrupts.end()
