"""A node that others are below: its own ranks, and nodes that speak with the head through it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec
from hpcnb.node.branch import Branch
from hpcnb.node.branches import Branches
from hpcnb.node.door import Watching
from hpcnb.node.levels import Above, Below, carry_out
from hpcnb.node.refusals import Refusals
from hpcnb.node.server import LinkServer, Lock

__all__ = ["Inner"]

LOG = logging.getLogger(__name__)


class Inner(Branches):
    """Its own ranks are one branch more, which needs no connection.

    Args:
        spec: Of the node.
        address: IP address of this node that those below it reach.
        keys: CURVE keys for them: public, secret.
        above: Whom to tell.
        selector: The agent's.
        refusals: Counts who and what is not let in.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        address: str,
        keys: tuple[str, str],
        *,
        above: Above,
        selector: Watching,
        refusals: Refusals,
        clock: Callable[[], float],
    ) -> None:
        self.host: Below  #: Set before the first turn: holds the ranks of this node.
        self._tree = spec.tree
        self._children = spec.tree.children(spec.node)
        super().__init__(
            LinkServer(f"tcp://{address}:*", Lock(*keys, spec.nodes_public), refusals, hellos=(m.NodeHello,)),
            spec.ranks_of_nodes,
            num_stages=len(self._children) + 1,
            silence_s=spec.silence_s, above=above, selector=selector, refusals=refusals, clock=clock,
        )  # fmt: skip
        self.public = keys[0]
        own = self._branches[spec.node] = Branch(spec.node, b"", "", 0.0)
        self._reach(own, [spec.node])
        self.own = _FromOwn(self, own, above)

    @property
    def below(self) -> list[int]:
        """Nodes that speak through this one."""
        return sorted(node for branch in self._by_client.values() for node in branch.nodes)

    def orphan(self) -> None:
        """The way from here to the head is lost: those below go there themselves."""
        self._send_all(self._by_client.values(), m.Orphaned())

    def finish(self, reason: str, *, is_whole: bool) -> None:
        """See Side; if it is this node only that ends, those below it go to the head."""
        if is_whole:
            super().finish(reason, is_whole=True)
        else:
            self.orphan()
            self._server.close()

    # --- who is who -----------------------------------------------------------------------------------------

    def _arrived(self, client: bytes, message: m.Join | m.NodeHello) -> None:
        if not isinstance(message, m.NodeHello) or message.node not in self._children:
            self._server.send(client, m.NodeRefused("this node is not above it"))
            return
        if message.node in self._branches:
            self._server.send(client, m.NodeRefused(f"node {message.node} has an agent already"))
            return
        self._let_in(client, message)
        self._above.tell(
            m.NodeBelow(message.node, message.host, message.started_ns, message.folder, message.address, message.public)
        )

    def _passed(self, branch: Branch, message: m.Message) -> None:
        if isinstance(message, m.Farewell):
            self._left(branch, f"the agent of node {branch.host} ended: {message.reason}")
            return
        if isinstance(message, m.NodeBelow):
            self._reach(branch, [message.node])
        elif isinstance(message, m.NodeLost):
            self._reach(branch, but=[message.node, *self._tree.below(message.node)])
        self._above.tell(message)

    def _left(self, branch: Branch, why: str) -> None:
        LOG.warning("%s", why)
        self._above.tell(m.NodeLost(branch.node, branch.host, why))
        self._cut(branch)

    # --- its own ranks --------------------------------------------------------------------------------------

    def _send(self, branch: Branch, message: m.Message | bytes) -> None:
        if branch.client:
            super()._send(branch, message)
            return
        message = m.decode(message) if isinstance(message, bytes) else message
        carry_out(self.host, message, lambda request, value: self._questions.hear(request, branch.node, value))


class _FromOwn:
    """What the ranks of this node say is heard like what other nodes say."""

    def __init__(self, inner: Inner, own: Branch, above: Above) -> None:
        self._inner = inner
        self._own = own
        self._above = above

    def tell(self, message: m.Message) -> None:
        """See Above."""
        self._inner._heard(self._own, message)  # noqa: SLF001 - one thing in two classes

    say = mention = tell

    def fail(self, reason: str, *, lines: list[str] | None = None, is_over: bool = False) -> None:
        """See Above."""
        self._above.fail(reason, lines=lines, is_over=is_over)
