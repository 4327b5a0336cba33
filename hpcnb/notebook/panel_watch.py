"""What stands behind open panels: one thread that looks at the current cluster, and threads that start and stop it.

Nothing that a click calls blocks. Knows no widgets; a panel is anything that can show a Snapshot.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hpcnb.cluster.cluster import Cluster, current, starting
from hpcnb.cluster.result import CellResult
from hpcnb.core.errors import ClusterStateError, HpcnbError
from hpcnb.notebook import panel_words as words
from hpcnb.notebook import strip
from hpcnb.plots import warm

__all__ = ["Shown", "Watcher"]

LOG = logging.getLogger(__name__)
_REFRESH_S, _REFRESH_START_S = 1.0, 0.2
#: Asking takes the agent 5 ms per rank (memory): a panel rests 20 times as long as the answer took.
_REST = 20


class Shown(Protocol):
    """A panel."""

    def show(self, seen: words.Snapshot) -> None:
        """Show this; called from any thread, one at a time."""


@dataclass(frozen=True)
class _Doing:
    """A start or stop that a panel has asked for."""

    number: int
    phase: words.Phase
    title: str


class Watcher:
    """Looks at the current cluster for all open panels, and starts and stops it for them.

    Its thread lives while a panel is open.
    """

    def __init__(self) -> None:
        self._panels: set[Shown] = set()
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count(1)
        self._shown = 0
        self._doing: _Doing | None = None
        self._problem = (False, "")  # whether there was a cluster, and what went wrong
        self._strip: tuple[CellResult | None, tuple[str, ...], str] = (None, (), "")
        atexit.register(self.close)

    def open(self, shown: Shown) -> None:
        """Keep this panel up to date from now on."""
        with self._lock:
            self._panels.add(shown)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="hpcnb-panel", daemon=True)
                self._thread.start()

    def discard(self, shown: Shown) -> None:
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

        def work(mine: _Doing) -> None:
            cluster = Cluster(num_ranks, mesh=mesh.strip() or None)
            threading.Thread(target=warm.warm, name="hpcnb-warm-plots", daemon=True).start()
            cluster.start()
            if self._doing != mine:
                cluster.stop()  # Stop was pressed before there was anything to stop

        self._do("starting", f"{num_ranks} rank{'s' if num_ranks > 1 else ''}", work)

    def stop(self) -> None:
        """Stop the cluster that runs or starts; returns at once."""

        def work(_: _Doing) -> None:
            if (cluster := starting() or current()) is not None:
                cluster.stop()

        if self._doing is not None or starting() or current():
            self._do("stopping", "the cluster", work)

    def interrupt(self) -> None:
        """Interrupt the cell that runs."""
        try:
            if (cluster := current()) is not None:
                cluster.interrupt()
        except HpcnbError as error:
            self._problem = (True, str(error))
        self._wake.set()

    def _do(self, phase: words.Phase, title: str, work: Callable[[_Doing], None]) -> None:
        with self._lock:
            if self._doing is not None and self._doing.phase in (phase, "stopping"):
                return  # a second click
            mine = self._doing = _Doing(next(self._numbers), phase, title)
            self._problem = (False, "")
        name = f"hpcnb-panel-{phase}"
        threading.Thread(target=self._carry_out, args=(mine, work), name=name, daemon=True).start()

    def _carry_out(self, mine: _Doing, work: Callable[[_Doing], None]) -> None:
        self.refresh()
        self._wake.set()
        problem = ""
        try:
            work(mine)
        except (HpcnbError, ValueError, OSError) as error:
            problem = str(error)
        except Exception as error:
            LOG.exception("%s from the panel failed", mine.phase)
            problem = _unexpected(error)
        with self._lock:
            if self._doing == mine:  # else Stop was pressed meanwhile: that this start failed is no news
                self._doing = None
                self._problem = ((starting() or current()) is not None, problem)
        self.refresh()

    def _watch(self) -> None:
        while True:
            with self._lock:
                if not self._panels:
                    self._thread = None
                    return
            self._wake.clear()
            before_s = time.perf_counter()
            brief = self.refresh().phase in ("starting", "stopping")
            spent_s = time.perf_counter() - before_s
            self._wake.wait(_REFRESH_START_S if brief else max(_REFRESH_S, _REST * spent_s))

    def refresh(self) -> words.Snapshot:
        """Look, and show it on all open panels; from any thread. An older look never covers a newer one."""
        number = next(self._numbers)
        try:
            seen = self._look()
        except Exception as error:
            LOG.exception("the panel cannot tell how the cluster is")
            phase: words.Phase = "running" if current() is not None else "none"
            seen = words.Snapshot(phase, "a cluster is running", problem=_unexpected(error))
        with self._lock:
            if number > self._shown:
                self._shown = number
                for each in list(self._panels):
                    try:
                        each.show(seen)
                    except Exception:
                        LOG.exception("a panel cannot be updated any more and stays as it is")
                        self._panels.discard(each)
        return seen

    def _look(self) -> words.Snapshot:
        doing, (there, problem) = self._doing, self._problem
        cluster = starting() or current()
        if cluster is None or (doing is not None and doing.phase == "stopping"):
            self._strip = (None, (), "")
            if doing is not None:
                return words.Snapshot(doing.phase, doing.title)
            return words.Snapshot(problem="" if there else problem)
        name = f"cluster {cluster.name!r}: " if cluster.name != "default" else ""
        title = f"{name}{cluster.world_size} rank{'s' if cluster.world_size > 1 else ''}, mesh {cluster.mesh}"
        stages = tuple(cluster.start_stages)
        if cluster.starting:
            return words.Snapshot("starting", title, stages)
        rows: tuple[dict[str, Any], ...] = ()
        problem = problem if there else ""
        try:
            rows = tuple(cluster.status())
        except HpcnbError as error:
            if isinstance(error, ClusterStateError) or not cluster.running:
                return words.Snapshot()  # stopped while we asked
            problem = str(error)
        result = cluster.last_result
        if result is not None and self._strip[0] is not result:
            self._strip = (result, tuple(strip.as_text(result)), strip.as_html(result))
        cell = words.cell_words(result) if result is not None else ""
        return words.Snapshot("running", title, stages, rows, cell, *self._strip[1:], problem)


def _unexpected(error: Exception) -> str:
    return f"{type(error).__name__}: {error}  (not expected; the notebook kernel's log has the traceback)"
