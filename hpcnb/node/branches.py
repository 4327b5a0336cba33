"""The nodes right below this agent: orders go to those whose ranks they are for, what they say of a cell is merged.

The head of a cluster has them, and every node that others are below (a relay of the tree, see core/tree.py). A node
whose agent does not answer any more is given up; what that means for its ranks is for the head to say.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.branch import Branch
from hpcnb.node.door import Watching
from hpcnb.node.levels import Above
from hpcnb.node.merge import Merge
from hpcnb.node.orders import Order
from hpcnb.node.question import Questions
from hpcnb.node.refusals import Refusals
from hpcnb.node.relay import CellMessage
from hpcnb.node.server import LinkServer
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
#: While some ranks wait, all nodes tell where theirs are, for so long after each look; so soon that goes up together.
_ALARM_S, _LOOKED_S = 2.0, 0.02


class Branches(ABC):
    """Orders nodes, and tells who is above what comes from them.

    Args:
        server: Where nodes connect.
        ranks_of_nodes: Of each node of the cluster, its ranks.
        num_stages: A stage of the start is done when so many have told of it.
        silence_s: A node that has not been heard of for so long is given up.
        above: Whom to tell.
        selector: The agent's.
        refusals: Counts what cannot be taken.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        server: LinkServer,
        ranks_of_nodes: list[RankSet],
        *,
        num_stages: int,
        silence_s: float,
        above: Above,
        selector: Watching,
        refusals: Refusals,
        clock: Callable[[], float],
    ) -> None:
        self._server = server
        self._ranks_of = ranks_of_nodes
        self._num_stages = num_stages
        self._silence_s = silence_s
        self._above = above
        self._selector = selector
        self._refusals = refusals
        self._clock = clock
        self._branches: dict[int, Branch] = {}  # by node
        self._by_client: dict[bytes, Branch] = {}
        self._cells: dict[int, Merge] = {}
        self._steps = Steps()
        self._questions = Questions()
        self._stages: dict[str, dict[int, tuple[int, int]]] = {}
        self._ping_due_s = self._alarmed_until_s = 0.0
        self._looked: set[int] = set()  # cells, some ranks of which wait
        self._looked_due_s = float("inf")

    # --- who is who -----------------------------------------------------------------------------------------

    @abstractmethod
    def _arrived(self, client: bytes, message: m.Join | m.NodeHello) -> None:
        """Somebody comes who is not a node of this agent yet."""

    @abstractmethod
    def _passed(self, branch: Branch, message: m.Message) -> None:
        """A node says something of itself, its ranks, or of nodes below it."""

    @abstractmethod
    def _left(self, branch: Branch, why: str) -> None:
        """A node is lost."""

    def _reach(self, branch: Branch, nodes: Iterable[int] = (), *, but: Iterable[int] = ()) -> None:
        """These nodes are reached through it from now on too, and those are not."""
        branch.nodes = branch.nodes.union(nodes).difference(but)
        branch.ranks = RankSet(rank for node in branch.nodes for rank in self._ranks_of[node])

    def _scaled(self, message: m.Scale) -> None:
        """The cluster gets another number of ranks."""
        self._ranks_of = [RankSet(ranks) for ranks in message.placement]
        for branch in self._branches.values():
            self._reach(branch)

    def _let_in(self, client: bytes, hello: m.NodeHello) -> Branch:
        """It is a node of this agent from now on."""
        self._server.welcome(client, "node")
        branch = Branch(hello.node, client, hello.host, self._clock())
        self._reach(branch, [hello.node])
        self._branches[hello.node] = self._by_client[client] = branch
        self._send(branch, m.NodeWelcome())
        for _ in range(_FIRST_PINGS):  # so that its clock is known before its first cell
            self._send(branch, m.Ping(time.perf_counter_ns()))
        return branch

    def _cut(self, branch: Branch) -> None:
        """It is not any more, and what it has not said will not be said."""
        self._server.send(branch.client, m.NodeRefused("it was given up by who is above it"))
        self._server.forget(branch.client)
        self._by_client.pop(branch.client, None)
        self._branches.pop(branch.node, None)
        for merge in list(self._cells.values()):
            self._say(merge.ended(branch.node, time.perf_counter_ns()))
        for cell, step in self._steps.lost(branch.node).items():
            self._above.mention(m.StepProposed(cell, step))
        self._questions.lost(branch.node)

    def _send(self, branch: Branch, message: m.Message | bytes) -> None:
        self._server.send(branch.client, message)

    def _send_all(self, branches: Iterable[Branch], message: m.Message) -> None:
        packed = m.encode(message)
        for branch in branches:
            self._send(branch, packed)

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """``host:port`` that nodes connect to."""
        return self._server.address.removeprefix("tcp://")

    def start(self) -> None:
        """Listen from now on."""
        for descriptor in self._server.descriptors:
            self._selector.watch(descriptor, lambda: None)  # read at every turn

    @property
    def has_input(self) -> bool:
        """See Side."""
        return self._server.has_input()

    @property
    def due_s(self) -> float:
        """See Side."""
        gone = (each.gone_s + _AGAIN_S for each in self._branches.values() if each.gone_s is not None)
        held = (merge.due_s for merge in self._cells.values())
        return min([self._ping_due_s, self._questions.due_s, self._looked_due_s, *gone, *held])

    def turn(self, now_s: float) -> None:
        """Hear nodes, say what has been held long enough, and look whether all are there."""
        for client, message in self._server.receive():
            if isinstance(message, m.MessageError):
                continue  # counted
            try:
                self._hear(client, message)
            except Exception as error:  # noqa: BLE001 - written down; one message must not end the cluster
                self._refusals.failed("the agent of a node", message, error)
        for merge in list(self._cells.values()):
            self._say(merge.tick(now_s))
        if now_s >= self._looked_due_s:
            self._tell_looks(now_s)
        self._look_for_lost(now_s)
        self._questions.tick(now_s)

    def _look_for_lost(self, now_s: float) -> None:
        remote = list(self._by_client.values())
        for branch in remote:
            if branch.client in self._server.connected:
                branch.gone_s = None  # the end that was seen was that of an earlier connection with the same number
            elif branch.gone_s is None:
                branch.gone_s = now_s
            if branch.is_over(now_s, _AGAIN_S):
                self._left(branch, f"the agent of node {branch.host} ended")
        if now_s < self._ping_due_s:
            return
        self._ping_due_s = now_s + _PING_S
        for branch in list(self._by_client.values()):
            self._send(branch, m.Ping(time.perf_counter_ns()))
            silent_s = now_s - branch.heard_s
            if silent_s >= self._silence_s:
                self._left(branch, f"node {branch.host} has not answered for {silent_s:.0f} s")

    def finish(self, reason: str, *, is_whole: bool) -> None:  # noqa: ARG002 - a relay may end without the cluster
        """End all nodes."""
        remote = list(self._by_client.values())
        self._send_all(remote, m.Shutdown(reason))
        deadline_s = self._clock() + _FAREWELL_S
        while not all(each.has_ended for each in remote) and self._clock() < deadline_s:
            if not self._server.has_input():
                time.sleep(0.005)
            for client, message in self._server.receive():
                if isinstance(message, m.Farewell) and (teller := self._by_client.get(client)) is not None:
                    teller.has_ended = True
            for branch in remote:
                branch.has_ended |= branch.client not in self._server.connected
        if silent := [each.host for each in remote if not each.has_ended]:
            LOG.warning("nodes that did not say that they ended: %s", ", ".join(silent))
        self._server.close()

    # --- what nodes say -------------------------------------------------------------------------------------

    def _hear(self, client: bytes, message: m.Message) -> None:
        if (branch := self._by_client.get(client)) is not None:
            branch.heard_s = self._clock()
            self._heard(branch, message)
        elif isinstance(message, m.Join | m.NodeHello):
            self._arrived(client, message)  # else it was given up, and has been told

    def _heard(self, branch: Branch, message: m.Message) -> None:
        match message:
            case m.Pong():
                branch.clock.exchanged(message.sent_ns, message.node_ns, time.perf_counter_ns())
            case m.Stage():
                self._staged(branch, message)
            case m.RankStates():
                self._hear_looks(branch, message)
            case m.StepProposed():
                if (step := self._steps.hear(message.cell, branch.node, message.step)) is not None:
                    self._above.mention(m.StepProposed(message.cell, step))
            case m.Answer():
                self._questions.hear(message.request, branch.node, message.value)
            case m.Seen():
                self._above.mention(message)
            case m.RankReady() | m.RankExited() | m.Failed() | m.Farewell() | m.NodeBelow() | m.NodeLost():
                self._passed(branch, message)
            case _ if (merge := self._cells.get(getattr(message, "cell", 0))) is not None:
                if isinstance(message, m.CellDone) and (offset_ns := branch.clock.estimate_ns):
                    theirs = message.offsets_ns
                    offsets_ns = {rank: offset_ns + theirs.get(rank, 0) for rank in message.spans}
                    message = dataclasses.replace(message, offsets_ns=offsets_ns)
                self._say(merge.hear(branch.node, message, self._clock()))
            case _:
                pass  # of a cell that is over

    def _say(self, messages: list[m.Message]) -> None:
        for message in messages:
            if isinstance(message, m.CellDone):
                del self._cells[message.cell]
                self._steps.forget(message.cell)
                self._looked.discard(message.cell)
            self._above.say(message)

    def _staged(self, branch: Branch, message: m.Stage) -> None:
        """A stage of the start is done when it is on all nodes."""
        stages = self._stages.setdefault(message.name, {})
        stages[branch.node] = (message.start_ns, message.end_ns)
        if len(stages) == self._num_stages:
            longest = max(stages.values(), key=lambda each: each[1] - each[0])
            self._above.tell(m.Stage(message.name, *longest))

    def _hear_looks(self, branch: Branch, message: m.RankStates) -> None:
        """Somewhere ranks wait: all nodes are asked where theirs are."""
        now_s = self._clock()
        branch.looked(message.ranks, now_s)
        self.alarm(_ALARM_S)
        if message.cell in self._cells:
            self._looked.add(message.cell)
            self._looked_due_s = min(self._looked_due_s, now_s + _LOOKED_S)

    def _tell_looks(self, now_s: float) -> None:
        known: dict[int, Any] = {}
        for branch in self._branches.values():
            known |= branch.facts(now_s, _ALARM_S)
        for cell in self._looked:
            self._above.mention(m.RankStates(cell, known))
        self._looked, self._looked_due_s = set(), float("inf")

    # --- orders ---------------------------------------------------------------------------------------------

    def _with(self, ranks: RankSet) -> list[Branch]:
        """Nodes through which some of these ranks are reached."""
        return [branch for branch in self._branches.values() if branch.ranks & ranks]

    def begin(self, message: CellMessage) -> None:
        """See Below."""
        packed = m.encode(message)
        chosen = self._with(message.ranks)
        if isinstance(message, m.Scale):  # also for nodes whose ranks are all new, or to be ended
            chosen = list(self._branches.values())
            self._scaled(message)
        self._cells[message.cell] = merge = Merge(
            message.cell, [branch.node for branch in chosen], message.ranks, packed
        )
        for branch in chosen:
            self._send(branch, packed)
        if not chosen:
            merge.waiting = {-1}
            self._say(merge.ended(-1, time.perf_counter_ns()))

    def obey(self, order: Order | m.StopAtStep) -> None:
        """See Below."""
        if isinstance(order, m.StopAtStep):
            chosen = list(self._branches.values())
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
        self._send_all(chosen, order)

    def alarm(self, seconds: float) -> None:
        """See Below; not said again while half of that time is left."""
        now_s = self._clock()
        if now_s + seconds / 2 >= self._alarmed_until_s:
            self._alarmed_until_s = now_s + seconds
            self._send_all(self._branches.values(), m.Alarm(seconds))

    def restart(self, message: m.RestartRanks) -> None:
        """See Below."""
        self._send_all(self._with(message.ranks), message)

    def status(self, answer: Callable[[list[dict[str, Any]]], None]) -> None:
        """See Below."""

        def whole(rows: dict[int, Any]) -> None:
            answer([row for theirs in rows.values() for row in theirs])

        self._ask("status", 0, list(self._branches.values()), whole)

    def log(self, rank: int, answer: Callable[[str], None]) -> None:
        """See Below."""
        self._ask("logs", rank, self._with(RankSet([rank])), lambda texts: answer(next(iter(texts.values()), "") or ""))

    def _ask(self, question: str, argument: int, nodes: list[Branch], whole: Callable[[dict[int, Any]], None]) -> None:
        number = self._questions.ask((branch.node for branch in nodes), whole, self._clock())
        self._send_all(nodes, m.Ask(number, question, argument))
