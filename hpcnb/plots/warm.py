"""Imports what plots need, once, and ahead of time where asked: HoloViews, hvPlot and Bokeh take about 2 s.

``hvplot.pandas`` is never imported: it publishes JavaScript that fetches BokehJS from the internet into whatever
cell runs at that moment. hvPlot itself does neither.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["bokeh_backend", "warm"]

#: HoloViews keeps its current backend in one place for all threads: one of ours draws at a time.
_drawing = threading.RLock()


def warm() -> None:
    """Import what a first plot needs and draw a tiny one: meant for a thread, while the person waits for ranks."""
    import numpy as np

    from hpcnb import plots
    from hpcnb.timing.timeline import SPAN_DTYPE, CellTimeline, RankCell, Timeline

    cell = CellTimeline(0, "cell 0", 0, 3, (RankCell(0, 1, 2, np.zeros(1, SPAN_DTYPE)),))
    for kind in plots.KINDS:
        plots.plot(Timeline.of([cell]), kind)._repr_mimebundle_()


@contextmanager
def bokeh_backend() -> Iterator[Any]:
    """HoloViews, with Bokeh as its current backend meanwhile; a person may have chosen another one."""
    with _drawing:
        import holoviews as hv
        import hvplot.converter  # noqa: F401 - registers the Bokeh backend without publishing anything

        before = hv.Store.current_backend
        if before != "bokeh":
            hv.Store.set_current_backend("bokeh")
        try:
            yield hv
        finally:
            if before != "bokeh":
                hv.Store.set_current_backend(before)
