"""What each rank did when: a row per rank over a common time axis. Notebook side; draws ``timing.gantt``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hpcnb.core import units
from hpcnb.core.spans import CATEGORY_NAMES
from hpcnb.plots import svg
from hpcnb.plots.figure import Figure
from hpcnb.plots.theme import BANDS, LOOKS, Look, dress
from hpcnb.timing import strip
from hpcnb.timing.breakdown import sums
from hpcnb.timing.gantt import Gantt, Rectangle, gantt
from hpcnb.timing.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot"]

_MOST_ROWS = 16
_MOST_RECTANGLES = 1500  # keeps the picture below 20 kB, and the figure below 60 kB
_ROW_HEIGHT = 44
_TEXT_WIDTH = 60

# top and bottom of each band in a row of height 1
_BANDS: Mapping[str, tuple[float, float]] = {
    "step": (0.04, 0.12),
    "main": (0.14, 0.84),
    "communication": (0.86, 0.96),
}
_LOOKS: Mapping[str, Look] = {**LOOKS, **BANDS}
#: The order in which the shares of a slice stand on each other.
_DEPTH = {name: depth for depth, name in enumerate((*CATEGORY_NAMES, *BANDS))}


def plot(timeline: Timeline) -> Figure:
    """What each rank did when: spans, steps, exposed wait and transfer; of many ranks, the extremes."""
    durations_ms = sums(timeline)
    slow, fast = strip.few(durations_ms, most=_MOST_ROWS)
    ranks = slow + fast
    picture = gantt(timeline, most=_MOST_RECTANGLES, ranks=frozenset(ranks))
    words = f"{units.count(len(durations_ms), 'rank')} · {units.duration(timeline.wall_ms)}"
    title = "What each rank did in "
    if len(timeline.cells) == 1:
        title += timeline.cells[0].label
    else:
        title += f"{units.count(len(timeline.cells), 'cell')}, pauses between cells cut out"
    if fast:
        words += f" · the {len(slow)} slowest and the {len(fast)} fastest ranks are drawn"
    if picture.left_out:
        words += f" · {picture.left_out}"
    axis = svg.TimeAxis(max(1e-6, timeline.wall_ms))
    return Figure(
        words=words,
        text=_text(picture, ranks),
        svg=_static(picture, ranks, title, axis),
        table=partial(_table, timeline),
        build=partial(_live, picture, ranks, title, axis),
    )


def _text(picture: Gantt, ranks: Sequence[int]) -> list[str]:
    """A row of glyphs per rank: what is on top in the middle of each column, or the largest share there."""
    rows = {rank: [" "] * _TEXT_WIDTH for rank in ranks}
    slice_ms = max(picture.wall_ms, 1e-6) / _TEXT_WIDTH

    def columns(each: Rectangle) -> range:
        return range(round(each.start_ms / slice_ms), round(each.end_ms / slice_ms))

    for span in picture.spans:
        if span.band == "main":
            for column in columns(span):
                rows[span.rank][column] = LOOKS[span.category].glyph
    shares: dict[tuple[int, int], dict[str, float]] = {}
    for share in picture.shares:
        if share.band == "main":
            for column in columns(share):
                shares.setdefault((share.rank, column), {})[share.category] = share.top - share.bottom
    for (rank, column), of_slice in shares.items():
        most = max(of_slice, key=lambda category: of_slice[category])
        around = 1.0 - sum(of_slice.values())  # what the span below takes
        if rows[rank][column] == " " or of_slice[most] > around:
            rows[rank][column] = LOOKS[most].glyph
    digits = len(str(max(ranks)))
    drawn = set().union(*rows.values())
    legend = "  ".join(f"{look.glyph} {look.label}" for look in LOOKS.values() if look.glyph in drawn)
    return [*(f" {rank:>{digits}} {''.join(row)}" for rank, row in rows.items()), f" {'':>{digits}} {legend}"]


def _box(each: Rectangle, row: int) -> svg.Box:
    """Where a rectangle goes in its rank's row; shares stand on the bottom of their band."""
    top, bottom = _BANDS[each.band]
    height = bottom - top
    return svg.Box(
        row,
        each.start_ms,
        each.end_ms,
        bottom - height * each.top,
        bottom - height * each.bottom,
        _LOOKS[each.category],
        each.name if each.named else "",
    )


def _looks(picture: Gantt) -> list[Look]:
    """Those of the categories and bands that occur, in the order of the legend."""
    occurring = {each.category for each in picture.rectangles}
    return [look for name, look in _LOOKS.items() if name in occurring]


def _static(picture: Gantt, ranks: Sequence[int], title: str, axis: svg.TimeAxis) -> str:
    row_of = {rank: row for row, rank in enumerate(ranks)}
    # every share down to the bottom of its band, the upper ones first: outlines of few points
    shares = [replace(share, bottom=0.0) for share in picture.shares]
    shares.sort(key=lambda share: (share.band, -_DEPTH[share.category], row_of[share.rank]))
    return svg.picture(
        title=title,
        axis=axis,
        axis_label="time",
        rows=[f"rank {rank}" for rank in ranks],
        boxes=[_box(each, row_of[each.rank]) for each in (*picture.spans, *shares)],
        looks=_looks(picture),
        row_height=_ROW_HEIGHT,
    )


def _table(timeline: Timeline) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(gantt(timeline, most=100_000).rectangles)


def _live(picture: Gantt, ranks: Sequence[int], title: str, axis: svg.TimeAxis) -> Any:
    """The same rectangles by HoloViews, with names under the pointer."""
    import holoviews as hv
    import pandas as pd

    row_of = {rank: row for row, rank in enumerate(ranks)}
    boxes = [_box(each, row_of[each.rank]) for each in picture.rectangles]
    length = axis.length_ms / axis.unit_ms
    digits = max(0, 4 - math.ceil(math.log10(length)))  # finer than a pixel, and small in a notebook
    table = pd.DataFrame(
        {
            "left": [round(box.start_ms / axis.unit_ms, digits) for box in boxes],
            "bottom": [round(box.row + box.bottom, 2) for box in boxes],
            "right": [round(box.end_ms / axis.unit_ms, digits) for box in boxes],
            "top": [round(box.row + box.top, 2) for box in boxes],
            "category": [box.look.label for box in boxes],
            "tip": [_tip(each, box) for each, box in zip(picture.rectangles, boxes, strict=True)],
        }
    )
    looks = _looks(picture)
    rectangles = hv.Rectangles(table, kdims=["left", "bottom", "right", "top"], vdims=["category", "tip"])
    return rectangles.opts(
        color="category",
        cmap={look.label: look.colour for look in looks},
        line_width=0,
        invert_yaxis=True,
        yticks=[(row + 0.5, f"rank {rank}") for rank, row in row_of.items()],
        xlabel=f"time ({axis.unit})",
        ylabel="",
        title=title,
        frame_height=max(80, min(_ROW_HEIGHT * len(ranks), 480)),
        xlim=(0, length),
        ylim=(0, len(ranks)),
        show_legend=False,
        tools=["xwheel_zoom"],
        default_tools=["save", "xpan", "xbox_zoom", "reset"],
        hover_tooltips="<div>@tip</div>",
        toolbar="above",
        hooks=[partial(dress, looks)],
    )


def _tip(each: Rectangle, box: svg.Box) -> str:
    """What stands under the pointer: ``rank 0 · forward · 10 ms · line 3 · step 3``."""
    label = box.look.label
    what = each.name if each.name.startswith(label) else f"{label} · {each.name}"
    return " · ".join(filter(None, (f"rank {each.rank}", what, units.duration(each.took_ms), each.detail)))
