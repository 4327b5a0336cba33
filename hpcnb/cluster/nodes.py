"""The nodes of a cluster as the notebook knows them: which belong to it now, and how they are started, also again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcnb.cluster.inbox import Inbox, raise_if_over
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem
from hpcnb.core import lifecycle
from hpcnb.core import messages as m
from hpcnb.core.errors import LaunchError
from hpcnb.core.launch import AgentSpec, RunFolder, Ticket
from hpcnb.core.ranks import RankSet

__all__ = ["Nodes"]

#: Launches are looked at so often.
_LOOK_S = 0.05
#: Of what was said by nodes that have not joined, so many lines are told.
_MOST_SAID = 3


class Nodes:
    """Those of one running cluster.

    Args:
        spec: Of its head.
        launcher: Returns what starts them; asked when something is to be started.
    """

    def __init__(self, spec: AgentSpec, launcher: Callable[[], NodeLauncher]) -> None:
        self._spec = spec
        self._make_launcher = launcher
        self._launcher: NodeLauncher | None = None
        self._here: set[int] = set()
        self._folders: dict[int, tuple[str, RunFolder]] = {}
        self._address = ""
        self._told = ""
        self.problem: Problem | None = None  #: Of the launch that failed last.
        self._ranks = spec.ranks_of_nodes

    @property
    def layout(self) -> tuple[int, ...]:
        """Number of ranks of each node."""
        return tuple(self._spec.layout)

    def hear(self, message: m.Message) -> None:
        """What the head says; on the link thread."""
        match message:
            case m.Listening():
                self._address = message.address
            case m.NodeJoined():
                self._here.add(message.node)
                self._folders[message.node] = message.host, RunFolder(Path(message.folder))
            case m.NodeLost():
                self._here.discard(message.node)
            case m.Scaled():
                self._ranks = [RankSet(ranks) for ranks in message.placement]

    def flood(self, cell: int, rank: int) -> str:
        """File with the whole output of a rank, where it was cut: ``n2:/tmp/...``, as scp takes it."""
        node = next(number for number, ranks in enumerate(self._ranks) if rank in ranks)
        host, folder = self._folders[node]
        return f"{host}:{folder.flood(cell, rank)}"

    # --- starting -------------------------------------------------------------------------------------------

    def launch(self, nodes: list[int] | None = None) -> None:
        """Start these nodes, or all; the head hears them."""
        if self._launcher is None:
            self._launcher = self._make_launcher()
        spec = self._spec
        ticket = Ticket(spec.cluster_name, self._address, spec.server_public, spec.nodes_public, spec.nodes_secret)
        self._launcher.launch(ticket, range(len(spec.layout)) if nodes is None else nodes)

    def step(self, message: object) -> list[lifecycle.Event]:
        """While the cluster starts: launch when the head listens; returns what is new of the launch."""
        if isinstance(message, m.Listening):
            self.launch()
        if (problem := self.look()) is not None:
            self.problem = problem
            return [lifecycle.StartFailure(problem.reason, problem.lines, problem.version_mismatch)]
        if (words := self.words()) in ("", self._told):
            return []
        self._told = words
        return [lifecycle.NodesWait(words)]

    def look(self) -> Problem | None:
        """Whether a node will not start."""
        return self._launcher.look() if self._launcher is not None else None

    def words(self) -> str:
        """How far the launch is; "" for nothing of note."""
        return self._launcher.words() if self._launcher is not None else ""

    def missing(self) -> str:
        """Which nodes have not joined, and what they said last; "" if all have."""
        launcher = self._launcher
        if launcher is None or len(self._here) == len(self._ranks):
            return ""
        names = [launcher.called(node) for node in range(len(self._ranks)) if node not in self._here]
        said = [f"said last: {line.strip()}" for line in launcher.said()[-_MOST_SAID:]] or ["said nothing"]
        have = f"node{'s' if len(names) > 1 else ''} {', '.join(names)} ha{'ve' if len(names) > 1 else 's'} not joined"
        return "; ".join(filter(None, [have, launcher.words(), *said]))

    def logs(self) -> list[str]:
        """Files on the nodes that have joined, with what their agents wrote."""
        return [str(folder.agent_log) for _, folder in self._folders.values()]

    @property
    def is_queued(self) -> bool:
        """Whether a scheduler has yet to begin."""
        return self._launcher is not None and self._launcher.is_queued

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """While nodes are waited for: those that were launched have joined at its end, or are given up."""
        try:
            yield
            if self._launcher is not None:
                self._launcher.started()
        finally:
            if self._launcher is not None:
                self._launcher.cancel()

    def ended(self) -> None:
        """The cluster has ended."""
        if self._launcher is not None:
            self._launcher.ended()

    async def bring_back(self, ranks: RankSet, inbox: Inbox, *, timeout_s: float) -> None:
        """Start nodes again that are lost and had some of these ranks.

        Raises:
            CellInterrupted: Ctrl-C was pressed.
            ClusterStateError: This notebook lets go of the cluster.
            LaunchError: A node does not start.
            LinkError: The cluster ended.
        """
        missing = [node for node, theirs in enumerate(self._ranks) if theirs & ranks and node not in self._here]
        if not missing:
            return
        until_s = time.monotonic() + timeout_s
        self.launch(missing)
        with self.launching():
            while not self._here.issuperset(missing):
                raise_if_over(await inbox.next(_LOOK_S), "it was interrupted before the node was back")
                if (problem := self.look()) is not None:
                    raise LaunchError("\n    ".join([problem.reason, *problem.lines]))
                if self.is_queued:
                    until_s = time.monotonic() + timeout_s
                if time.monotonic() > until_s:
                    msg = f"not within {timeout_s:.0f} s: {self.missing()};  %hpc doctor  checks what is wrong"
                    raise LaunchError(msg)
