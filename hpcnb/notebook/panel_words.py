"""What a panel says: Snapshot -> words, button states, HTML. Pure; knows neither widgets nor threads."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, Literal

from hpcnb.cluster.result import CellResult
from hpcnb.core.ranks import RankSet
from hpcnb.notebook import show

__all__ = [
    "Phase",
    "Snapshot",
    "buttons",
    "cell_html",
    "cell_words",
    "line_html",
    "sentence",
    "stage_words",
    "table_html",
    "text",
]

Phase = Literal["none", "starting", "running", "stopping"]
_QUIET_STATES = ("idle", "dead", "not started", "starting")


@dataclass(frozen=True)
class Snapshot:
    """What a panel shows.

    Attributes:
        phase: What the cluster is at.
        title: Which cluster, in words.
        stages: What its start has reached, with times.
        rows: As ``Cluster.status``.
        cell: Which cell was the last, and how it ended; empty before the first.
        strip: Where its time went, in lines.
        strip_html: The same as HTML.
        problem: What went wrong, in words; empty if nothing did.
    """

    phase: Phase = "none"
    title: str = ""
    stages: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    cell: str = ""
    strip: tuple[str, ...] = ()
    strip_html: str = ""
    problem: str = ""


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
    busy, dead = _busy(seen), RankSet(row["rank"] for row in seen.rows if row["state"] == "dead")
    doing = "a cell runs" if len(busy) == len(seen.rows) else f"a cell runs on {busy.words()}" if busy else "idle"
    parts = (seen.title, doing if seen.rows else "", f"{dead.words()} dead" if dead else "")
    return " · ".join(part for part in parts if part)


def cell_words(result: CellResult) -> str:
    """``last cell, In[3]: interrupted``."""
    ended = ""
    if result.timeout_s is not None:
        ended = f": interrupted by its timeout of {result.timeout_s:g} s"
    elif result.interrupted:
        ended = ": interrupted"
    elif failed := RankSet(result.errors) | RankSet(result.exits):
        ended = f": failed on {failed.words()}"
    return f"last cell, {result.label.removeprefix('cell ')}{ended}"


def _started(seen: Snapshot) -> str:
    return f"started: {stage_words(seen.stages)}" if seen.phase == "running" and seen.stages else ""


def text(seen: Snapshot) -> str:
    """All of it as plain text: what a terminal shows, and a saved notebook on GitHub."""
    rows = show.aligned(show.status_rows(list(seen.rows))) if seen.rows else []
    lines = [line for line in (sentence(seen), seen.problem, _started(seen), *rows) if line]
    return "\n".join([*lines, "", seen.cell, *seen.strip] if seen.cell else lines)


def line_html(seen: Snapshot) -> str:
    """What is going on, how the start went, and what went wrong."""
    parts = [f'<div role="status" style="line-height:1.5"><b>{html.escape(sentence(seen))}</b></div>']
    if started := _started(seen):
        parts.append(f'<div style="line-height:1.5;opacity:.75">{html.escape(started)}</div>')
    if seen.problem:
        parts.append(
            '<pre role="alert" style="margin:.3em 0;padding-left:.6em;border-left:3px solid #D55E00;'
            f'line-height:1.3;white-space:pre-wrap">{html.escape(seen.problem)}</pre>'
        )
    return "".join(parts)


def table_html(seen: Snapshot) -> str:
    """One row per rank."""
    if not seen.rows:
        return ""
    head, *body = show.status_rows(list(seen.rows))
    sides = ["right" if name in ("rank", "pid", "memory") else "left" for name in head]

    def row(tag: str, cells: list[str]) -> str:
        style = "padding:.1em 1.5em .1em 0;white-space:nowrap;text-align:"
        aligned = zip(cells, sides, strict=True)
        ended = tag.partition(" ")[0]
        return "".join(f'<{tag} style="{style}{side}">{html.escape(cell)}</{ended}>' for cell, side in aligned)

    rows = [row('th scope="col"', head), *(row("td", cells) for cells in body)]
    table = '<table style="line-height:1.4;font-variant-numeric:tabular-nums">'
    body_html = "".join(f"<tr>{cells}</tr>" for cells in rows)
    return f'<div style="max-height:26em;overflow:auto">{table}{body_html}</table></div>'


def cell_html(seen: Snapshot) -> str:
    """Where the time of the last cell went."""
    if not seen.cell:
        return ""
    return f'<div style="line-height:1.5"><div>{html.escape(seen.cell)}</div>{seen.strip_html}</div>'
