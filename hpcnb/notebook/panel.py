"""``hpcnb.panel()``: a widget that starts, stops, interrupts and shows the cluster, also while a cell runs.

A click is handled on a thread of its own where the front-end offers one (JupyterLab >= 4.4 with
ipykernel >= 7). What is shown is made in panel_words, what is done in panel_watch. Imported when a panel is
asked for.
"""

from __future__ import annotations

import uuid
from typing import Any

import ipywidgets
from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

from hpcnb.cluster import machine
from hpcnb.notebook import panel_words as words
from hpcnb.notebook.panel_watch import Watcher

__all__ = ["Panel", "panel"]

#: What the buttons do, with the words of the magics.
_BUTTONS = {
    "Start": ("play", "start this many ranks on this machine, as %hpc start does"),
    "Stop": ("stop", "end all ranks; names on them are lost, as %hpc stop does"),
    "Interrupt": ("hand-paper-o", "stop the cell that runs; names are kept, as %hpc interrupt does"),
}


class Panel(ipywidgets.VBox):
    """The widget; make one with ``hpcnb.panel()``.

    Args:
        watcher: Keeps it up to date while it is shown.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._seen = words.Snapshot()
        self._display_id: str | None = None
        self._saved: tuple[str, str] = ("", "")
        own_width = {"description_width": "initial"}
        self._ranks = ipywidgets.BoundedIntText(
            machine.default_num_ranks(),
            min=1,
            max=1 << 16,
            description="Ranks",
            tooltip="how many ranks to start",
            layout={"width": "8em"},
            style=own_width,
        )
        self._mesh = ipywidgets.Text(
            placeholder="dp=2,tp=2",
            description="Mesh",
            tooltip="axis names and sizes, for example dp=2,tp=2; empty: one axis dp over all ranks",
            layout={"width": "14em"},
            style=own_width,
        )
        self._buttons = {
            name: ipywidgets.Button(description=name, icon=icon, tooltip=tooltip, layout={"width": "8em"})
            for name, (icon, tooltip) in _BUTTONS.items()
        }
        self._buttons["Start"].on_click(lambda _: watcher.start(self._ranks.value, self._mesh.value))
        self._buttons["Stop"].on_click(lambda _: watcher.stop())
        self._buttons["Interrupt"].on_click(lambda _: watcher.interrupt())
        parts = (words.line_html, words.table_html, words.cell_html)
        self._parts = {part: ipywidgets.HTML() for part in parts}
        controls = [self._ranks, self._mesh, *self._buttons.values()]
        row = ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"})
        super().__init__([row, *self._parts.values()], _view_count=0)
        for each in (self, *controls):
            _answer_while_busy(each)
        self.observe(self._views_changed, names="_view_count")
        self.show(self._seen)

    def show(self, seen: words.Snapshot) -> None:
        """Show this; only what has changed is sent."""
        for name, enabled in words.buttons(seen).items():
            self._buttons[name].disabled = not enabled
        self._ranks.disabled = self._mesh.disabled = seen.phase != "none"
        for part, shown in self._parts.items():
            shown.value = part(seen)
        self._seen = seen
        # seldom, since front-ends draw the widget anew: enough for a saved notebook to tell how things were
        saved = (seen.phase, seen.problem)
        if self._display_id is not None and seen.phase in ("none", "running") and saved != self._saved:
            self._saved = saved
            update_display(self._bundle(), raw=True, display_id=self._display_id)

    def _bundle(self) -> dict[str, Any]:
        """The widget, and the same in words for a saved notebook, GitHub and a terminal."""
        # called on the class: closing a widget sets the attribute of the instance to None
        bundle: dict[str, Any] = dict(ipywidgets.VBox._repr_mimebundle_(self) or {})
        shown = "".join(part(self._seen) for part in self._parts)
        return {**bundle, "text/plain": words.text(self._seen), "text/html": f"<div>{shown}</div>"}

    def _ipython_display_(self) -> None:
        if self.comm is not None and hasattr(get_ipython(), "kernel"):
            self._watcher.open(self)
            self._watcher.refresh()
        else:
            self.show(self._watcher.refresh())
        self._display_id = self._display_id or uuid.uuid4().hex
        self._saved = (self._seen.phase, self._seen.problem)
        display(self._bundle(), raw=True, display_id=self._display_id)

    def __repr__(self) -> str:
        return words.text(self._seen)

    def _views_changed(self, change: dict[str, Any]) -> None:
        """The front-end shows it in so many places; 0 after the last was closed or cleared."""
        (self._watcher.open if change["new"] else self._watcher.discard)(self)

    def close(self) -> None:
        """Take it off the page; the watching thread ends with the last panel."""
        if self.comm is None:
            return
        self._watcher.discard(self)
        for each in (*self._buttons.values(), *self._parts.values(), self._ranks, self._mesh):
            each.close()
        super().close()


def _answer_while_busy(widget: ipywidgets.Widget) -> None:
    """Let clicks reach us while a cell runs.

    ipykernel 7.4 hands a message of the front-end to the thread that last had a request when the widget said
    something: mostly the main thread, which a cell keeps busy (``Comm._reply_subshell_for``). Without that, as in
    7.0 to 7.3, the front-end decides, and JupyterLab has a thread for widgets (tests/browser/test_panel.py).
    """
    setattr(widget.comm, "_reply_subshell_for", None)  # noqa: B010 - theirs, and not public


_WATCHER = Watcher()


def panel() -> Panel:
    """A widget with the cluster's buttons, one row per rank, and the strip of the last cell.

    It follows the cluster that was started last, by whichever cell or panel; several may be open.
    """
    return Panel(_WATCHER)
