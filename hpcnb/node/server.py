"""The agent's end of the link: a CURVE-encrypted zmq socket that only the holder of the cluster's key may use.

Knows connections and frames, nothing of cells. Nothing is decoded before the peer has proved the key: zmq drops
the connection of anybody else during the handshake (RFC 26/27).
"""

from __future__ import annotations

import logging

import zmq
import zmq.auth
from zmq.auth.base import Authenticator
from zmq.utils.monitor import recv_monitor_message

from hpcnb.core.launch import AgentSpec
from hpcnb.core.messages import MAX_MESSAGE_BYTES, Message, MessageError, decode, encode

__all__ = ["LinkServer"]

LOG = logging.getLogger(__name__)


class _OneKey:
    """The credentials check: one public key may connect."""

    def __init__(self, public: str) -> None:
        self._public = public.encode()

    def callback(self, _domain: str, key: bytes) -> bool:
        return key == self._public  # pyzmq hands the key in its text form


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


class LinkServer:
    """Accepts notebooks.

    Args:
        spec: Address and keys.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._context = zmq.Context()
        self._auth = Authenticator(self._context, log=LOG)
        self._auth.start()
        self._auth.configure_curve_callback(domain="hpcnb", credentials_provider=_OneKey(spec.client_public))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey = spec.server_public.encode()
        self._socket.curve_secretkey = spec.server_secret.encode()
        self._socket.zap_domain = b"hpcnb"  # without a handler for the domain nobody gets in
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.sndhwm = 0  # a notebook that reads slowly must not stop the ranks of others
        self._socket.linger = 500
        self._socket.router_handover = True  # a notebook that connects anew takes its own place
        self._monitor = self._socket.get_monitor_socket(zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | zmq.Event.CLOSED)
        self._socket.bind(spec.link_address)
        self._connections: set[int] = set()
        self._clients: set[bytes] = set()

    @property
    def descriptors(self) -> list[int]:
        """To be watched for reading; zmq's are edge-triggered, so always call :meth:`receive` to the end."""
        return [int(socket.get(zmq.FD)) for socket in (self._socket, self._auth.zap_socket, self._monitor)]

    @property
    def num_connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def receive(self) -> list[tuple[bytes, Message]]:
        """All messages that have arrived, with who sent them."""
        messages: list[tuple[bytes, Message]] = []
        while True:
            progressed = self._admit() | self._notice()
            try:
                client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if progressed:
                    continue
                return messages
            try:
                messages.append((client, decode(b"".join(frames))))
            except MessageError as error:
                LOG.warning("refused a frame of an authenticated peer: %s", error)

    def _admit(self) -> bool:
        progressed = False
        while _readable(self._auth.zap_socket):
            handling = self._auth.handle_zap_message(self._auth.zap_socket.recv_multipart())
            try:  # a coroutine that awaits nothing
                handling.send(None)
            except StopIteration:
                pass
            progressed = True
        return progressed

    def _notice(self) -> bool:
        progressed = False
        while _readable(self._monitor):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.Event.ACCEPTED:
                self._connections.add(event["value"])
            else:
                self._connections.discard(event["value"])
            progressed = True
        return progressed

    def welcome(self, client: bytes) -> None:
        """From now on this client gets what is sent to all."""
        self._clients.add(client)

    def send(self, client: bytes, message: Message) -> None:
        """Send to one client."""
        self._socket.send_multipart([client, encode(message)])

    def send_all(self, message: Message) -> None:
        """Send to every welcomed client; one that is gone is dropped by zmq."""
        packed = encode(message)
        for client in self._clients:
            self._socket.send_multipart([client, packed])

    def has_input(self) -> bool:
        """Whether :meth:`receive` would find something; ask before blocking on the descriptors."""
        return any(_readable(socket) for socket in (self._socket, self._auth.zap_socket, self._monitor))

    def close(self) -> None:
        """Send what is still queued, then close."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._auth.stop()
        self._context.term()
