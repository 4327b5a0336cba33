"""The ranks of a node: forked, heard, watched, ordered about, replaced, ended.

Never waits for a rank. What ranks say goes to whoever is above, a cell's output gathered by the relay.
"""

from __future__ import annotations

import json
import logging
import os
import select
import selectors
import signal
from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.board import Board
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.node.door import Door, Watching
from hpcnb.node.leavers import Leaver, Leavers
from hpcnb.node.levels import Above
from hpcnb.node.looks import Looks
from hpcnb.node.memory import Memory
from hpcnb.node.observer import Observer, words_of
from hpcnb.node.orders import Order, Orders, interrupt
from hpcnb.node.rank_process import RankProcess
from hpcnb.node.refusals import Refusals
from hpcnb.node.relay import CellMessage, CellRelay, RankMessage
from hpcnb.node.stop import Stop
from hpcnb.node.template_process import TemplateProcess

__all__ = ["RankHost"]

LOG = logging.getLogger(__name__)
#: A rank that was asked to end gets so long before it is killed.
_GRACE_S = 1.0
#: Ranks are looked at so often while a cell runs; an operation that takes longer than this is told of.
_OBSERVE_S = 0.1
_LONG_WAIT_S = 0.3
#: ... or any, for so long after a rank has failed.
_ALARM_S = 2.0
#: The memory of ranks is noted so often while a cell runs, should one of them be killed.
_NOTE_S = 0.5
#: While ranks are asked to stop at a step, how far they are is looked at so often.
_STOP_S = 0.001


class RankHost:
    """Forks the ranks of a node through its template, and carries messages to them and back.

    Args:
        spec: Of the agent.
        folder: Of the cluster.
        template: What ranks are forked from.
        above: Whom to tell.
        selector: The agent's.
        refusals: Counts what ranks send that cannot be taken.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        template: TemplateProcess,
        *,
        above: Above,
        selector: Watching,
        refusals: Refusals,
        clock: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._origin = template
        self._template = template.connection
        self._template_received = b""
        self._above = above
        self._selector = selector
        self._refusals = refusals
        self._clock = clock
        self._board = Board(template.board, spec.own_ranks)
        self._ranks = {rank: RankProcess(rank, folder, self._board.ring(rank)) for rank in spec.own_ranks}
        self._leavers = Leavers(clock)
        self._relay = CellRelay(self._ranks, above.say, clock)
        self._observer = Observer(self._board, self._ranks)
        self._stop = Stop(self._board)
        self._looks = Looks(above.mention, clock)
        self._orders = Orders(self._ranks, self._stop, self._looks)
        self._memory = Memory(clock)
        self._door = Door(folder.agent_socket, template.pid, self._ranks, selector, self._seated, refusals, clock)
        self._observe_due_s = self._note_due_s = 0.0
        self._alarmed_until_s = 0.0
        self._restarts: dict[int, m.RestartRanks | m.Scale] = {}  # ranks to be forked again when they have ended
        self._forking: list[RankProcess] = []
        self._generation = 0
        self._is_ending = self._is_template_gone = False

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let ranks in from now on; they are forked when the template has imported what they need."""
        self._door.open()
        self._selector.watch(self._template.fileno(), self._hear_template)
        if not self._spec.rendezvous:
            self._request(role="store")

    @property
    def due_s(self) -> float:
        """When :meth:`turn` has something to do; infinite if nothing is open."""
        due_s = min(self._looks.due_s, self._leavers.due_s)
        if self._relay.due_s is not None:
            due_s = min(due_s, self._relay.due_s, self._observe_due_s)
        return min(due_s, self._clock() + _STOP_S) if self._stop.is_open else due_s

    @property
    def has_input(self) -> bool:
        """See Side."""
        return False

    def alarm(self, seconds: float) -> None:
        """See Below."""
        self._alarmed_until_s = self._clock() + seconds

    def turn(self, now_s: float) -> None:
        """Send what has been held long enough, and look at ranks."""
        self._relay.tick(now_s)
        self._observe(now_s)
        self._looks.tick(now_s)
        self._leavers.tick(now_s)
        self._door.tick()
        if not self._relay.running:
            self._memory.trim()

    def _observe(self, now_s: float) -> None:
        """While ranks wait in communication, tell who is where: above it is decided whether that is a hang."""
        cell, step = self._stop.look()
        if step:
            self._above.mention(m.StepProposed(cell, step))
        running = self._relay.running
        self._stop.keep(running)
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
            packed = {rank: facts.pack() for rank, facts in self._observer.facts().items()}
            for cell in running:
                self._above.mention(m.RankStates(cell, packed))

    def finish(self, reason: str, *, is_whole: bool) -> None:  # noqa: ARG002
        """End all ranks, and what they were forked from."""
        self._is_ending = True
        self._door.close()
        deadline_s = self._clock() + _GRACE_S
        processes = [*self._ranks.values(), *self._leavers.processes]
        for process in processes:
            process.send_control(m.Shutdown(reason))
            if process.alive and process.cell:
                interrupt(process)
        killed = False
        while self._any_alive(processes) and self._clock() < deadline_s + 2 * _GRACE_S:
            if not killed and self._clock() >= deadline_s:
                killed = True
                for process in processes:
                    process.kill_group()
            if select.select([self._template], [], [], 0.05)[0]:
                self._hear_template()
        self._template.close()
        try:
            # with its store and whatever is left; asked kindly it would first finish importing torch
            os.kill(self._origin.pid, signal.SIGKILL)
            os.waitpid(self._origin.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it had ended before

    def _any_alive(self, processes: list[RankProcess]) -> bool:
        return not self._is_template_gone and any(process.alive for process in processes)

    # --- template and ranks ---------------------------------------------------------------------------------

    def _request(self, **request: Any) -> None:
        try:
            self._template.sendall(json.dumps(request).encode() + b"\n")
        except ConnectionError:
            self._above.fail("the template ended")

    def _hear_template(self) -> None:
        try:
            received = self._template.recv(65536)
        except ConnectionError:
            received = b""
        if not received:
            self._selector.unwatch(self._template.fileno())
            self._is_template_gone = True
            if not self._is_ending:
                self._above.fail("the template, which ranks are forked from, ended", is_over=True)
            return
        *lines, self._template_received = (self._template_received + received).split(b"\n")
        for line in lines:
            news = json.loads(line)
            if "failed" in news:
                self._above.fail(f"importing torch and ipyparallel failed: {news['failed']}")
            elif "imported" in news:
                self._above.tell(m.Stage("import torch", *news["imported"]))
                for rank in () if self._spec.is_late else self._ranks:
                    self._fork(rank)
            elif "forked" in news and news["role"] == "rank":
                self._forked(self._forking.pop(0), news["forked"])
            elif "exited" in news:
                self._exited(news["exited"], news["status"])

    def _fork(self, rank: int, replacement: m.RestartRanks | m.Scale | None = None) -> None:
        self._forking.append(self._ranks[rank])
        seat = {
            "rank": rank, "store_host": self._origin.rendezvous[0], "store_port": self._origin.rendezvous[1],
            "generation": self._generation, "world_size": self._spec.world_size, "mesh": self._spec.mesh,
            "local_ranks": list(self._spec.own_ranks), "groups_before_mesh": self._spec.groups_before_mesh,
        }  # fmt: skip
        if replacement is not None:
            seat |= {"is_replacement": True, "groups": replacement.groups, "num_groups": replacement.num_groups}
        self._request(role="rank", seat=seat)

    def _forked(self, process: RankProcess, pid: int) -> None:
        process.pid = pid
        if process.rank in self._restarts and self._ranks.get(process.rank) is process:
            process.kill_group()  # it was asked for once more meanwhile

    def _replace(self, rank: int, message: m.RestartRanks | m.Scale) -> None:
        self._ranks[rank] = RankProcess(rank, self._folder, self._board.ring(rank))
        self._fork(rank, message)

    def _seated(self, process: RankProcess) -> None:
        cells, stacks, *pipes = process.descriptors
        self._selector.watch(cells, lambda: self._hear_rank(process, cells))
        self._selector.watch(stacks, lambda: self._hear_stacks(process, stacks))
        for pipe in pipes:
            self._selector.watch(pipe, lambda pipe=pipe: self._hear_pipe(process, pipe))  # type: ignore[misc]

    def _hear_rank(self, process: RankProcess, cells: int) -> None:
        if cells not in process.descriptors:
            return  # closed by an earlier event of the same turn
        if process.send_rest():
            self._selector.watch(cells, lambda: self._hear_rank(process, cells))
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
                self._selector.unwatch(gone)
        for message in messages:
            try:
                self._rank_said(process, message)
            except Exception as error:  # noqa: BLE001 - written down; one message must not end the cluster
                self._refusals.failed(peer, message, error)

    def _rank_said(self, process: RankProcess, message: m.Message) -> None:
        if isinstance(message, m.RankReady):
            process.ready = message
            self._above.tell(message)
        elif isinstance(message, m.GroupMade):
            self._observer.group_made(message.key, message.members)
        elif isinstance(message, m.Seen):
            self._looks.seen(message)
        elif isinstance(message, RankMessage):
            if isinstance(message, m.CellReply) and not message.ok:
                self.alarm(_ALARM_S)  # others may wait for it already
            self._relay.hear(process, message)
        else:
            self._refusals.note(f"rank {process.rank}", "sends what no rank says", type(message).__name__)

    def _hear_stacks(self, process: RankProcess, stacks: int) -> None:
        if stacks not in process.descriptors:
            return  # closed by an earlier event of the same turn
        if dump := process.read_stacks():
            self._looks.dumped(process.rank, dump)
        if stacks not in process.descriptors:
            self._selector.unwatch(stacks)

    def _hear_pipe(self, process: RankProcess, pipe: int) -> None:
        if pipe not in process.descriptors:
            return  # closed by an earlier event of the same turn
        self._read(process)  # text that Python sent before C code wrote
        self._relay.show(process, process.read_pipe(pipe))
        if pipe not in process.descriptors:
            self._selector.unwatch(pipe)

    def _exited(self, pid: int, status: int) -> None:
        everybody = (*self._ranks.values(), *self._leavers.processes)
        process = next((each for each in everybody if each.pid == pid), None)
        if process is None:
            return  # the store; ranks notice by themselves
        process.status = status  # reaped: its number may be another's, which is not to be signalled
        self._read(process)
        for descriptor in (*process.descriptors, process.control):
            self._selector.unwatch(descriptor)
        state, last = process.communication(), process.last_communication()
        cell = self._relay.lost(process)
        last_lines = list(process.last_lines)[-12:]
        was_in, last_operation = (words_of(each) if each is not None else "" for each in (state, last))
        process.close()
        leaver = self._leavers.ended(process)
        is_expected = self._is_ending or leaver is not None or process.rank in self._restarts
        memory_mb, was_out_of_memory = self._memory.ended(process.pid, status)
        if leaver is not None:
            self._gone(leaver)
        self._above.tell(
            m.RankExited(
                process.rank, pid, status, last_lines, is_expected, was_in, last_operation, memory_mb, was_out_of_memory
            )
        )
        self._relay.forget(cell, process.rank)
        if (restart := self._restarts.pop(process.rank, None)) is not None:
            self._replace(process.rank, restart)

    def _gone(self, leaver: Leaver) -> None:
        """A rank that the cluster goes on without has ended: nothing of it is left."""
        self._board.free(leaver.place)
        if leaver.process.rank not in self._ranks:
            self._folder.rank_log(leaver.process.rank).unlink(missing_ok=True)
        if leaver.then is not None:
            leaver.then()

    def _scale(self, message: m.Scale) -> None:
        """End ranks that the node has no more, and fork those that are new."""
        places = {rank: self._board.place(rank) for rank in self._ranks}
        self._spec = self._spec.scaled(
            message.world_size, message.mesh, message.placement, groups_before_mesh=message.num_groups
        )  # fmt: skip
        self._board.seat(self._spec.own_ranks)
        for rank in [rank for rank in self._ranks if rank not in self._spec.own_ranks]:
            process = self._ranks.pop(rank)
            self._restarts.pop(rank, None)
            if process.alive or process in self._forking:
                self._leavers.send_off(process, places[rank])
            else:
                self._gone(Leaver(process, places[rank]))
        for rank in message.new & self._spec.own_ranks:
            forked = self._ranks.get(rank)  # for a change that was broken off
            if forked is not None and (forked.alive or forked in self._forking):
                self._restarts[rank] = message
                if forked.alive:
                    forked.kill_group()
            elif (before := self._leavers.at(self._board.place(rank))) is None:
                self._replace(rank, message)
            else:
                self._leavers.hurry(before, lambda rank=rank: self._succeed(rank, message))  # type: ignore[misc]

    def _succeed(self, rank: int, message: m.Scale) -> None:
        """The place of a new rank has become free."""
        if rank in self._spec.own_ranks:  # else the cluster has been scaled once more
            self._replace(rank, message)

    # --- orders ---------------------------------------------------------------------------------------------

    def begin(self, message: CellMessage) -> None:
        """See Below."""
        self._memory.used()
        if isinstance(message, m.Rebuild | m.Scale):
            self._generation = message.generation
        if isinstance(message, m.Scale):
            self._scale(message)
        for process in self._relay.begin(message):
            cells = process.descriptors[0]
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.watch(cells, lambda process=process, cells=cells: self._hear_rank(process, cells), both)  # type: ignore[misc]

    def obey(self, order: Order | m.StopAtStep) -> None:
        """See Below."""
        if (answer := self._orders.obey(order)) is not None:
            self._above.mention(answer)

    def restart(self, message: m.RestartRanks) -> None:
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

    # --- questions ------------------------------------------------------------------------------------------

    def status(self, answer: Callable[[list[dict[str, Any]]], None]) -> None:
        """See Below."""
        answer([self._status_of(process) for process in self._ranks.values()])

    def _status_of(self, process: RankProcess) -> dict[str, Any]:
        return {
            "rank": process.rank,
            "host": os.uname().nodename,
            "pid": process.pid,
            "device": process.ready.device if process.ready else "",
            "state": process.state(),
            "memory_mb": self._memory.proportional_mb(process.pid) if process.alive else 0.0,
        }

    def log(self, rank: int, answer: Callable[[str], None]) -> None:
        """See Below."""
        path = self._folder.rank_log(rank)
        answer(path.read_text(errors="replace") if path.exists() else "")
