"""What verbs show: the start with its stages, the status table, the plots of the last cell."""

from __future__ import annotations

import html
import logging
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from hpcnb.core.errors import LaunchError, TimelineError
from hpcnb.notebook import view

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from hpcnb.cluster.attach import ClusterRow
    from hpcnb.cluster.cell_run import CellRun, CellView
    from hpcnb.cluster.cluster import Cluster
    from hpcnb.cluster.preflight.checks import Report
    from hpcnb.cluster.result import CellResult
    from hpcnb.notebook.arguments import ScaleOptions

__all__ = [
    "aligned", "attach", "cell_view", "cluster_rows", "clusters", "duration", "init_cells", "name_of", "report",
    "scale", "start", "status", "status_rows", "stop_all", "timing",
]  # fmt: skip


LOG = logging.getLogger(__name__)
#: What became of a cluster, by the state of its row.
_STOPPED = {
    "stopped": "stopped",
    "killed": "did not end when told to, and was killed",
    "removed": "had ended; what it left has been removed",
    "starting": "is only starting; try again",
}


def _in_notebook(shell: InteractiveShell) -> bool:
    """Whether outputs can be updated: true in every Jupyter front-end, false in a terminal."""
    return hasattr(shell, "kernel")


def cell_view(shell: InteractiveShell, *, show_time: bool) -> CellView:
    """The view for where we are."""
    return view.NotebookView(show_time=show_time) if _in_notebook(shell) else view.TerminalView(show_time=show_time)


def start(shell: InteractiveShell, cluster: Cluster) -> None:
    """Start the cluster and show its stages with their times as they are done."""
    if _in_notebook(shell):
        _warm_plots()
    stages: list[str] = []
    line = _Line(shell)

    def on_stage(words: str) -> None:
        if stages and words.startswith("ranks ") and stages[-1].startswith("ranks "):
            stages[-1] = words
        else:
            stages.append(words)
        line.show(" · ".join([head, *stages]))

    plural = "s" if cluster.world_size > 1 else ""
    head = f"starting {cluster.world_size} rank{plural} on this machine"
    line.show(head)
    try:
        cluster.start(on_stage)
    except KeyboardInterrupt:
        msg = "the start was interrupted, and nothing of it is left; start again with  %hpc start"
        raise LaunchError(msg) from None
    done = [stage for stage in cluster.start_stages if not stage.startswith("ranks ")]
    line.end(f"{done[-1]} · mesh {cluster.mesh} · {' · '.join(done[:-1])}")
    _tell_of_others()


def scale(shell: InteractiveShell, cluster: Cluster, options: ScaleOptions) -> None:
    """Give the cluster another number of ranks, show how far it is, and what came of it."""
    line = _Line(shell)
    head = f"{cluster.world_size} -> {options.num_ranks} ranks"
    line.show(head)
    more = {name: value for name, value in (("hosts", options.hosts), ("nodes", options.nodes)) if value is not None}
    scaled = cluster.scale(
        options.num_ranks, mesh=options.mesh, on_stage=lambda words: line.show(f"{head} · {words}"), **more
    )  # fmt: skip
    line.end(repr(scaled))


class _Line:
    """Words that take each other's place in a notebook; in a terminal only the last are shown.

    Args:
        shell: Where we are.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._in_notebook = _in_notebook(shell)
        self._display_id = ""

    def show(self, words: str) -> None:
        """How far it is."""
        if not self._in_notebook:
            return
        from IPython.display import display, update_display

        bundle = {"text/plain": words, "text/html": f'<pre style="margin:0">{html.escape(words)}</pre>'}
        if self._display_id:
            update_display(bundle, raw=True, display_id=self._display_id)
        else:
            self._display_id = uuid.uuid4().hex
            display(bundle, raw=True, display_id=self._display_id)

    def end(self, words: str) -> None:
        """What came of it."""
        if self._in_notebook:
            self.show(words)
        else:
            print(words)


def _tell_of_others() -> None:
    """A cluster that an earlier kernel left behind holds memory and GPUs: say so, and how to take or end it."""
    from hpcnb.cluster.attach import clusters as all_clusters

    for row in all_clusters():
        if row.state == "running" and not row.notebooks:
            print(
                f"cluster {row.name!r} ({row.num_ranks} rank{'s' if row.num_ranks > 1 else ''}, no notebook) is also "
                f"running:  %hpc stop  and then  %hpc attach {row.key}  takes it instead,  %hpc stop --all  ends both"
            )


def name_of(key: str) -> str:
    """What ``attach`` takes for this cluster: its name, or that of its folder where two have the same."""
    from hpcnb.cluster.attach import clusters as all_clusters

    names = {row.key: row.name for row in all_clusters()}
    name = names.get(key, key)
    return name if list(names.values()).count(name) == 1 else key


def _warm_plots() -> None:
    """Import what plots need in the background while ranks start, so that the first plot does not wait for it."""
    from hpcnb.plots import warm

    def import_and_draw() -> None:
        try:
            warm.warm()
        except RuntimeError:
            # a kernel that ends meanwhile can no longer register clean-up functions, and needs no plots
            if threading.main_thread().is_alive() and not sys.is_finalizing():
                LOG.exception("preparing plots failed; the first plot tries again")

    threading.Thread(target=import_and_draw, name="hpcnb-warm-plots", daemon=True).start()


def status_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The status as a table of strings, header first."""
    header = ["rank", "node", "pid", "device", "state", "memory"]
    return [
        header,
        *(
            [str(row["rank"]), row["host"], str(row["pid"]), row["device"], row["state"], f"{row['memory_mb']:.0f} MB"]
            for row in rows
        ),
    ]


def aligned(table: list[list[str]]) -> list[str]:
    """The rows of a table of strings as lines of text, its columns below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def status(cluster: Cluster) -> None:
    """One row per rank."""
    _show_table(status_rows(cluster.status()), str(cluster))


def report(report: Report) -> None:
    """Checks before a launch: what fails first, each with what mends it."""
    from IPython.display import display

    rows = "".join(
        f"<tr><td>{level.upper() if level == 'fail' else level}</td><td>{html.escape(name)}</td>"
        f'<td style="text-align:left">{html.escape(words)}'
        f"{f'<br><code>{html.escape(fix)}</code>' if fix else ''}</td></tr>"
        for level, name, words, fix in report.rows()
    )
    bundle = {"text/plain": repr(report), "text/html": f"{html.escape(report.summary())}<table>{rows}</table>"}
    display(bundle, raw=True)


def init_cells(cluster: Cluster) -> None:
    """Cells that run again on new ranks, by the numbers that ``%hpc init --clear`` takes."""
    cells = cluster.init_cells()
    for number, (label, source) in enumerate(cells, 1):
        first, *rest = source.strip().splitlines() or [""]
        more = f"  ... {len(rest)} more line{'s' if len(rest) > 1 else ''}" if rest else ""
        print(f"{number}  {label.removeprefix('cell ')}  {first}{more}")
    if not cells:
        print("no cell runs again on new ranks; mark one with  %%hpc_parallel --init")


def _show_table(table: list[list[str]], title: str) -> None:
    from IPython.display import display

    text = "\n".join(aligned(table))
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for row, tag in zip(table, ["th", *["td"] * (len(table) - 1)], strict=True)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    display({"text/plain": f"{title}\n{text}", "text/html": f"<table>{body}</table>"}, raw=True)


def attach(shell: InteractiveShell, name: str | None = None) -> None:
    """Take a cluster that runs; show what ended meanwhile, and name what still runs."""
    from hpcnb.cluster.attach import attach as attach_to
    from hpcnb.cluster.attach import ranks_words

    if _in_notebook(shell):
        _warm_plots()

    def view_of(label: str) -> CellView:
        print(f"{label} ended while no notebook was here:")
        return _WithFailure(cell_view(shell, show_time=True))

    cluster = attach_to(name, view=view_of)
    described = cluster.describe()
    plural = "s" if cluster.world_size > 1 else ""
    age = duration(time.time() - described["started_s"])
    print(f"attached to cluster {cluster.name!r}: {cluster.world_size} rank{plural}, mesh {cluster.mesh}, {age} old")
    for cell in described["running"]:
        print(f"{cell['label']} still runs on {ranks_words(cell['ranks'])}: %hpc join shows it")


class _WithFailure:
    """A view that shows also how a cell failed, which a magic raises where the cell is its own."""

    def __init__(self, view: CellView) -> None:
        self._view = view

    def update(self, run: CellRun) -> None:
        self._view.update(run)

    def finish(self, run: CellRun, result: CellResult) -> None:
        self._view.finish(run, result)
        if text := result.failure_text():
            print(text, file=sys.stderr)


def cluster_rows(rows: list[ClusterRow]) -> list[list[str]]:
    """Clusters as a table of strings, header first."""
    table = [["name", "ranks", "mesh", "node", "state", "started", "notebooks", "running cell", "idle time left"]]
    names = [row.name for row in rows if row.state != "removed"]
    for row in rows:
        # of clusters of one name, attach wants the folder's
        name = row.name if names.count(row.name) < 2 or row.name == row.key else f"{row.name} ({row.key})"
        started = f"{duration(row.age_s)} ago" if row.started_s else ""
        left = "" if row.idle_left_s is None else duration(row.idle_left_s)
        state = f"{row.state}: {row.problem}" if row.problem else row.state
        unseen = f"{len(row.unseen)} ended unseen" if row.unseen else ""
        table.append(
            [name, str(row.num_ranks or ""), row.mesh, row.host, state, started, str(row.notebooks or ""),
             ", ".join(filter(None, [row.cell, unseen])), left]
        )  # fmt: skip
    return table


def duration(seconds: float) -> str:
    """``35 s``, ``12 min``, ``7.9 h``, ``3 days``: as exact as a person needs it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def clusters() -> None:
    """One row per cluster of this user."""
    from hpcnb.cluster.attach import clusters as all_clusters

    rows = all_clusters()
    if rows:
        _show_table(cluster_rows(rows), f"{len(rows)} cluster{'s' if len(rows) > 1 else ''} on this machine")
    else:
        print("no cluster of yours is running on this machine; start one with  %hpc start 4")


def stop_all() -> None:
    """End all clusters of this user and say what became of each."""
    from hpcnb.cluster.attach import stop_all as stop

    rows = stop()
    for row in rows:
        print(f"cluster {row.name!r} {_STOPPED[row.state]}")
    if not rows:
        print("no cluster of yours is running on this machine")


def timing(shell: InteractiveShell, cluster: Cluster, kinds: tuple[str, ...]) -> None:
    """Plots of the last cell; in a terminal their words and bars."""
    from IPython.display import display

    if cluster.last_result is None or cluster.last_result.cell_timeline is None:
        msg = "there is no cell to draw yet; run one with  %%hpc_parallel"
        raise TimelineError(msg)
    for kind in kinds or ("breakdown", "timeline"):
        figure = cluster.last_result.timeline.plot(kind)
        if _in_notebook(shell):
            display(figure)
        else:
            print(figure.text)
