"""Merged output -> text and HTML. Pure: items in, strings out.

Colours add, never carry, the meaning: every label is there as text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from hpcnb.cluster.cell_run import Bar
from hpcnb.cluster.result import RichOutput
from hpcnb.core.grouping import Item
from hpcnb.core.ranks import RankSet

__all__ = ["bar_text", "embeddable", "held_text", "items_html", "items_text", "label", "strip_ansi"]

#: Okabe and Ito's palette: told apart by colour-blind readers (https://jfly.uni-koeln.de/color/).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_ANSI = re.compile(r"\x1b\[([0-9;]*)m")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[=>]")
_ANSI_COLOURS = {
    30: "#3e424d", 31: "#c23a2b", 32: "#00843f", 33: "#9c6500", 34: "#1a63b0", 35: "#9d3fa5", 36: "#11757a",
    37: "#8b8f98", 90: "#6e737d", 91: "#b03a2e", 92: "#1e8449", 93: "#9a7d0a", 94: "#2471a3", 95: "#7d3c98",
    96: "#117a65", 97: "#8b8f98",
}  # fmt: skip
_BAR_CELLS = 30


def label(ranks: RankSet) -> str:
    """``[0-3]``."""
    return f"[{ranks}]"


def strip_ansi(text: str) -> str:
    """The text without escape sequences."""
    return _ESCAPES.sub("", text)


def embeddable(output: RichOutput) -> bool:
    """Whether the bundle can be shown inside our own HTML (and so stays in its place)."""
    bundle = output.bundle
    if any(kind.startswith("image/") for kind in bundle):
        return True
    return "text/html" in bundle and "<script" not in str(bundle["text/html"]).lower()


def _values_label(item: Item) -> str:
    return f"Out[{item.ranks}]:"


def _line(item: Item) -> str:
    if item.kind == "cut":
        return f"... {item.text} ..."
    text = item.text.removeprefix("repr ") if item.kind == "value" else item.text
    if item.slowest >= 0:
        text += f"   (slowest: rank {item.slowest})"
    return text


def items_text(items: Sequence[Item], displays: Sequence[RichOutput], *, ansi: bool = False) -> str:
    """The merged output as plain text, one label per line.

    Args:
        items: From ``Grouper.layout``.
        displays: Rich outputs that items refer to.
        ansi: Keep the colours that ranks printed.
    """
    rows: list[tuple[str, str]] = []
    for item in items:
        head = _values_label(item) if item.kind == "value" else label(item.ranks)
        if item.kind == "display" or (item.kind == "value" and not item.text.startswith("repr ")):
            bundle = displays[int(item.text)].bundle
            body = str(bundle.get("text/plain", "<" + ", ".join(bundle) + ">"))
        else:
            body = _line(item)
        if not ansi:
            body = strip_ansi(body)
        first, *rest = body.split("\n")
        rows += [(head, first), *(("", line) for line in rest)]
    width = max((len(head) for head, _ in rows), default=0)
    return "\n".join(f"{head:<{width}} {text}".rstrip() for head, text in rows)


def items_html(items: Sequence[Item], displays: Sequence[RichOutput]) -> str:
    """The merged output as HTML: a block of text lines, with pictures where they were shown."""
    colours: dict[RankSet, str] = {}
    width = max((len(_values_label(item) if item.kind == "value" else label(item.ranks)) for item in items), default=0)
    parts: list[str] = []
    for item in items:
        colour = colours.setdefault(item.ranks, _PALETTE[len(colours) % len(_PALETTE)])
        head = _values_label(item) if item.kind == "value" else label(item.ranks)
        tag = f'<b style="color:{colour}">{head}</b>{" " * (width - len(head) + 1)}'
        if item.kind == "display" or (item.kind == "value" and not item.text.startswith("repr ")):
            parts.append(f"{tag}\n</pre>{_rich_html(displays[int(item.text)])}{_PRE}")
            continue
        body = _ansi_html(_line(item))
        if item.kind == "stderr":
            body = f'<span style="background:rgba(213,94,0,.10)">{body}</span>'
        elif item.kind == "cut":
            body = f"<i>{body}</i>"
        body = body.replace("\n", "\n" + " " * (width + 1))
        parts.append(f"{tag}{body}\n")
    return f"{_PRE}{''.join(parts)}</pre>".replace(f"{_PRE}</pre>", "")


_PRE = '<pre style="margin:0;line-height:1.35">'


def _rich_html(output: RichOutput) -> str:
    bundle = output.bundle
    for kind in ("image/png", "image/jpeg", "image/gif", "image/webp"):
        if kind in bundle:
            packed = bundle[kind]
            if isinstance(packed, bytes):
                import base64

                packed = base64.b64encode(packed).decode()
            alternative = html.escape(str(bundle.get("text/plain", "picture")), quote=True)
            return f'<img alt="{alternative}" src="data:{kind};base64,{str(packed).strip()}"/>'
    if "image/svg+xml" in bundle:
        return f"<div>{bundle['image/svg+xml']}</div>"
    if embeddable(output):
        return f"<div>{bundle['text/html']}</div>"
    return f"<pre>{html.escape(strip_ansi(str(bundle.get('text/plain', ''))))}</pre>"


def _ansi_html(text: str) -> str:
    """SGR colours and weights as spans; any other escape sequence is dropped."""
    parts: list[str] = []
    at, is_open = 0, False
    for match in _ANSI.finditer(text):
        parts.append(html.escape(_ESCAPES.sub("", text[at : match.start()])))
        at = match.end()
        if is_open:
            parts.append("</span>")
            is_open = False
        if style := _style(match[1]):
            parts.append(f'<span style="{style}">')
            is_open = True
    parts.append(html.escape(_ESCAPES.sub("", text[at:])))
    if is_open:
        parts.append("</span>")
    return "".join(parts)


def _style(codes: str) -> str:
    styles: list[str] = []
    numbers = [int(code) for code in codes.split(";") if code]
    skip = 0
    for index, code in enumerate(numbers):
        if skip:
            skip -= 1
        elif code in (38, 48):  # 256 colours and RGB: their numbers are not codes
            skip = 2 if numbers[index + 1 : index + 2] == [5] else 4
        elif code == 1:
            styles.append("font-weight:bold")
        elif code == 3:
            styles.append("font-style:italic")
        elif code in _ANSI_COLOURS:
            styles.append(f"color:{_ANSI_COLOURS[code]}")
    return ";".join(styles)


def held_text(held: Sequence[tuple[RankSet, int, str]]) -> list[str]:
    """Lines about output that floods and is held back until the cell ends; at most eight."""
    lines = [f"{label(ranks)} ... {count:,} more lines, newest: {strip_ansi(text)}" for ranks, count, text in held[:8]]
    return lines + ([f"... and {len(held) - 8} more groups of ranks"] if len(held) > 8 else [])


def bar_text(bar: Bar) -> str:
    """One ``hpc.progress`` of all ranks as one line.

    ``train  ━━━━━━╸━━━  412/600 · 38.2 steps/s · slowest rank 1 (-9 %)``: the mean position, the mean rate, and the
    rank that is furthest behind with how much slower it is than the mean.
    """
    positions = bar.positions
    mean = sum(position for position, _ in positions.values()) / len(positions)
    rates = {rank: position / elapsed for rank, (position, elapsed) in positions.items() if elapsed > 0 and position}
    parts: list[str] = []
    if bar.total > 0:
        filled = min(1.0, mean / bar.total) * _BAR_CELLS
        whole = int(filled)
        tip = "╸" if filled - whole >= 0.5 and whole < _BAR_CELLS else ""
        drawing = "━" * whole + tip + "─" * (_BAR_CELLS - whole - len(tip))
        parts.append(f"{drawing}  {mean:.0f}/{bar.total}")
    else:
        parts.append(f"{mean:.0f}")
    if rates:
        mean_rate = sum(rates.values()) / len(rates)
        parts.append(f"{mean_rate:.3g} steps/s" if mean_rate >= 1 else f"{1 / mean_rate:.3g} s/step")
        if bar.total > 0 and not bar.finished and mean:
            parts.append(f"{_clock(max(0.0, (bar.total - mean) / mean_rate))} left")
        slowest, fastest = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
        behind, ahead = rates[slowest] / mean_rate - 1, rates[fastest] / mean_rate - 1
        if len(rates) > 1 and behind < -0.02:
            parts.append(f"slowest rank {slowest} ({behind * 100:.0f} %)")
            parts.append(f"fastest rank {fastest} (+{ahead * 100:.0f} %)")
    return (f"{bar.description}  " if bar.description else "") + " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
