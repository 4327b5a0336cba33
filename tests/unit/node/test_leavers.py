"""Ranks that are told to leave: in time, not in time, before anybody could tell them, and with a successor."""

from __future__ import annotations

import pytest

from hpcnb.core import messages as m
from hpcnb.node.leavers import Leavers


class Process:
    def __init__(self, *, control=5, pid=7):
        self.control, self.pid = control, pid
        self.happened = []

    def send_control(self, message):
        self.happened.append(message)

    def kill_group(self):
        self.happened.append("killed")


@pytest.fixture
def leavers():
    return Leavers(lambda: 10.0)


def test_one_that_leaves_in_time(leavers):
    process = Process()
    leavers.send_off(process, 3)
    assert process.happened == [m.LeaveRank()]
    assert (leavers.processes, leavers.due_s) == ([process], 11.0)
    leavers.tick(10.9)
    assert leavers.ended(Process()) is None
    gone = leavers.ended(process)
    assert (gone.place, gone.then, leavers.processes) == (3, None, [])
    assert leavers.due_s == float("inf")


def test_one_that_does_not_is_killed_once(leavers):
    process = Process()
    leavers.send_off(process, 3)
    for now_s in (11.0, 12.0):
        leavers.tick(now_s)
    assert process.happened == [m.LeaveRank(), "killed"]
    assert leavers.due_s == float("inf")


def test_one_that_nobody_can_tell_is_killed_as_soon_as_it_is_there(leavers):
    process = Process(control=-1, pid=0)
    leavers.send_off(process, 3)
    leavers.tick(10.0)
    assert "killed" not in process.happened
    process.pid = 7
    leavers.tick(10.1)
    assert "killed" in process.happened


def test_who_is_to_have_its_place_does_not_wait(leavers):
    process, began = Process(), []
    leavers.send_off(process, 3)
    assert leavers.at(2) is None
    leavers.hurry(leavers.at(3), lambda: began.append(True))
    leavers.tick(10.0)
    assert "killed" in process.happened
    leavers.ended(process).then()
    assert began
