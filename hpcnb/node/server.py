"""An agent's end of links: a CURVE-encrypted zmq socket that only the holder of one key may use.

One such socket is for notebooks; the head of a cluster has another for the agents of nodes, with another key.

Knows connections and frames, nothing of cells. Nothing is decoded before the peer has proved the key: zmq drops
the connection of anybody else during the handshake (RFC 26/27). Who has the key must be welcomed before anything
but a Hello is heard; that is for the agent to say.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import zmq
import zmq.auth
from zmq.auth.base import Authenticator
from zmq.utils.monitor import recv_monitor_message

from hpcnb.core.messages import MAX_MESSAGE_BYTES, Hello, Message, MessageError, decode, encode
from hpcnb.node.refusals import Refusals

__all__ = ["LinkServer", "Lock"]

LOG = logging.getLogger(__name__)
#: At most so many messages are taken at once: who sends without end must not keep the agent from all else.
_MOST_MESSAGES = 1000
#: So many peers that have gone are still known by name, should their connection be made anew.
_MOST_KNOWN = 1000
#: The role of who asks something and goes.
_LOOKS = "look"
_BAD_HANDSHAKE = (
    zmq.Event.HANDSHAKE_FAILED_AUTH | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)


@dataclass(frozen=True)
class Lock:
    """Who may connect: CURVE keys as Z85 text.

    Attributes:
        public: Of the server.
        secret: Of the server.
        allowed: The only public key of a peer that may connect.
    """

    public: str
    secret: str
    allowed: str


class _OneKey:
    """The credentials check: one public key may connect."""

    def __init__(self, public: str) -> None:
        self._public = public.encode()

    def callback(self, _domain: str, key: bytes) -> bool:
        return key == self._public  # pyzmq hands the key in its text form


def _peer(frame: zmq.Frame) -> str:
    """Who sent it: for a local socket the kernel knows the process."""
    try:
        address = str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "a peer"
    return f"process {address.rpartition(':')[2]}" if address.startswith("localhost:") else address


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


class LinkServer:
    """Accepts peers.

    Args:
        address: To listen on; a port of ``*`` is any that is free.
        lock: Keys.
        refusals: Told of who and what is not let in.
        hellos: The first message of a peer is one of these.
    """

    def __init__(
        self, address: str, lock: Lock, refusals: Refusals, *, hellos: tuple[type[Message], ...] = (Hello,)
    ) -> None:
        self._refusals = refusals
        self._hellos = hellos
        self._context = zmq.Context()
        self._auth = Authenticator(self._context, log=LOG)
        self._auth.start()
        self._auth.configure_curve_callback(domain="hpcnb", credentials_provider=_OneKey(lock.allowed))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey = lock.public.encode()
        self._socket.curve_secretkey = lock.secret.encode()
        self._socket.zap_domain = b"hpcnb"  # without a handler for the domain nobody gets in
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.sndhwm = 0  # a peer that reads slowly must not stop the ranks of others
        self._socket.linger = 500
        self._socket.router_handover = True  # a peer that connects anew takes its own place
        self._monitor = self._socket.get_monitor_socket(zmq.Event.DISCONNECTED | zmq.Event.CLOSED | _BAD_HANDSHAKE)
        self._socket.bind(address)
        self._roles: dict[bytes, str] = {}  # of all that have been welcomed
        self._arriving = -1  # the connection of the Hello that was received last
        self._clients: dict[bytes, int] = {}  # who stays and is connected: descriptor of the connection

    @property
    def descriptors(self) -> list[int]:
        """To be watched for reading; zmq's are edge-triggered, so always call :meth:`receive` to the end."""
        return [int(socket.get(zmq.FD)) for socket in (self._socket, self._auth.zap_socket, self._monitor)]

    @property
    def connected(self) -> Collection[bytes]:
        """Those that have been welcomed and are connected now."""
        return self._clients.keys()

    def receive(self) -> Iterator[tuple[bytes, Message | MessageError]]:
        """Messages that have arrived, with who sent them: every Hello, and all from who has been welcomed by then.

        Of who stays also why one is none.
        """
        for _ in range(_MOST_MESSAGES):
            progressed = self._admit() | self._notice()
            try:
                name, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                if progressed:
                    continue
                return
            client = name.bytes
            peer = _peer(name)
            if len(frames) != 1:
                self._refusals.note(peer, "not one frame", f"{len(frames)} frames")
                continue
            try:
                message = decode(frames[0].buffer)
            except MessageError as error:
                self._refusals.note(peer, "no message of this protocol", str(error))
                if self._stays(client):
                    yield client, error
                continue
            if isinstance(message, self._hellos):
                self._roles.pop(client, None)  # what it was before counts no longer
                self._clients.pop(client, None)
                self._arriving = name.get(zmq.SRCFD)
            elif client not in self._roles:
                self._refusals.note(peer, "sent a message without a Hello that was welcomed", type(message).__name__)
                continue
            elif self._stays(client):
                self._clients[client] = name.get(zmq.SRCFD)  # its connection may have been made anew
            yield client, message

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
            if event["event"] & _BAD_HANDSHAKE:
                self._refusals.note(
                    "a connection", "its peer has not proved the cluster's key", str(zmq.Event(event["event"]).name)
                )
            else:
                gone = [client for client, descriptor in self._clients.items() if descriptor == event["value"]]
                for client in gone:
                    del self._clients[client]
            progressed = True
        return progressed

    def welcome(self, client: bytes, role: str) -> None:
        """From now on this client is heard; unless it only came to look, it stays, and gets what is sent to all."""
        self._roles[client] = role
        while len(self._roles) > _MOST_KNOWN:
            oldest = next((name for name in self._roles if name not in self._clients), client)
            del self._roles[oldest]
        if self._stays(client):
            self._clients[client] = self._arriving

    def forget(self, client: bytes) -> None:
        """This client is not heard any more, until it says Hello again."""
        self._roles.pop(client, None)
        self._clients.pop(client, None)

    @property
    def address(self) -> str:
        """Where it listens, with its port."""
        return str(self._socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")

    def _stays(self, client: bytes) -> bool:
        return self._roles.get(client, _LOOKS) != _LOOKS

    def role(self, client: bytes) -> str:
        """What it was welcomed as."""
        return self._roles.get(client, "")

    def send(self, client: bytes, message: Message | bytes) -> None:
        """Send to one client."""
        self._socket.send_multipart([client, message if isinstance(message, bytes) else encode(message)])

    def send_all(self, message: Message | bytes, *, but: bytes = b"") -> None:
        """Send to everybody who stays, but one; one that is gone is dropped by zmq."""
        packed = message if isinstance(message, bytes) else encode(message)
        for client in self._clients:
            if client != but:
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
