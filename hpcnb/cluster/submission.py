"""What is sent to the ranks of a cluster and waited for, one thing at a time: cells, and what mends groups around them.

Knows ranks, messages and results; knows nothing of how a cluster is started or found. Its sequences are coroutines that
``inbox.drive`` or ``inbox.drive_async`` runs, inside :meth:`Submitter.command`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from hpcnb.cluster import recovery, scaling, waiting
from hpcnb.cluster.cell_run import CellRun, CellView
from hpcnb.cluster.history import History
from hpcnb.cluster.inbox import Inbox
from hpcnb.cluster.node import Node
from hpcnb.cluster.nodes import Nodes
from hpcnb.cluster.result import CellResult
from hpcnb.cluster.roster import Roster, still_run
from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.errors import CellFailed, CellInterrupted, ClusterStateError, LaunchError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

__all__ = ["Submitter"]

#: Another notebook may hear so much earlier than this one that its cell is over, and a person may be as fast.
_LAG_S = 0.25
#: Cells whose spans are kept for ``timeline()``, and how much of them.
_KEPT_CELLS, _KEPT_BYTES = 200, 32 << 20


class Submitter:
    """The ranks of a cluster, as far as they run things.

    Args:
        mesh: Axis names and sizes; its ranks are those of the cluster.
        node: Returns the node of the running cluster; raises ClusterStateError if it is not running.
        grace_s: Ranks that wait for others that will not come are released after so long.
        auto_restart: Replace ranks whose process ended when their cell is over.
    """

    def __init__(self, mesh: MeshSpec, node: Callable[[], Node], *, grace_s: float, auto_restart: bool) -> None:
        self.mesh = mesh
        self.placement: list[list[int]] = []  #: Ranks of each node, where there are many.
        self.roster = Roster(mesh.num_ranks)
        self.inbox = Inbox()
        self.history = History(_KEPT_CELLS, _KEPT_BYTES)
        self.last_result: CellResult | None = None
        self._node = node
        self.grace_s = grace_s
        self._auto_restart = auto_restart
        self.nodes: Nodes | None = None  #: Of the running cluster, where there are many.
        self._numbers = itertools.count(1)  # of everything that ranks answer
        self._labels = itertools.count(1)  # of cells that have no name of their own
        self._lock = threading.Lock()
        self._command: waiting.Command | None = None
        self._generation = 0
        self._is_broken = False  # groups must be built again before the next cell, whatever ranks say of them
        self._rejoining: Inbox | None = None
        self._pressed = 0  # the cell that went on after Ctrl-C

    def reset(self, mesh: MeshSpec) -> None:
        """The cluster starts anew, with these ranks."""
        self.mesh = mesh
        self.roster.resize(mesh.num_ranks)
        self.roster.clear()
        self.inbox = Inbox()
        self._generation = 0
        self._is_broken = False

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.mesh.num_ranks

    # --- messages (link thread) -----------------------------------------------------------------------------

    def hear(self, message: m.Message, *, is_starting: bool) -> None:
        """An agent said something; while the cluster starts somebody else takes it from the inbox."""
        num_rebuilt = self.roster.num_rebuilt
        self.roster.hear(message)
        if self.roster.num_rebuilt != num_rebuilt:
            self._is_broken = False  # another notebook has done it
        if isinstance(message, m.Scaled):
            self.mesh, self.placement = MeshSpec.parse(message.mesh), message.placement
        if isinstance(message, m.Welcome):
            self._generation = message.generation
            self._is_broken = message.is_broken
            self._numbers = itertools.count(max(next(self._numbers), message.last_cell + 1))
        elif isinstance(message, m.CellBegan):  # of another notebook: its number is taken
            self._numbers = itertools.count(max(next(self._numbers), message.cell + 1))
        if self._command is not None or is_starting:  # else nobody takes it
            self.inbox.put(message)
        if self._rejoining is not None:
            self._rejoining.put(message)

    def let_go(self) -> None:
        """Whoever waits for something hears nothing more."""
        for inbox in (self.inbox, self._rejoining):
            if inbox is not None:
                inbox.put(watch.LetGo())

    # --- commands -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def command(self) -> Iterator[waiting.Command]:
        """While a person waits for something: nothing else is submitted from here, and Ctrl-C ends it.

        Raises:
            ClusterStateError: The cluster is not running, or somebody waits for something already.
        """
        self._node()
        if not self._lock.acquire(blocking=False):
            msg = "another cell is running on this cluster; wait for it, or type %hpc interrupt"
            raise ClusterStateError(msg)
        try:
            self._command = command = waiting.Command()
            with waiting.sigint_as_event(command):
                yield command
        finally:
            self._command = None
            self._lock.release()

    def interrupt(self) -> None:
        """Interrupt what is waited for, else whatever the ranks run; from any thread."""
        node = self._node()
        if (command := self._command) is not None:
            command.press()
        else:
            node.link.send(m.Interrupt(0, RankSet.all(self.world_size)))

    def next_label(self) -> str:
        """For a cell that has no name of its own."""
        return f"cell {next(self._labels)}"

    async def cell(
        self,
        make: Callable[[int, RankSet], m.Message],
        ranks: RankSet,
        *,
        label: str,
        timeout_s: float | None = None,
        view: CellView | None = None,
    ) -> CellResult:
        """Submit what ``make(cell, ranks)`` returns, wait for it, and mend what it broke.

        Raises:
            CellInterrupted: Ctrl-C was pressed while groups were mended first; the cell was not run.
        """
        if self.is_broken and not self.busy:  # ranks that kept it from being done have answered since
            await self._mend()
            if self._present.given_up:
                msg = f"interrupted while process groups were built again; {label} was not run"
                raise CellInterrupted(msg)
        unmended = self.busy if self.is_broken else RankSet()
        run = await self._on_ranks(make, ranks, timeout_s=timeout_s, view=view, label=label)
        result = run.result
        if unmended and any(error.ename == "CollectiveAborted" for error in result.errors.values()):
            cells = [each.label for each in self.history if each.busy & unmended] or ["an earlier cell"]
            result.explanations.append(f"process groups cannot be used while {still_run(unmended)} {cells[-1]}")
        if result.is_broken or result.is_uneven:
            self._is_broken = True
            self._tell(result, await self._recover_from(result))
        return self._conclude(run, view)

    async def aside(
        self, make: Callable[[int, RankSet], m.Message], ranks: RankSet, *, label: str, view: CellView | None = None
    ) -> CellResult:
        """Run what is no cell of the person's: the last result and the timeline stay those of their cells."""
        run = await self._on_ranks(make, ranks, timeout_s=None, view=view, label=label)
        if view is not None:
            view.finish(run, run.result)
        return run.result

    async def follow(self, cell: int, view: CellView | None = None, *, presses: int = 0) -> CellResult:
        """Show a cell that another notebook has submitted; that one mends what it broke, if it is still there.

        Args:
            cell: Number of the cell.
            view: Shows it.
            presses: Ctrl-C is pressed so often at once.
        """
        node = self._node()
        is_over = cell in [each["cell"] for each in self.describe()["unseen"]]
        num_rebuilt = self.roster.num_rebuilt
        self.inbox = inbox = Inbox()
        with self._present.waits(inbox):
            node.link.send(m.Follow(cell))
            began = await waiting.await_began(node, inbox, cell)
            run = CellRun(
                cell, began.label, began.ranks, self.world_size, grace_s=self.grace_s, began_ns=began.began_ns
            )
            for _ in range(presses):
                inbox.put(watch.InterruptAsked(time.monotonic()))
            await waiting.CellWait(run, node, inbox, timeout_s=None, view=view).wait()
        self._settle(run, node)
        self._pressed = cell if run.watch.interrupted and run.result.busy else 0
        result = run.result
        if is_over:
            if self.is_broken or result.is_uneven:  # else another notebook has built groups again since
                self._tell(result, await self._recover_from(result))
        elif result.is_broken or result.is_uneven:
            words = await self._mended_elsewhere(num_rebuilt, RankSet(result.exits))
            if words is None:
                self._is_broken = True
                words = await self._recover_from(result)
            self._tell(result, words)
        return self._conclude(run, view)

    async def interrupt_left(self) -> CellResult | None:
        """Interrupt the cell that runs and that nobody waits for here; None if there is none."""
        for each in self.describe()["running"]:
            return await self.follow(each["cell"], presses=1 + (each["cell"] == self._pressed))
        return None

    async def recover(self) -> int:
        """Build the groups of all ranks that live again; returns the new generation."""
        with self._present.mends():
            generation, _ = await self.rebuild()
        self._is_broken = False
        return generation

    async def scale(
        self, mesh: MeshSpec, placement: list[list[int]], *, tell: Callable[[str], None], notices: tuple[str, ...] = ()
    ) -> scaling.Scaled:
        """Give the cluster the ranks of ``mesh``; see :func:`hpcnb.cluster.scaling.scale`."""
        with self._present.mends():
            return await scaling.scale(self, mesh, placement, tell=tell, notices=notices)

    async def restart(self, ranks: RankSet) -> recovery.Restarted:
        """Replace ranks, dead or alive, by new processes."""
        with self._present.mends():
            if self.describe()["is_half_scaled"]:
                await scaling.settle(self)
            restarted = await recovery.restart(self, ranks)
        self._is_broken = False
        return restarted

    # --- mending --------------------------------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Whether groups must be built again before all ranks can communicate."""
        return self._is_broken or bool(self.roster.broken)

    async def _recover_from(self, result: CellResult) -> list[str]:
        """Mend what a cell broke; what was done, in words."""
        num_rebuilt = self.roster.num_rebuilt
        if self.busy & self.alive - result.busy:  # with what another notebook does about it
            words = await self._mended_elsewhere(num_rebuilt, RankSet(result.exits))
            if words is not None:
                return words
        ended = RankSet(result.exits) & self.roster.dead
        if ended and (self._auto_restart or result.killed) and not self.busy & self.alive:
            try:
                return [str(await self.restart(ended))]
            except CellInterrupted as error:
                return [f"{ended.words()} not replaced, since {error}; type  %hpc restart-rank  to try again"]
            except (CellFailed, ClusterStateError, LaunchError) as error:
                return [f"{ended.words()} could not be replaced; type  %hpc restart-rank  to try again\n{error}"]
        return await self._mend()

    async def _mend(self) -> list[str]:
        """Build groups again, or leave it to another notebook that was faster; what was done, in words."""
        num_rebuilt = self.roster.num_rebuilt
        try:
            with self._present.mends():
                is_done, words = await recovery.mend(self)
        except waiting.TakenElsewhere as error:
            elsewhere = await self._mended_elsewhere(num_rebuilt, RankSet())
            return elsewhere or [f"process groups could not be built again; the next cell begins with it\n{error}"]
        if is_done:
            self._is_broken = False
        return words

    async def _mended_elsewhere(self, num_rebuilt: int, ended: RankSet) -> list[str] | None:
        """Let another notebook build groups again; in words, or None if none does.

        Args:
            num_rebuilt: How often others had done so before the cell ended.
            ended: Ranks whose process ended in the cell.
        """

        def has_been() -> bool:
            return self.roster.num_rebuilt > num_rebuilt

        if not has_been() and self.describe()["notebooks"] < 2:
            return None
        try:
            with self._present.mends(), self._present.waits(self.inbox):
                if not await waiting.await_mended(self.inbox, has_been, lambda: bool(self.roster.dead)):
                    return None
        except CellInterrupted:
            return ["another notebook builds process groups again; waiting for it was interrupted"]
        self._is_broken = False
        return recovery.built(f"by another notebook (generation {self.describe()['generation']})", self.alive,
                              self.roster.dead, ended & self.alive)  # fmt: skip

    def _tell(self, result: CellResult, words: list[str]) -> None:
        """What was done, in the result; not that groups were built again to be sure, though nothing seemed wrong."""
        if result.is_broken or self.is_broken:
            result.recovery = words

    # --- what recovery needs --------------------------------------------------------------------------------

    async def serve(
        self,
        make: Callable[[int, RankSet], m.Message],
        ranks: RankSet,
        *,
        label: str,
        timeout_s: float,
        needs: RankSet | None = None,
    ) -> CellResult:
        """Send a message of our own to ranks and wait; it is in no history. Given up if one of ``needs`` ends."""
        return (await self._on_ranks(make, ranks, timeout_s=timeout_s, label=label, needs=needs)).result

    async def rebuild(self) -> tuple[int, list[str]]:
        """Build the groups of all ranks that live again; returns the new generation, and what ranks have to say."""
        if self.describe()["is_half_scaled"]:
            return await scaling.settle(self)
        return await recovery.rebuild(self, self.alive, self.roster.dead)

    def mended(self) -> None:
        """Groups are whole."""
        self._is_broken = False

    def resume(self) -> None:
        """What Ctrl-C has stopped is undone: another press is for that."""
        self._present.resume()

    async def bring_back(self, ranks: RankSet, *, timeout_s: float) -> None:
        """Start nodes again that are lost with some of these ranks; the ranks are not started by that."""
        if self.nodes is not None:
            with self.rejoining(RankSet()) as inbox:
                await self.nodes.bring_back(ranks, inbox, timeout_s=timeout_s)

    def tell(self, message: m.Message) -> None:
        """Send a message that is not answered by ranks."""
        self._node().link.send(message)

    def init_cells(self) -> list[tuple[str, str, int, RankSet]]:
        """Cells that were marked with ``--init``, in order: source, label, first line, ranks."""
        return [tuple(each) for each in self._node().ask("init cells")]

    def describe(self) -> dict[str, Any]:
        """The cluster as its agent sees it."""
        described: dict[str, Any] = self._node().ask("cluster")
        return described

    def next_generation(self) -> int:
        """A number for process groups that are about to be built; a try that fails uses it up."""
        self._generation = max(self._generation, self.describe()["generation"]) + 1  # another notebook may have built
        return self._generation

    @property
    def alive(self) -> RankSet:
        """Ranks that have a process."""
        return self.roster.alive

    @property
    def busy(self) -> RankSet:
        """Ranks that have not answered a cell."""
        return self.roster.busy

    @contextlib.contextmanager
    def rejoining(self, ranks: RankSet) -> Iterator[Inbox]:
        """While ranks are forked again: what agents say, apart from the messages of cells."""
        inbox = Inbox()
        with self._present.waits(inbox):
            self._rejoining = inbox
            self._is_broken = True  # until all is done
            self.roster.forget(ranks)
            try:
                yield inbox
            finally:
                self._rejoining = None

    # --- one message to ranks -------------------------------------------------------------------------------

    @property
    def _present(self) -> waiting.Command:
        assert self._command is not None, "a sequence runs inside command()"
        return self._command

    async def _on_ranks(
        self,
        make: Callable[[int, RankSet], m.Message],
        ranks: RankSet,
        *,
        timeout_s: float | None,
        label: str,
        view: CellView | None = None,
        needs: RankSet | None = None,
    ) -> CellRun:
        """Send a message to ranks, wait, and complete the result."""
        node = self._node()
        self.inbox = inbox = Inbox()  # before looking: who ends from now on is heard of
        until_s = time.monotonic() + _LAG_S
        while self.roster.busy_elsewhere & ranks and time.monotonic() < until_s:
            await inbox.next(_LAG_S / 10)
        self.roster.check(ranks)
        cell = next(self._numbers)
        run = CellRun(cell, label, ranks, self.world_size, grace_s=self.grace_s)
        message = make(cell, ranks)
        with self._present.waits(inbox):
            run.submitted_ns = time.perf_counter_ns()
            self._send_cell(node, message, cell, ranks)
            wait = waiting.CellWait(run, node, inbox, timeout_s=timeout_s, view=view)
            wait.needs = needs or RankSet()
            await wait.wait()
        self._settle(run, node)
        self._pressed = cell if run.watch.interrupted and run.result.busy else 0
        if run.watch.timed_out:
            run.result.timeout_s = timeout_s
        return run

    def _send_cell(self, node: Node, message: m.Message, cell: int, ranks: RankSet) -> None:
        self.roster.begin(ranks, cell)
        try:
            node.link.send(message)
        except BaseException:  # it was not sent: they do not run it
            self.roster.take_back(cell)
            raise

    def _settle(self, run: CellRun, node: Node) -> None:
        """The wait is over: complete the result."""
        for ended in self.roster.exited(RankSet(run.result.exits)):
            run.heard_before(ended)
        cell, nodes = run.result.cell, self.nodes

        def flood_file(rank: int) -> str:
            return str(node.folder.flood(cell, rank)) if nodes is None else nodes.flood(cell, rank)

        result = run.finish(flood_file=flood_file)
        if result.busy:
            states = {row["rank"]: row["state"] for row in self._node().ask("status") if row["rank"] in result.busy}
            result.busy_states = states | result.busy_states

    def _conclude(self, run: CellRun, view: CellView | None) -> CellResult:
        """Keep the result of a person's cell, and show it."""
        self.last_result = run.result
        self.history.append(run.result)
        if view is not None:
            view.finish(run, run.result)
        return run.result
