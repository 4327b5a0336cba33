"""Connections of this process, told apart by the ports that they were made at: real sockets on the loopback."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcnb.engine import sockets


class Pair:
    """A listener, and a connection to it."""

    def __init__(self, stack, family=socket.AF_INET, host="127.0.0.1"):
        self.listener = stack.enter_context(socket.create_server((host, 0), family=family))
        self.port = self.listener.getsockname()[1]
        self.ports = frozenset({self.port})
        self.near = stack.enter_context(socket.create_connection((host, self.port), timeout=5))
        self.far = stack.enter_context(self.listener.accept()[0])
        self.far.settimeout(5)

    def exchange(self, sent=b"x"):
        self.near.sendall(sent)
        received = b""
        while len(received) < len(sent):
            received += self.far.recv(len(sent))
        return received


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(stack):
    return Pair(stack)


@pytest.fixture
def other(stack):
    return Pair(stack)


@pytest.fixture
def impatient(monkeypatch):
    """A wait for empty queues is given up soon."""
    monkeypatch.setattr(sockets, "_QUIESCE_S", 0.05)
    monkeypatch.setattr(sockets, "_LOOK_S", 0.001)


def test_ports_that_this_process_listens_on(stack):
    before = sockets.listening_ports()
    pair = Pair(stack)
    unbound = stack.enter_context(socket.socket())
    datagrams = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    datagrams.bind(("127.0.0.1", 0))
    local, end = socket.socketpair()
    stack.enter_context(local)
    stack.enter_context(end)
    assert unbound.fileno() > 0
    assert sockets.listening_ports() - before == pair.ports
    pair.listener.close()
    assert not sockets.listening_ports() & pair.ports


def test_connections_of_other_ports_are_left_alone(pair, other):
    assert sockets.shut(pair.ports) == 2  # both ends are ours here
    assert pair.far.recv(1) == b""
    assert pair.near.recv(1) == b""
    with pytest.raises(OSError, match=r"Broken pipe|not connected|reset"):
        pair.near.sendall(b"x" * 100_000)
    assert other.exchange() == b"x"
    assert sockets.shut(frozenset()) == 0
    assert other.exchange() == b"x"


def test_listeners_are_not_shut(pair):
    sockets.shut(pair.ports)
    with socket.create_connection(("127.0.0.1", pair.port), timeout=5):
        pair.listener.accept()[0].close()


def test_what_was_shut_by_the_other_side_is_no_error(pair):
    pair.far.close()
    assert pair.near.recv(1) == b""
    sockets.shut(pair.ports)
    assert sockets.shut(pair.ports) in (0, 1)


def test_the_descriptors_stay_open_and_none_is_added(pair):
    def descriptors():
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before = descriptors()
    sockets.listening_ports()
    sockets.quiesce(pair.ports)
    sockets.moved_bytes(pair.ports)
    assert descriptors() == before
    assert pair.exchange() == b"x"


def test_a_wait_in_another_thread_ends(pair):
    received = []
    thread = threading.Thread(target=lambda: received.append(pair.far.recv(10)))
    thread.start()
    sockets.shut(pair.ports)
    thread.join(5)
    assert received == [b""]


def test_queues_that_are_empty(pair, impatient):
    assert sockets.quiesce(pair.ports)
    pair.exchange(b"x" * 10_000)
    assert sockets.quiesce(pair.ports)
    assert sockets.quiesce(frozenset())


def test_a_message_that_nobody_has_read_is_waited_for(pair, other, impatient):
    pair.near.sendall(b"unread")
    assert not sockets.quiesce(pair.ports)
    assert sockets.quiesce(other.ports)
    assert pair.far.recv(6) == b"unread"
    assert sockets.quiesce(pair.ports)


def test_queues_must_be_empty_several_times_in_a_row(pair, impatient, monkeypatch):
    queued = [0, 0, 5, 0, 0, 0, 7]
    looks = iter(queued)
    monkeypatch.setattr(sockets, "_connections", lambda _: [pair.near])
    monkeypatch.setattr(sockets, "_queued", lambda _: next(looks))
    assert sockets.quiesce(pair.ports)
    assert list(looks) == [7]


def test_bytes_that_moved(pair, other):
    before = sockets.moved_bytes(pair.ports)
    pair.exchange(b"x" * 100_000)
    moved = sockets.moved_bytes(pair.ports) - before
    if moved == 0:
        pytest.skip("this kernel does not count the bytes of a connection")
    # sent by one end and received by the other: both are connections of this process
    assert 100_000 <= moved <= 200_000
    assert sockets.moved_bytes(other.ports) < 100_000
    assert sockets.moved_bytes(frozenset()) == 0


def test_connections_by_ipv6(stack, impatient):
    try:
        pair = Pair(stack, socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    assert pair.port in sockets.listening_ports()
    assert sockets.quiesce(pair.ports)
    assert sockets.shut(pair.ports) == 2


def test_sockets_that_vanish_while_they_are_looked_at(pair, monkeypatch):
    monkeypatch.setattr(sockets.os, "listdir", lambda _: ["0", "99999"])
    assert sockets.listening_ports() == set()
    assert sockets.shut(pair.ports) == 0
