"""The ranks' socket: who connects is looked at before a byte of theirs is read, and nobody is waited for.

Knows who may be a rank of this node and what a rank says first; what it says later is for the agent.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpcnb.core import messages as m
from hpcnb.node.proc import read_proc
from hpcnb.node.rank_process import RankProcess
from hpcnb.node.refusals import Refusals

__all__ = ["Door", "Watching"]

#: A rank says who it is within so long of connecting.
_HELLO_S = 5.0
#: No hello of a rank is larger.
_HELLO_BYTES = 4096
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")


class Watching(Protocol):
    """The agent's selector."""

    def watch(self, descriptor: int, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        """Call this when the descriptor is ready."""

    def unwatch(self, descriptor: int) -> None:
        """No longer; also if it never was, or is closed."""


@dataclass
class _Guest:
    """A connection of a child of the template, which has not said yet which rank it is."""

    connection: socket.socket
    pid: int
    until_s: float
    received: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)

    def missing(self) -> int:
        """Bytes of its hello that have not come; what follows the hello is left in the socket."""
        if len(self.received) < _LENGTH.size:
            return _LENGTH.size - len(self.received)
        (length,) = _LENGTH.unpack_from(self.received)
        if length > _HELLO_BYTES:
            msg = f"a hello of {length} bytes"
            raise m.MessageError(msg)
        return _LENGTH.size + int(length) - len(self.received)

    def read(self) -> m.Message | None:
        """Its hello, if all of it is there.

        Raises:
            OSError: It hung up.
            MessageError: It said something else.
        """
        while missing := self.missing():
            try:
                chunk, descriptors, _, _ = socket.recv_fds(self.connection, missing, 3)
            except BlockingIOError:
                return None
            self.descriptors += descriptors
            if not chunk:
                msg = "hung up"
                raise ConnectionError(msg)
            self.received += chunk
        return m.decode(bytes(self.received[_LENGTH.size :]))


class Door:
    """Lets ranks in.

    Args:
        path: Of the socket.
        template_pid: Ranks are children of this process.
        ranks: By global rank; entries change when ranks are replaced.
        selector: The agent's.
        seated: Called with a rank whose first connection, that for cells, has been attached.
        refusals: Counts who is not let in.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        path: Path,
        template_pid: int,
        ranks: dict[int, RankProcess],
        selector: Watching,
        seated: Callable[[RankProcess], None],
        refusals: Refusals,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._template_pid = template_pid
        self._ranks = ranks
        self._selector = selector
        self._seated = seated
        self._refusals = refusals
        self._clock = clock
        self._guests: dict[int, _Guest] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)

    def open(self) -> None:
        """Listen from now on."""
        self._listener.bind(str(self._path))
        self._listener.listen(4096)
        self._selector.watch(self._listener.fileno(), self._accept)

    def tick(self) -> None:
        """Do not keep those who say nothing."""
        now_s = self._clock()
        for guest in [each for each in self._guests.values() if now_s >= each.until_s]:
            self._turn_away(guest, f"said nothing for {_HELLO_S:.0f} s")

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(credentials)
        # looked at before a byte is read, so that nobody else can send us descriptors
        if user != os.getuid() or _parent_of(pid) != self._template_pid:
            self._refusals.note("a connection to the ranks' socket", f"of user {user}, no rank", f"process {pid}")
            connection.close()
            return
        connection.setblocking(False)
        guest = _Guest(connection, pid, self._clock() + _HELLO_S)
        self._guests[connection.fileno()] = guest
        self._selector.watch(connection.fileno(), lambda: self._hear(guest))
        self._hear(guest)

    def _hear(self, guest: _Guest) -> None:
        try:
            hello = guest.read()
            if hello is None:
                return
            del self._guests[guest.connection.fileno()]
            self._selector.unwatch(guest.connection.fileno())
            problem = self._seat(guest, hello)
        except (OSError, ValueError) as error:
            problem = str(error)
        if problem:
            self._turn_away(guest, problem)

    def _turn_away(self, guest: _Guest, problem: str) -> None:
        self._refusals.note(f"process {guest.pid}", "no hello of a rank", problem)
        if self._guests.pop(guest.connection.fileno(), None) is not None:
            self._selector.unwatch(guest.connection.fileno())
        for descriptor in guest.descriptors:
            os.close(descriptor)
        guest.connection.close()

    def _seat(self, guest: _Guest, hello: m.Message) -> str:
        """Take a connection as that of a rank; returns why it is none, "" if it is."""
        process = self._ranks.get(hello.rank) if isinstance(hello, m.RankHello) else None
        if process is None or not isinstance(hello, m.RankHello) or hello.pid != guest.pid:
            return repr(hello)
        num_expected = 3 if hello.channel == "cells" else 0
        if len(guest.descriptors) != num_expected or process.has_channel(hello.channel):
            return f"{hello} with {len(guest.descriptors)} descriptors"
        if hello.channel != "cells":
            process.attach_control(guest.connection, lambda: self._await_room(process))
            return ""
        process.pid = guest.pid
        process.attach_cells(guest.connection, guest.descriptors)
        self._seated(process)
        return ""

    def _await_room(self, process: RankProcess) -> None:
        """A rank does not read its orders (it is stopped): the rest is sent when it does."""
        control = process.control

        def ready() -> None:
            # closed by an earlier event of the same turn: then the number may be another's
            if process.control == control and process.send_control_rest():
                self._selector.unwatch(control)

        self._selector.watch(control, ready, selectors.EVENT_WRITE)

    def close(self) -> None:
        """Nobody comes in any more."""
        for guest in list(self._guests.values()):
            guest.connection.close()
        self._listener.close()


def _parent_of(pid: int) -> int:
    """Process id of its parent; 0 if it has ended."""
    status = read_proc(pid, "stat").rpartition(b")")[2].split()  # its name, in parentheses, may hold anything
    return int(status[1]) if status else 0
