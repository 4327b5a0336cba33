"""Nodes without torch and without processes of ranks: the real link, the real tree, and an echo in the place of ranks.

``python simulated_nodes.py FIRST LAST FOLDER < ticket`` is those from FIRST to LAST - 1. :func:`publish` makes
``hpcnb.Cluster(launcher="simulated", nodes=1024)`` start them. Used by bench_scale.py.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import sys
import threading
import time
from collections.abc import Sequence

import zmq

from hpcnb.cluster import launchers
from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem
from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec, RunFolder, Ticket, runtime_root
from hpcnb.node import join
from hpcnb.node.inner import Inner
from hpcnb.node.refusals import Refusals
from hpcnb.node.uplink import LOG, Uplink

ADDRESS = "127.0.0.1"
TICK_S = 0.004
LOOK_S = 0.25


class Echo:
    """Stands where a node has its ranks: every rank says the cell's source and answers at once."""

    def __init__(self, spec: AgentSpec, above) -> None:
        self._above = above
        self._ranks = spec.ranks_of_nodes[spec.node]
        self._host = f"node{spec.node}"

    def start(self) -> None:
        now_ns = time.perf_counter_ns()
        self._above.tell(m.Stage("import torch", now_ns, now_ns))
        for rank in self._ranks:
            self._above.tell(m.RankReady(rank, 100_000 + rank, self._host, "cpu", {}))

    def begin(self, message) -> None:
        now_ns = time.perf_counter_ns()
        ranks = message.ranks & self._ranks
        replies = []
        for rank in ranks:
            value = m.CellReply(
                message.cell, rank, ok=True, start_ns=now_ns, end_ns=time.perf_counter_ns(), value="", has_value=False,
                value_shown=False, value_pickle=b"", value_problem="", error=None, notices=[], is_broken=False,
            )  # fmt: skip
            replies.append([getattr(value, name) for name in m.names_of(value)])
        if isinstance(message, m.RunCell):
            self._above.say(m.Output(message.cell, [(ranks, [("stdout", message.source.rstrip() + "\n")])]))
        spans, strings, lost = dict.fromkeys(ranks, b""), {rank: {} for rank in ranks}, dict.fromkeys(ranks, 0)
        self._above.say(m.CellDone(message.cell, replies, spans, strings, lost, time.perf_counter_ns()))

    def obey(self, order) -> None:
        pass

    def alarm(self, seconds: float) -> None:
        pass

    def restart(self, message) -> None:
        pass

    def status(self, answer) -> None:
        row = {"host": self._host, "device": "cpu", "state": "idle", "memory_mb": 0.0}
        answer([{"rank": rank, "pid": 100_000 + rank, **row} for rank in self._ranks])

    def log(self, _rank: int, answer) -> None:
        answer("")


class Nodes:
    """Many nodes in one process: one selector, and who has something to do gets its turn."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._context = zmq.Context()
        self._context.max_sockets = 8192
        self._refusals = Refusals(LOG, time.monotonic)
        self._sides: dict[int, list] = {}  # by node
        self._new: queue.SimpleQueue[AgentSpec] = queue.SimpleQueue()
        self._current = -1
        self.reason = ""

    # Watching: a descriptor belongs to the node that is having its turn
    def watch(self, descriptor: int, _call, events: int = selectors.EVENT_READ) -> None:
        self._selector.register(descriptor, events, self._current)

    def unwatch(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def _end(self, reason: str, *, is_whole: bool = False) -> None:  # noqa: ARG002
        self.reason = self.reason or reason

    def ask(self, ticket: Ticket, numbers: Sequence[int]) -> None:
        """Join, one after the other; on a thread of its own, since nodes below wait for those above."""
        for node in numbers:
            self._new.put(join._ask(ticket, node)[0])  # noqa: SLF001

    def _add(self, spec: AgentSpec) -> None:
        self._current = spec.node
        common = {"selector": self, "clock": time.monotonic}
        uplink = Uplink(spec, self._folder, end=self._end, context=self._context, **common)
        if not spec.is_relay:
            uplink.below = echo = Echo(spec, uplink)
            sides = [uplink]
        else:
            public, secret = (key.decode() for key in zmq.curve_keypair())
            inner = Inner(spec, ADDRESS, (public, secret), above=uplink, refusals=self._refusals, **common)
            uplink.below = uplink.relay = inner
            inner.host = echo = Echo(spec, inner.own)
            sides = [uplink, inner]
        self._sides[spec.node] = sides
        for side in sides:
            side.start()
        echo.start()

    def run(self) -> None:
        look_due_s = 0.0
        relays: list[list] = []
        while not self.reason:
            while not self._new.empty():
                self._add(self._new.get())
                relays = [sides for sides in self._sides.values() if len(sides) > 1]
            ready = {key.data for key, _ in self._selector.select(TICK_S)}
            now_s = time.monotonic()
            if now_s >= look_due_s:
                look_due_s = now_s + LOOK_S
                ready |= self._sides.keys()
            else:  # zmq's descriptors tell of a change once: who still has something to read
                ready |= {node for node in ready if any(side.has_input for side in self._sides[node])}
            for node in ready:
                self._turn(node, now_s)
            for sides in relays:
                if sides[1].due_s <= now_s:
                    sides[1].turn(now_s)

    def _turn(self, node: int, now_s: float) -> None:
        self._current = node
        for side in self._sides[node]:
            side.turn(now_s)
            while side.has_input:
                side.turn(now_s)


class SimulatedLauncher(NodeLauncher):
    """Starts them on this machine, in a few processes."""

    def __init__(self, _num_ranks, *, nodes: int, ranks_per_node: int = 1, processes: int = 2) -> None:
        self.layout = [ranks_per_node] * nodes
        self.address = ADDRESS
        self._processes = processes
        self._commands: list[Command] = []

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        for number in range(self._processes):
            mine = ",".join(str(node) for node in nodes if node % self._processes == number)
            words = [sys.executable, __file__, mine]
            self._commands.append(Command(words, stdin=ticket.to_text() + "\n"))

    def look(self) -> Problem | None:
        for command in self._commands:
            if command.status is not None:
                return Problem("the simulated nodes ended", tuple(command.lines()[-15:]))
        return None

    def started(self) -> None:
        pass

    def cancel(self) -> None:
        pass

    def ended(self) -> None:
        for command in self._commands:
            command.wait(5.0)
            command.kill()


def publish() -> None:
    """From now on there is ``launcher="simulated"``."""
    sys.modules.setdefault("simulated_nodes", sys.modules[__name__])
    launchers.LAUNCHERS["simulated"] = ("simulated_nodes", "SimulatedLauncher")


def main() -> None:
    numbers = [int(each) for each in sys.argv[1].split(",")]
    ticket = Ticket.of_text(sys.stdin.readline())
    nodes = Nodes(RunFolder.create("simulated", root=runtime_root("nodes")))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=nodes.ask, args=(ticket, numbers), daemon=True).start()
    nodes.run()
    os._exit(0)  # thousands of sockets need not be closed one by one


if __name__ == "__main__":
    main()
