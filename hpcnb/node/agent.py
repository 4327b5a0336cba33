"""The node agent: starts the ranks of a node and relays between them and the notebooks.

One thread, one selector: it forks through the template, carries cells to ranks and output back, reads span rings,
and ends everything when the cluster ends. It does not import torch and never waits for a rank.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.board import Board
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.core.ranks import RankSet
from hpcnb.core.version import __version__
from hpcnb.node import controller
from hpcnb.node.looks import Looks
from hpcnb.node.memory import Memory
from hpcnb.node.observer import Observer, words_of
from hpcnb.node.rank_process import RankProcess
from hpcnb.node.relay import CellMessage, CellRelay
from hpcnb.node.server import LinkServer
from hpcnb.node.stop import Stop

__all__ = ["Agent"]

LOG = logging.getLogger(__name__)
#: A rank that was asked to end gets so long before it is killed.
_GRACE_S = 1.0
#: Nobody has ever connected: the launch was given up.
_UNCLAIMED_S = 120.0
#: The controller's connection file is looked for so often.
_STARTING_S = 0.02
#: Ranks are looked at so often while a cell runs; an operation that takes longer than this is told of.
_OBSERVE_S = 0.1
_LONG_WAIT_S = 0.3
#: ... or any, for so long after a rank has failed.
_ALARM_S = 2.0
#: The memory of ranks is noted so often while a cell runs, should one of them be killed.
_NOTE_S = 0.5
#: While ranks are asked to stop at a step, how far they are is looked at so often.
_STOP_S = 0.001


class Agent:
    """The agent of one node.

    Args:
        spec: What was launched.
        folder: Of the cluster.
        template: Socket to the template process.
        template_pid: Its process.
        rendezvous: Address of the store that the template will serve.
        memory: The node's board.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        template: socket.socket,
        template_pid: int,
        rendezvous: tuple[str, int],
        memory: mmap.mmap,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._template = template
        self._template_pid = template_pid
        self._template_received = b""
        self._rendezvous = rendezvous
        self._clock = clock
        self._server = LinkServer(spec)
        self._board = Board(memory, spec.first_rank)
        self._ranks = {
            rank: RankProcess(rank, folder, self._board.ring(rank))
            for rank in range(spec.first_rank, spec.first_rank + spec.num_ranks)
        }
        self._relay = CellRelay(self._ranks, self._server.send_all, clock)
        self._observer = Observer(self._board, self._ranks)
        self._stop = Stop(self._board)
        self._looks = Looks(self._server.send_all, clock)
        self._observe_due_s = self._note_due_s = 0.0
        self._alarmed_until_s = 0.0
        self._generation = 0
        self._restarts: dict[int, m.RestartRanks] = {}  # ranks to be forked again when they have ended
        self._forking: list[int] = []
        self._memory = Memory(clock)
        self._history: list[m.Message] = []  # what a notebook that connects later must know
        self._alone_since_s: float | None = self._clock()
        self._claimed = False
        self._ending: str | None = None
        self._controller: subprocess.Popen[bytes] | None = None
        self._controller_started_ns = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._parent = os.pidfd_open(os.getppid())

    # --- life -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the cluster ends, then leave nothing behind."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in a terminal is for the notebook
        signal.signal(signal.SIGTERM, lambda *_: self._end("the agent was told to end (SIGTERM)"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if not self._spec.controller_profile:
                self._controller_started_ns = time.perf_counter_ns()
                self._controller = controller.start(self._folder)
            self._listener.bind(str(self._folder.agent_socket))
            self._listener.listen(4096)
            self._watch(self._listener.fileno(), self._accept)
            self._watch(self._template.fileno(), self._hear_template)
            self._watch(self._parent, self._parent_gone)
            for descriptor in self._server.descriptors:
                self._watch(descriptor, lambda: None)  # read at every turn
            self._request(role="store")
            while self._ending is None:
                self._turn()
        except Exception:
            LOG.exception("the agent failed")
            self._ending = "the agent failed; see its log"
        finally:
            self._finish()

    def _turn(self) -> None:
        timeout_s = 0.0 if self._server.has_input() else self._timeout_s()
        for key, _ in self._selector.select(timeout_s):
            key.data()
        for client, message in self._server.receive():
            self._hear_notebook(client, message)
        now_s = self._clock()
        self._relay.tick(now_s)
        self._observe(now_s)
        self._looks.tick(now_s)
        self._check_owners(now_s)
        self._check_controller()

    def _timeout_s(self) -> float:
        now_s = self._clock()
        due = [now_s + (_STARTING_S if self._controller_started_ns else 1.0)]
        if self._relay.due_s is not None:
            due += [self._relay.due_s, self._observe_due_s]
        due.append(self._looks.due_s)
        if self._stop.is_open:
            due.append(now_s + _STOP_S)
        return max(0.0, min(due) - now_s)

    def _observe(self, now_s: float) -> None:
        """While ranks wait in communication, tell the notebook who is where: it decides whether that is a hang."""
        if self._stop.is_open:
            self._stop.look()
        running = self._relay.running
        if not running or now_s < self._observe_due_s:
            return
        self._observe_due_s = now_s + _OBSERVE_S
        if now_s >= self._note_due_s:
            self._note_due_s = now_s + _NOTE_S
            for process in self._ranks.values():
                if process.alive:
                    self._memory.note(process.pid)
        long_s = 0.0 if now_s < self._alarmed_until_s else _LONG_WAIT_S
        if self._observer.longest_wait_s() > long_s or self._observer.any_stopped():
            facts = {rank: each.pack() for rank, each in self._observer.facts().items()}
            for cell in running:
                self._server.send_all(m.RankStates(cell, facts))

    def _watch(self, descriptor: int, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        self._selector.register(descriptor, events, call)

    def _unwatch(self, descriptor: int) -> None:
        try:
            self._selector.unregister(descriptor)
        except KeyError:
            pass  # never watched, or already closed

    def _end(self, reason: str) -> None:
        if self._ending is None:
            self._ending = reason

    def _check_owners(self, now_s: float) -> None:
        if self._server.num_connections:
            self._alone_since_s = None
            return
        if self._alone_since_s is None:
            self._alone_since_s = now_s
        if not self._claimed and self._spec.controller_profile:
            return  # started by ipyparallel's own Cluster, which also ends it
        limit_s = self._spec.idle_timeout_s if self._claimed else _UNCLAIMED_S
        if now_s - self._alone_since_s >= limit_s:
            self._end(f"no notebook has been connected for {limit_s:.0f} s")

    def _parent_gone(self) -> None:
        self._unwatch(self._parent)
        if not self._claimed:
            self._end("who launched the cluster ended, and no notebook is connected")

    def _check_controller(self) -> None:
        if self._controller is None or not self._controller_started_ns:
            return
        if self._folder.connection_file("engine").exists():
            self._tell(m.Stage("controller", self._controller_started_ns, time.perf_counter_ns()))
            self._controller_started_ns = 0
        elif self._controller.poll() is not None:
            self._controller_started_ns = 0
            self._fail(f"the ipyparallel controller ended with status {self._controller.returncode}")

    def _fail(self, reason: str) -> None:
        lines = self._folder.agent_log.read_text(errors="replace").splitlines()[-15:]
        self._tell(m.StartFailed(reason, lines))

    def _tell(self, message: m.Message) -> None:
        """Say something that a notebook which connects later must hear too."""
        self._history.append(message)
        self._server.send_all(message)

    def _finish(self) -> None:
        """End everything, in reverse, and say so."""
        LOG.info("ending: %s", self._ending)
        deadline_s = self._clock() + _GRACE_S
        for process in self._ranks.values():
            process.send_control(m.Shutdown(self._ending or ""))
            if process.alive and process.cell:
                process.signal(signal.SIGINT)
        killed = False
        while any(process.alive for process in self._ranks.values()) and self._clock() < deadline_s + 2 * _GRACE_S:
            if not killed and self._clock() >= deadline_s:
                killed = True
                for process in self._ranks.values():
                    process.kill_group()
            for key, _ in self._selector.select(0.05):
                if key.fd == self._template.fileno():
                    self._hear_template()
                    break
        self._template.close()
        try:
            # with its store and whatever is left; asked kindly it would first finish importing torch
            os.kill(self._template_pid, signal.SIGKILL)
            os.waitpid(self._template_pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it had ended before
        controller.stop(self._controller, _GRACE_S)
        self._folder.remove()
        self._server.send_all(m.Farewell(self._ending or ""))
        self._server.close()

    # --- template and ranks ---------------------------------------------------------------------------------

    def _request(self, **request: Any) -> None:
        try:
            self._template.sendall(json.dumps(request).encode() + b"\n")
        except ConnectionError:
            self._fail("the template ended")

    def _hear_template(self) -> None:
        try:
            received = self._template.recv(65536)
        except ConnectionError:
            received = b""
        if not received:
            self._unwatch(self._template.fileno())
            if self._ending is None:
                self._fail("the template, which ranks are forked from, ended")
                if self._claimed:  # else the notebook hears of it when it connects, and ends us
                    self._end("the template, which ranks are forked from, ended, and the ranks with it")
            return
        *lines, self._template_received = (self._template_received + received).split(b"\n")
        for line in lines:
            news = json.loads(line)
            if "failed" in news:
                self._fail(f"importing torch and ipyparallel failed: {news['failed']}")
            elif "imported" in news:
                self._tell(m.Stage("import torch", *news["imported"]))
                self._fork_ranks()
            elif "forked" in news and news["role"] == "rank":
                rank = self._forking.pop(0)
                self._ranks[rank].pid = news["forked"]
            elif "exited" in news:
                self._exited(news["exited"], news["status"])

    def _fork_ranks(self) -> None:
        for rank in self._ranks:
            self._fork(rank)

    def _fork(self, rank: int, replacement: m.RestartRanks | None = None) -> None:
        self._forking.append(rank)
        seat = {
            "rank": rank, "local_rank": rank - self._spec.first_rank, "store_host": self._rendezvous[0],
            "store_port": self._rendezvous[1], "generation": self._generation,
        }  # fmt: skip
        if replacement is not None:
            seat |= {"is_replacement": True, "groups": replacement.groups, "num_groups": replacement.num_groups}
        self._request(role="rank", seat=seat)

    def _restart(self, message: m.RestartRanks) -> None:
        """Fork ranks again, at once those that are dead, the others when they have been ended."""
        self._generation = message.generation
        for rank in message.ranks:
            process = self._ranks.get(rank)
            if process is None:
                continue
            if process.alive:
                self._restarts[rank] = message
                process.kill_group()
            else:
                self._replace(rank, message)

    def _replace(self, rank: int, message: m.RestartRanks) -> None:
        self._ranks[rank] = RankProcess(rank, self._folder, self._board.ring(rank))
        self._fork(rank, message)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, user, _ = struct.unpack("3i", credentials)
        if user != os.getuid():
            LOG.warning("refused a connection of user %d", user)
            connection.close()
            return
        connection.settimeout(5.0)
        try:
            received, descriptors, _, _ = socket.recv_fds(connection, 4096, 3)
            (hello,) = m.FrameReader().feed(received)
        except (OSError, ValueError) as error:
            LOG.warning("refused a connection of process %d: %s", pid, error)
            connection.close()
            return
        process = self._ranks.get(hello.rank) if isinstance(hello, m.RankHello) else None
        if process is None or not isinstance(hello, m.RankHello):
            LOG.warning("refused a connection of process %d: %s", pid, hello)
            connection.close()
            return
        connection.settimeout(None)
        if hello.channel == "control":
            process.attach_control(connection)
            return
        process.pid = hello.pid
        process.attach_cells(connection, descriptors)
        cells, stacks, *pipes = process.descriptors
        self._watch(cells, lambda: self._hear_rank(process, cells))
        self._watch(stacks, lambda: self._looks.dumped(process.rank, process.read_stacks()))
        for pipe in pipes:
            self._watch(pipe, lambda pipe=pipe: self._hear_pipe(process, pipe))  # type: ignore[misc]

    def _hear_rank(self, process: RankProcess, cells: int) -> None:
        if cells not in process.descriptors:
            return  # closed by an earlier event of the same turn
        if process.send_rest():
            self._selector.modify(cells, selectors.EVENT_READ, self._selector.get_key(cells).data)
        try:
            for message in process.read_messages():
                self._rank_said(process, message)
        except m.MessageError:
            LOG.exception("rank %d sent what is no message and is ended", process.rank)
            process.kill_group()
        if cells not in process.descriptors:
            self._unwatch(cells)

    def _rank_said(self, process: RankProcess, message: m.Message) -> None:
        if isinstance(message, m.RankReady):
            process.ready = message
            self._tell(message)
        elif isinstance(message, m.GroupMade):
            self._observer.group_made(message.key, message.members)
        elif isinstance(message, m.Seen):
            self._looks.seen(message)
        else:
            if isinstance(message, m.CellReply) and not message.ok:
                self._alarmed_until_s = self._clock() + _ALARM_S  # others may wait for it already
            self._relay.hear(process, message)

    def _hear_pipe(self, process: RankProcess, pipe: int) -> None:
        if pipe not in process.descriptors:
            return  # closed by an earlier event of the same turn
        for message in process.read_messages():  # text that Python sent before C code wrote
            self._rank_said(process, message)
        self._relay.show(process, process.read_pipe(pipe))
        if pipe not in process.descriptors:
            self._unwatch(pipe)

    def _exited(self, pid: int, status: int) -> None:
        process = next((each for each in self._ranks.values() if each.pid == pid), None)
        if process is None:
            return  # the store; ranks notice by themselves
        for message in process.read_messages():
            self._rank_said(process, message)
        for descriptor in process.descriptors:
            self._unwatch(descriptor)
        state = process.communication()
        cell = self._relay.lost(process)
        process.status = status
        last_lines = list(process.last_lines)[-12:]
        was_in = words_of(state) if state is not None else ""
        process.close()
        is_expected = self._ending is not None or process.rank in self._restarts
        memory_mb, was_out_of_memory = self._memory.ended(process.pid, status)
        self._tell(
            m.RankExited(process.rank, pid, status, last_lines, is_expected, was_in, memory_mb, was_out_of_memory)
        )
        self._relay.forget(cell, process.rank)
        if (restart := self._restarts.pop(process.rank, None)) is not None:
            self._replace(process.rank, restart)

    # --- notebooks -------------------------------------------------------------------------------------------

    def _hear_notebook(self, client: bytes, message: m.Message) -> None:
        if isinstance(message, m.Hello):
            self._greet(client, message)
        elif isinstance(message, CellMessage):
            self._run(message)
        elif isinstance(message, m.Interrupt):
            self._stop.withdraw()
            for process in self._chosen(message.ranks):
                if process.cell:
                    self._interrupt(process)
        elif isinstance(message, m.StopAtBoundary):
            ranks = [process.rank for process in self._chosen(message.ranks) if process.cell == message.cell]
            self._server.send(client, m.BoundaryAsked(message.cell, self._stop.ask(message.cell, ranks)))
        elif isinstance(message, m.Release):
            for process in self._chosen(message.ranks):
                process.send_control(m.ReleaseRank(message.reason, message.mismatch))
        elif isinstance(message, m.LookAt):
            for process in self._chosen(message.ranks):
                self._looks.ask(process, message.cell)
        elif isinstance(message, m.Continue):
            for process in self._chosen(message.ranks):
                process.signal(signal.SIGCONT)
        elif isinstance(message, m.EndRanks):
            for process in self._chosen(message.ranks):
                LOG.info("rank %d is ended: %s", process.rank, message.reason)
                process.kill_group()
        elif isinstance(message, m.RestartRanks):
            self._restart(message)
        elif isinstance(message, m.InputReply):
            for process in self._chosen(RankSet([message.rank])):
                if process.cell == message.cell:
                    process.send_control(message)  # its main thread waits, its link thread listens
        elif isinstance(message, m.Ask):
            self._server.send(client, m.Answer(message.request, self._answer(message)))
        elif isinstance(message, m.Shutdown):
            self._end(message.reason)

    def _chosen(self, ranks: RankSet) -> list[RankProcess]:
        """Those of these ranks that live on this node."""
        return [self._ranks[rank] for rank in ranks if rank in self._ranks and self._ranks[rank].alive]

    @staticmethod
    def _interrupt(process: RankProcess) -> None:
        process.send_control(m.InterruptCell(process.cell))  # for which cell, should it not have begun
        process.signal(signal.SIGINT)  # the link thread cannot run while C code holds the interpreter lock

    def _greet(self, client: bytes, hello: m.Hello) -> None:
        mine = (m.PROTOCOL, __version__, self._spec.python_version)
        if (hello.protocol, hello.hpcnb_version, hello.python_version) != mine:
            reason = (
                f"the notebook runs hpcnb {hello.hpcnb_version} on Python {hello.python_version}, the ranks run hpcnb "
                f"{mine[1]} on Python {mine[2]}"
            )
            self._server.send(client, m.Refused(reason))
            return
        self._claimed = True
        self._server.welcome(client)
        self._server.send(
            client,
            m.Welcome(
                m.PROTOCOL, __version__, self._spec.python_version, os.uname().nodename, os.getpid(),
                self._spec.first_rank, self._spec.num_ranks,
            ),
        )  # fmt: skip
        for earlier in self._history:
            self._server.send(client, earlier)

    def _run(self, message: CellMessage) -> None:
        if isinstance(message, m.Rebuild):
            self._generation = message.generation
        for process in self._relay.begin(message):
            cells = process.descriptors[0]
            data = self._selector.get_key(cells).data
            self._selector.modify(cells, selectors.EVENT_READ | selectors.EVENT_WRITE, data)

    # --- questions ------------------------------------------------------------------------------------------

    def _answer(self, question: m.Ask) -> Any:
        if question.question == "status":
            return [self._status_of(process) for process in self._ranks.values()]
        if question.question == "logs":
            path = self._folder.agent_log if question.argument < 0 else self._folder.rank_log(question.argument)
            return path.read_text(errors="replace") if path.exists() else ""
        return None

    def _status_of(self, process: RankProcess) -> dict[str, Any]:
        return {
            "rank": process.rank,
            "host": os.uname().nodename,
            "pid": process.pid,
            "device": process.ready.device if process.ready else "",
            "state": process.state(),
            "memory_mb": self._memory.proportional_mb(process.pid) if process.alive else 0.0,
        }
