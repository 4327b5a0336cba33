"""The rank's two sockets to its agent, and the thread that answers while the main thread is busy.

The *cells* socket brings cells to the main thread, which reads it from its event loop: no thread is woken on the
way. The *control* socket belongs to the link thread, which never runs user code, so it answers when a cell
hangs; the same thread sends output that a cell has printed and not yet sent.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from hpcnb.core.messages import FrameReader, Message, RankHello, frame
from hpcnb.engine.interrupts import Interrupts

__all__ = ["RankLink"]


class RankLink:
    """Sockets of one rank.

    Args:
        path: The agent's socket.
        rank: Global rank.
        descriptors: Read ends of the pipes of stdout, stderr and stacks; handed to the agent.
        interrupts: Held while the main thread sends.
    """

    def __init__(self, path: Path, rank: int, descriptors: list[int], interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._main_thread = threading.get_ident()
        self._send_lock = threading.RLock()  # `print` in a __del__ may run inside another one
        self.cells = self._connect(path, RankHello(rank, os.getpid(), "cells"), descriptors)
        self._control = self._connect(path, RankHello(rank, os.getpid(), "control"), [])
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._timers: deque[tuple[float, Callable[[], None]]] = deque()

    @staticmethod
    def _connect(path: Path, hello: RankHello, descriptors: list[int]) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        socket.send_fds(connection, [frame(hello)], descriptors)
        return connection

    def send(self, message: Message) -> None:
        """Send to the agent from any thread; a frame is never torn by an interrupt."""
        framed = frame(message)
        if threading.get_ident() == self._main_thread:
            with self._interrupts, self._send_lock:
                self.cells.sendall(framed)
        else:
            with self._send_lock:
                self.cells.sendall(framed)

    def start(self, on_control: Callable[[Message], None], on_agent_gone: Callable[[], None]) -> None:
        """Start the link thread."""
        threading.Thread(target=self._serve, args=(on_control, on_agent_gone), name="hpcnb-link", daemon=True).start()

    def call_soon(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run ``function`` on the link thread after ``delay_s``."""
        self._timers.append((delay_s, function))
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # the pipe is full of earlier wake-ups: the thread is awake

    def _serve(self, on_control: Callable[[Message], None], on_agent_gone: Callable[[], None]) -> None:
        reader = FrameReader()
        control = self._control.fileno()
        while True:
            ready, _, _ = select.select([control, self._wake_read], [], [])
            if control in ready:
                received = self._control.recv(65536)
                if not received:
                    on_agent_gone()
                    return
                for message in reader.feed(received):
                    on_control(message)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                while self._timers:
                    delay_s, function = self._timers.popleft()
                    # the only timer is the flush of output, some milliseconds: waiting here is simplest
                    threading.Event().wait(delay_s)
                    function()
