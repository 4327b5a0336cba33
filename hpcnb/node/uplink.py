"""A node's end of the link to who is above, in the place where the agent of a single node has its front.

What ranks say goes up as it is; orders that come down are carried out by what is below. Who is above is the head of
the cluster, or in a large one another node; should that be lost, this one goes to the head.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.node.door import Watching
from hpcnb.node.inner import Inner
from hpcnb.node.kept import Kept
from hpcnb.node.levels import Below, carry_out
from hpcnb.node.relay import CellMessage

__all__ = ["Uplink", "connect"]

LOG = logging.getLogger(__name__)
#: A head whose connection has ended, or that is silent, is waited for so long: its machine may be asleep.
_PATIENCE_S = 60.0
#: Where the connection has ended, so often it is looked whether the head has, too.
_PROBE_S, _PROBE_TIMEOUT_S = 1.0, 0.1
#: At most so many messages are taken at once.
_MOST_MESSAGES = 1000


def connect(context: zmq.Context[zmq.Socket[bytes]], address: str, keys: tuple[str, str, str]) -> zmq.Socket[bytes]:
    """A socket to the head.

    Args:
        context: Of zmq.
        address: ``host:port`` of the head.
        keys: CURVE keys: the head's public, this side's public and secret.
    """
    link = context.socket(zmq.DEALER)
    link.curve_serverkey, link.curve_publickey, link.curve_secretkey = (key.encode() for key in keys)
    link.maxmsgsize = m.MAX_MESSAGE_BYTES
    link.sndhwm = 0
    link.linger = 1000
    link.routing_id = b"node-" + os.urandom(8).hex().encode()
    link.reconnect_ivl = 100
    link.connect(f"tcp://{address}")
    return link


class Ending(Protocol):
    """How an agent is told to end."""

    def __call__(self, reason: str, *, is_whole: bool = False) -> None:
        """For a reason in words; ``is_whole``: the whole cluster ends."""


class Uplink:
    """Tells who is above what ranks of this node say, and orders them what comes from there.

    Args:
        spec: Of the node.
        folder: Of the node.
        selector: The agent's.
        end: Ends the agent, for a reason in words.
        clock: Monotonic seconds.
        context: Of zmq; by default one of its own.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        *,
        selector: Watching,
        end: Ending,
        clock: Callable[[], float],
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.below: Below  #: Set before the first turn.
        self.relay: Inner | None = None  #: The same, if other nodes are below.
        self._spec = spec
        self._folder = folder
        self._selector = selector
        self._end = end
        self._clock = clock
        self._context = zmq.Context() if context is None else context
        self._owns_context = context is None
        self._started_ns = time.perf_counter_ns()
        self._kept = Kept()
        self._open(spec.uplink, spec.uplink_public)

    def _open(self, address: str, public: str) -> None:
        self._address = address
        keys = (public, self._spec.nodes_public, self._spec.nodes_secret)
        self._socket = connect(self._context, address, keys)
        self._monitor = self._socket.get_monitor_socket(zmq.Event.DISCONNECTED | zmq.Event.CONNECTED)
        self._is_cut = self._is_orphaned = False
        self._probe_due_s = 0.0
        self._heard_s = self._clock()

    def _close(self) -> None:
        for each in (self._socket, self._monitor):
            self._selector.unwatch(int(each.get(zmq.FD)))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Say hello."""
        for each in (self._socket, self._monitor):
            self._selector.watch(int(each.get(zmq.FD)), lambda: None)  # read at every turn
        self._say_hello()

    def _say_hello(self) -> None:
        hello = m.NodeHello(
            m.PROTOCOL, self._spec.node, os.uname().nodename, self._started_ns, str(self._folder.path),
            cells=list(self._kept.cells),
        )  # fmt: skip
        if (relay := self.relay) is not None:
            hello = dataclasses.replace(hello, address=relay.address, public=relay.public, below=relay.below)
        self._send(hello)

    def _go_to_the_head(self, why: str) -> None:
        """Who was between is lost, and perhaps what it has not passed on: that is told again."""
        LOG.warning("%s; this node goes to the head of the cluster", why)
        self._close()
        self._open(self._spec.head, self._spec.server_public)
        self.start()
        for packed in self._kept.told_again():
            self._socket.send(packed)

    @property
    def has_input(self) -> bool:
        """See Side."""
        return any(int(each.get(zmq.EVENTS)) & zmq.POLLIN for each in (self._socket, self._monitor))

    @property
    def due_s(self) -> float:
        """See Side."""
        return float("inf")

    def turn(self, now_s: float) -> None:
        """Hear the head, and look whether it is there."""
        while int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.Event.DISCONNECTED:
                LOG.warning("the connection to the head of the cluster ended")
                self._is_cut = True
            elif self._is_cut:  # the head says whether this node still belongs to the cluster
                self._is_cut = False
                self._say_hello()
        for _ in range(_MOST_MESSAGES):
            try:
                packed = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._heard_s = now_s
            try:
                self._hear(m.decode(packed))
            except Exception:  # a bug of ours must not end the node
                LOG.exception("an order of the head could not be carried out")
        self._look_for_lost(now_s)

    def _look_for_lost(self, now_s: float) -> None:
        is_between = self._address != self._spec.head
        silent_s = now_s - self._heard_s
        if self._is_cut and now_s >= self._probe_due_s:
            self._probe_due_s = now_s + _PROBE_S
            if self._is_refused():
                if is_between:
                    self._go_to_the_head(f"the node above at {self._address} has ended")
                else:
                    self._end(f"the head of the cluster at {self._address} has ended")
                return
        if is_between and silent_s > self._spec.silence_s:
            self._go_to_the_head(f"the node above at {self._address} has been silent for {silent_s:.0f} s")
        elif silent_s > self._spec.silence_s and self.relay is not None and not self._is_orphaned:
            self._is_orphaned = True
            self.relay.orphan()
        elif silent_s > _PATIENCE_S:
            self._end(f"the head of the cluster at {self._address} has been silent for {_PATIENCE_S:.0f} s")

    def own_address(self) -> str:
        """The IP address of this machine on the way to the head."""
        host, _, port = self._spec.head.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # sends nothing
            return str(probe.getsockname()[0])

    def _is_refused(self) -> bool:
        """Whether the machine of the head answers that nobody listens there any more: it will not come back."""
        host, _, port = self._address.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            return probe.connect_ex((host, int(port))) == errno.ECONNREFUSED

    def finish(self, reason: str, *, is_whole: bool) -> None:  # noqa: ARG002
        """Say that the node has ended."""
        self._send(m.Farewell(reason))
        self._close()
        if self._owns_context:
            self._context.term()

    def _send(self, message: m.Message) -> None:
        self._socket.send(m.encode(message))

    # --- what comes from above ------------------------------------------------------------------------------

    def _hear(self, message: m.Message) -> None:
        match message:
            case m.Ping():
                self._send(m.Pong(message.sent_ns, time.perf_counter_ns()))
            case m.NodeWelcome():
                self._folder.joined.touch(mode=0o600)
            case m.NodeRefused():
                self._end(message.reason)
            case m.Shutdown():
                self._end(message.reason, is_whole=True)
            case m.Orphaned():
                if self._address != self._spec.head:
                    self._go_to_the_head("the node above has lost its way to the head")
            case _:
                if isinstance(message, CellMessage):
                    self._kept.begins(message.cell)
                if not carry_out(self.below, message, lambda request, value: self._send(m.Answer(request, value))):
                    LOG.warning("who is above sent %s, which nobody there says", type(message).__name__)

    # --- what comes from below ------------------------------------------------------------------------------

    def tell(self, message: m.Message) -> None:
        """See Above."""
        packed = m.encode(message)
        self._kept.told(message, packed)
        self._socket.send(packed)

    say = tell

    def mention(self, message: m.Message) -> None:
        """See Above."""
        self._send(message)

    def fail(self, reason: str, *, lines: list[str] | None = None, is_over: bool = False) -> None:
        """See Above."""
        if lines is None:
            lines = self._folder.log_lines()
        self._send(m.Failed(self._spec.node, reason, lines, is_over))
        if is_over:
            self._end(reason)
