"""Static pictures: SVG from numbers, small enough to live in a saved notebook. No library, no script.

Knows boxes, patterns, a time axis and a legend; what they mean is the caller's.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape, quoteattr

from hpcnb.plots.theme import WIDTH, Look

__all__ = ["Box", "TimeAxis", "picture"]

_MARGIN_LEFT = 64
_MARGIN_RIGHT = 16
_TITLE_HEIGHT = 26
_AXIS_HEIGHT = 36
_LEGEND_ROW = 18
_CHARACTER = 6.2  # width of an average character at 11 px
_INK = "#222222"

#: Lines inside a tile of 6 x 6 for Bokeh's names of patterns.
_TILES = {
    "right_diagonal_line": "M0 6L6 0",
    "left_diagonal_line": "M0 0L6 6",
    "cross": "M3 0V6M0 3H6",
    "diagonal_cross": "M0 0L6 6M0 6L6 0",
    "dot": "M2 3h2",
    "ring": "M2 2h2v2h-2z",
    "horizontal_line": "M0 3H6",
    "vertical_line": "M3 0V6",
    "horizontal_dash": "M1 3H4",
}


@dataclass(frozen=True)
class TimeAxis:
    """A time axis in the unit that reads best, from 0 to ``length_ms``.

    Attributes:
        length_ms: Where it ends; > 0.
    """

    length_ms: float

    @property
    def unit(self) -> str:
        """``ms``, ``s`` or ``min``."""
        return "ms" if self.length_ms < 1000 else "s" if self.length_ms < 180_000 else "min"

    @property
    def unit_ms(self) -> float:
        """Milliseconds in a unit."""
        return {"ms": 1.0, "s": 1000.0, "min": 60_000.0}[self.unit]

    def ticks(self) -> list[float]:
        """Five to ten round numbers, in the unit."""
        length = self.length_ms / self.unit_ms
        rough = length / 9
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(magnitude * round_number for round_number in (1, 2, 5, 10) if magnitude * round_number >= rough)
        return [index * step for index in range(int(length / step + 1e-9) + 1)]

    def x(self, at_ms: float) -> float:
        """Where ``at_ms`` is, in pixels from the left."""
        return _MARGIN_LEFT + at_ms / self.length_ms * (WIDTH - _MARGIN_LEFT - _MARGIN_RIGHT)


@dataclass(frozen=True)
class Box:
    """A box in a row.

    Attributes:
        row: From the top.
        start_ms: Left edge.
        end_ms: Right edge.
        top: Of the row's height, 0 at its top.
        bottom: The same, 1 at its bottom.
        look: Fill.
        text: Written on it where it fits.
    """

    row: int
    start_ms: float
    end_ms: float
    top: float
    bottom: float
    look: Look
    text: str = ""


def picture(
    *,
    title: str,
    axis: TimeAxis,
    axis_label: str,
    rows: Sequence[str],
    boxes: Sequence[Box],
    looks: Sequence[Look],
    row_height: float = 28.0,
) -> str:
    """An SVG document of boxes in labelled rows over a time axis.

    Args:
        title: Written above.
        axis: Of the time.
        axis_label: Below the axis; the unit is added.
        rows: A label per row.
        boxes: In the order of painting.
        looks: For the legend; those of all boxes are among them.
        row_height: In pixels; many rows get less.
    """
    # an SVG shown inline shares its names with the page: patterns get names of their own
    key = f"h{zlib.crc32(repr((title, boxes)).encode()):x}"
    fills = {look: f"url(#{key}-{index})" if look.pattern else look.colour for index, look in enumerate(looks)}
    row_height = max(9.0, min(row_height, 480 / max(1, len(rows))))
    bottom = _TITLE_HEIGHT + row_height * len(rows)
    legend, legend_rows = _legend(looks, fills, bottom + _AXIS_HEIGHT)
    height = math.ceil(bottom + _AXIS_HEIGHT + _LEGEND_ROW * legend_rows + 4)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label={quoteattr(title)} '
        f'font-family="system-ui,sans-serif" font-size="11" fill="{_INK}"><defs>'
    )
    parts = [
        head,
        *(_pattern(look, f"{key}-{index}") for index, look in enumerate(looks) if look.pattern),
        '</defs><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="17" font-size="13">{escape(title)}</text>',
        *_axis(axis, axis_label, bottom),
    ]
    for row, label in enumerate(rows):
        middle = _TITLE_HEIGHT + row_height * (row + 0.5) + 4
        parts.append(f'<text x="{_MARGIN_LEFT - 8}" y="{middle:.4g}" text-anchor="end">{escape(label)}</text>')
    return "".join([*parts, *_paint(boxes, axis, row_height, fills), *legend, "</svg>"])


def _pattern(look: Look, name: str) -> str:
    return (
        f'<pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" fill="{look.colour}"/>'
        f'<path d="{_TILES[look.pattern]}" stroke="{look.ink}" stroke-opacity=".55" fill="none"/></pattern>'
    )


def _axis(axis: TimeAxis, label: str, bottom: float) -> Iterator[str]:
    """Grid lines, numbers and the label below."""
    ticks = axis.ticks()
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 1
    lines = "".join(f"M{axis.x(tick * axis.unit_ms):.1f} {_TITLE_HEIGHT}V{bottom:.1f}" for tick in ticks)
    yield f'<path d="{lines}" stroke="#ddd"/>'
    for tick in ticks:
        at = f'x="{axis.x(tick * axis.unit_ms):.1f}" y="{bottom + 14:.1f}"'
        yield f'<text {at} text-anchor="middle">{tick:.{decimals}f}</text>'
    at = f'x="{(_MARGIN_LEFT + WIDTH - _MARGIN_RIGHT) / 2:.0f}" y="{bottom + 29:.1f}"'
    yield f'<text {at} text-anchor="middle">{escape(label)} ({axis.unit})</text>'


def _paint(boxes: Sequence[Box], axis: TimeAxis, row_height: float, fills: Mapping[Look, str]) -> Iterator[str]:
    """One path per run of boxes that look the same, then their texts, under what is nested in them."""
    for (look, base), run in groupby(boxes, key=lambda box: (box.look, box.bottom)):
        same = list(run)
        height = row_height * (base - same[0].top)
        if all(box.top == same[0].top for box in same):
            dashes = _dashes(same, axis, row_height)
            yield f'<path fill="none" stroke="{fills[look]}" stroke-width="{height:.4g}" d="{dashes}"/>'
        else:
            yield f'<path fill="{fills[look]}" d="{_steps(same, axis, row_height)}"/>'
        yield _texts(same, axis, row_height)


def _dashes(boxes: Sequence[Box], axis: TimeAxis, row_height: float) -> str:
    """Boxes of one height as thick lines: half as long as outlines."""
    path, row, pen = "", -1, 0
    for box in boxes:
        left, right = (round(10 * axis.x(at_ms)) for at_ms in (box.start_ms, box.end_ms))
        # a hair between neighbours where there is room shows where one ends
        length = right - left - 5 if right - left > 40 else max(right - left, 1)
        if box.row == row:
            path += f"m{_pixels(left - pen)} 0" if left != pen else ""
        else:
            middle = _TITLE_HEIGHT + row_height * (box.row + (box.top + box.bottom) / 2)
            path += f"M{_pixels(left)} {_pixels(round(10 * middle))}"
        path += f"h{_pixels(length)}"
        row, pen = box.row, left + length
    return path


def _steps(boxes: Sequence[Box], axis: TimeAxis, row_height: float) -> str:
    """Boxes on one base as the outline of a staircase, as far as they touch."""
    path, row, pen, height, base = "", -1, 0, 0, ""
    for box in boxes:
        left, right = (round(10 * axis.x(at_ms)) for at_ms in (box.start_ms, box.end_ms))
        top, bottom = (round(10 * (_TITLE_HEIGHT + row_height * (box.row + at))) for at in (box.top, box.bottom))
        if (box.row, left) != (row, pen):
            path += f"{base}M{_pixels(left)} {_pixels(bottom)}"
            height = bottom
        path += f"v{_pixels(top - height)}h{_pixels(right - left)}"
        row, pen, height, base = box.row, right, top, f"V{_pixels(bottom)}z"
    return path + base


def _texts(boxes: Sequence[Box], axis: TimeAxis, row_height: float) -> str:
    """What is written on the boxes of one look that have room for it."""
    texts = []
    for box in boxes:
        left, right = axis.x(box.start_ms), axis.x(box.end_ms)
        fits = right - left >= _CHARACTER * len(box.text) + 6 and row_height * (box.bottom - box.top) >= 11
        if box.text and fits:
            middle = _TITLE_HEIGHT + row_height * (box.row + (box.top + box.bottom) / 2) + 4
            texts.append(f'<text x="{(left + right) / 2:.1f}" y="{middle:.1f}">{escape(box.text)}</text>')
    if not texts:
        return ""
    look = boxes[0].look
    return (
        f'<g text-anchor="middle" fill="{look.ink}" stroke="{look.colour}" stroke-width="3" '
        f'paint-order="stroke">{"".join(texts)}</g>'
    )


def _pixels(tenths: int) -> str:
    """``12.3``, ``12``, ``.3``: as short as a path allows."""
    return f"{tenths / 10:g}" if abs(tenths) >= 10 or not tenths else f"{tenths / 10:g}".replace("0", "", 1)


def _legend(looks: Sequence[Look], fills: Mapping[Look, str], top: float) -> tuple[list[str], int]:
    """Swatches with names, as many rows as needed; and the number of rows."""
    drawn, left, row = [], float(_MARGIN_LEFT), 0
    for look in looks:
        width = 12 + 5 + _CHARACTER * len(look.label) + 14
        if left + width > WIDTH and left > _MARGIN_LEFT:
            left, row = float(_MARGIN_LEFT), row + 1
        y = top + _LEGEND_ROW * row
        swatch = f'<rect x="{left:.0f}" y="{y + 2:.1f}" width="12" height="12" fill="{fills[look]}"/>'
        drawn.append(f'{swatch}<text x="{left + 17:.0f}" y="{y + 12:.1f}">{escape(look.label)}</text>')
        left += width
    return drawn, row + 1 if drawn else 0
