"""What the notebooks of a cluster share: who is connected, the numbers of cells, what was said, when it all ends.

It numbers nothing itself, but lets no number be used twice; it remembers what a notebook that comes later must know;
and it decides about cells that no notebook listens to. Whose ranks they are it does not know: those are below.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.board import room_for
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.core.version import __version__
from hpcnb.node.door import Watching
from hpcnb.node.init_cells import InitCells
from hpcnb.node.journal import Journal
from hpcnb.node.levels import Below
from hpcnb.node.orders import Order
from hpcnb.node.owner import Owner
from hpcnb.node.past import Past
from hpcnb.node.presence import Presence
from hpcnb.node.refusals import Refusals
from hpcnb.node.relay import CellMessage
from hpcnb.node.server import LinkServer, Lock
from hpcnb.node.unattended import Unattended

__all__ = ["Front"]

#: Numbers of cells have 31 bits in records of the span ring.
_MOST_CELLS = 1 << 31


class Front:
    """Hears notebooks, orders what is below, and tells notebooks what comes from there.

    Args:
        spec: Of the agent.
        folder: Of the cluster.
        selector: The agent's.
        refusals: Counts who and what is not let in.
        end: Ends the cluster, for a reason in words.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        *,
        selector: Watching,
        refusals: Refusals,
        end: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.below: Below  #: Set before the first turn.
        self._spec = spec
        self._folder = folder
        self._refusals = refusals
        self._end = end
        self._clock = clock
        lock = Lock(spec.server_public, spec.server_secret, spec.client_public)
        self._server = LinkServer(spec.link_address, lock, refusals)
        self._presence = Presence(spec.idle_timeout_s, clock(), is_managed=bool(spec.controller_profile))
        self._owner = Owner(selector, refusals, self._owner_is_gone)
        self._selector = selector
        self._journal = Journal()
        self._init_cells = InitCells()
        self._unattended = Unattended(spec.grace_s, self._is_attended, self._obey, self.say, clock)
        self._past = Past()
        self._room = room_for(min(spec.layout, default=spec.num_ranks))
        self._last_cell = self._generation = 0
        self._ready = RankSet()  # ranks that run cells
        self._scaling, self._unscaled = 0, RankSet()  # the cell that does so, and ranks that have not said they have
        self._busy: dict[int, int] = {}  # those that have not answered one: its number

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen from now on."""
        self._owner.become(self._spec.owner_pid)
        for descriptor in self._server.descriptors:
            self._selector.watch(descriptor, lambda: None)  # read at every turn

    @property
    def has_input(self) -> bool:
        """Whether something has arrived; ask before blocking on descriptors."""
        return self._server.has_input()

    @property
    def is_claimed(self) -> bool:
        """Whether a notebook has ever been welcomed."""
        return self._presence.claimed

    def turn(self, now_s: float) -> None:
        """Hear what notebooks have sent, and look whether anybody is there."""
        for client, message in self._server.receive():
            if isinstance(message, m.MessageError):
                self._refuse(client, message.kind, message.cell, str(message))
                continue
            try:
                self._hear(client, message)
            except Exception as error:  # noqa: BLE001 - written down; one message must not end the cluster
                kind = self._refusals.failed("a notebook", message, error)
                cell = getattr(message, "cell", 0)
                if cell not in self._busy.values():
                    self._refuse(client, type(message), cell, f"{kind}: {error!r}")
        self._presence.count(len(self._server.connected), now_s)
        if why := self._presence.over(now_s):
            self._end(why)

    @property
    def due_s(self) -> float:
        """See Side."""
        return float("inf")

    def finish(self, reason: str, *, is_whole: bool) -> None:  # noqa: ARG002
        """Say that the cluster has ended, and hear nobody any more."""
        self._server.send_all(m.Farewell(reason))
        self._server.close()

    def _owner_is_gone(self, is_gone: bool) -> None:  # noqa: FBT001 - a callback
        self._presence.owner_gone = is_gone

    def _obey(self, order: Order) -> None:
        self.below.obey(order)

    def _is_attended(self, cell: int) -> bool:
        return self._journal.is_attended(cell, self._server.connected)

    # --- what comes from below ------------------------------------------------------------------------------

    def tell(self, message: m.Message) -> None:
        """See Above."""
        self._past.add(message)
        self._server.send_all(message)
        if isinstance(message, m.RankReady):
            self._ready |= RankSet([message.rank])
        elif isinstance(message, m.RankExited):
            self._ready -= RankSet([message.rank])
            self._busy.pop(message.rank, None)
            self._unattended.exited(message)

    def say(self, message: m.Message) -> None:
        """See Above."""
        packed = m.encode(message)
        self._journal.add(message, packed, self._server.connected)
        self._server.send_all(packed)
        if isinstance(message, m.Replies | m.CellDone):
            self._answered(message)

    def mention(self, message: m.Message) -> None:
        """See Above."""
        if isinstance(message, m.StepProposed):
            self.below.obey(m.StopAtStep(message.cell, message.step))
            message = m.BoundaryAsked(message.cell, message.step > 0)
        self._server.send_all(message)
        if isinstance(message, m.Seen):
            self._unattended.heard(message)
        elif isinstance(message, m.RankStates) and not self._is_attended(message.cell):
            facts = {rank: RankFacts.unpack(packed) for rank, packed in message.ranks.items()}
            self._unattended.looked(message.cell, facts)

    def fail(self, reason: str, *, lines: list[str] | None = None, is_over: bool = False) -> None:
        """See Above."""
        self.tell(m.StartFailed(reason, self._folder.log_lines() if lines is None else lines))
        if is_over and self._presence.claimed:  # else the notebook hears of it when it connects, and ends us
            self._end(f"{reason}, and the ranks with it")

    def _answered(self, message: m.Replies | m.CellDone) -> None:
        for fields in message.replies:
            reply = m.CellReply(*fields)
            self._busy.pop(reply.rank, None)
            if reply.ok:
                self._init_cells.went_well(reply.cell)
                if reply.cell == self._scaling:
                    self._unscaled -= RankSet([reply.rank])
            self._unattended.heard(reply)
        if isinstance(message, m.CellDone):
            self._busy = {rank: cell for rank, cell in self._busy.items() if cell != message.cell}
            self._unattended.forget(message.cell)

    # --- notebooks ------------------------------------------------------------------------------------------

    def _hear(self, client: bytes, message: m.Message) -> None:
        if isinstance(message, m.Hello):
            self._greet(client, message)
        elif isinstance(message, m.Ask):
            self._answer(client, message)
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
            self.below.obey(message)
        elif isinstance(message, m.RestartRanks):
            self._generation = message.generation
            self.below.restart(message)
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
                bool(self._journal.broken & self._ready) or bool(self._unscaled),
            ),
        )  # fmt: skip
        if hello.role != "notebook":
            return
        self._presence.claimed = True
        self._owner.become(hello.owner_pid)
        for earlier in self._past.all():
            self._server.send(client, earlier)
        for began in self._journal.running:  # its ranks are busy
            self._server.send(client, began)

    def _run(self, client: bytes, message: CellMessage) -> None:
        if refused := self._obstacle(message):
            self._server.send(client, m.CellRefused(message.cell, refused))
            return
        self._last_cell = message.cell
        if isinstance(message, m.Rebuild | m.Scale):
            self._generation = message.generation
        if isinstance(message, m.Scale):
            self._scale(message)
        began = m.CellBegan(
            message.cell, getattr(message, "label", type(message).__name__.lower()), message.ranks,
            getattr(message, "first_line", 1), time.perf_counter_ns(),
        )  # fmt: skip
        if isinstance(message, m.RunCell | m.CallFunction):
            self._journal.begin(began, client)
            self._unattended.begin(message.cell, message.ranks)
        if isinstance(message, m.RunCell) and message.is_init:
            self._init_cells.began(message)
        self._busy |= dict.fromkeys(message.ranks & self._ready, message.cell)
        self._server.send_all(began, but=client)
        self.below.begin(message)

    def _scale(self, order: m.Scale) -> None:
        """Who connects from now on finds a cluster of so many ranks."""
        scaled = self._spec.scaled(
            order.world_size, order.mesh, order.placement, groups_before_mesh=order.num_groups
        )  # fmt: skip
        scaled.save_again(self._folder.spec)
        self._init_cells.scaled(self._spec.world_size, order.world_size)
        self._spec = scaled
        self._scaling, self._unscaled = order.cell, order.ranks
        self._ready = self._ready & RankSet.all(order.world_size)
        self.tell(m.Scaled(order.world_size, order.mesh, order.placement))

    def _obstacle(self, message: CellMessage) -> str:
        """Why a cell cannot begin: its notebook did not know yet of what another one did; "" if it can."""
        if not self._last_cell < message.cell < _MOST_CELLS:
            return f"number {message.cell} is taken: another notebook has just begun a cell; run it again"
        busy = RankSet(rank for rank in message.ranks if rank in self._busy)
        if not busy:
            return ""
        return f"{busy.words()} still run{'s' if len(busy) == 1 else ''} a cell of another notebook; run it again later"

    # --- questions ------------------------------------------------------------------------------------------

    def _answer(self, client: bytes, asked: m.Ask) -> None:
        def answer(value: Any) -> None:
            self._server.send(client, m.Answer(asked.request, value))

        question, argument = asked.question, asked.argument
        if question == "status":
            self.below.status(answer)
        elif question == "logs" and argument >= 0:
            self.below.log(argument, answer)
        elif question == "logs":
            path = self._folder.agent_log
            answer(path.read_text(errors="replace") if path.exists() else "")
        elif question == "cluster":
            answer(self._describe())
        elif question in ("init cells", "drop init cell"):
            answer(self._init_cells.rows() if question == "init cells" else self._init_cells.drop(argument))
        elif question == "leave" and client in self._server.connected:
            if (others := len(self._server.connected) - 1) == 0:
                self._end("its last notebook ended")
            answer(others)
        else:
            answer(None)

    def _describe(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "name": spec.cluster_name, "num_ranks": spec.world_size, "mesh": spec.mesh, "started_s": spec.started_s,
            "host": os.uname().nodename, "pid": os.getpid(), "notebooks": len(self._server.connected),
            "idle_left_s": self._presence.left_s(self._clock()), "idle_timeout_s": spec.idle_timeout_s,
            "num_ready": len(self._ready), "running": [_named(began) for began in self._journal.running],
            "unseen": [_named(began) for began in self._journal.unseen],
            "num_refused": self._refusals.total, "generation": self._generation, "room": self._room,
            "is_half_scaled": bool(self._unscaled),
            "threads_per_rank": spec.threads_per_rank,
        }  # fmt: skip


def _unknown(cell: int) -> bytes:
    return m.encode(m.CellRefused(cell, f"cell {cell} is not running, and nothing of it is kept"))


def _named(began: m.CellBegan) -> dict[str, Any]:
    return {"cell": began.cell, "label": began.label, "ranks": str(began.ranks)}
