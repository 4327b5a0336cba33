"""Who connects to the ranks' socket: let in, turned away, and never waited for."""

from __future__ import annotations

import logging
import mmap
import os
import selectors
import socket
from pathlib import Path

import pytest

from hpcnb.core import messages as m
from hpcnb.core.launch import RunFolder
from hpcnb.core.spans import RingWriter, ring_bytes
from hpcnb.node.door import Door
from hpcnb.node.rank_process import RankProcess
from hpcnb.node.refusals import Refusals

CELLS, CONTROL = (m.RankHello(3, os.getpid(), channel) for channel in ("cells", "control"))


class Host:
    """A door, a selector and one rank, which is this process."""

    def __init__(self, folder, *, template_pid):
        self.now_s, self.seated, self.calls = 100.0, [], {}
        self.selector = selectors.DefaultSelector()
        memory = memoryview(mmap.mmap(-1, ring_bytes(8)))
        self.ring = RingWriter(memory, 8)
        self.rank = RankProcess(3, RunFolder(folder), memory)
        self.refusals = Refusals(logging.getLogger("test"), self.clock)
        self.path = folder / "s"
        self.door = Door(self.path, template_pid, {3: self.rank}, self, self.seated.append, self.refusals, self.clock)
        self.door.open()
        self.guests = []

    def clock(self):
        return self.now_s

    def watch(self, descriptor, call, events=selectors.EVENT_READ):
        self.unwatch(descriptor)
        self.selector.register(descriptor, events, call)

    def unwatch(self, descriptor):
        try:
            self.selector.unregister(descriptor)
        except (KeyError, ValueError):
            pass

    def turn(self):
        for key, _ in self.selector.select(0):
            key.data()
        self.door.tick()

    def connect(self):
        guest = socket.socket(socket.AF_UNIX)
        guest.connect(str(self.path))
        guest.settimeout(10)
        self.guests.append(guest)
        return guest

    def close(self):
        self.door.close()
        self.rank.close()
        for guest in self.guests:
            guest.close()
        self.selector.close()


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path, template_pid=os.getppid())
    yield host
    host.close()


@pytest.fixture
def descriptors():
    """What a rank hands over: read ends of its pipes."""
    pipes = [os.pipe() for _ in range(3)]
    yield [read for read, _ in pipes]
    for pair in pipes:
        for end in pair:
            os.close(end)


def num_open():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_rank_comes_in_with_what_it_says_next_left_in_its_socket(host, descriptors):
    text = m.Text(1, "stdout", "said at once")
    guest = host.connect()
    socket.send_fds(guest, [m.frame(CELLS) + m.frame(text)], descriptors)
    host.turn()
    assert host.seated == [host.rank]
    assert host.rank.pid == os.getpid()
    assert host.rank.read_messages() == [text]
    second = host.connect()
    second.sendall(m.frame(CONTROL))
    host.turn()
    host.rank.send_control(m.InterruptCell(7, 1))
    assert m.FrameReader().feed(second.recv(4096)) == [m.InterruptCell(7, 1)]
    assert host.refusals.total == 0


@pytest.mark.parametrize("piece", [1, 3, 4, 7])
def test_a_hello_may_come_in_pieces_and_nobody_waits_for_it(host, descriptors, piece):
    guest, packed = host.connect(), m.frame(CELLS)
    host.turn()  # returns, though nothing has been said
    socket.send_fds(guest, [packed[:piece]], descriptors)
    host.turn()
    assert host.seated == []
    other = host.connect()
    other.sendall(m.frame(CONTROL))
    host.turn()
    assert host.rank.control >= 0
    guest.sendall(packed[piece:])
    host.turn()
    assert host.seated == [host.rank]


def test_who_says_nothing_is_hung_up_on(host):
    guest = host.connect()
    host.turn()
    host.now_s += 4.9
    host.turn()
    assert host.refusals.total == 0
    host.now_s += 0.2
    host.turn()
    assert guest.recv(10) == b""
    assert host.refusals.total == 1


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x03\x00\x00\x00abc", m.frame(m.Follow(1)), m.frame(CELLS),
        m.frame(m.RankHello(4, os.getpid(), "control")), m.frame(m.RankHello(3, 1, "control")),
    ],
    ids=["long", "empty", "noise", "no hello", "no descriptors", "no such rank", "not its process"],
)  # fmt: skip
def test_who_says_something_else_is_turned_away(host, said):
    guest = host.connect()
    guest.sendall(said)
    host.turn()
    host.turn()
    assert guest.recv(10) == b""
    assert host.refusals.total == 1
    assert host.seated == []
    assert host.rank.control == -1


def test_descriptors_of_who_is_turned_away_are_closed(host, descriptors):
    before = num_open()
    for hello in (CONTROL, m.RankHello(9, os.getpid(), "cells")):
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(str(host.path))
            socket.send_fds(guest, [m.frame(hello)], descriptors)
            host.turn()
            host.turn()
    assert host.refusals.total == 2
    assert num_open() == before


def test_who_hangs_up_is_forgotten(host):
    before = num_open()
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(host.path))
        host.turn()
        guest.sendall(m.frame(CELLS)[:6])
    host.turn()
    assert host.refusals.total == 1
    assert num_open() == before


def test_a_channel_is_taken_once(host):
    for _ in range(2):
        host.connect().sendall(m.frame(CONTROL))
        host.turn()
        host.turn()
    assert host.refusals.total == 1
    assert host.guests[1].recv(10) == b""


def test_a_stranger_is_not_read_from(tmp_path):
    host = Host(tmp_path, template_pid=1 << 22)
    try:
        guest = host.connect()
        host.turn()
        assert guest.recv(10) == b""
        assert host.refusals.total == 1
    finally:
        host.close()


def test_orders_for_a_rank_that_does_not_read_are_kept_and_nobody_waits(host):
    """A rank that was stopped (SIGSTOP): all orders come when it goes on, each whole; without end none are kept."""
    guest = host.connect()
    guest.sendall(m.frame(CONTROL))
    host.turn()
    order = m.Shutdown("x" * 1000)
    for _ in range(3000):
        host.rank.send_control(order)  # 3 MB, more than any socket takes
    kept = len(host.rank._control_unsent)
    assert 1 << 20 <= kept < (1 << 20) + 2000
    reader, heard = m.FrameReader(), []
    while host.rank._control_unsent or host.selector.get_map().get(host.rank.control):
        heard += reader.feed(guest.recv(1 << 20))
        host.turn()
    host.rank.send_control(m.InterruptCell(7, 1))
    while m.InterruptCell(7, 1) not in heard:
        heard += reader.feed(guest.recv(1 << 20))
    assert set(heard) == {order, m.InterruptCell(7, 1)}
    assert heard[-1] == m.InterruptCell(7, 1)
    assert len(heard) > 1000


def test_a_rank_that_ends_while_orders_are_kept(host):
    guest = host.connect()
    guest.sendall(m.frame(CONTROL))
    host.turn()
    for _ in range(1000):
        host.rank.send_control(m.Shutdown("x" * 1000))
    guest.close()
    host.turn()
    assert not host.rank._control_unsent
    host.rank.send_control(m.InterruptCell(7, 1))
    host.turn()
    host.rank.close()
    assert host.rank.control == -1
