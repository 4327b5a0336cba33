"""One fixed look per category: colour, pattern, glyph and name. Colours add, never carry, the meaning.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart with any kind of colour vision,
and greys; patterns tell the categories apart in black and white; glyphs are those of the text strip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcnb.timing.strip import GLYPHS, LABELS

__all__ = ["BANDS", "LOOKS", "WIDTH", "Look", "dress"]

#: Of every picture, in pixels; a live plot shrinks with the page.
WIDTH = 760


@dataclass(frozen=True)
class Look:
    """How a category looks everywhere.

    Attributes:
        label: What people read.
        glyph: Its character in text.
        colour: Fill.
        ink: Colour of a text or pattern on the fill.
        pattern: Bokeh's name of the hatch pattern; empty for a plain fill.
    """

    label: str
    glyph: str
    colour: str
    ink: str
    pattern: str


_COLOURS: Mapping[str, tuple[str, str, str]] = {
    "computation": ("#0072B2", "#FFFFFF", ""),
    "forward": ("#56B4E9", "#00405F", "right_diagonal_line"),
    "backward": ("#CC79A7", "#5B2140", "left_diagonal_line"),
    "optimizer": ("#009E73", "#FFFFFF", "cross"),
    "communication_wait": ("#D55E00", "#FFFFFF", "dot"),
    "communication_transfer": ("#E69F00", "#5C3F00", "horizontal_line"),
    "data": ("#F0E442", "#5E5800", "vertical_line"),
    "idle": ("#E3E3E3", "#8A8A8A", "ring"),
    "dispatch": ("#8C8C8C", "#FFFFFF", "horizontal_dash"),
    "other": ("#3C3C3C", "#BBBBBB", "diagonal_cross"),
}

#: By category, in the order in which bars stack them.
LOOKS: Mapping[str, Look] = {name: Look(LABELS[name], GLYPHS[name], *_COLOURS[name]) for name in GLYPHS}

#: The thin bands of the timeline picture that are no categories.
BANDS: Mapping[str, Look] = {
    "step": Look("step", "", "#555555", "#FFFFFF", ""),
    "communication": Look("communication in flight", "", "#E69F00", "#5C3F00", ""),
}


def dress(looks: Sequence[Look], plot: Any, element: Any) -> None:  # noqa: ARG001 - a HoloViews hook
    """Give a plot coloured by the column ``category`` our patterns and a legend in our order.

    HoloViews has no options for either: its legend follows the order of the data.
    """
    from bokeh.models.annotations import Legend, LegendItem
    from bokeh.transform import factor_cmap, factor_hatch

    labels = [look.label for look in looks]
    glyph, figure = plot.handles["glyph"], plot.handles["plot"]
    patterns = [look.pattern or "blank" for look in looks]
    glyph.hatch_pattern = factor_hatch("category", patterns=patterns, factors=labels)
    glyph.hatch_color = factor_cmap("category", palette=[look.ink for look in looks], factors=labels)
    glyph.hatch_alpha, glyph.hatch_scale, glyph.hatch_weight = 0.55, 8, 0.8
    figure.toolbar.logo = None
    figure.sizing_mode, figure.width, figure.frame_width = "stretch_width", None, None
    figure.max_width = WIDTH
    renderer = plot.handles["glyph_renderer"]
    renderer.hover_glyph = None  # it would cover what is nested in the span under the pointer
    shown = list(renderer.data_source.data["category"])
    items = [
        LegendItem(label=label, renderers=[renderer], index=shown.index(label)) for label in labels if label in shown
    ]
    for each in list(figure.legend):
        each.visible = False
    legend = Legend(items=items, orientation="horizontal", ncols=6, border_line_color=None, location="left")
    legend.label_text_font_size = "11px"
    figure.add_layout(legend, "below")
