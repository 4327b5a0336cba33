"""Shows a cell while it runs: in a notebook one output area that is updated, in a terminal lines as they settle."""

from __future__ import annotations

import contextlib
import gc
import html
import sys
import uuid
from collections.abc import Callable, Iterator
from time import monotonic, perf_counter
from typing import Any, TextIO

from hpcnb.cluster.cell_run import CellRun
from hpcnb.cluster.result import CellResult
from hpcnb.core.grouping import Item
from hpcnb.core.ranks import RankSet
from hpcnb.notebook import markup, strip

__all__ = ["NotebookView", "TerminalView"]

#: The output area is redrawn at most so often, and never spends more than a fifth of the time drawing.
_REDRAW_S = 0.1
#: A cell that says nothing says after so long that it runs.
_SILENT_S = 2.0
#: A terminal waits so long for other ranks to say the same line.
_SETTLE_S = 0.3


def _footer(result: CellResult) -> list[str]:
    lines = [f"{markup.label(ranks)} {notice}" for notice, ranks in result.notices.items()]
    if result.ok:  # else the error tells
        if result.caught_interrupt:
            lines.append("the cell was interrupted, and ended without an error")
        lines += [*result.explanations, *result.recovery]
    if result.floods:
        paths = sorted(result.floods.values())
        where = paths[0] if len(paths) == 1 else f"{paths[0]} ... ({len(paths)} files, one per rank)"
        lines.append(f"whole output, until the cluster stops: {where}")
    return lines


class NotebookView:
    """One updated output area: text/plain and text/html, so that a saved notebook reads well anywhere.

    Args:
        show_time: Whether the strip follows.
        publish: ``publish(bundle, display_id, update)``; by default IPython's display.
    """

    def __init__(self, *, show_time: bool, publish: Callable[[dict[str, Any], str, bool], None] | None = None) -> None:
        self._show_time = show_time
        self._publish = _publish if publish is None else publish
        self._display_id = uuid.uuid4().hex
        self._shown = False
        self._began_s = monotonic()
        self._next_s = 0.0
        self._next_status_s = self._began_s + _SILENT_S

    def update(self, run: CellRun) -> None:
        """Redraw if there is something new and it is time."""
        now_s = monotonic()
        if now_s < self._next_s or not (run.changed or now_s >= self._next_status_s):
            return
        run.changed = False
        self._next_status_s = max(self._next_status_s, now_s + 1.0)
        elapsed_s = now_s - self._began_s
        running = [f"running {elapsed_s:.0f} s"] if elapsed_s >= _SILENT_S else []
        bars = [*markup.held_text(run.held), *(markup.bar_text(bar) for bar in run.bars.values())]
        before_s = perf_counter()
        with _collector_off():
            self._draw(run.items(), run.result, bars, [*run.news(), *running])
        self._next_s = monotonic() + max(_REDRAW_S, 4 * (perf_counter() - before_s))

    #: The front-end keeps what was typed below all output; a transcript in its order is easier to read.
    shows_answers = False

    def ask(self, run: CellRun, prompt: str) -> str:
        """Draw what has been said, then ask through the front-end's stdin, see hpcnb.cluster.asking.Asks."""
        self._next_s = 0.0
        run.changed = True
        self.update(run)
        sys.stdout.flush()
        return input(prompt)

    def finish(self, run: CellRun, result: CellResult) -> None:
        """Draw the cell as it stays."""
        bars = [markup.bar_text(bar) for bar in run.bars.values()]
        notes = _footer(result)
        with _collector_off():
            below, below_html = (strip.as_text(result), strip.as_html(result)) if self._show_time else ([], "")
            if result.items or bars or notes or below or self._shown:
                self._draw(result.items, result, bars, notes, below, below_html)
        for output in result.displays:
            if not markup.embeddable(output) and output.bundle.keys() - {"text/plain"}:
                self._publish(dict(output.bundle), "", False)

    def _draw(
        self,
        items: list[Item],
        result: CellResult,
        bars: list[str],
        notes: list[str],
        below: list[str] | None = None,
        below_html: str = "",
    ) -> None:
        text = markup.items_text(items, result.displays)
        blocks = [text, "\n".join(bars), "\n".join([*notes, *(below or [])])]
        plain = "\n".join(block for block in blocks[:2] if block)
        plain += ("\n\n" if plain and blocks[2] else "") + blocks[2]
        page = markup.items_html(items, result.displays) + _block(bars, "0") + _block(notes, ".4em 0 0") + below_html
        self._publish({"text/plain": plain, "text/html": page}, self._display_id, self._shown)
        self._shown = True


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection while a view is drawn.

    Drawing makes ten thousands of short-lived objects without cycles. Left on, the collector would promote them and
    soon walk over all objects of the kernel, a fifth of a second after plots have been imported, at which the kernel
    answers nobody.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _block(lines: list[str], margin: str) -> str:
    if not lines:
        return ""
    return f'<pre style="margin:{margin};line-height:1.2">{html.escape(chr(10).join(lines))}</pre>'


def _publish(bundle: dict[str, Any], display_id: str, update: bool) -> None:  # noqa: FBT001 - see NotebookView
    from IPython.display import display, update_display

    if update:
        update_display(bundle, display_id=display_id, raw=True)
    elif display_id:
        display(bundle, display_id=display_id, raw=True)
    else:
        display(bundle, raw=True)


class TerminalView:
    """Prints every line once per rank set, as soon as other ranks have had time to say the same.

    Args:
        show_time: Whether the strip follows.
        stream: Where to; by default standard output.
    """

    def __init__(self, *, show_time: bool, stream: TextIO | None = None) -> None:
        self._show_time = show_time
        self._stream = sys.stdout if stream is None else stream
        self._printed: dict[tuple[str, str, int], int] = {}
        self._seen_s: dict[tuple[str, str, int], float] = {}
        self._bar = ""
        self._next_s = 0.0

    def update(self, run: CellRun) -> None:
        """Print what has settled."""
        now_s = monotonic()
        if now_s < self._next_s or not (run.changed or self._seen_s):
            return
        run.changed = False
        before_s = perf_counter()
        self._print(run.items(), run.result, now_s, everyone=run.result.ranks)
        self._show_bar(" | ".join(markup.bar_text(bar) for bar in run.bars.values() if not bar.finished))
        self._next_s = monotonic() + max(0.05, 4 * (perf_counter() - before_s))

    shows_answers = True

    def ask(self, run: CellRun, prompt: str) -> str:
        """Print what has been said, also what other ranks might still say, then ask; see hpcnb.cluster.asking.Asks."""
        run.changed = False
        self._print(run.items(), run.result, float("inf"), everyone=run.result.ranks)
        self._show_bar("")
        return input(prompt)

    def finish(self, run: CellRun, result: CellResult) -> None:
        """Print the rest."""
        self._print(result.items, result, float("inf"), everyone=result.ranks)
        self._show_bar("")
        lines = [markup.bar_text(bar) for bar in run.bars.values()]
        lines += _footer(result)
        if self._show_time:
            lines += ["", *strip.as_text(result)]
        for line in lines:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _print(self, items: list[Item], result: CellResult, now_s: float, *, everyone: RankSet) -> None:
        count: dict[tuple[str, str], int] = {}
        for item in items:
            if not item.complete:
                continue
            count[item.kind, item.text] = count.get((item.kind, item.text), 0) + 1
            key = (item.kind, item.text, count[item.kind, item.text])
            missing = item.ranks.bits & ~self._printed.get(key, 0)
            if not missing:
                self._seen_s.pop(key, None)
                continue
            seen_s = self._seen_s.setdefault(key, now_s)
            if item.ranks != everyone and now_s - seen_s < _SETTLE_S:
                break  # later lines wait too: the order of a rank's lines is kept
            self._seen_s.pop(key, None)
            self._printed[key] = self._printed.get(key, 0) | missing
            shown = Item(RankSet.of_bits(missing), item.kind, item.text, slowest=item.slowest)
            self._show_bar("")
            self._stream.write(markup.items_text([shown], result.displays, ansi=True) + "\n")
        self._stream.flush()

    def _show_bar(self, text: str) -> None:
        if not self._stream.isatty() or text == self._bar:
            return
        self._stream.write("\r\x1b[K" + text)
        self._stream.flush()
        self._bar = text
