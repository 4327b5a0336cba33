"""The head of a cluster of many nodes: who joins, what it is to be, who is lost, and who comes back another way."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core import tree
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.core.version import __version__
from hpcnb.node import store
from hpcnb.node.branch import Branch
from hpcnb.node.branches import Branches
from hpcnb.node.door import Watching
from hpcnb.node.levels import Above
from hpcnb.node.members import Member, Members
from hpcnb.node.refusals import Refusals
from hpcnb.node.server import LinkServer, Lock

__all__ = ["Head"]

LOG = logging.getLogger(__name__)


class Head(Branches):
    """Those of its nodes that speak with it, and in what state all are.

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
        self._members = Members(spec.ranks_of_nodes)
        self._joining: dict[bytes, m.Join] = {}  # until there is what they need
        self._of_controller = b""  # which is one of these
        lock = Lock(spec.server_public, spec.server_secret, spec.nodes_public)
        super().__init__(
            LinkServer(f"tcp://{spec.address}:*", lock, refusals, hellos=(m.Join, m.NodeHello)),
            spec.ranks_of_nodes,
            num_stages=len(spec.tree.children(tree.HEAD)),
            silence_s=spec.silence_s, above=above, selector=selector, refusals=refusals, clock=clock,
        )  # fmt: skip

    def start(self) -> None:
        """See Side."""
        super().start()
        self._above.tell(m.Listening(self.address))

    def turn(self, now_s: float) -> None:
        """See Side."""
        super().turn(now_s)
        if self._joining and not self._of_controller:
            self._of_controller = self._folder.of_controller()
        if self._of_controller:
            for client, join in list(self._joining.items()):
                self._assign(client, join)
        for member in self._members.overdue(now_s):
            self._lose(member, f"node {member.host} did not come back after the node between was lost")
            for merge in list(self._cells.values()):
                self._say(merge.ended(member.node, time.perf_counter_ns()))

    def finish(self, reason: str, *, is_whole: bool) -> None:
        """See Side."""
        for client in self._joining:
            self._server.send(client, m.NodeRefused(reason))
        super().finish(reason, is_whole=is_whole)
        self._store.kill()
        self._store.wait()

    # --- who comes ------------------------------------------------------------------------------------------

    def _arrived(self, client: bytes, message: m.Join | m.NodeHello) -> None:
        if isinstance(message, m.NodeHello):
            self._greet(client, message)
        elif problem := self._obstacle(message):
            self._server.send(client, m.NodeRefused(problem))
        else:
            self._joining[client] = message

    def _obstacle(self, join: m.Join) -> str:
        """Why a process cannot become the agent of a node; "" if it can."""
        mine = (m.PROTOCOL, __version__, self._spec.python_version)
        if (join.protocol, join.hpcnb_version, join.python_version) != mine:
            return (
                f"VERSION the notebook runs hpcnb {mine[1]} on Python {mine[2]}, node {join.host} runs hpcnb "
                f"{join.hpcnb_version[:40]} on Python {join.python_version[:40]}"
            )
        if join.node not in self._members:
            return f"the cluster has {len(self._members)} nodes, none of them is number {join.node}"
        if (member := self._members[join.node]).is_here:
            return f"node {join.node} has an agent already, on {member.host}"
        return ""

    def _assign(self, client: bytes, join: m.Join) -> None:
        """Say what it is to be, as soon as who will be above it is here."""
        member, above, is_late = (
            self._members[join.node],
            self._spec.tree.parent(join.node),
            bool(self._is_known(join.node)),
        )
        uplink, public = self.address, self._spec.server_public
        if above != tree.HEAD and not is_late:
            if not self._members[above].address:
                return
            uplink, public = self._members[above].address, self._members[above].public
        del self._joining[client]
        spec = dataclasses.replace(
            self._spec, first_rank=min(member.ranks, default=0), num_ranks=len(member.ranks), node=join.node,
            is_local=False, link_address="", server_secret="", client_secret="", client_public="", owner_pid=0,
            uplink=uplink, uplink_public=public, head=self.address, rendezvous=self._rendezvous, is_late=is_late,
            is_relay=not is_late and bool(self._spec.tree.children(join.node)),
        )  # fmt: skip
        file = self._folder.connection_file("engine").relative_to(self._folder.path)
        self._server.send(client, m.Assignment(dataclasses.asdict(spec), {str(file): self._of_controller}))

    def _is_known(self, node: int) -> bool:
        """Whether it had an agent before."""
        return self._members[node].started_ns != 0

    def _greet(self, client: bytes, hello: m.NodeHello) -> None:
        known = hello.node in self._members and hello.protocol == m.PROTOCOL
        member = self._members[hello.node] if known else None
        is_again = member is not None and member.started_ns == hello.started_ns
        if member is None or (is_again and (not member.is_here or member.via == member.node)):
            # it was given up; or its connection was made anew, and what was on its way then is lost
            self._server.send(client, m.NodeRefused(f"node {hello.node} was given up by the head of the cluster"))
        elif member.is_here and not is_again:
            self._server.send(client, m.NodeRefused(f"node {hello.node} has an agent already, on {member.host}"))
        elif is_again:
            self._adopt(client, hello)
        else:
            self._joined(self._let_in(client, hello), hello)

    def _joined(self, branch: Branch, hello: m.NodeHello | m.NodeBelow) -> None:
        """A node is new, and reached through this branch."""
        member = self._members[hello.node]
        member.host, member.started_ns, member.via = hello.host, hello.started_ns, branch.node
        member.address, member.public = hello.address, hello.public
        self._reach(branch, [member.node])
        self._above.tell(m.NodeJoined(hello.node, hello.host, member.ranks, hello.folder))

    def _adopt(self, client: bytes, hello: m.NodeHello) -> None:
        """It spoke through another node, which is lost, and speaks with us from now on; so do those below it."""
        LOG.info("node %s comes to the head itself", hello.host)
        before = self._branches.get(self._members[hello.node].via)  # which we hold for living
        if before is not None:
            self._reach(before, but=[hello.node, *hello.below])
        branch = self._let_in(client, hello)
        members = self._members.come([hello.node, *hello.below], hello.node)
        self._reach(branch, [member.node for member in members])
        nodes = {member.node for member in members}
        for cell, merge in self._cells.items():
            is_open = before is not None and before.node in merge.waiting and branch.ranks & merge.ranks
            if is_open or merge.waiting & nodes:
                merge.waiting = merge.waiting - nodes | {hello.node}
                if cell not in hello.cells:
                    self._send(branch, merge.packed)

    def _scaled(self, message: m.Scale) -> None:
        self._spec = self._spec.scaled(
            message.world_size, message.mesh, message.placement, groups_before_mesh=message.num_groups
        )
        self._members.place(self._spec.ranks_of_nodes)
        super()._scaled(message)

    # --- who is lost ----------------------------------------------------------------------------------------

    def _left(self, branch: Branch, why: str) -> None:
        orphans = self._members.orphaned(branch.node, self._clock())
        self._expect(branch, orphans)
        waited_in = {rank: branch.waits_in(rank) for rank in branch.ranks}
        self._lose(self._members[branch.node], why, waited_in)
        self._cut(branch)

    def _expect(self, branch: Branch, orphans: list[Member]) -> None:
        """Cells are not over before these have ended them, who will come to us."""
        self._reach(branch, but=[member.node for member in orphans])
        for merge in self._cells.values():
            merge.instead(branch.node, (member.node for member in orphans if member.ranks & merge.ranks))

    def _lose(self, member: Member, why: str, waited_in: dict[int, str] | None = None) -> None:
        """Give a node up: its ranks will not answer."""
        LOG.warning("%s: ranks %s are given up", why, member.ranks)
        self._above.tell(m.NodeLost(member.node, member.host, why))  # first: who hears of ranks may start them again
        for rank, pid in sorted(self._members.lose(member.node).items()):
            was_in = (waited_in or {}).get(rank, "")
            self._above.tell(m.RankExited(rank, pid, -9, [], False, was_in, "", 0.0, False, f"was lost: {why}"))

    # --- what nodes say of themselves -----------------------------------------------------------------------

    def _passed(self, branch: Branch, message: m.Message) -> None:
        match message:
            case m.NodeBelow():
                self._joined(branch, message)
            case m.RankReady():
                if self._members.begin(message.rank, message.pid):
                    self._above.tell(message)
            case m.RankExited():
                if self._members.end(message.rank, message.pid):
                    self._above.tell(message)
            case m.Failed():
                member = self._members[message.node]
                reason = f"node {member.host}: {message.reason}"
                self._above.fail(reason, lines=message.log_lines)
                if message.is_over and member.node == branch.node:
                    self._left(branch, reason)
            case m.NodeLost() if self._members[message.node].via == branch.node:
                member = self._members[message.node]
                below = self._spec.tree.below(member.node)
                orphans = [each for each in self._members.orphaned(branch.node, self._clock()) if each.node in below]
                self._expect(branch, orphans)
                self._reach(branch, but=[member.node])
                self._lose(member, message.why, {rank: branch.waits_in(rank) for rank in member.ranks})
            case m.Farewell():
                self._left(branch, f"the agent of node {branch.host} ended: {message.reason}")

    def status(self, answer: Callable[[list[dict[str, Any]]], None]) -> None:
        """See Below; of a node that does not answer in time its ranks are told to be silent."""

        def whole(rows: list[dict[str, Any]]) -> None:
            known = {row["rank"]: row for row in rows}
            for node in range(len(self._members)):
                member = self._members[node]
                state = "silent" if member.is_here else "dead"
                for rank in member.ranks:
                    known.setdefault(rank, _row(rank, member.host, state))
            answer([row for _, row in sorted(known.items())])

        super().status(whole)


def _row(rank: int, host: str, state: str) -> dict[str, Any]:
    return {"rank": rank, "host": host, "pid": 0, "device": "", "state": state, "memory_mb": 0.0}
