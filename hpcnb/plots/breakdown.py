"""Where the time went: a stacked bar per rank. Notebook side; draws what ``timing.breakdown`` counted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hpcnb.core import units
from hpcnb.plots import svg
from hpcnb.plots.figure import Figure
from hpcnb.plots.theme import LOOKS, dress
from hpcnb.timing import strip
from hpcnb.timing.breakdown import sums
from hpcnb.timing.timeline import Timeline

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot"]

_MOST_ROWS = 24

_Durations = Mapping[int, Mapping[str, float]]


def plot(timeline: Timeline) -> Figure:
    """Time per category of every rank, all cells of ``timeline`` together; of many ranks, the extremes."""
    durations_ms = sums(timeline)
    slow, fast = strip.few(durations_ms, most=_MOST_ROWS)
    title = "Where the time went"
    if len(timeline.cells) == 1:
        title += f" in {timeline.cells[0].label}"
    if fast:
        title += f": the {len(slow)} slowest and the {len(fast)} fastest of {len(durations_ms)} ranks"
    drawn = {rank: durations_ms[rank] for rank in slow + fast}
    axis = svg.TimeAxis(max(1e-6, *(sum(of_rank.values()) for of_rank in drawn.values())))
    return Figure(
        words=strip.summary(timeline),
        text=strip.text_bars(durations_ms),
        svg=_static(drawn, title, axis),
        table=partial(_table, timeline),
        build=partial(_live, drawn, title, axis),
    )


def _static(durations_ms: _Durations, title: str, axis: svg.TimeAxis) -> str:
    boxes: list[svg.Box] = []
    for row, of_rank in enumerate(durations_ms.values()):
        total_ms, start_ms = sum(of_rank.values()), 0.0
        for name, look in LOOKS.items():
            end_ms = start_ms + of_rank.get(name, 0.0)
            if end_ms > start_ms:
                share = units.percent((end_ms - start_ms) / total_ms)
                boxes.append(svg.Box(row, start_ms, end_ms, 0.1, 0.9, look, share))
            start_ms = end_ms
    shown = {box.look for box in boxes}
    return svg.picture(
        title=title,
        axis=axis,
        axis_label="time",
        rows=[f"rank {rank}" for rank in durations_ms],
        boxes=boxes,
        looks=[look for look in LOOKS.values() if look in shown],
    )


def _table(timeline: Timeline) -> pd.DataFrame:
    return timeline.breakdown()


def _live(durations_ms: _Durations, title: str, axis: svg.TimeAxis) -> Any:
    """The same bars by hvPlot."""
    import pandas as pd
    from hvplot import hvPlotTabular

    looks = {name: look for name, look in LOOKS.items() if any(of.get(name) for of in durations_ms.values())}
    table = pd.DataFrame(
        {
            look.label: [of_rank.get(name, 0.0) / axis.unit_ms for of_rank in durations_ms.values()]
            for name, look in looks.items()
        }
    )
    table["rank"] = [f"rank {rank}" for rank in durations_ms]
    bars = hvPlotTabular(table)(
        kind="barh",
        x="rank",
        y=[look.label for look in looks.values()],
        stacked=True,
        cmap={look.label: look.colour for look in looks.values()},
        line_color="white",
        flip_yaxis=True,
        xlabel="",  # of the ranks: a bar plot turned on its side keeps the names of its axes
        ylabel=f"time ({axis.unit})",
        title=title,
        legend=False,
        frame_height=26 * max(2, min(len(durations_ms), 24)),
        group_label="category",
        value_label=f"time ({axis.unit})",
    )
    return bars.opts(
        hooks=[partial(dress, list(looks.values()))],
        toolbar="above",
        default_tools=["save", "pan", "box_zoom", "reset"],
    )
