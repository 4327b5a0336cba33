"""The strip under a cell, as text and as HTML: one line of words, one bar per rank, a legend."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hpcnb.cluster.result import CellResult

__all__ = ["as_html", "as_text"]

#: A segment of at least this share has room for its name.
_ROOM = 0.12
#: Less is not drawn.
_VISIBLE = 0.001


def as_text(result: CellResult) -> list[str]:
    """The line of words and the bars; empty if no rank answered."""
    cell = result.cell_timeline
    if cell is None:
        return []
    from hpcnb.timing import strip

    return [_of_all(strip.words(cell), result), *strip.bars(cell)]


def as_html(result: CellResult) -> str:
    """The same with coloured bars, which wrap as text does."""
    cell = result.cell_timeline
    if cell is None:
        return ""
    from hpcnb.timing import strip
    from hpcnb.timing.breakdown import totals

    of_ranks = totals(cell)
    slow, fast = strip.few_of(cell)
    longest_ms = max((sum(of_ranks[rank].values()) for rank in slow + fast), default=0.0)
    rows = [_row(rank, of_ranks[rank], longest_ms) for rank in (*slow, *fast)]
    if fast:
        rows.insert(len(slow), f"<div>… {len(of_ranks) - len(rows)} ranks between</div>")
    words, _, blame = (html.escape(part) for part in _of_all(strip.words(cell), result).partition("     "))
    words += f"<br>{blame}" if blame else ""
    return (
        '<div style="margin:.4em 0 0;font-size:90%;max-width:60em">'
        f'<div style="opacity:.8">{words}</div>{"".join(rows)}{_legend(of_ranks)}</div>'
    )


def _of_all(words: str, result: CellResult) -> str:
    """``3 of 4 ranks · ...`` where a rank has not answered, and so has no bar."""
    cell, num_ranks = result.cell_timeline, len(result.ranks)
    if cell is None or len(cell.ranks) == num_ranks:
        return words
    return f"{len(cell.ranks)} of {num_ranks} ranks · {words.partition(' · ')[2]}"


def _row(rank: int, durations_ms: Mapping[str, float], longest_ms: float) -> str:
    from hpcnb.core import units
    from hpcnb.plots.theme import LOOKS

    segments = []
    for name, look in LOOKS.items():
        share = durations_ms.get(name, 0.0) / longest_ms if longest_ms > 0 else 0.0
        if share < _VISIBLE:
            continue
        words = f"{look.label} {units.duration(durations_ms[name])}"
        inside = look.label if share >= _ROOM else ""
        segments.append(
            f'<span title="{words}" style="width:{share * 100:.1f}%;background:{look.colour};color:{look.ink};'
            f'overflow:hidden;white-space:nowrap;text-align:center">{inside}</span>'
        )
    bar = f'<span style="display:flex;flex:1;font-size:75%;line-height:1.5">{"".join(segments)}</span>'
    return (
        f'<div style="display:flex;align-items:center;margin:1px 0"><span style="min-width:2.2em;'
        f'text-align:right;padding-right:.5em">{rank}</span>{bar}</div>'
    )


def _legend(of_ranks: Mapping[int, Mapping[str, float]]) -> str:
    from hpcnb.plots.theme import LOOKS

    longest_ms = max(sum(durations_ms.values()) for durations_ms in of_ranks.values())
    occurring = {
        name
        for durations_ms in of_ranks.values()
        for name, spent_ms in durations_ms.items()
        if spent_ms >= _VISIBLE * longest_ms
    }
    entries = [
        f'<span style="padding-right:1em;white-space:nowrap">'
        f'<span style="color:{look.colour}">■</span> {look.label}</span>'
        for name, look in LOOKS.items()
        if name in occurring
    ]
    return f'<div style="padding-left:2.7em;opacity:.8;font-size:85%">{"".join(entries)}</div>'
