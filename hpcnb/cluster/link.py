"""The notebook's end of the link: one thread, one encrypted connection per node agent.

Any thread sends; what arrives is handed to one listener on the link thread, which must not block.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable

import zmq

from hpcnb.core.errors import TransferError
from hpcnb.core.launch import AgentSpec
from hpcnb.core.messages import MAX_MESSAGE_BYTES, Message, MessageError, decode, encode

__all__ = ["Link"]

LOG = logging.getLogger(__name__)


class Link:
    """A connection to the agent of one node.

    Args:
        spec: Address and keys.
        on_message: Called on the link thread with each message.
    """

    def __init__(self, spec: AgentSpec, on_message: Callable[[Message], None]) -> None:
        self._on_message = on_message
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.curve_serverkey = spec.server_public.encode()
        self._socket.curve_publickey = spec.client_public.encode()
        self._socket.curve_secretkey = spec.client_secret.encode()
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.linger = 500
        # a name of its own: should the connection be made anew, the agent goes on answering the same notebook
        self._socket.routing_id = b"notebook-" + os.urandom(8).hex().encode()
        self._socket.reconnect_ivl = 20  # the agent's socket appears some 0.1 s after its launch
        self._socket.connect(spec.link_address)
        self._outgoing: deque[bytes] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._closing = False
        # the pipe is not closed while somebody writes to it: its number might be another file's by then
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._serve, name="hpcnb-link", daemon=True)
        self._pid = os.getpid()
        self._thread.start()

    def send(self, message: Message) -> None:
        """Send, from any thread; nothing once the link is closed.

        Raises:
            TransferError: The message is too large, or holds what a message cannot.
        """
        packed = encode(message)
        if len(packed) > MAX_MESSAGE_BYTES:
            msg = f"this is {len(packed):,} bytes to send; at most {MAX_MESSAGE_BYTES:,} are: let the ranks load it"
            raise TransferError(msg)
        with self._lock:
            if self._closing:
                return
            self._outgoing.append(packed)
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # the thread has plenty of wake-ups to read

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll())
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                while self._outgoing:
                    self._socket.send(self._outgoing.popleft())
            while True:
                try:
                    packed = self._socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                try:
                    self._on_message(decode(packed))
                except MessageError:
                    LOG.exception("the agent sent something that is no message of this version")
                except Exception:
                    LOG.exception("handling a message of the agent failed")
        while self._outgoing:
            self._socket.send(self._outgoing.popleft())
        self._socket.close()
        self._context.term()

    def close(self) -> None:
        """Send what is queued, then close. Not from the link thread."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake()
        self._thread.join(2.0)
        if not self._thread.is_alive():  # else it still reads them
            os.close(self._wake_read)
            os.close(self._wake_write)
