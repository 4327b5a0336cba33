"""The nodes of a cluster as its head holds them: their agents join, are heard, are asked whether they are there.

Orders go to the nodes whose ranks they are for; what nodes say of one cell is merged. A node whose agent does not
answer any more is given up, and its ranks are told to be lost; should it come back it is sent away.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.core.ranks import RankSet
from hpcnb.core.version import __version__
from hpcnb.node import store
from hpcnb.node.branch import Branch
from hpcnb.node.door import Watching
from hpcnb.node.levels import Above
from hpcnb.node.merge import Merge
from hpcnb.node.orders import Order
from hpcnb.node.question import Questions
from hpcnb.node.refusals import Refusals
from hpcnb.node.relay import CellMessage
from hpcnb.node.server import LinkServer, Lock
from hpcnb.node.steps import Steps

__all__ = ["Branches"]

LOG = logging.getLogger(__name__)
#: Nodes are asked so often whether they are there.
_PING_S = 0.5
_FIRST_PINGS = 5
#: An agent whose connection has ended is lost after so long: what it said before has arrived then.
_AGAIN_S = 0.2
#: A node that was told to end its ranks says so within so long.
_FAREWELL_S = 4.0
#: While some ranks wait, all nodes tell where theirs are, for so long after each look.
_ALARM_S = 2.0


class Branches:
    """Orders nodes, and tells who is above what comes from them.

    Args:
        spec: Of the head.
        folder: Of the cluster.
        above: Whom to tell.
        selector: The agent's.
        refusals: Counts who and what is not let in.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        *,
        above: Above,
        selector: Watching,
        refusals: Refusals,
        clock: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._folder = folder
        listener = socket.create_server((spec.address, 0), backlog=4096)
        self._rendezvous = f"{spec.address}:{listener.getsockname()[1]}"
        self._store = store.start(listener)
        self._above = above
        self._selector = selector
        self._refusals = refusals
        self._clock = clock
        lock = Lock(spec.server_public, spec.server_secret, spec.nodes_public)
        self._server = LinkServer(
            f"tcp://{spec.address}:*", lock, refusals, hellos=(m.Join, m.NodeHello)
        )  # fmt: skip
        self._branches = [Branch(node, ranks) for node, ranks in enumerate(spec.ranks_of_nodes)]
        self._joining: dict[bytes, m.Join] = {}  # until there is a controller that ranks can register with
        self._cells: dict[int, Merge] = {}
        self._steps = Steps()
        self._questions = Questions()
        self._stages: dict[str, dict[int, tuple[int, int]]] = {}
        self._ping_due_s = 0.0
        self._num_pings = 0

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``host:port`` that nodes connect to."""
        return self._server.address.removeprefix("tcp://")

    def start(self) -> None:
        """Listen from now on."""
        for descriptor in self._server.descriptors:
            self._selector.watch(descriptor, lambda: None)  # read at every turn
        self._above.tell(m.Listening(self.address))

    @property
    def has_input(self) -> bool:
        """See Side."""
        return self._server.has_input()

    @property
    def due_s(self) -> float:
        """See Side."""
        gone = (each.gone_s + _AGAIN_S for each in self._branches if each.is_here and each.gone_s is not None)
        return min([self._ping_due_s, self._questions.due_s, *gone, *(merge.due_s for merge in self._cells.values())])

    def turn(self, now_s: float) -> None:
        """Hear nodes, say what has been held long enough, and look whether all are there."""
        for client, message in self._server.receive():
            if isinstance(message, m.MessageError):
                continue  # counted
            try:
                self._hear(client, message)
            except Exception as error:  # a bug of ours must not end everybody's cluster
                kind = f"its {type(message).__name__} could not be taken"
                if self._refusals.note("the agent of a node", kind, repr(error)):
                    LOG.exception("%s", kind)
        for merge in list(self._cells.values()):
            self._say(merge.tick(now_s))
        if self._joining and self._folder.connection_file("engine").exists():
            joining, self._joining = self._joining, {}
            for client, join in joining.items():
                self._assign(client, join)
        self._look(now_s)
        self._questions.tick(now_s)

    def _look(self, now_s: float) -> None:
        for branch in self._branches:
            if branch.is_here and branch.gone_s is None and branch.client not in self._server.connected:
                branch.gone_s = now_s
            if branch.is_over(now_s, _AGAIN_S):
                self._lose(branch, f"the agent of node {branch.host} ended")
        if now_s < self._ping_due_s:
            return
        self._ping_due_s = now_s + _PING_S
        for branch in self._branches:
            if not branch.is_here:
                continue
            self._ping(branch)
            silent_s = now_s - branch.heard_s
            if silent_s >= self._spec.silence_s:
                self._lose(branch, f"node {branch.host} has not answered for {silent_s:.0f} s")

    def _ping(self, branch: Branch) -> None:
        self._num_pings += 1
        self._send(branch, m.Ping(self._num_pings, time.perf_counter_ns()))

    def finish(self, reason: str) -> None:
        """End all nodes."""
        for branch in self._branches:
            if branch.is_here:
                self._send(branch, m.Shutdown(reason))
        for client in self._joining:
            self._server.send(client, m.NodeRefused(reason))
        deadline_s = self._clock() + _FAREWELL_S
        while any(each.is_here and not each.has_ended for each in self._branches) and self._clock() < deadline_s:
            if not self._server.has_input():
                time.sleep(0.005)
            for client, message in self._server.receive():
                if isinstance(message, m.Farewell) and (teller := self._of(client)) is not None:
                    teller.has_ended = True
            for branch in self._branches:
                branch.has_ended |= branch.is_here and branch.client not in self._server.connected
        if silent := [each.host for each in self._branches if each.is_here and not each.has_ended]:
            LOG.warning("nodes that did not say that they ended: %s", ", ".join(silent))
        self._server.close()
        self._store.kill()
        self._store.wait()

    # --- nodes ----------------------------------------------------------------------------------------------

    def _of(self, client: bytes) -> Branch | None:
        return next((each for each in self._branches if each.client == client), None)

    def _send(self, branch: Branch, message: m.Message | bytes) -> None:
        self._server.send(branch.client, message)

    def _hear(self, client: bytes, message: m.Message) -> None:
        if isinstance(message, m.Join):
            if problem := self._obstacle(message):
                self._server.send(client, m.NodeRefused(problem))
            else:
                self._joining[client] = message
            return
        if isinstance(message, m.NodeHello):
            self._greet(client, message)
            return
        branch = self._of(client)
        if branch is None:
            return  # it was given up, and has been told
        branch.heard_s = self._clock()
        self._heard(branch, message)

    def _obstacle(self, join: m.Join) -> str:
        """Why a process cannot become the agent of a node; "" if it can."""
        mine = (m.PROTOCOL, __version__, self._spec.python_version)
        if (join.protocol, join.hpcnb_version, join.python_version) != mine:
            return (
                f"VERSION the notebook runs hpcnb {mine[1]} on Python {mine[2]}, node {join.host} runs hpcnb "
                f"{join.hpcnb_version[:40]} on Python {join.python_version[:40]}"
            )
        if not 0 <= join.node < len(self._branches):
            return f"the cluster has {len(self._branches)} nodes, none of them is number {join.node}"
        if (branch := self._branches[join.node]).is_here:
            return f"node {join.node} has an agent already, on {branch.host}"
        return ""

    def _assign(self, client: bytes, join: m.Join) -> None:
        branch = self._branches[join.node]
        spec = dataclasses.replace(
            self._spec, first_rank=min(branch.ranks, default=0), num_ranks=len(branch.ranks), node=join.node,
            is_local=False, link_address="", server_secret="", client_secret="", client_public="", owner_pid=0,
            uplink=self.address, rendezvous=self._rendezvous, is_late=bool(branch.started_ns),
        )  # fmt: skip
        file = self._folder.connection_file("engine")
        files = {str(file.relative_to(self._folder.path)): file.read_bytes()}
        self._server.send(client, m.Assignment(dataclasses.asdict(spec), files))

    def _greet(self, client: bytes, hello: m.NodeHello) -> None:
        branch = self._branches[hello.node] if 0 <= hello.node < len(self._branches) else None
        if branch is None or hello.protocol != m.PROTOCOL or branch.started_ns == hello.started_ns:
            # it was given up; or its connection was made anew, and what was on its way then is lost
            self._server.send(client, m.NodeRefused(f"node {hello.node} was given up by the head of the cluster"))
            return
        if branch.is_here and branch.client != client:
            self._server.send(client, m.NodeRefused(f"node {hello.node} has an agent already, on {branch.host}"))
            return
        self._server.welcome(client, "node")
        branch.join(client, hello.host, hello.started_ns, self._clock())
        self._server.send(client, m.NodeWelcome(self._spec.silence_s))
        for _ in range(_FIRST_PINGS):  # so that its clock is known before its first cell
            self._ping(branch)
        self._above.tell(m.NodeJoined(hello.node, hello.host, branch.ranks, hello.folder))

    def _lose(self, branch: Branch, why: str) -> None:
        """Give a node up: its ranks will not answer."""
        LOG.warning("%s: ranks %s are given up", why, branch.ranks)
        self._server.send(branch.client, m.NodeRefused("it was given up by the head of the cluster"))
        self._server.forget(branch.client)
        waited_in = {rank: branch.waits_in(rank) for rank in branch.ranks}
        for rank, pid in sorted(branch.lose().items()):
            self._above.tell(
                m.RankExited(rank, pid, -9, [], False, waited_in[rank], "", 0.0, False, f"was lost: {why}")
            )
        self._above.tell(m.NodeLost(branch.node, branch.host, why))
        for merge in list(self._cells.values()):
            self._say(merge.ended(branch.node, time.perf_counter_ns()))
        for cell, step in self._steps.lost(branch.node).items():
            self._above.mention(m.StepProposed(cell, step))
        self._questions.lost(branch.node)

    # --- what nodes say -------------------------------------------------------------------------------------

    def _heard(self, branch: Branch, message: m.Message) -> None:  # noqa: C901, PLR0912 - one branch per message
        match message:
            case m.Pong():
                branch.clock.exchanged(message.sent_ns, message.node_ns, time.perf_counter_ns())
            case m.RankReady():
                branch.pids[message.rank] = message.pid
                self._above.tell(message)
            case m.RankExited():
                branch.pids.pop(message.rank, None)
                self._above.tell(message)
            case m.Stage():
                self._staged(branch, message)
            case m.Failed():
                reason = f"node {branch.host}: {message.reason}"
                self._above.fail(reason, lines=message.log_lines)
                if message.is_over:
                    self._lose(branch, reason)
            case m.RankStates():
                self._looked(branch, message)
            case m.StepProposed():
                if (step := self._steps.hear(message.cell, branch.node, message.step)) is not None:
                    self._above.mention(m.StepProposed(message.cell, step))
            case m.Answer():
                self._questions.hear(message.request, branch.node, message.value)
            case m.Farewell():
                self._lose(branch, f"the agent of node {branch.host} ended: {message.reason}")
            case m.Seen():
                self._above.mention(message)
            case _ if (merge := self._cells.get(getattr(message, "cell", 0))) is not None:
                if isinstance(message, m.CellDone) and (offset_ns := branch.clock.estimate_ns):
                    message = dataclasses.replace(message, offsets_ns=dict.fromkeys(message.spans, offset_ns))
                self._say(merge.hear(branch.node, message, self._clock()))
            case _:
                pass  # of a cell that is over

    def _say(self, messages: list[m.Message]) -> None:
        for message in messages:
            if isinstance(message, m.CellDone):
                del self._cells[message.cell]
                self._steps.forget(message.cell)
            self._above.say(message)

    def _staged(self, branch: Branch, message: m.Stage) -> None:
        """A stage of the start is done when it is on all nodes."""
        stages = self._stages.setdefault(message.name, {})
        stages[branch.node] = (message.start_ns, message.end_ns)
        if len(stages) == len(self._branches):
            longest = max(stages.values(), key=lambda each: each[1] - each[0])
            self._above.tell(m.Stage(message.name, *longest))

    def _looked(self, branch: Branch, message: m.RankStates) -> None:
        """Somewhere ranks wait: all nodes are asked where theirs are, and who is above hears of all."""
        now_s = self._clock()
        branch.looked(message.ranks, now_s)
        known: dict[int, Any] = {}
        for each in self._branches:
            known |= each.facts(now_s, _ALARM_S)
            if each is not branch and each.is_here:
                self._send(each, m.Alarm(_ALARM_S))
        self._above.mention(m.RankStates(message.cell, known))

    # --- orders ---------------------------------------------------------------------------------------------

    def _with(self, ranks: RankSet) -> list[Branch]:
        """Nodes that are here and have some of these ranks."""
        return [branch for branch in self._branches if branch.is_here and branch.ranks & ranks]

    def begin(self, message: CellMessage) -> None:
        """See Below."""
        packed = m.encode(message)
        chosen = self._with(message.ranks)
        if isinstance(message, m.Scale):  # also for nodes whose ranks are all new, or to be ended
            chosen = [branch for branch in self._branches if branch.is_here]
            self._spec = self._spec.scaled(
                message.world_size, message.mesh, message.placement, groups_before_mesh=message.num_groups
            )  # fmt: skip
            for branch, ranks in zip(self._branches, self._spec.ranks_of_nodes, strict=True):
                branch.ranks = ranks
        self._cells[message.cell] = merge = Merge(message.cell, [branch.node for branch in chosen])
        for branch in chosen:
            self._send(branch, packed)
        if not chosen:
            merge.waiting = {-1}
            self._say(merge.ended(-1, time.perf_counter_ns()))

    def obey(self, order: Order | m.StopAtStep) -> None:
        """See Below."""
        if isinstance(order, m.StopAtStep):
            chosen = [branch for branch in self._branches if branch.is_here]
        elif isinstance(order, m.InputReply):
            chosen = self._with(RankSet([order.rank]))
        else:
            chosen = self._with(order.ranks)
        if isinstance(order, m.StopAtBoundary):
            merge = self._cells.get(order.cell)
            chosen = [branch for branch in chosen if merge is not None and branch.node in merge.waiting]
            if chosen:
                self._steps.ask(order.cell, (branch.node for branch in chosen))
            else:
                self._above.mention(m.StepProposed(order.cell, 0))
        packed = m.encode(order)
        for branch in chosen:
            self._send(branch, packed)

    def restart(self, message: m.RestartRanks) -> None:
        """See Below."""
        for branch in self._with(message.ranks):
            self._send(branch, message)

    def status(self, answer: Callable[[list[dict[str, Any]]], None]) -> None:
        """See Below; of a node that does not answer in time its ranks are told to be silent."""

        def whole(rows: dict[int, Any]) -> None:
            together: list[dict[str, Any]] = []
            for branch in self._branches:
                theirs = rows.get(branch.node)
                state = "silent" if branch.is_here else "dead"
                together += theirs or [_row(rank, branch.host, state) for rank in branch.ranks]
            answer(together)

        self._ask("status", 0, [branch for branch in self._branches if branch.is_here], whole)

    def log(self, rank: int, answer: Callable[[str], None]) -> None:
        """See Below."""
        self._ask("logs", rank, self._with(RankSet([rank])), lambda texts: answer(next(iter(texts.values()), "") or ""))

    def _ask(self, question: str, argument: int, nodes: list[Branch], whole: Callable[[dict[int, Any]], None]) -> None:
        number = self._questions.ask((branch.node for branch in nodes), whole, self._clock())
        for branch in nodes:
            self._send(branch, m.Ask(number, question, argument))


def _row(rank: int, host: str, state: str) -> dict[str, Any]:
    return {"rank": rank, "host": host, "pid": 0, "device": "", "state": state, "memory_mb": 0.0}
