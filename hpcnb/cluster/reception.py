"""A port on this machine where looks at nodes meet: it shows that nodes reach us, tells them the time and each other.

Nothing that is received is trusted with more than a line in a report: it is read as JSON, of bounded size, from those
who know the token, and is never executed.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Reception"]

#: A look tries so many others: the next ones in a ring of all, so that each is tried as often.
_MOST_PEERS = 16
#: No line is longer.
_MOST_BYTES = 100_000
#: A wheel is sent within so long.
_WHEEL_S = 20.0


@dataclass
class _Guest:
    link: socket.socket
    received: bytes = b""
    host: str = ""
    at: str = ""
    is_introduced: bool = False
    is_done: bool = False


class Reception:
    """A context manager; everything happens in :meth:`turn`.

    Args:
        address: IP address of this machine that nodes reach.
        wheel: For who asks for it.

    Raises:
        OSError: The address is not one of this machine's.
    """

    def __init__(self, address: str, wheel: bytes = b"") -> None:
        self.token = secrets.token_hex(8)
        self._wheel = wheel
        self._listener = socket.create_server((address, 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._guests: dict[socket.socket, _Guest] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for link in list(self._guests):
            link.close()
        self._listener.close()
        self._selector.close()

    @property
    def at(self) -> str:
        """``host:port``."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    @property
    def num_arrived(self) -> int:
        """How many nodes have said where they are."""
        return sum(bool(guest.at) for guest in self._guests.values())

    def turn(self, timeout_s: float) -> None:
        """Hear what has arrived."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                with contextlib.suppress(OSError):  # gone again already
                    link, _ = self._listener.accept()
                    link.settimeout(1.0)
                    self._guests[link] = _Guest(link)
                    self._selector.register(link, selectors.EVENT_READ)
                continue
            assert isinstance(key.fileobj, socket.socket)
            guest = self._guests[key.fileobj]
            try:
                self._hear(guest)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not one of ours, or gone
                self._dismiss(guest)

    def introduce(self) -> None:
        """Tell those that are here, and have not been told, of each other."""
        here = [guest for guest in self._guests.values() if guest.at]
        for number, guest in enumerate(here):
            if guest.is_introduced:
                continue
            guest.is_introduced = True
            others = [*here[number + 1 :], *here[:number]][:_MOST_PEERS]
            hosts = [other.host for other in here]
            named = {
                other.host if hosts.count(other.host) == 1 else f"{other.host} ({other.at})": other.at
                for other in others
            }  # fmt: skip
            self._tell(guest, named)

    def part(self) -> None:
        """All that have been introduced may go when all have tried all."""
        introduced = [guest for guest in self._guests.values() if guest.is_introduced]
        if all(guest.is_done for guest in introduced):
            for guest in introduced:
                self._tell(guest, {})
                self._dismiss(guest)

    def _hear(self, guest: _Guest) -> None:
        chunk = guest.link.recv(65536)
        if not chunk or len(guest.received) > _MOST_BYTES:
            self._dismiss(guest)
            return
        *lines, guest.received = (guest.received + chunk).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said.get("done") and guest.at:
                guest.is_done = True
            elif said["token"] != self.token:
                self._dismiss(guest)
            elif said.get("wants") == "time":
                self._tell(guest, {"time_s": time.time()})
            elif said.get("wants") == "wheel":
                guest.link.settimeout(_WHEEL_S)
                guest.link.sendall(self._wheel)
                self._dismiss(guest)
            else:
                guest.host, guest.at = str(said["host"])[:100], f"{said['address']}:{int(said['port'])}"

    def _tell(self, guest: _Guest, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # gone: its look says why
            guest.link.sendall(json.dumps(what).encode() + b"\n")

    def _dismiss(self, guest: _Guest) -> None:
        if self._guests.pop(guest.link, None) is not None:
            self._selector.unregister(guest.link)
            guest.link.close()
