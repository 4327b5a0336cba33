"""``hpcnb.panel()``: a widget that starts, stops, interrupts and shows the cluster, also while a cell runs.

A click is handled on a thread of its own where the front-end offers one (JupyterLab >= 4.4 with ipykernel >= 7), so
nothing a click calls may block: starting and stopping have a thread each, and one watching thread serves all open
panels. The words, rows and button states are pure functions of a Snapshot; the cluster does the work.
"""

from __future__ import annotations

import atexit
import html
import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ipywidgets
from IPython.core.getipython import get_ipython

from hpcnb.cluster import machine
from hpcnb.cluster.cluster import Cluster, current, starting
from hpcnb.cluster.result import CellResult
from hpcnb.core.errors import ClusterStateError, HpcnbError
from hpcnb.core.ranks import RankSet
from hpcnb.notebook import show, view

__all__ = ["Panel", "Snapshot", "Watcher", "buttons", "cell_words", "panel", "sentence", "stage_words", "text"]

LOG = logging.getLogger(__name__)
Phase = Literal["none", "starting", "running", "stopping"]
_REFRESH_S = 1.0
_REFRESH_START_S = 0.2
#: Asking costs the agent 5 ms per rank (memory); the panel takes at most a twentieth of its time.
_REST = 20
_QUIET_STATES = ("idle", "dead", "not started", "starting")


@dataclass(frozen=True)
class Snapshot:
    """What a panel shows.

    Attributes:
        phase: What the cluster is at.
        title: Which cluster, in words.
        stages: What the start has reached, with times.
        rows: As ``Cluster.status``.
        cell: Which cell was the last, and how it ended.
        strip: Where its time went, in lines.
        problem: What went wrong, in words; empty if nothing did.
    """

    phase: Phase = "none"
    title: str = ""
    stages: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    cell: str = ""
    strip: tuple[str, ...] = ()
    problem: str = ""


# --- what is shown: pure ------------------------------------------------------------------------------------


def _busy(seen: Snapshot) -> RankSet:
    return RankSet(row["rank"] for row in seen.rows if row["state"] not in _QUIET_STATES)


def buttons(seen: Snapshot) -> dict[str, bool]:
    """Which buttons can be pressed; ranks that cannot be asked may be interrupted."""
    running = seen.phase == "running"
    return {
        "Start": seen.phase == "none",
        "Stop": running or seen.phase == "starting",
        "Interrupt": running and (bool(_busy(seen)) or not seen.rows),
    }


def stage_words(stages: tuple[str, ...]) -> str:
    """``controller 0.8 s · import torch 1.2 s · ranks 1 of 2``: of the counts of ranks only the latest."""
    kept = [stage for stage in stages[:-1] if not stage.startswith("ranks ")]
    return " · ".join([*kept, *stages[-1:]])


def sentence(seen: Snapshot) -> str:
    """What is going on, in a line."""
    if seen.phase == "none":
        return "no cluster is running"
    if seen.phase != "running":
        reached = stage_words(seen.stages) if seen.phase == "starting" else ""
        return " · ".join(part for part in (f"{seen.phase} {seen.title}", reached) if part)
    dead = RankSet(row["rank"] for row in seen.rows if row["state"] == "dead")
    doing = f"{busy.words()} in a cell" if (busy := _busy(seen)) else "idle" if seen.rows else ""
    return " · ".join(part for part in (seen.title, doing, f"{dead.words()} dead" if dead else "") if part)


def cell_words(result: CellResult) -> str:
    """``last cell, In[3]: interrupted``."""
    ended = ""
    if result.timeout_s is not None:
        ended = f"interrupted by its timeout of {result.timeout_s:g} s"
    elif result.interrupted:
        ended = "interrupted"
    elif failed := RankSet(result.errors) | RankSet(result.exits):
        ended = f"failed on {failed.words()}"
    return f"last cell, {result.label.removeprefix('cell ')}" + (f": {ended}" if ended else "")


def _below(seen: Snapshot) -> str:
    return f"started: {stage_words(seen.stages)}" if seen.phase == "running" and seen.stages else ""


def text(seen: Snapshot) -> str:
    """All of it as plain text: what a saved notebook and a terminal show."""
    table = show.status_rows(list(seen.rows)) if seen.rows else []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    parts = [sentence(seen), seen.problem, _below(seen), *rows, "", seen.cell, *seen.strip]
    return "\n".join(part for index, part in enumerate(parts) if part or (seen.cell and index == len(rows) + 3))


def _status_html(seen: Snapshot) -> str:
    problem = (
        '<pre role="alert" style="margin:.3em 0 0;padding-left:.6em;border-left:3px solid #D55E00;line-height:1.3;'
        f'white-space:pre-wrap">{html.escape(seen.problem)}</pre>'
        if seen.problem
        else ""
    )
    below = f'<div style="opacity:.75;line-height:1.4">{html.escape(_below(seen))}</div>' if _below(seen) else ""
    line = f'<div role="status" style="line-height:1.4"><b>{html.escape(sentence(seen))}</b></div>'
    return line + below + problem


def _table_html(seen: Snapshot) -> str:
    if not seen.rows:
        return ""
    cell = "padding:.1em 1.2em .1em 0;white-space:nowrap;text-align:"
    head, *body = show.status_rows(list(seen.rows))
    aligned = ["right" if name in ("rank", "pid", "memory") else "left" for name in head]
    rows = [
        "".join(f'<td style="{cell}{side}">{html.escape(word)}</td>' for word, side in zip(row, aligned, strict=True))
        for row in body
    ]
    names = "".join(f'<th scope="col" style="{cell}{side}">{name}</th>' for name, side in zip(head, aligned, strict=True))
    return (
        '<div style="max-height:26em;overflow:auto"><table style="line-height:1.4;font-variant-numeric:tabular-nums">'
        f"<tr>{names}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"
    )


def _strip_html(seen: Snapshot) -> str:
    if not seen.cell:
        return ""
    lines = html.escape("\n".join(seen.strip))
    return f'<div style="line-height:1.4">{html.escape(seen.cell)}</div><pre style="margin:0;line-height:1.2">{lines}</pre>'


# --- watching and doing -------------------------------------------------------------------------------------


class Watcher:
    """Looks at the current cluster for all open panels, and starts and stops it for them.

    Its thread lives while a panel is open.
    """

    def __init__(self) -> None:
        self._panels: set[Panel] = set()
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count(1)
        self._shown = 0
        self._doing: tuple[int, Phase] | None = None
        self._problem: tuple[bool, str] = (False, "")
        self._strip: tuple[CellResult | None, tuple[str, ...]] = (None, ())
        atexit.register(self.close)

    def open(self, shown: Panel) -> None:
        """Keep this panel up to date from now on."""
        with self._lock:
            self._panels.add(shown)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="hpcnb-panel", daemon=True)
                self._thread.start()

    def discard(self, shown: Panel) -> None:
        """This panel is shown no longer."""
        with self._lock:
            self._panels.discard(shown)
        self._wake.set()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._panels.clear()
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def start(self, num_ranks: int, mesh: str) -> None:
        """Start a cluster; returns at once."""
        self._do("starting", lambda: Cluster(num_ranks, mesh=mesh.strip() or None).start())

    def stop(self) -> None:
        """Stop the cluster that runs or starts; returns at once."""
        self._do("stopping", lambda: cluster.stop() if (cluster := starting() or current()) is not None else None)

    def interrupt(self) -> None:
        """Interrupt the cell that runs."""
        try:
            if (cluster := current()) is not None:
                cluster.interrupt()
        except HpcnbError as error:
            self._problem = (True, str(error))
        self._wake.set()

    def _do(self, phase: Phase, work: Callable[[], Any]) -> None:
        with self._lock:
            if self._doing is not None and self._doing[1] in (phase, "stopping"):
                return  # a second click on the way
            mine = self._doing = (next(self._numbers), phase)
            self._problem = (False, "")
        threading.Thread(target=self._carry_out, args=(mine, work), name=f"hpcnb-{phase}", daemon=True).start()

    def _carry_out(self, mine: tuple[int, Phase], work: Callable[[], Any]) -> None:
        self._wake.set()
        words = ""
        try:
            work()
        except (HpcnbError, ValueError, OSError) as error:
            words = str(error)
        except Exception as error:
            LOG.exception("%s from the panel failed", mine[1])
            words = f"{type(error).__name__}: {error} (not expected; the kernel's log has the traceback)"
        with self._lock:
            if self._doing == mine:  # else Stop was pressed meanwhile: that this start failed is no news
                self._doing = None
                self._problem = ((starting() or current()) is not None, words)
        self._wake.set()

    def _watch(self) -> None:
        while True:
            self._wake.clear()
            before_s = time.perf_counter()
            seen = self.look()
            spent_s = time.perf_counter() - before_s
            with self._lock:
                if not self._panels:
                    self._thread = None
                    return
                panels = list(self._panels)
            for each in panels:
                try:
                    each.show(seen)
                except Exception:
                    LOG.exception("a panel cannot be updated and is left as it is")
                    self.discard(each)
            brief = seen.phase in ("starting", "stopping")
            self._wake.wait(_REFRESH_START_S if brief else max(_REFRESH_S, _REST * spent_s))

    def look(self) -> Snapshot:
        """How things are now."""
        doing = self._doing[1] if self._doing is not None else None
        cluster = starting() or current()
        there, problem = self._problem
        problem = problem if there == (cluster is not None) else ""
        if cluster is None or doing == "stopping":
            return Snapshot(doing or "none", "the cluster" if doing else "", problem=problem)
        title = f"{cluster.world_size} rank{'s' if cluster.world_size > 1 else ''}, mesh {cluster.mesh}"
        title += f", cluster {cluster.name!r}" if cluster.name != "default" else ""
        stages = tuple(cluster.start_stages)
        if cluster.starting:
            return Snapshot("starting", title, stages)
        rows: tuple[dict[str, Any], ...] = ()
        try:
            rows = tuple(cluster.status())
        except HpcnbError as error:
            if isinstance(error, ClusterStateError) or not cluster.running:
                return Snapshot()  # stopped while we asked
            problem = str(error)
        result = cluster.last_result
        if result is None:
            return Snapshot("running", title, stages, rows, problem=problem)
        if self._strip[0] is not result:
            self._strip = (result, tuple(view.strip_of(result)))
        return Snapshot("running", title, stages, rows, cell_words(result), self._strip[1], problem)
