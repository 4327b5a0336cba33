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
import subprocess
import time
from collections.abc import Callable
from typing import Any

from hpcnb.core import alive
from hpcnb.core import messages as m
from hpcnb.core.board import Board
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.core.ranks import RankSet
from hpcnb.core.version import __version__
from hpcnb.node import controller
from hpcnb.node.door import Door
from hpcnb.node.init_cells import InitCells
from hpcnb.node.journal import Journal
from hpcnb.node.looks import Looks
from hpcnb.node.memory import Memory
from hpcnb.node.observer import Observer, words_of
from hpcnb.node.orders import Order, Orders, interrupt
from hpcnb.node.presence import Presence
from hpcnb.node.rank_process import RankProcess
from hpcnb.node.refusals import Refusals
from hpcnb.node.relay import CellMessage, CellRelay, RankMessage
from hpcnb.node.server import LinkServer
from hpcnb.node.stop import Stop
from hpcnb.node.unattended import Unattended

__all__ = ["Agent"]

LOG = logging.getLogger(__name__)
#: A rank that was asked to end gets so long before it is killed.
_GRACE_S = 1.0
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
#: Numbers of cells have 31 bits in records of the span ring.
_MOST_CELLS = 1 << 31


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
        self._lock = alive.hold(folder)  # after the template was forked: no child has it
        self._refusals = Refusals(LOG, clock)
        self._server = LinkServer(spec, self._refusals)
        self._board = Board(memory, spec.first_rank)
        self._ranks = {
            rank: RankProcess(rank, folder, self._board.ring(rank))
            for rank in range(spec.first_rank, spec.first_rank + spec.num_ranks)
        }
        self._relay = CellRelay(self._ranks, self._say, clock)
        self._observer = Observer(self._board, self._ranks)
        self._stop = Stop(self._board)
        self._looks = Looks(self._server.send_all, clock)
        self._orders = Orders(self._ranks, self._stop, self._looks)
        self._unattended = Unattended(spec.grace_s, self._is_attended, self._orders.obey, self._say, clock)
        self._observe_due_s = self._note_due_s = 0.0
        self._alarmed_until_s = 0.0
        self._restarts: dict[int, m.RestartRanks] = {}  # ranks to be forked again when they have ended
        self._journal = Journal()
        self._init_cells = InitCells()
        self._last_cell = self._generation = 0
        self._forking: list[int] = []
        self._memory = Memory(clock)
        self._history: list[m.Message] = []  # what a notebook that connects later must know
        self._presence = Presence(spec.idle_timeout_s, clock(), is_managed=bool(spec.controller_profile))
        self._owner_pid = self._owner = -1
        self._ending: str | None = None
        self._controller: subprocess.Popen[bytes] | None = None
        self._controller_started_ns = 0
        self._selector = selectors.DefaultSelector()
        self._door = Door(folder.agent_socket, template_pid, self._ranks, self, self._seated, self._refusals, clock)
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
            self._door.open()
            self.watch(self._template.fileno(), self._hear_template)
            self.watch(self._parent, self._parent_gone)
            self._belong_to(self._spec.owner_pid)
            for descriptor in self._server.descriptors:
                self.watch(descriptor, lambda: None)  # read at every turn
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
            if isinstance(message, m.MessageError):
                self._refuse(client, message.kind, message.cell, str(message))
                continue
            try:
                self._hear_notebook(client, message)
            except Exception as error:
                # a bug of ours, met by values that nobody sends: one message must not end everybody's cluster
                kind = f"its {type(message).__name__} could not be carried out"
                if self._refusals.note("a notebook", kind, repr(error)):
                    LOG.exception("%s", kind)
                cell = getattr(message, "cell", 0)
                if cell not in self._relay.running:
                    self._refuse(client, type(message), cell, f"{kind}: {error!r}")
        now_s = self._clock()
        self._relay.tick(now_s)
        self._observe(now_s)
        self._looks.tick(now_s)
        self._presence.count(len(self._server.notebooks), now_s)
        if why := self._presence.over(now_s):
            self._end(why)
        self._door.tick()
        self._refusals.tick()
        self._check_controller()
        if not self._relay.running:
            self._memory.trim()

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
        self._stop.keep(running)
        self._unattended.keep(running)
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
            facts = self._observer.facts()
            packed = {rank: each.pack() for rank, each in facts.items()}
            for cell in running:
                self._server.send_all(m.RankStates(cell, packed))
                self._unattended.looked(cell, facts)

    def watch(self, descriptor: int, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        """See Watching."""
        self.unwatch(descriptor)  # one that was closed by itself leaves its number behind
        self._selector.register(descriptor, events, call)

    def unwatch(self, descriptor: int) -> None:
        """See Watching."""
        try:
            self._selector.unregister(descriptor)
        except (KeyError, ValueError):
            pass  # never watched, already closed, or -1

    def _end(self, reason: str) -> None:
        if self._ending is None:
            self._ending = reason

    def _belong_to(self, pid: int) -> None:
        """The process whose end is ours once no notebook is connected: the Jupyter server that came last."""
        if pid in (0, self._owner_pid):
            return
        try:
            owner = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            self._refusals.note("a notebook", "names a server that cannot be watched", f"process {pid}: {error}")
            return
        if self._owner >= 0:
            self._disown()
        self._owner_pid, self._owner = pid, owner
        self._presence.owner_gone = False
        self.watch(owner, self._owner_ended)

    def _owner_ended(self) -> None:
        LOG.info("process %d, which the notebooks belong to, ended", self._owner_pid)
        self._disown()
        self._presence.owner_gone = True

    def _disown(self) -> None:
        self.unwatch(self._owner)
        os.close(self._owner)
        self._owner_pid = self._owner = -1

    def _parent_gone(self) -> None:
        self.unwatch(self._parent)
        if not self._presence.claimed:
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

    def _is_attended(self, cell: int) -> bool:
        return self._journal.is_attended(cell, self._server.notebooks)

    def _tell(self, message: m.Message) -> None:
        """Say something that a notebook which connects later must hear too."""
        self._history.append(message)
        self._server.send_all(message)

    def _say(self, message: m.Message) -> None:
        """Say something of a cell, to notebooks that are here and to those that come later."""
        packed = m.encode(message)
        self._journal.add(message, packed, self._server.notebooks)
        self._server.send_all(packed)

    def _finish(self) -> None:
        """End everything, in reverse, and say so."""
        LOG.info("ending: %s", self._ending)
        self._refusals.flush()
        self._door.close()
        deadline_s = self._clock() + _GRACE_S
        for process in self._ranks.values():
            process.send_control(m.Shutdown(self._ending or ""))
            if process.alive and process.cell:
                interrupt(process)
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
            self.unwatch(self._template.fileno())
            if self._ending is None:
                self._fail("the template, which ranks are forked from, ended")
                if self._presence.claimed:  # else the notebook hears of it when it connects, and ends us
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

    def _seated(self, process: RankProcess) -> None:
        cells, stacks, *pipes = process.descriptors
        self.watch(cells, lambda: self._hear_rank(process, cells))
        self.watch(stacks, lambda: self._hear_stacks(process, stacks))
        for pipe in pipes:
            self.watch(pipe, lambda pipe=pipe: self._hear_pipe(process, pipe))  # type: ignore[misc]

    def _hear_rank(self, process: RankProcess, cells: int) -> None:
        if cells not in process.descriptors:
            return  # closed by an earlier event of the same turn
        if process.send_rest():
            self._selector.modify(cells, selectors.EVENT_READ, self._selector.get_key(cells).data)
        self._read(process)

    def _read(self, process: RankProcess) -> None:
        """Take what a rank has sent. A bad message is refused; only a stream that cannot be read on ends the rank."""
        peer, before = f"rank {process.rank}", process.descriptors

        def refused(error: m.MessageError) -> None:
            self._refusals.note(peer, "no message of this protocol", str(error))

        try:
            messages = process.read_messages(refused)
        except m.MessageError as error:
            LOG.error("what %s sends cannot be told apart any more (%s); it is ended", peer, error)  # noqa: TRY400
            process.kill_group()
            messages = []
        for gone in before:
            if gone not in process.descriptors:
                self.unwatch(gone)
        for message in messages:
            try:
                self._rank_said(process, message)
            except Exception as error:  # a bug of ours must not end everybody's cluster
                kind = f"its {type(message).__name__} could not be taken"
                if self._refusals.note(peer, kind, repr(error)):
                    LOG.exception("%s: %s", peer, kind)

    def _rank_said(self, process: RankProcess, message: m.Message) -> None:
        if isinstance(message, m.RankReady):
            process.ready = message
            self._tell(message)
        elif isinstance(message, m.GroupMade):
            self._observer.group_made(message.key, message.members)
        elif isinstance(message, m.Seen):
            self._looks.seen(message)
            self._unattended.heard(message)
        elif isinstance(message, RankMessage):
            if isinstance(message, m.CellReply) and not message.ok:
                self._alarmed_until_s = self._clock() + _ALARM_S  # others may wait for it already
            elif isinstance(message, m.CellReply):
                self._init_cells.went_well(message.cell)
            self._unattended.heard(message)
            self._relay.hear(process, message)
        else:
            self._refusals.note(f"rank {process.rank}", "sends what no rank says", type(message).__name__)

    def _hear_stacks(self, process: RankProcess, stacks: int) -> None:
        if stacks not in process.descriptors:
            return  # closed by an earlier event of the same turn
        if dump := process.read_stacks():
            self._looks.dumped(process.rank, dump)
        if stacks not in process.descriptors:
            self.unwatch(stacks)

    def _hear_pipe(self, process: RankProcess, pipe: int) -> None:
        if pipe not in process.descriptors:
            return  # closed by an earlier event of the same turn
        self._read(process)  # text that Python sent before C code wrote
        self._relay.show(process, process.read_pipe(pipe))
        if pipe not in process.descriptors:
            self.unwatch(pipe)

    def _exited(self, pid: int, status: int) -> None:
        process = next((each for each in self._ranks.values() if each.pid == pid), None)
        if process is None:
            return  # the store; ranks notice by themselves
        process.status = status  # reaped: its number may be another's, which is not to be signalled
        self._read(process)
        for descriptor in (*process.descriptors, process.control):
            self.unwatch(descriptor)
        state, last = process.communication(), process.last_communication()
        cell = self._relay.lost(process)
        last_lines = list(process.last_lines)[-12:]
        was_in, last_operation = (words_of(each) if each is not None else "" for each in (state, last))
        process.close()
        is_expected = self._ending is not None or process.rank in self._restarts
        memory_mb, was_out_of_memory = self._memory.ended(process.pid, status)
        ended = m.RankExited(
            process.rank, pid, status, last_lines, is_expected, was_in, last_operation, memory_mb, was_out_of_memory
        )
        self._tell(ended)
        self._unattended.exited(ended)
        self._relay.forget(cell, process.rank)
        if (restart := self._restarts.pop(process.rank, None)) is not None:
            self._replace(process.rank, restart)

    # --- notebooks -------------------------------------------------------------------------------------------

    def _hear_notebook(self, client: bytes, message: m.Message) -> None:
        if isinstance(message, m.Hello):
            self._greet(client, message)
        elif isinstance(message, m.Ask):
            self._server.send(client, m.Answer(message.request, self._answer(client, message)))
        elif self._server.role(client) != "notebook":
            self._refusals.note("who came to look", "wants more than to ask", type(message).__name__)
        elif isinstance(message, CellMessage):
            self._run(client, message)
        elif isinstance(message, m.Follow):
            for packed in self._journal.follow(message.cell, client) or [_unknown(message.cell)]:
                self._server.send(client, packed)
        elif isinstance(message, Order):
            if isinstance(message, m.InputReply):
                self._journal.answered(message)
            if (answer := self._orders.obey(message)) is not None:
                self._server.send(client, answer)
        elif isinstance(message, m.RestartRanks):
            self._restart(message)
        elif isinstance(message, m.Shutdown):
            self._end(message.reason)

    def _refuse(self, client: bytes, kind: type[m.Message] | None, cell: int, why: str) -> None:
        """Who waits for a cell that has not begun hears of it; of other messages nobody waits for an answer."""
        if kind is not None and issubclass(kind, CellMessage | m.Follow):
            self._server.send(client, m.CellRefused(cell, f"the node agent refused what it was sent: {why[:500]}"))

    def _greet(self, client: bytes, hello: m.Hello) -> None:
        mine = (m.PROTOCOL, __version__, self._spec.python_version)
        if (hello.protocol, hello.hpcnb_version, hello.python_version) != mine:
            theirs = f"hpcnb {hello.hpcnb_version[:40]} on Python {hello.python_version[:40]}"
            reason = f"the notebook runs {theirs}, the ranks run hpcnb {mine[1]} on Python {mine[2]}"
            self._server.send(client, m.Refused(reason))
            return
        self._server.welcome(client, hello.role)
        self._server.send(
            client,
            m.Welcome(
                m.PROTOCOL, __version__, self._spec.python_version, os.uname().nodename, os.getpid(),
                self._spec.first_rank, self._spec.num_ranks, self._generation, self._last_cell,
                any(self._ranks[rank].alive for rank in self._journal.broken if rank in self._ranks),
            ),
        )  # fmt: skip
        if hello.role != "notebook":
            return
        self._presence.claimed = True
        self._belong_to(hello.owner_pid)
        for earlier in self._history:
            self._server.send(client, earlier)
        for began in self._journal.running:  # its ranks are busy
            self._server.send(client, began)

    def _run(self, client: bytes, message: CellMessage) -> None:
        if refused := self._obstacle(message):
            self._server.send(client, m.CellRefused(message.cell, refused))
            return
        self._last_cell = message.cell
        self._memory.used()
        if isinstance(message, m.Rebuild):
            self._generation = message.generation
        began = m.CellBegan(
            message.cell, getattr(message, "label", type(message).__name__.lower()), message.ranks,
            getattr(message, "first_line", 1), time.perf_counter_ns(),
        )  # fmt: skip
        if isinstance(message, m.RunCell | m.CallFunction):
            self._journal.begin(began, client)
            self._unattended.begin(message.cell, message.ranks)
        if isinstance(message, m.RunCell) and message.is_init:
            self._init_cells.began(message)
        self._server.send_all(began, but=client)
        for process in self._relay.begin(message):
            cells = process.descriptors[0]
            data = self._selector.get_key(cells).data
            self._selector.modify(cells, selectors.EVENT_READ | selectors.EVENT_WRITE, data)

    def _obstacle(self, message: CellMessage) -> str:
        """Why a cell cannot begin: its notebook did not know yet of what another one did; "" if it can."""
        if not self._last_cell < message.cell < _MOST_CELLS:
            return f"number {message.cell} is taken: another notebook has just begun a cell; run it again"
        busy = RankSet(rank for rank in message.ranks if rank in self._ranks and self._ranks[rank].cell)
        if not busy:
            return ""
        return f"{busy.words()} still run{'s' if len(busy) == 1 else ''} a cell of another notebook; run it again later"

    # --- questions ------------------------------------------------------------------------------------------

    def _answer(self, client: bytes, question: m.Ask) -> Any:
        if question.question == "status":
            return [self._status_of(process) for process in self._ranks.values()]
        if question.question == "logs":
            path = self._folder.agent_log if question.argument < 0 else self._folder.rank_log(question.argument)
            return path.read_text(errors="replace") if path.exists() else ""
        if question.question == "cluster":
            return self._describe()
        if question.question in ("init cells", "drop init cell"):
            is_list = question.question == "init cells"
            return self._init_cells.rows() if is_list else self._init_cells.drop(question.argument)
        if question.question == "leave" and client in self._server.notebooks:
            if (others := len(self._server.notebooks) - 1) == 0:
                self._end("its last notebook ended")
            return others
        return None

    def _describe(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "name": spec.cluster_name, "num_ranks": spec.world_size, "mesh": spec.mesh, "started_s": spec.started_s,
            "host": os.uname().nodename, "pid": os.getpid(), "notebooks": len(self._server.notebooks),
            "idle_left_s": self._presence.left_s(self._clock()), "idle_timeout_s": spec.idle_timeout_s,
            "num_ready": sum(1 for process in self._ranks.values() if process.alive and process.ready),
            "running": [_named(began) for began in self._journal.running],
            "unseen": [_named(began) for began in self._journal.unseen],
            "num_refused": self._refusals.total, "generation": self._generation,
        }  # fmt: skip

    def _status_of(self, process: RankProcess) -> dict[str, Any]:
        return {
            "rank": process.rank,
            "host": os.uname().nodename,
            "pid": process.pid,
            "device": process.ready.device if process.ready else "",
            "state": process.state(),
            "memory_mb": self._memory.proportional_mb(process.pid) if process.alive else 0.0,
        }


def _unknown(cell: int) -> bytes:
    return m.encode(m.CellRefused(cell, f"cell {cell} is not running, and nothing of it is kept"))


def _named(began: m.CellBegan) -> dict[str, Any]:
    return {"cell": began.cell, "label": began.label, "ranks": str(began.ranks)}
