"""Timelines as pictures: static SVG drawn by us, and HoloViews plots beside it. Notebook side; computes nothing.

::

    breakdown.py    time per category, one bar per rank           one file per kind of plot, named as the
    timeline.py     what each rank did when                       word in ``timeline.plot("...")``
    figure.py       what a plot returns: words, static picture, live plot
    live.py         the HTML whose plot comes alive where BokehJS can be had without internet (live.js)
    svg.py          the static pictures          theme.py   one look per category
    warm.py         imports ahead of time what the first plot needs

Nothing here imports HoloViews, hvPlot, Bokeh or pandas before a plot is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hpcnb.core.errors import TimelineError

if TYPE_CHECKING:
    from hpcnb.plots.figure import Figure
    from hpcnb.timing.timeline import Timeline

__all__ = ["KINDS", "plot"]

#: Modules of this package that have ``plot(timeline) -> Figure`` (a test compares).
KINDS = ("breakdown", "timeline")


def plot(timeline: Timeline, kind: str = "breakdown") -> Figure:
    """Draw ``timeline``; see ``Timeline.plot``.

    Raises:
        TimelineError: No such kind, or no cell to draw.
    """
    if kind not in KINDS:
        known = ", ".join(f'"{name}"' for name in KINDS)
        raise TimelineError(f"there is no plot {kind!r}; timeline.plot(...) takes one of {known}")
    if not any(cell.ranks and cell.wall_ns for cell in timeline.cells):
        raise TimelineError("no cell has been timed yet; run a %%hpc_parallel cell first")
    figure: Figure = importlib.import_module(f"hpcnb.plots.{kind}").plot(timeline)
    return figure
