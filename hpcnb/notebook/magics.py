"""``%hpc`` and ``%%hpc_parallel``: each parses its line, calls the cluster once, and shows what came of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, cell_magic, line_cell_magic, line_magic, magics_class

from hpcnb.core.errors import ClusterStateError
from hpcnb.notebook import arguments, awaiting, clients, completion, initializing, restarting, show

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from hpcnb.cluster.cell_run import CellRequest
    from hpcnb.cluster.cluster import Cluster
    from hpcnb.cluster.result import CellResult

__all__ = ["HpcMagics", "register", "unregister"]


@magics_class
class HpcMagics(Magics):
    """The magics; they use the cluster that was started last."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._inits = initializing.Versions()

    @line_cell_magic
    def hpc_parallel(self, line: str, cell: str | None = None) -> None:
        """Run the cell on every rank; ``%hpc_parallel --help`` lists the options."""
        options = arguments.parse_cell(line)
        if options.show_help or cell is None:
            print(arguments.cell_help())
            return
        view = show.cell_view(self.shell, show_time=options.show_time)
        self._settle(options, cell, _cluster().execute(self._request(options, cell), view))

    @cell_magic
    def hpc_parallel_awaited(self, line: str, cell: str) -> Coroutine[None, None, None]:
        """What ``%%hpc_parallel`` becomes in a notebook kernel, see awaiting.py."""
        return self._await_cell(arguments.parse_cell(line), cell)

    async def _await_cell(self, options: arguments.CellOptions, cell: str) -> None:
        if options.show_help:
            print(arguments.cell_help())
            return
        view = show.cell_view(self.shell, show_time=options.show_time)
        self._settle(options, cell, await _cluster().execute_async(self._request(options, cell), view))

    def _request(self, options: arguments.CellOptions, cell: str) -> CellRequest:
        from hpcnb.cluster.cell_run import CellRequest

        return CellRequest(
            cell,
            on=options.on,
            timeout_s=options.timeout_s,
            label=f"cell In[{self.shell.displayhook.prompt_count}]",  # execution_count is one ahead in IPython >= 9.18
            first_line=2,  # the magic is line 1, as the editor numbers it
            want_pickles=options.out is not None,
            is_init=options.is_init,
        )

    def _settle(self, options: arguments.CellOptions, cell: str, result: CellResult) -> None:
        self._inits.ran(_cluster, cell, result, is_init=options.is_init, cell_id=awaiting.cell_id(self.shell))
        if options.out is not None and not result.ok:
            self.shell.user_ns[options.out] = result.objects(partial=True)
        if not result.caught_interrupt:
            result.raise_for_errors()
        if options.out is not None:
            self.shell.user_ns[options.out] = result.objects()

    @line_magic
    def hpc(self, line: str) -> Any:
        """Start, stop and look at the cluster; ``%hpc help`` lists the verbs."""
        options = arguments.parse_hpc(line)
        return getattr(self, "_" + options.verb.replace("-", "_"))(options)

    def _start(self, options: arguments.VerbOptions) -> None:
        from hpcnb.cluster.cluster import Cluster, current, starting

        _let_go_of_the_dead()
        if (running := current() or starting()) is not None:  # a panel may be starting one
            running.start()  # says that it is running already, and what to type
        asked = options.start or arguments.StartOptions()
        show.start(self.shell, Cluster(asked.num_ranks, **clients.resolved(asked.keywords(), self.shell.user_ns)))

    def _doctor(self, options: arguments.VerbOptions) -> None:
        from hpcnb.cluster.doctor import doctor

        asked = options.start or arguments.StartOptions()
        show.report(
            doctor(
                asked.num_ranks, install=options.is_installing, **clients.resolved(asked.keywords(), self.shell.user_ns)
            )
        )

    def _attach(self, options: arguments.VerbOptions) -> None:
        from hpcnb.cluster.cluster import current, starting

        _let_go_of_the_dead()
        if (here := current() or starting()) is not None:
            msg = (
                f"this notebook has cluster {here.name!r} already ({here.world_size} ranks); to take another one first "
                "type  %hpc detach  (it goes on) or  %hpc stop  (it ends)"
            )
            raise ClusterStateError(msg)
        show.attach(self.shell, *options.words)

    def _detach(self, _: arguments.VerbOptions) -> None:
        cluster = _cluster()
        key = cluster.key
        cluster.detach()
        print(
            f"cluster {cluster.name!r} goes on without this notebook;  %hpc attach {show.name_of(key)}  takes it again"
        )

    def _join(self, _: arguments.VerbOptions) -> None:
        result = _cluster().join(show.cell_view(self.shell, show_time=True))
        if not result.caught_interrupt:
            result.raise_for_errors()

    def _stop(self, options: arguments.VerbOptions) -> None:
        if options.of_all:
            show.stop_all()
            return
        cluster = _cluster()
        cluster.stop()
        print(f"cluster {cluster.name!r} stopped")

    def _status(self, options: arguments.VerbOptions) -> None:
        if options.of_all:
            show.clusters()
        else:
            show.status(_cluster())

    def _interrupt(self, _: arguments.VerbOptions) -> None:
        result = _cluster().interrupt_left()
        print("no cell is running" if result is None else result.failure_text() or f"{result.label} ended by itself")

    def _recover(self, _: arguments.VerbOptions) -> None:
        print(f"process groups rebuilt: generation {_cluster().recover()}")

    def _restart_rank(self, options: arguments.VerbOptions) -> None:
        cluster = _cluster()
        print(cluster.restart_rank(*arguments.ranks_of(options.words)))

    def _scale(self, options: arguments.VerbOptions) -> None:
        assert options.scale is not None, "the parser has read it"
        show.scale(self.shell, _cluster(), options.scale)

    def _debug(self, options: arguments.VerbOptions) -> None:
        _cluster().debug(int(options.words[0]), view=show.cell_view(self.shell, show_time=False))

    def _init(self, options: arguments.VerbOptions) -> None:
        cluster = _cluster()
        if options.of_all:
            cluster.forget_init_cells(*(int(word) for word in options.words))
        show.init_cells(cluster)

    def _check(self, options: arguments.VerbOptions) -> None:
        asked = options.check or arguments.CheckOptions()
        print(repr(_cluster().check(*asked.names, axis=asked.axis, rng=asked.rng, on=asked.on)))

    def _export(self, options: arguments.VerbOptions) -> None:
        asked = options.export
        assert asked is not None, "a line without a file was refused"
        print(repr(_cluster().export(asked.file, cells=asked.cells, sbatch=asked.sbatch, force=asked.force)))

    def _timing(self, options: arguments.VerbOptions) -> None:
        show.timing(self.shell, _cluster(), options.words)

    def _logs(self, options: arguments.VerbOptions) -> None:
        print(_cluster().logs(*(int(word) for word in options.words)) or "(nothing yet)")

    def _panel(self, _: arguments.VerbOptions) -> Any:
        from hpcnb.notebook.panel import panel

        return panel()

    def _help(self, options: arguments.VerbOptions) -> None:
        print(arguments.help_text(*options.words))


def _let_go_of_the_dead() -> None:
    """What another notebook stopped, or ended by itself, does not keep the next cluster from being started."""
    from hpcnb.cluster.cluster import current

    if (cluster := current()) is not None and cluster.ended:
        print(f"cluster {cluster.name!r} has ended, stopped by another notebook or by itself")
        cluster.stop()


def _cluster() -> Cluster:
    from hpcnb.cluster.cluster import current

    cluster = current()
    if cluster is None:
        msg = "no cluster is running; start one with  %hpc start 4"
        raise ClusterStateError(msg)
    return cluster


def register(shell: InteractiveShell) -> None:
    """Add the magics to the shell."""
    shell.register_magics(HpcMagics)
    completion.register(shell)
    awaiting.register(shell)
    restarting.register(shell)


def unregister(shell: InteractiveShell) -> None:
    """Take the magics out of the shell."""
    for kind, name in (
        ("line", "hpc"),
        ("line", "hpc_parallel"),
        ("cell", "hpc_parallel"),
        ("cell", "hpc_parallel_awaited"),
    ):
        shell.magics_manager.magics[kind].pop(name, None)
    completion.unregister(shell)
    awaiting.unregister(shell)
    restarting.unregister(shell)
