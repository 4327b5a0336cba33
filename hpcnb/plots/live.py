"""HTML of a figure: the static picture, and a live plot that takes its place where that works offline.

BokehJS (1.3 MB) is neither fetched from the internet nor put into the notebook: ``live.js`` asks the Jupyter
server that shows the page, where Panel's server extension (a dependency of HoloViews) serves it. Elsewhere, on
GitHub, in nbviewer, in VS Code, in a file made by nbconvert, in an untrusted notebook, the picture stays.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from html import escape
from importlib import resources
from typing import Any

__all__ = ["html"]


def html(svg: str, words: str, plot: Any) -> str:
    """The HTML of a figure.

    Args:
        svg: The static picture.
        words: What it says; stands below, and in place of the picture for those who do not see it.
        plot: A Bokeh figure.
    """
    # an image, not inline SVG: what cleans the HTML of untrusted notebooks removes SVG elements
    picture = base64.b64encode(svg.encode()).decode()
    static = (
        f'<div class="hpcnb-static"><img alt="{escape(words)}" '
        f'src="data:image/svg+xml;base64,{picture}" style="max-width:100%"></div>'
    )
    return (
        f'<div class="hpcnb-figure">{static}<div class="hpcnb-live"></div>'
        f'<div style="font-size:12px;white-space:pre-wrap">{escape(words)}</div>'
        f'<script type="text/plain" class="hpcnb-packed">{_packed(plot)}</script>'
        f"<script>{_script()}</script></div>"
    )


def _packed(plot: Any) -> str:
    import numpy as np
    from bokeh.embed import json_item
    from bokeh.models.sources import ColumnDataSource

    for source in plot.select(type=ColumnDataSource):
        # lists instead of arrays: JSON of round numbers packs far better than doubles in base64
        columns = {name: np.asarray(column).tolist() for name, column in source.data.items()}
        source.data = {}  # else Bokeh finds the lists equal and keeps the arrays
        source.data = columns
    text = json.dumps(json_item(plot), separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def _script() -> str:
    return resources.files("hpcnb.plots").joinpath("live.js").read_text(encoding="utf-8")
