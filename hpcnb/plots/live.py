"""HTML of a figure: the static picture, and a live plot that takes its place where that works offline.

BokehJS (1.3 MB) is neither fetched from the internet nor put into the notebook: ``live.js`` asks the Jupyter server
that shows the page, where Panel's server extension (a dependency of HoloViews) serves it. Elsewhere, on GitHub,
in nbviewer, in a file made by nbconvert, in an untrusted notebook, the picture stays.
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


def html(svg: str, words: str, item: dict[str, Any]) -> str:
    """The HTML of a figure.

    Args:
        svg: The static picture.
        words: What it says; stands below, and in place of the picture for those who do not see it.
        item: The plot as ``bokeh.embed.json_item`` gives it.
    """
    # an image, not inline SVG: what cleans the HTML of untrusted notebooks removes SVG elements
    picture = base64.b64encode(svg.encode()).decode()
    static = (
        f'<div class="hpcnb-static"><img alt="{escape(words)}" '
        f'src="data:image/svg+xml;base64,{picture}" style="max-width:100%"></div>'
    )
    return (
        f'<div class="hpcnb-figure">{static}<div class="hpcnb-live"></div>'
        f'<div style="font-size:12px">{escape(words)}</div>'
        f'<script type="text/plain" class="hpcnb-packed">{_packed(item)}</script>'
        f"<script>{_script()}</script></div>"
    )


def _packed(item: dict[str, Any]) -> str:
    text = json.dumps(item, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def _script() -> str:
    return resources.files("hpcnb.plots").joinpath("live.js").read_text(encoding="utf-8")
