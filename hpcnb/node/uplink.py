"""A node's end of the link to the head of its cluster, in the place where the agent of a single node has its front.

What ranks say goes up as it is; orders that come down are carried out by what is below.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.node.door import Watching
from hpcnb.node.levels import Below
from hpcnb.node.orders import Order
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


class Uplink:
    """Tells the head what ranks of this node say, and orders them what the head says.

    Args:
        spec: Of the node.
        folder: Of the node.
        selector: The agent's.
        end: Ends the agent, for a reason in words.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        *,
        selector: Watching,
        end: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.below: Below  #: Set before the first turn.
        self.alarm: Callable[[float], None]  #: Set before the first turn: tell where ranks are, for so long.
        self._spec = spec
        self._folder = folder
        self._selector = selector
        self._end = end
        self._clock = clock
        self._context = zmq.Context()
        self._socket = connect(
            self._context, spec.uplink, (spec.server_public, spec.nodes_public, spec.nodes_secret)
        )  # fmt: skip
        self._monitor = self._socket.get_monitor_socket(zmq.Event.DISCONNECTED | zmq.Event.CONNECTED)
        self._started_ns = time.perf_counter_ns()
        self._is_cut = self._is_ordered = False
        self._probe_due_s = 0.0
        self._heard_s = clock()

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Say hello."""
        for each in (self._socket, self._monitor):
            self._selector.watch(int(each.get(zmq.FD)), lambda: None)  # read at every turn
        self._say_hello()

    def _say_hello(self) -> None:
        host, folder = os.uname().nodename, str(self._folder.path)
        self._send(m.NodeHello(m.PROTOCOL, self._spec.node, host, os.getpid(), self._started_ns, folder))

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
        if self._is_cut and now_s >= self._probe_due_s:
            self._probe_due_s = now_s + _PROBE_S
            if self._is_refused():
                self._end(f"the head of the cluster at {self._spec.uplink} has ended")
        if now_s - self._heard_s > _PATIENCE_S:
            self._end(f"the head of the cluster at {self._spec.uplink} has been silent for {_PATIENCE_S:.0f} s")

    def _is_refused(self) -> bool:
        """Whether the machine of the head answers that nobody listens there any more: it will not come back."""
        host, _, port = self._spec.uplink.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            return probe.connect_ex((host, int(port))) == errno.ECONNREFUSED

    def leave(self, reason: str) -> None:
        """Say that the node is about to end, ahead of its ranks: so they are known to be lost with it, and why.

        Whoever has ordered that waits for what is said when all have ended.
        """
        if not self._is_ordered:
            self._send(m.Farewell(reason))

    def finish(self, reason: str) -> None:
        """Say that the node has ended."""
        self._send(m.Farewell(reason))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._context.term()

    def _send(self, message: m.Message) -> None:
        self._socket.send(m.encode(message))

    # --- what comes from above ------------------------------------------------------------------------------

    def _hear(self, message: m.Message) -> None:
        match message:
            case m.Ping():
                self._send(m.Pong(message.number, message.sent_ns, time.perf_counter_ns()))
            case m.NodeWelcome():
                self._folder.joined.touch(mode=0o600)
            case m.NodeRefused() | m.Shutdown():
                self._is_ordered = True
                self._end(message.reason)
            case m.Alarm():
                self.alarm(message.seconds)
            case m.RestartRanks():
                self.below.restart(message)
            case m.Ask(request, "status"):
                self.below.status(lambda rows: self._send(m.Answer(request, rows)))
            case m.Ask(request, "logs", rank):
                self.below.log(rank, lambda text: self._send(m.Answer(request, text)))
            case _ if isinstance(message, CellMessage):
                self.below.begin(message)
            case _ if isinstance(message, Order | m.StopAtStep):
                self.below.obey(message)
            case _:
                LOG.warning("the head sent %s, which no head says", type(message).__name__)

    # --- what comes from below ------------------------------------------------------------------------------

    def tell(self, message: m.Message) -> None:
        """See Above."""
        self._send(message)

    def say(self, message: m.Message) -> None:
        """See Above."""
        self._send(message)

    def mention(self, message: m.Message) -> None:
        """See Above."""
        self._send(message)

    def fail(self, reason: str, *, lines: list[str] | None = None, is_over: bool = False) -> None:
        """See Above."""
        if lines is None:
            lines = self._folder.log_lines()
        self._send(m.Failed(reason, lines, is_over))
        if is_over:
            self._end(reason)
