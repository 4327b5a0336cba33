"""sys.stdout and sys.stderr of a rank while cells run: what is printed is under way within milliseconds.

A line is sent at once by the thread that printed it, as a terminal would show it, so that it keeps its place
among what C code writes. In a flood, what follows within FLUSH_S is gathered and sent by the link thread.
What C code writes to descriptors 1 and 2 goes through pipes that the agent reads (see main.py).
"""

from __future__ import annotations

import fcntl
import io
import os
import termios
import threading
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from hpcnb.core.messages import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hpcnb.engine.interrupts import Interrupts
    from hpcnb.engine.link import RankLink

__all__ = ["LinkStream"]

#: Output is gathered for so long before it is sent (a person cannot read faster).
FLUSH_S = 0.01
#: So many lines are sent at once in every FLUSH_S; more are a flood.
_EAGER = 5
#: Text waits at most so long for the agent to read what C code wrote before it.
_PIPE_WAIT_S = 0.02
#: A message holds at most so many characters, so that one huge print stays interruptible.
_CHUNK = 1 << 18


def _await_pipes() -> None:
    """Let the agent read what C code has written, so that text that follows it is shown after it."""
    deadline_s = 0.0
    while any(fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0" for pipe in (1, 2)):
        now_s = perf_counter()
        deadline_s = deadline_s or now_s + _PIPE_WAIT_S
        if now_s > deadline_s:
            return  # another thread floods: its order does not matter to anybody
        sleep(0.00005)


class _Descriptor(io.RawIOBase):
    """``sys.stdout.buffer``: bytes go to the descriptor, where the agent decodes them."""

    def __init__(self, descriptor: int, flush: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._flush_text = flush

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: object) -> int:
        self._flush_text()  # keep the order of text and bytes
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        written = 0
        while written < len(view):
            written += os.write(self._descriptor, view[written:])
        return written


class LinkStream(io.TextIOBase):
    """A text stream that sends to the agent.

    Args:
        name: ``stdout`` or ``stderr``.
        descriptor: 1 or 2, for ``fileno`` and ``buffer``.
        link: Where to.
        interrupts: Held while the main thread changes the buffer.
        current_cell: Number of the cell that runs; 0 outside, which ends in the rank's log.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self, name: str, descriptor: int, link: RankLink, interrupts: Interrupts, current_cell: Callable[[], int]
    ) -> None:
        self._name = name
        self._descriptor = descriptor
        self._link = link
        self._interrupts = interrupts
        self._current_cell = current_cell
        self._main_thread = threading.get_ident()
        self._lock = threading.RLock()
        self._pieces: list[str] = []
        self._size = 0
        self._cell = 0
        self._window_s = 0.0
        self._num_sent = 0
        self._scheduled = False
        self.buffer = _Descriptor(descriptor, self.flush)

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: Any) -> int:
        if not isinstance(text, str):
            msg = f"write() argument must be str, not {type(text).__name__}"
            raise TypeError(msg)
        if threading.get_ident() == self._main_thread:
            with self._interrupts:
                self._write(text)
        else:
            self._write(text)
        return len(text)

    def _write(self, text: str) -> None:
        with self._lock:
            cell = self._current_cell()
            if cell != self._cell:
                self._send()
                self._cell = cell
            self._pieces.append(text)
            self._size += len(text)
            now_s = perf_counter()
            if now_s - self._window_s > FLUSH_S:
                self._window_s, self._num_sent = now_s, 0
            # a print is two writes, text and newline: wait for the newline, it comes at once
            if (text.endswith("\n") and self._num_sent < _EAGER) or self._size > _CHUNK:
                self._num_sent += 1
                self._send()
            elif not self._scheduled:
                self._scheduled = True
                self._link.call_soon(FLUSH_S, self._timed_flush)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override] # as text streams do
        self.write("".join(lines))

    def _timed_flush(self) -> None:
        with self._lock:
            self._scheduled = False
            self._send()

    def flush(self) -> None:
        if threading.get_ident() == self._main_thread:
            with self._interrupts, self._lock:
                self._send()
        else:
            with self._lock:
                self._send()

    def _send(self) -> None:
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        _await_pipes()
        for start in range(0, len(text), _CHUNK):
            # lone surrogates (os.fsdecode of odd names) cannot be encoded
            chunk = text[start : start + _CHUNK].encode("utf-8", "backslashreplace").decode()
            self._link.send(Text(self._cell, self._name, chunk))
