"""Cluster: start ranks, run cells on them, stop them. Notebook side; every magic is a thin line over this."""

from __future__ import annotations

import datetime
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from hpcnb.cluster import asking, check, dask_on_ranks, leaving, machine, recovery, scaling, waiting
from hpcnb.cluster.cell_run import CellRequest, CellView
from hpcnb.cluster.dask_on_ranks import DaskOnRanks
from hpcnb.cluster.export.ran import RanCells
from hpcnb.cluster.inbox import drive, drive_async
from hpcnb.cluster.launchers import local
from hpcnb.cluster.launchers import make as make_launcher
from hpcnb.cluster.launchers.nodes import NodeLauncher
from hpcnb.cluster.node import Node
from hpcnb.cluster.nodes import Nodes
from hpcnb.cluster.result import CellResult
from hpcnb.cluster.submission import Submitter
from hpcnb.cluster.visit import Plan
from hpcnb.core import lifecycle, placement, replicas, tree, watch
from hpcnb.core import messages as m
from hpcnb.core.errors import CellInterrupted, ClusterStateError, LaunchError, OptionError, TransferError
from hpcnb.core.launch import IDLE_TIMEOUT_S, SILENCE_S, AgentSpec, RunFolder
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet
from hpcnb.core.selection import SelectionContext, select

if TYPE_CHECKING:
    import distributed
    import ipyparallel as ipp
    from typing_extensions import Self

    from hpcnb.cluster.check import CheckResult
    from hpcnb.cluster.export.setting import Setting
    from hpcnb.cluster.export.write import Exported
    from hpcnb.timing.timeline import Timeline

__all__ = ["Cluster", "current", "held", "starting"]

#: Lines and characters of a flood that the notebook shows, over all ranks.
_LINE_BUDGET, _BYTE_BUDGET = 2400, 200_000
#: Messages of our own to all ranks are answered at once by idle ranks.
_SERVICE_TIMEOUT_S = 60.0

_T = TypeVar("_T")


class Cluster:
    """Ranks on this machine or others, and the notebook's hold on them. Also a context manager.

    Args:
        num_ranks: World size; by default one rank per GPU, else one per core up to 4.
        launcher: Who starts the node agents; ``local`` is this machine, ``ssh`` hosts.
        mesh: Axis names and sizes, ``dp=2,tp=2``; by default one axis ``dp`` over all ranks.
        name: What the cluster is called.
        idle_timeout_s: The cluster ends itself this long after the last notebook has gone; 0 ends it at once.
        threads_per_rank: OpenMP and torch threads of a rank; by default cores divided by ranks, at least 1.
        environment: Extra environment variables of the ranks.
        python: Interpreter of the ranks; by default the notebook's.
        start_timeout_s: A start that takes longer fails.
        record: Whether the recorder is on from the start.
        grace_s: Ranks that wait for others that will not come are released after so long; None for never.
        auto_restart: Replace ranks whose process ended when their cell is over.
        silence_s: A node that has not been heard of for so long is given up.
        launcher_options: Of the launcher, for example ``hosts="n1,n2"``; see its file in ``cluster/launchers``.

    Raises:
        MeshError: The mesh does not fit the number of ranks.
        OptionError: A number out of range, or an unknown launcher.
        UnsupportedPlatform: Ranks cannot run on this operating system.
    """

    def __init__(  # noqa: PLR0913 - all but the first are keyword-only and have a default
        self,
        num_ranks: int | None = None,
        *,
        launcher: str = "local",
        mesh: str | None = None,
        name: str = "default",
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        threads_per_rank: int | None = None,
        environment: dict[str, str] | None = None,
        python: str | None = None,
        start_timeout_s: float = 60.0,
        record: bool = True,
        grace_s: float | None = watch.GRACE_S,
        auto_restart: bool = False,
        silence_s: float = SILENCE_S,
        **launcher_options: Any,
    ) -> None:
        machine.check_platform()
        if num_ranks is None and mesh is not None:
            num_ranks = MeshSpec.parse(mesh).num_ranks
        if launcher != "local" and python is not None:  # of the ranks: the head runs on the notebook's
            launcher_options["python"], python = python, None
        self._launcher_options = launcher_options
        self._launcher = make_launcher(launcher, num_ranks, launcher_options)
        if self._launcher is not None:
            num_ranks = sum(self._launcher.layout)
        elif num_ranks is None:
            num_ranks = machine.default_num_ranks()
        if not isinstance(num_ranks, int) or isinstance(num_ranks, bool) or num_ranks < 1:
            msg = f"a cluster has at least 1 rank, not {num_ranks!r}; for example hpcnb.Cluster(4)"
            raise OptionError(msg)
        if threads_per_rank is not None and threads_per_rank < 1:
            msg = f"a rank has at least 1 thread, not {threads_per_rank!r}"
            raise OptionError(msg)
        self.name = name
        self.launcher = launcher
        self._idle_timeout_s = idle_timeout_s
        most_on_a_node = num_ranks if self._launcher is None else max(self._launcher.layout)
        self._threads_per_rank = threads_per_rank or machine.threads_per_rank(most_on_a_node)
        self._silence_s = silence_s
        self._environment = dict(environment or {})
        self._python = python
        self._start_timeout_s = start_timeout_s
        self._record = record
        self._state = lifecycle.Lifecycle(num_ranks)
        self._node: Node | None = None
        self._lock = threading.RLock()
        self._asked = MeshSpec.for_world(num_ranks, mesh)
        self._submitter = Submitter(
            self._asked,
            self._running_node,
            grace_s=float("inf") if grace_s is None else grace_s,
            auto_restart=auto_restart,
        )
        self._client: ipp.Client | None = None
        self._dask: DaskOnRanks | None = None
        self._ran = RanCells()
        self.start_stages: list[str] = []

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def mesh(self) -> MeshSpec:
        """Axis names and sizes."""
        return self._submitter.mesh

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.mesh.num_ranks

    @property
    def plan(self) -> Plan:
        """What a start would do, for the checks of ``hpcnb.doctor``."""
        layout = [self.world_size] if self._launcher is None else self._launcher.layout
        return Plan(self.name, layout, self._launcher, self._python, self._environment)

    @property
    def running(self) -> bool:
        """Whether the cluster has been started and not stopped."""
        return self._node is not None and self._state.phase == "running"

    @property
    def ended(self) -> bool:
        """Whether it has ended without :meth:`stop` of this notebook: another one stopped it, or its agent is gone."""
        node = self._node
        return node is not None and node.agent.ended() is not None

    @property
    def starting(self) -> bool:
        """Whether its start is under way, on whichever thread; ``start_stages`` says how far it is."""
        return self._node is not None and self._state.phase == "starting"

    def start(self, on_stage: Callable[[str], None] | None = None) -> Self:
        """Start the ranks; returns when all run cells and the process group is up.

        Args:
            on_stage: Called with words whenever a stage of the start is done.

        Raises:
            ClusterStateError: It has been started already.
            LaunchError: A stage failed; the text has the last lines of the log.
            VersionMismatch: Ranks run another version of hpcnb or Python.
        """
        if self._node is not None:
            msg = f"cluster {self.name!r} is running with {self.world_size} ranks already; stop it first: %hpc stop"
            raise ClusterStateError(msg)
        self._reset()
        # ahead of the launch: a start on a panel's thread does not outlive the notebook kernel either
        leaving.at_exit(self)
        global _starting  # noqa: PLW0603 - a panel shows how far it is
        _starting = weakref.ref(self)
        began_s = time.perf_counter()

        def tell(words: str) -> None:
            self.start_stages.append(words)
            if on_stage is not None:
                on_stage(words)

        try:
            self._node = self._launch()
            self._state = waiting.await_ready(
                self._node,
                self._submitter.inbox,
                self._state,
                timeout_s=self._start_timeout_s,
                on_stage=tell,
                nodes=self._submitter.nodes,
            )
        except LaunchError as error:
            from hpcnb.cluster import doctor  # only when a start has failed

            # ahead of the end, which removes logs
            explained = doctor.explained(error, self.plan, self._submitter.nodes, self._node)
            self.stop()
            raise explained from None
        except BaseException:
            self.stop()
            raise
        self.start_stages.append(f"{self.world_size} ranks ready {time.perf_counter() - began_s:.1f} s")
        self._take_hold()
        return self

    @classmethod
    def of_spec(cls, spec: AgentSpec) -> Self:
        """A cluster that was started elsewhere; :meth:`connect` takes hold of it."""
        cluster = cls(
            spec.world_size, mesh=spec.mesh, name=spec.cluster_name, idle_timeout_s=spec.idle_timeout_s,
            threads_per_rank=spec.threads_per_rank, environment=spec.environment, record=spec.record,
            grace_s=None if spec.grace_s == float("inf") else spec.grace_s,
        )  # fmt: skip
        cluster.launcher, cluster._launcher_options = spec.launcher, spec.launcher_options
        cluster._submitter.nodes = cluster._nodes_of(spec)
        return cluster

    def connect(self, open_node: Callable[[Callable[[m.Message], None]], Node]) -> None:
        """Take hold of the running cluster; ``open_node`` makes the link, given what hears its messages.

        Raises:
            LaunchError: It does not answer, or is not ready in time.
            VersionMismatch: It runs another version of hpcnb or Python.
        """
        self._reset()
        leaving.at_exit(self)
        try:
            self._node = open_node(self._on_message)
            self._state = waiting.await_ready(
                self._node,
                self._submitter.inbox,
                self._state,
                timeout_s=self._start_timeout_s,
                on_stage=self.start_stages.append,
            )
        except BaseException:
            self.detach()
            raise
        self._take_hold()

    def _take_hold(self) -> None:
        global _latest  # noqa: PLW0603 - magics run on the cluster that was started or attached to last
        _latest = weakref.ref(self)

    @property
    def key(self) -> str:
        """Name of its folder, which tells it from others of the same name; "" if it is not running."""
        node = self._node
        return node.folder.path.name if node is not None else ""

    def _launch(self) -> Node:
        folder = RunFolder.create(self.name)
        try:
            return self._launch_in(folder)
        except (OSError, ValueError, TypeError) as error:
            folder.remove()
            msg = f"the node agent cannot be started: {error}; look at python= and environment="
            raise LaunchError(msg) from error

    def _launch_in(self, folder: RunFolder) -> Node:
        spec = local.new_spec(
            folder, self.mesh, cluster_name=self.name, threads_per_rank=self._threads_per_rank,
            idle_timeout_s=self._idle_timeout_s, environment=self._environment, record=self._record,
            grace_s=self._submitter.grace_s, silence_s=self._silence_s, **self._of_nodes(),
        )  # fmt: skip
        spec.save(folder.spec)
        self._submitter.nodes = self._nodes_of(spec)  # before anything is heard
        return Node.launch(spec, folder, python=self._python, on_message=self._on_message)

    def _nodes_of(self, spec: AgentSpec) -> Nodes | None:
        self._submitter.placement = [list(ranks) for ranks in spec.ranks_of_nodes]

        def launcher() -> NodeLauncher:
            num_ranks = None if spec.placement else spec.world_size  # of a cluster that has been scaled nodes differ
            made = self._launcher or make_launcher(spec.launcher, num_ranks, spec.launcher_options)
            assert made is not None, "a cluster with a layout has a launcher of nodes"
            return made

        return Nodes(spec, launcher) if spec.layout else None

    def _of_nodes(self) -> dict[str, Any]:
        """What a spec has of a cluster of many nodes."""
        if self._launcher is None:
            return {}
        public, secret = local.new_keys()
        return {
            "layout": self._launcher.layout, "address": self._launcher.address, "is_local": False,
            "nodes_public": public, "nodes_secret": secret, "launcher": self.launcher,
            "launcher_options": self._launcher.lasting(self._launcher_options), "fanout": tree.FANOUT,
        }  # fmt: skip

    def _reset(self) -> None:
        self._submitter.reset(self._asked)
        self._state = lifecycle.Lifecycle(self.world_size)
        self._ran.clear()
        self.start_stages = []

    def stop(self) -> None:
        """End ranks, agent and controller, and remove what they left. Does nothing if not started."""
        if (node := self._let_go()) is not None:
            node.stop("stopped from the notebook")
            if self._submitter.nodes is not None:
                self._submitter.nodes.ended()

    def detach(self) -> None:
        """Let go: the cluster goes on, with all names, until its idle timeout; ``hpcnb.attach`` takes it again."""
        if (node := self._let_go()) is not None:
            self._submitter.let_go()  # before the link is closed: who waits must not send any more
            node.let_go()

    def leave(self) -> None:
        """Stop the cluster, but let go of it if other notebooks are connected."""
        node = self._let_go()
        has_ended = node is not None and node.leave("its last notebook ended")
        if has_ended and self._submitter.nodes is not None:
            self._submitter.nodes.ended()

    def end_soon(self) -> None:
        """Tell the agent that this notebook will end and will not come back; returns at once, from any thread."""
        if (node := self._node) is not None:
            node.link.send(m.Ask(0, "leave", 0))

    def _let_go(self) -> Node | None:
        with self._lock:
            node, self._node = self._node, None
            client, self._client = self._client, None
            dask, self._dask = self._dask, None
        if dask is not None:
            dask.close()
        if client is not None:
            client.close()
        return node

    def __enter__(self) -> Self:
        return self if self._node is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.running else "not started" if self._state.phase == "starting" else "stopped"
        return f"<Cluster {self.name!r}: {self.world_size} ranks, mesh {self.mesh}, {self.launcher}, {state}>"

    # --- messages (link thread) -----------------------------------------------------------------------------

    def _on_message(self, message: m.Message) -> None:
        if isinstance(message, m.CellBegan) and message.label.startswith("cell "):
            self._ran.add_other(f"{message.label.removeprefix('cell ')} (not run by this notebook)")
        elif isinstance(message, m.Welcome) and not self._ran.cells:
            self._ran.has_earlier = message.last_cell > 0
        if self._submitter.nodes is not None:
            self._submitter.nodes.hear(message)
        self._submitter.hear(message, is_starting=self._state.phase == "starting")

    def _running_node(self) -> Node:
        if self._node is None or self._state.phase != "running":
            msg = f"cluster {self.name!r} is not running; start it: %hpc start {self.world_size}, or cluster.start()"
            raise ClusterStateError(msg)
        self._node.check()
        return self._node

    # --- cells ----------------------------------------------------------------------------------------------

    def run(self, source: str, on: str = "all", timeout_s: float | None = None) -> CellResult:
        """Run source on ranks and wait for them.

        Args:
            source: A cell, as IPython takes it: top-level await, ``!`` and ``%`` work.
            on: Rank selection, see :mod:`hpcnb.core.selection`.
            timeout_s: Interrupt the cell when it runs longer.

        Returns:
            What happened, rank by rank; errors of ranks are in it and are not raised.

        Raises:
            ClusterStateError: Not running, a selected rank is dead, or an earlier cell still runs.
            SelectionError: ``on`` names no ranks of this cluster.
            KeyboardInterrupt: Ctrl-C was pressed; the ranks have been interrupted and ``last_result`` tells.
        """
        texts: dict[str, object] = {"source": source, "on": on}
        for name, given in texts.items():
            if not isinstance(given, str):
                msg = f"run() takes {name} as text, not a {type(given).__name__}; functions are for cluster.call"
                raise OptionError(msg)
        return self._do_for_script(lambda: self._cell(CellRequest(source, on=on, timeout_s=timeout_s)))

    def execute(self, request: CellRequest, view: CellView | None = None) -> CellResult:
        """Like :meth:`run`, for views: shows the cell while it runs, and returns also after Ctrl-C."""
        return self._do(lambda: self._cell(request, view))

    async def execute_async(self, request: CellRequest, view: CellView | None = None) -> CellResult:
        """Like :meth:`execute`, while the caller's event loop runs on, also while groups are mended."""
        with self._submitter.command():
            return await drive_async(self._cell(request, view))

    def _do(self, steps: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        with self._submitter.command():
            return drive(steps())

    def _do_for_script(self, steps: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """For callers that know Ctrl-C as an exception."""
        with self._submitter.command() as command:
            try:
                result = drive(steps())
            except CellInterrupted as error:
                if command.signalled:
                    raise KeyboardInterrupt(str(error)) from error
                raise
        if command.signalled:
            raise KeyboardInterrupt
        return result

    async def _cell(self, request: CellRequest, view: CellView | None = None) -> CellResult:
        if (timeout_s := request.timeout_s) is not None and timeout_s <= 0:
            msg = f"timeout {timeout_s:g} s: a timeout is more than 0 seconds"
            raise OptionError(msg)
        label = request.label or self._submitter.next_label()

        def message(cell: int, ranks: RankSet) -> m.Message:
            lines, size = max(40, _LINE_BUDGET // len(ranks)), max(4000, _BYTE_BUDGET // len(ranks))
            return m.RunCell(
                cell,
                ranks,
                request.source,
                label,
                request.first_line,
                request.want_pickles,
                lines,
                size,
                request.is_init,
            )

        ranks = self._select(request.on)
        result = await self._submitter.cell(message, ranks, timeout_s=timeout_s, view=view, label=label)
        self._ran.add(request.source, request.on, request.first_line, result)
        return result

    def _select(self, on: str) -> RankSet:
        return select(on, self.selection_context(slowest="slowest" in on))

    def call(self, function: Callable[..., Any], *args: Any, on: str = "all", **kwargs: Any) -> dict[int, Any]:
        """Call a function on ranks: ``{rank: value}``.

        Args:
            function: Importable by name on the ranks, else sent by cloudpickle.
            args: Positional arguments of the function.
            on: Rank selection.
            kwargs: Keyword arguments of the function.

        Raises:
            TransferError: Function, arguments or values cannot be pickled.
            CellFailed: A rank raised.
        """
        import cloudpickle

        try:
            payload = cloudpickle.dumps((function, args, kwargs), protocol=5)
        except Exception as error:
            msg = f"cannot send {getattr(function, '__name__', function)!r} and its arguments to the ranks: {error}"
            raise TransferError(msg) from error
        label = f"call of {getattr(function, '__name__', 'a function')}"
        ranks = self._select(on)
        result = self._do_for_script(
            lambda: self._submitter.cell(
                lambda cell, ranks: m.CallFunction(cell, ranks, payload, 1000, 100_000, label), ranks, label=label
            )
        )
        self._ran.add_other(f"{label} (cluster.call; put it into a cell)")
        result.raise_for_errors()
        values = result.objects()
        return {rank: values[rank] for rank in result.ranks}

    def join(self, view: CellView | None = None) -> CellResult:
        """Show a cell that another notebook, or an earlier life of this one, has begun; waits until it ends.

        What it said so far comes first. Ctrl-C interrupts the cell. Cells that have ended while no notebook followed
        them come before one that runs.

        Raises:
            ClusterStateError: No such cell, or a cell of this notebook is running.
        """
        described = self.describe()
        cells = [*described["unseen"], *described["running"]]
        if not cells:
            msg = "no cell is running on this cluster, and none has ended unseen; %hpc status shows the ranks"
            raise ClusterStateError(msg)
        return self.follow(cells[0]["cell"], view)

    def follow(self, cell: int, view: CellView | None = None) -> CellResult:
        """The same for a cell by its number."""
        return self._do(lambda: self._submitter.follow(cell, view))

    def interrupt(self) -> None:
        """Interrupt the running cell on all its ranks; from any thread. Names on the ranks are kept."""
        self._submitter.interrupt()

    def interrupt_left(self) -> CellResult | None:
        """Interrupt the cell that still runs and wait for it, as Ctrl-C does for a cell that is waited for.

        The second time it is for the same cell as the second press of Ctrl-C: stacks are shown, and ranks that do not
        answer even then are ended.

        Returns:
            How the cell ended, or which ranks still run it; None if no cell runs.

        Raises:
            ClusterStateError: The cluster is not running, or a cell of this notebook is waited for.
        """
        return self._do(self._submitter.interrupt_left)

    def recover(self) -> int:
        """Build the process groups of all ranks again, under a new generation; returns its number.

        Objects that hold a group (meshes, wrappers) go on working. All ranks must be idle. It is done by itself
        after a cell that broke them. Groups with dead ranks wait for ``restart_rank``.

        Raises:
            ClusterStateError: A rank is dead or busy.
            CellFailed: Building failed on a rank.
            CellInterrupted: Ctrl-C was pressed; the next cell begins with building them.
        """
        return self._do(self._submitter.recover)

    def restart_rank(self, *ranks: int) -> recovery.Restarted:
        """Replace ranks, dead or alive, by new processes that join groups and mesh; their names are lost.

        Cells that were marked with ``--init`` run again on them.

        Args:
            ranks: Global ranks; without any, those that are dead.

        Returns:
            How long it took, what was run again, and which names other ranks have and the new ones lack.

        Raises:
            OptionError: There is no such rank, or none is dead.
            CellInterrupted: Ctrl-C was pressed before the new ranks were ready; they are dead until this is done again.
            ClusterStateError: Another rank is busy.
            LaunchError: A new rank ended before it was ready.
        """
        for rank in ranks:
            self._check_rank(rank)
        chosen = RankSet(ranks) if ranks else self._submitter.roster.dead
        return self._do(lambda: self._submitter.restart(chosen))

    def scale(
        self,
        num_ranks: int,
        *,
        mesh: str | None = None,
        on_stage: Callable[[str], None] | None = None,
        **launcher_options: Any,
    ) -> scaling.Scaled:
        """Add ranks to the running cluster, or end its highest ones; names on ranks that stay are kept.

        The group of all ranks has another size from then on, in place; groups and meshes with ranks that were ended
        are given up. Cells that were marked with ``--init`` run on the new ranks. Dead ranks that stay are replaced.
        On several nodes new ranks are spread over those that the cluster has; a node that is lost is started again if
        ranks on it stay.

        Args:
            num_ranks: World size.
            mesh: Axis names and sizes; by default the first axis grows or shrinks.
            on_stage: Called with words whenever something has been done.
            launcher_options: Of more nodes, for example ``hosts="n3"``: not yet.

        Returns:
            How long it took, what was run on new ranks, and which names they lack.

        Raises:
            OptionError: A number that cannot be, or that the cluster has already.
            MeshError: The mesh does not fit the number of ranks.
            CellInterrupted: Ctrl-C was pressed; the text says which size the cluster has.
            ClusterStateError: A rank is busy.
            LaunchError: A new rank did not start; the cluster has its old size.
        """
        self._running_node()
        if launcher_options:
            given = ", ".join(f"{name}={value!r}" for name, value in launcher_options.items())
            msg = (
                f"scale() cannot start more nodes yet ({given}); it spreads ranks over the nodes that the cluster has: "
                "leave that out, or start another cluster on all nodes"
            )
            raise OptionError(msg)
        resized = self._resized(num_ranks, mesh)
        tell = on_stage or (lambda _: None)
        placed = placement.resized(self._submitter.placement, num_ranks)
        notices = scaling.check_room(self._submitter, resized, placed)
        return self._do(lambda: self._submitter.scale(resized, placed, tell=tell, notices=notices))

    def _resized(self, num_ranks: int, mesh: str | None) -> MeshSpec:
        given: object = num_ranks
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            msg = f"a cluster has at least 1 rank, not {given!r:.80}; for example  cluster.scale(4)"
            raise OptionError(msg)
        resized = self.mesh.resized(num_ranks) if mesh is None else MeshSpec.for_world(num_ranks, mesh)
        if resized == self.mesh:
            dead = "; replace those that ended:  %hpc restart-rank" if self._submitter.roster.dead else ""
            msg = f"the cluster has {num_ranks} rank{'' if num_ranks == 1 else 's'} and mesh {resized} already{dead}"
            raise OptionError(msg)
        return resized

    def debug(self, rank: int, *, ask: Callable[[str], str] | None = None, view: CellView | None = None) -> CellResult:
        """Open pdb on the last failure of a rank, at its innermost frame; returns when it has been left.

        Args:
            rank: Global rank.
            ask: Called with each prompt, returns the command; by default ``input``.
            view: Shows the conversation instead, and asks; see :class:`hpcnb.cluster.asking.Asks`.

        Raises:
            OptionError: No such rank.
            CellFailed: No cell has failed on that rank, or nobody can be asked.
            ClusterStateError: The rank is dead or busy.
        """
        self._check_rank(rank)
        shown = asking.Conversation(ask or input) if view is None else view
        result = self._aside(m.Debug, on=str(rank), label=f"debug of rank {rank}", view=shown)
        if not result.interrupted:  # Ctrl-C at its prompt is a way to leave it
            result.raise_for_errors()
        return result

    def check(self, *names: str, axis: str | None = None, rng: bool = False, on: str = "all") -> CheckResult:
        """Compare what ranks hold under these names, bit by bit; no collective, so it works when groups are broken.

        Args:
            names: Modules, optimizers, tensors, dicts and lists of those, also as attributes (``trainer.model``);
                without names all modules and optimizers.
            axis: Mesh axis along which ranks should agree; by default ``dp`` if the mesh has it, else all ranks.
            rng: Compare also the states of the random number generators.
            on: Rank selection.

        Returns:
            What was compared: true if all agree, and it prints what differs.

        Raises:
            MeshError: The mesh has no such axis.
            OptionError: No rank has anything of that name, or what is given is no name.
            CellFailed: A name holds what cannot be compared.
            ClusterStateError: A rank is dead or busy.
        """
        given: tuple[tuple[object, ...], object] = names, rng
        for name in given[0]:
            if not isinstance(name, str):
                msg = (
                    f"check() takes the name that an object has in cells, as text, not a {type(name).__name__}; "
                    "for example  cluster.check('model')"
                )
                raise OptionError(msg)
        if not isinstance(given[1], bool):
            msg = f"check() takes rng as True or False, not {rng!r:.80}"
            raise OptionError(msg)
        replicas.default_axis(self.mesh, axis)
        result = self._aside(lambda cell, ranks: m.Check(cell, ranks, list(names), rng), on=on, label="check")
        result.raise_for_errors()
        return check.compared(result.pickles, self.mesh, names, axis)

    def _aside(
        self, make: Callable[[int, RankSet], m.Message], *, on: str, label: str, view: CellView | None = None
    ) -> CellResult:
        ranks = self._select(on)
        return self._do_for_script(lambda: self._submitter.aside(make, ranks, label=label, view=view))

    def recording(self, *, enabled: bool) -> None:
        """Switch the recorder of all ranks on or off; off, cells have a breakdown without communication."""
        self._do(
            lambda: self._submitter.serve(
                lambda cell, ranks: m.Recording(cell, ranks, enabled), RankSet.all(self.world_size), label="recording",
                timeout_s=_SERVICE_TIMEOUT_S,
            )
        ).raise_for_errors()  # fmt: skip

    # --- questions ------------------------------------------------------------------------------------------

    def selection_context(self, *, slowest: bool = False) -> SelectionContext:
        """What names in a rank selection refer to now."""
        failed = self._submitter.roster.dead
        waited_for = RankSet()
        if self.last_result is not None:
            failed |= RankSet(self.last_result.errors)
            if slowest and self.last_result.cell_timeline is not None:
                from hpcnb.timing.stragglers import slowest as slowest_of

                waited_for = slowest_of(self.last_result.cell_timeline)
        return SelectionContext(self.mesh, self._submitter.roster.hosts(), failed, waited_for)

    @property
    def last_result(self) -> CellResult | None:
        """Of the last cell that ended, whether this notebook submitted it or followed it."""
        return self._submitter.last_result

    @property
    def alive(self) -> RankSet:
        """Ranks that have a process."""
        return self._submitter.alive

    @property
    def busy(self) -> RankSet:
        """Ranks that have not answered a cell."""
        return self._submitter.busy

    def status(self) -> list[dict[str, Any]]:
        """One row per rank: rank, host, pid, device, state (with the collective it is in), memory_mb (PSS)."""
        rows: list[dict[str, Any]] = self._running_node().ask("status")
        return rows

    def describe(self) -> dict[str, Any]:
        """The cluster as its agent sees it: name, notebooks connected, cells that run or ended unseen, idle time."""
        return self._submitter.describe()

    def init_cells(self) -> list[tuple[str, str]]:
        """Cells that run again on ranks that take the place of others: label and source, in that order."""
        return [(label, source) for source, label, _, _ in self._submitter.init_cells()]

    def forget_init_cells(self, *numbers: int) -> None:
        """Do not run these cells again on new ranks.

        Args:
            numbers: Places in :meth:`init_cells`, counted from 1; without any, all of them.

        Raises:
            OptionError: There is no such cell.
        """
        known = len(self.init_cells())
        for number in numbers:
            if not 1 <= number <= known:
                have = f"there are 1-{known}" if known > 1 else "there is only 1" if known else "there is none"
                msg = f"no init cell {number}; {have}: %hpc init lists them"
                raise OptionError(msg)
        for number in sorted(set(numbers), reverse=True) or [-1]:
            self._running_node().ask("drop init cell", number)

    def logs(self, rank: int | None = None) -> str:
        """What a rank wrote outside of cells; without a rank, the log of the agent."""
        if rank is not None:
            self._check_rank(rank)
        return str(self._running_node().ask("logs", -1 if rank is None else rank))

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.world_size:
            msg = f"no rank {rank}; the cluster has ranks 0-{self.world_size - 1}"
            raise OptionError(msg)

    def timeline(self) -> Timeline:
        """Spans of the cells so far: of the last 200 at most, and 32 MB of records."""
        from hpcnb.timing.timeline import Timeline

        return Timeline(tuple(cell for result in self._submitter.history if (cell := result.cell_timeline) is not None))

    def export(
        self, file: str | Path, *, cells: str | Sequence[int] | None = None, sbatch: bool = False, force: bool = False
    ) -> Exported:
        """Write the cells that were run as a script for ``torchrun`` and plain ``python``.

        It holds the cells of this notebook, in the order in which they were run, each on the ranks that ran it, with
        process group and mesh. It needs torch only, and hpcnb where a cell uses ``hpc``.

        Args:
            file: Name of the script, ``train.py``.
            cells: Numbers as the notebook shows them, ``3-7,9``; by default all that ended well on their ranks. One
                that is named alone is taken also if it failed or was interrupted.
            sbatch: Write a batch job for Slurm beside it, ``train.sbatch``.
            force: Overwrite files that are there.

        Returns:
            What was written, which cells it holds and what it lacks, in words too.

        Raises:
            ExportError: A cell cannot be part of a script, or the file cannot be written; nothing has been written.
            OptionError: ``cells`` cannot be read.
        """
        from hpcnb.cluster.export.write import export

        return export(file, self._ran, self._setting(), cells=cells, sbatch=sbatch, force=force)

    def _setting(self) -> Setting:
        """What cells run in."""
        from hpcnb.cluster.export.setting import Setting

        nodes = self._submitter.nodes
        return Setting(
            self.mesh, self.name, f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
            versions=self._submitter.roster.versions(), threads_per_rank=self._threads_per_rank,
            layout=(self.world_size,) if nodes is None else nodes.layout, devices=self._submitter.roster.devices(),
            environment=tuple(sorted(self._environment)), launcher=self.launcher,
            python=self._python or self._launcher_options.get("python") or sys.executable,
            launcher_options=self._launcher_options,
        )  # fmt: skip

    @property
    def client(self) -> ipp.Client:
        """An ipyparallel client of the same engines: views, ``%%px`` and ``become_dask`` see the same names."""
        folder = self._running_node().folder
        if self._client is None:
            import ipyparallel

            self._client = ipyparallel.Client(str(folder.connection_file("client")), profile_dir=str(folder.profile))
        if len(self._client.ids) < len(self.alive):  # a rank was replaced, and the news is on its way to the client
            self._client.wait_for_engines(len(self.alive), timeout=30)
        return self._client

    def dask_client(self, *, num_threads: int = 1) -> distributed.Client:
        """A Dask client whose workers are the ranks: tasks run in their processes, beside cells.

        The worker of a rank has the rank's number for its name. The scheduler is in this process and ends with
        :meth:`stop`, :meth:`detach` and :meth:`stop_dask`. Asked again, it is the same client, and ranks that were
        replaced meanwhile become workers.

        Args:
            num_threads: So many tasks run on a rank at once.

        Raises:
            CellFailed: A rank cannot become a worker.
            ClusterStateError: The cluster is not running, or a rank is busy.
            OptionError: The ranks are workers already, with another number of threads.
        """
        node = self._running_node()
        if self._dask is None or not self._dask.is_open:
            self._dask = DaskOnRanks(node.spec.address, num_threads)
        if lacking := self._dask.lacking(self.alive, num_threads):
            try:
                self.call(dask_on_ranks.START, *self._dask.ticket, on=str(lacking))
            except BaseException:
                self.stop_dask()
                raise
            self._dask.client.scheduler_info()  # so that it says how many workers it has
        return self._dask.client

    def stop_dask(self) -> None:
        """Ranks are no workers of Dask any more; the client is closed. Does nothing if they were none."""
        dask, self._dask = self._dask, None
        if dask is not None:
            dask.close()


_latest: weakref.ref[Cluster] | None = None
_starting: weakref.ref[Cluster] | None = None


def current() -> Cluster | None:
    """The running cluster that was started last: the one that magics use."""
    cluster = _latest() if _latest is not None else None
    return cluster if cluster is not None and cluster.running else None


def starting() -> Cluster | None:
    """The cluster whose start is under way, whoever asked for it: a cell or a panel."""
    cluster = _starting() if _starting is not None else None
    return cluster if cluster is not None and cluster.starting else None


def held() -> list[Cluster]:
    """Clusters that this process started or attached to, and has not let go."""
    return [cluster for cluster in leaving.held() if isinstance(cluster, Cluster) and cluster.running]
