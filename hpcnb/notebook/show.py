"""What verbs show: the start with its stages, the status table, the plots of the last cell."""

from __future__ import annotations

import html
import logging
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

from hpcnb.core.errors import TimelineError
from hpcnb.notebook import view

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from hpcnb.cluster.cell_run import CellView
    from hpcnb.cluster.cluster import Cluster

__all__ = ["aligned", "cell_view", "start", "status", "status_rows", "timing"]


LOG = logging.getLogger(__name__)


def _in_notebook(shell: InteractiveShell) -> bool:
    """Whether outputs can be updated: true in every Jupyter front-end, false in a terminal."""
    return hasattr(shell, "kernel")


def cell_view(shell: InteractiveShell, *, show_time: bool) -> CellView:
    """The view for where we are."""
    return view.NotebookView(show_time=show_time) if _in_notebook(shell) else view.TerminalView(show_time=show_time)


def start(shell: InteractiveShell, cluster: Cluster) -> None:
    """Start the cluster and show its stages with their times as they are done."""
    notebook = _in_notebook(shell)
    if notebook:
        _warm_plots()
    display_id = uuid.uuid4().hex
    stages: list[str] = []

    def show(words: str, *, update: bool) -> None:
        if notebook:
            from IPython.display import display, update_display

            bundle = {"text/plain": words, "text/html": f'<pre style="margin:0">{html.escape(words)}</pre>'}
            (update_display if update else display)(bundle, raw=True, display_id=display_id)

    def on_stage(words: str) -> None:
        if stages and words.startswith("ranks ") and stages[-1].startswith("ranks "):
            stages[-1] = words
        else:
            stages.append(words)
        show(" · ".join([head, *stages]), update=True)

    plural = "s" if cluster.world_size > 1 else ""
    head = f"starting {cluster.world_size} rank{plural} on this machine"
    show(head, update=False)
    cluster.start(on_stage)
    done = [stage for stage in cluster.start_stages if not stage.startswith("ranks ")]
    words = f"{done[-1]} · mesh {cluster.mesh} · {' · '.join(done[:-1])}"
    if notebook:
        show(words, update=True)
    else:
        print(words)


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
    from IPython.display import display

    table = status_rows(cluster.status())
    text = "\n".join(aligned(table))
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for row, tag in zip(table, ["th", *["td"] * (len(table) - 1)], strict=True)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    display({"text/plain": f"{cluster}\n{text}", "text/html": f"<table>{body}</table>"}, raw=True)


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
