"""gloo's connections of this process: which they are, whether bytes move, and how to end what waits in them.

gloo has no abort: an operation that waits for a rank which will not come ends with its timeout, or with its
connection. So the connections are shut down from another thread, which makes every wait raise within milliseconds,
in Python and in C++. gloo 70dc360 (gloo/transport/tcp/pair.cc, Pair::signalException) does not signal an operation
whose message is half transferred when that happens, so the queues must be empty first: :func:`quiesce`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["listening_ports", "moved_bytes", "quiesce", "shut"]

#: The queues must be found empty so often in a row, with so long between.
_EMPTY_LOOKS, _LOOK_S = 3, 0.02
_QUIESCE_S = 1.0
_SIOCOUTQ = termios.TIOCOUTQ
#: tcpi_bytes_acked and tcpi_bytes_received in linux/tcp.h, struct tcp_info
_TCP_INFO_BYTES = struct.Struct("<120xQQ")


def _streams() -> Iterator[socket.socket]:
    """All TCP sockets of this process, as duplicates that are closed after use."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            descriptor = int(entry.name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            duplicate = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed meanwhile
        with duplicate:
            if duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM:
                yield duplicate


def _listens(stream: socket.socket) -> bool:
    return bool(stream.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def listening_ports() -> set[int]:
    """Ports that this process listens on."""
    return {stream.getsockname()[1] for stream in _streams() if _listens(stream)}


def _connections(ports: frozenset[int]) -> Iterator[socket.socket]:
    """Connections from or to one of these ports."""
    for stream in _streams():
        try:
            if not _listens(stream) and (stream.getsockname()[1] in ports or stream.getpeername()[1] in ports):
                yield stream
        except OSError:
            continue  # not connected any more


def _queued(stream: socket.socket) -> int:
    total = 0
    for request in (_SIOCOUTQ, termios.FIONREAD):
        try:
            (queued,) = struct.unpack("i", fcntl.ioctl(stream.fileno(), request, b"\0\0\0\0"))
        except OSError:
            continue  # closed meanwhile
        total += queued
    return total


def quiesce(ports: frozenset[int]) -> bool:
    """Wait until nothing is queued in these connections, a second at most; whether that was reached."""
    empty, deadline_s = 0, time.monotonic() + _QUIESCE_S
    while empty < _EMPTY_LOOKS:
        if time.monotonic() > deadline_s:
            return False
        empty = 0 if any(_queued(stream) for stream in _connections(ports)) else empty + 1
        time.sleep(_LOOK_S)
    return True


def shut(ports: frozenset[int]) -> int:
    """Shut these connections down: what waits in them raises. Returns how many there were."""
    count = 0
    for stream in _connections(ports):
        try:
            stream.shutdown(socket.SHUT_RDWR)
            count += 1
        except OSError:
            pass  # the other side was faster
    return count


def moved_bytes(ports: frozenset[int]) -> int:
    """Bytes sent (and acknowledged) and received so far in these connections."""
    total = 0
    for stream in _connections(ports):
        try:
            info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        except OSError:
            continue  # closed meanwhile
        if len(info) >= _TCP_INFO_BYTES.size:
            total += sum(_TCP_INFO_BYTES.unpack_from(info))
    return total
