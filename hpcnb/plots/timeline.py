"""What each rank did when: a row per rank over a common time axis. Notebook side; draws ``timing.gantt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hpcnb.plots import svg
from hpcnb.plots.figure import Figure
from hpcnb.plots.theme import BANDS, LOOKS, Look, dress
from hpcnb.timing import strip, units
from hpcnb.timing.breakdown import totals
from hpcnb.timing.gantt import Gantt, Rectangle, gantt
from hpcnb.timing.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot"]

_MOST_ROWS = 32
_MOST_STATIC = 1500  # rectangles: keeps the picture below 60 kB
_MOST_LIVE = 4000
_TEXT_WIDTH = 60

# top and bottom of each band in a row of height 1
_BANDS: Mapping[str, tuple[float, float]] = {
    "step": (0.04, 0.12),
    "main": (0.14, 0.84),
    "communication": (0.86, 0.96),
}
_LOOKS: Mapping[str, Look] = {**LOOKS, **BANDS}


def plot(timeline: Timeline) -> Figure:
    """Spans of every rank: the user's spans, steps, data, exposed wait and transfer; of many ranks, the extremes."""
    cost_ms: dict[int, dict[str, float]] = {}
    for cell in timeline.cells:
        for rank, of_rank in totals(cell).items():
            cost_ms.setdefault(rank, {})
            for name, duration_ms in of_rank.items():
                cost_ms[rank][name] = cost_ms[rank].get(name, 0.0) + duration_ms
    slow, fast = strip.few(cost_ms, most=_MOST_ROWS)
    ranks = slow + fast
    picture = gantt(timeline, most=_MOST_STATIC, ranks=frozenset(ranks))
    words = f"{units.count(len(cost_ms), 'rank')} · {units.duration(timeline.wall_ms)}"
    if fast:
        words += f" · the {len(slow)} slowest and the {len(fast)} fastest ranks are drawn"
    if picture.left_out:
        words += f" · {picture.left_out}"
    title = (
        f"What each rank did in {timeline.cells[0].label}" if len(timeline.cells) == 1 else _title(timeline)
    )
    axis = svg.TimeAxis(max(1e-6, timeline.wall_ms))
    return Figure(
        words=words,
        text=_text(picture, ranks),
        svg=_static(picture, ranks, title, axis),
        table=partial(_table, timeline),
        build=partial(_live, timeline, ranks, title, axis),
    )


def _title(timeline: Timeline) -> str:
    return f"What each rank did in {units.count(len(timeline.cells), 'cell')}, pauses between cells cut out"


def _text(picture: Gantt, ranks: Sequence[int]) -> list[str]:
    """A row of glyphs per rank: what takes most of each slice of time."""
    rows = {rank: [" "] * _TEXT_WIDTH for rank in ranks}
    shares: dict[tuple[int, int], dict[str, float]] = {}
    slice_ms = max(picture.wall_ms, 1e-6) / _TEXT_WIDTH
    for each in picture.rectangles:
        columns = range(round(each.start_ms / slice_ms), round(each.end_ms / slice_ms))
        if each.band == "main":
            for column in columns:
                if each.top - each.bottom == 1.0:
                    rows[each.rank][column] = LOOKS[each.category].glyph
                else:
                    shares.setdefault((each.rank, column), {})[each.category] = each.top - each.bottom
    for (rank, column), of_slice in shares.items():
        most = max(of_slice, key=lambda category: of_slice[category])
        if of_slice[most] > 1.0 - sum(of_slice.values()):  # else what encloses them takes more
            rows[rank][column] = LOOKS[most].glyph
    digits = len(str(max(ranks)))
    drawn = set().union(*rows.values())
    legend = "  ".join(f"{look.glyph} {look.label}" for look in LOOKS.values() if look.glyph in drawn)
    return [*(f" {rank:>{digits}} {''.join(row)}" for rank, row in rows.items()), f" {'':>{digits}} {legend}"]


def _box(each: Rectangle, row: int) -> svg.Box:
    """Where a rectangle goes in its rank's row; shares stand on the bottom of their band."""
    top, bottom = _BANDS[each.band]
    height = bottom - top
    text = each.name if each.named else ""
    return svg.Box(
        row,
        each.start_ms,
        each.end_ms,
        bottom - height * each.top,
        bottom - height * each.bottom,
        _LOOKS[each.category],
        text,
    )


def _shown(rectangles: Sequence[Rectangle]) -> list[str]:
    """The categories and bands that occur, in the order of the legend."""
    occurring = {each.category for each in rectangles}
    return [name for name in _LOOKS if name in occurring]


def _static(picture: Gantt, ranks: Sequence[int], title: str, axis: svg.TimeAxis) -> str:
    row_of = {rank: row for row, rank in enumerate(ranks)}
    return svg.picture(
        title=title,
        axis=axis,
        axis_label="time",
        rows=[f"rank {rank}" for rank in ranks],
        boxes=[_box(each, row_of[each.rank]) for each in picture.rectangles],
        looks=[_LOOKS[name] for name in _shown(picture.rectangles)],
    )


def _table(timeline: Timeline) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(gantt(timeline, most=100_000).rectangles)


def _live(timeline: Timeline, ranks: Sequence[int], title: str, axis: svg.TimeAxis) -> Any:
    """The same rectangles by HoloViews, more of them, with names under the pointer."""
    import holoviews as hv
    import pandas as pd

    picture = gantt(timeline, most=_MOST_LIVE, ranks=frozenset(ranks))
    row_of = {rank: row for row, rank in enumerate(ranks)}
    boxes = [_box(each, row_of[each.rank]) for each in picture.rectangles]
    table = pd.DataFrame(
        {
            "start": [box.start_ms / axis.unit_ms for box in boxes],
            "bottom": [box.row + box.bottom for box in boxes],
            "end": [box.end_ms / axis.unit_ms for box in boxes],
            "top": [box.row + box.top for box in boxes],
            "category": [box.look.label for box in boxes],
            "rank": [each.rank for each in picture.rectangles],
            "name": [each.name for each in picture.rectangles],
            "took": [units.duration(each.end_ms - each.start_ms) for each in picture.rectangles],
            "detail": [each.detail for each in picture.rectangles],
        }
    )
    looks = [_LOOKS[name] for name in _shown(picture.rectangles)]
    rectangles = hv.Rectangles(
        table, kdims=["start", "bottom", "end", "top"], vdims=["category", "rank", "name", "took", "detail"]
    )
    return rectangles.opts(
        color="category",
        cmap={look.label: look.colour for look in looks},
        line_width=0,
        invert_yaxis=True,
        yticks=[(row + 0.5, f"rank {rank}") for rank, row in row_of.items()],
        xlabel=f"time ({axis.unit})",
        ylabel="",
        title=title,
        frame_width=svg.WIDTH - svg.MARGIN_LEFT - 40,
        frame_height=30 * max(2, min(len(ranks), 20)),
        xlim=(0, axis.length_ms / axis.unit_ms),
        ylim=(0, len(ranks)),
        show_legend=False,
        tools=["xwheel_zoom"],
        default_tools=["save", "xpan", "xbox_zoom", "reset"],
        hover_tooltips=[("rank", "@rank"), ("", "@category"), ("", "@name"), ("", "@took"), ("", "@detail")],
        toolbar="above",
        hooks=[partial(dress, looks)],
    )
