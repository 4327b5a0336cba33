"""The strip under a cell: one line of words and a bar of text per rank. Notebook side, pure.

Glyphs and words carry the meaning, so that the strip reads the same in a terminal, in a saved notebook and
without colours; ``plots.theme`` uses the same glyphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from weakref import WeakKeyDictionary

from hpcnb.core import units
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import CATEGORY_NAMES
from hpcnb.timing import stragglers
from hpcnb.timing.breakdown import sums, totals
from hpcnb.timing.timeline import CellTimeline, Timeline

__all__ = [
    "GLYPHS",
    "LABELS",
    "ORDER",
    "bar",
    "bars",
    "few",
    "few_of",
    "place",
    "shares",
    "summary",
    "text_bars",
    "words",
]

#: What people read for a category.
LABELS: Mapping[str, str] = {
    **{name: name for name in CATEGORY_NAMES},
    "communication_wait": "wait",
    "communication_transfer": "transfer",
}

#: One character per category, told apart without colour.
GLYPHS: Mapping[str, str] = {
    "computation": "█",
    "forward": ">",
    "backward": "<",
    "optimizer": "+",
    "communication_wait": "▒",
    "communication_transfer": "░",
    "data": "▓",
    "idle": "·",
    "dispatch": "-",
    "other": "?",
}

#: Categories in the order in which bars stack them.
ORDER = tuple(GLYPHS)

_MOST_BARS = 16
_LEAST_SHARE = 0.0005  # rounds to 0.1 %
# What is worth a sentence: every collective has a little wait, and no two ranks end at the same moment.
_NOTABLE_WAIT = 0.02  # of the wall time
_LEAST_WAIT_MS = 0.5
_NOTABLE_IDLE = 0.1  # of the wall time
_SMALL_CELL_MS = 20.0
_NEARLY_ALL = 0.95
_NOT_BUSY = ("communication_wait", "idle", "dispatch")


_words: WeakKeyDictionary[CellTimeline, str] = WeakKeyDictionary()
_few: WeakKeyDictionary[CellTimeline, tuple[list[int], list[int]]] = WeakKeyDictionary()


def words(cell: CellTimeline) -> str:
    """Where the time of the cell went, in one line; kept as long as the cell is.

    ``4 ranks · 15.8 s · computation 71 % · wait 14 %     rank 1 is waited for: 1.9 s in all_reduce (line 6)``
    """
    if cell not in _words:
        _words[cell] = _in_words(cell)
    return _words[cell]


def _in_words(cell: CellTimeline) -> str:
    of_ranks = totals(cell)
    parts = [shares(of_ranks, wall_ms=cell.wall_ms), *_lost(sum(rank.spans_lost for rank in cell.ranks))]
    blame = _blame(cell, of_ranks)
    return " · ".join(parts) + (f"     {blame}" if blame else "")


def summary(timeline: Timeline) -> str:
    """The line of words about all cells of ``timeline``."""
    if len(timeline.cells) == 1:
        return words(timeline.cells[0])
    of_ranks = shares(sums(timeline), wall_ms=timeline.wall_ms)
    return " · ".join([units.count(len(timeline.cells), "cell"), of_ranks, *_lost(timeline.spans_lost)])


def shares(durations_ms: Mapping[int, Mapping[str, float]], *, wall_ms: float) -> str:
    """``4 ranks · 15.8 s · computation 71 % · wait 14 %``: averages over the ranks."""
    parts = [units.count(len(durations_ms), "rank"), units.duration(wall_ms)]
    whole_ms = wall_ms * len(durations_ms)
    spent: dict[str, float] = dict.fromkeys(ORDER, 0.0)
    for of_rank in durations_ms.values():
        for name, ms in of_rank.items():
            spent[name] += ms
    for name, spent_ms in spent.items():
        if spent_ms > 0 and spent_ms >= _LEAST_SHARE * whole_ms:
            parts.append(f"{LABELS[name]} {units.percent(spent_ms / whole_ms)}")
    return " · ".join(parts)


def bars(cell: CellTimeline, width: int = 40) -> list[str]:
    """One row of text per rank, ``width`` characters for the cell's wall time, and a legend of what occurs.

    Of more than 16 ranks, the 8 busiest and the 8 least busy.
    """
    return _bars(totals(cell), few_of(cell), width)


def few_of(cell: CellTimeline) -> tuple[list[int], list[int]]:
    """:func:`few` ranks of a cell, as many as have bars; kept as long as the cell is."""
    if cell not in _few:
        _few[cell] = few(totals(cell), most=_MOST_BARS)
    return _few[cell]


def text_bars(durations_ms: Mapping[int, Mapping[str, float]], *, width: int = 40) -> list[str]:
    """The rows of :func:`bars` for rank -> category -> duration_ms."""
    return _bars(durations_ms, few(durations_ms, most=_MOST_BARS), width)


def _bars(
    durations_ms: Mapping[int, Mapping[str, float]], shown_ranks: tuple[list[int], list[int]], width: int
) -> list[str]:
    slow, fast = shown_ranks
    longest_ms = max((sum(durations_ms[rank].values()) for rank in slow + fast), default=0.0)
    digits = len(str(max(slow + fast, default=0)))
    rows = {rank: bar(durations_ms[rank], width=width, longest_ms=longest_ms) for rank in (*slow, *fast)}
    lines = [f" {rank:>{digits}} {row}" for rank, row in rows.items()]
    if fast:
        left_out = len(durations_ms) - len(rows)
        lines.insert(len(slow), f" … {left_out} ranks between")
        shown = f"the {len(slow)} slowest and the {len(fast)} fastest of {len(durations_ms)} ranks"
        lines.insert(0, f"{shown}, by time not spent waiting")
    drawn = set().union(*rows.values())
    legend = "  ".join(f"{GLYPHS[name]} {LABELS[name]}" for name in ORDER if GLYPHS[name] in drawn)
    if lines and legend:
        if len(lines[-1]) + len(legend) <= 100:
            lines[-1] += f"      {legend}"
        else:
            lines.append(f" {'':>{digits}} {legend}")
    return lines


def few(durations_ms: Mapping[int, Mapping[str, float]], *, most: int) -> tuple[list[int], list[int]]:
    """Ranks to show: all, or the busiest ``most / 2``, slowest first, and the least busy, fastest last."""
    if len(durations_ms) <= most:
        return sorted(durations_ms), []

    def busy_ms(rank: int) -> float:
        return sum(ms for name, ms in durations_ms[rank].items() if name not in _NOT_BUSY)

    ranks = sorted(durations_ms, key=lambda rank: (-busy_ms(rank), rank))
    return ranks[: most // 2], ranks[-(most // 2) :]


def bar(durations_ms: Mapping[str, float], *, width: int, longest_ms: float) -> str:
    """One row: glyphs in proportion, by largest remainder, so that the full length is always ``width``."""
    total_ms = sum(durations_ms.values())
    if total_ms <= 0 or longest_ms <= 0:
        return ""
    length = round(width * total_ms / longest_ms)
    exact = [(name, durations_ms[name] / total_ms * length) for name in ORDER if durations_ms.get(name, 0.0) > 0]
    counts = {name: int(cells) for name, cells in exact}
    by_remainder = sorted(exact, key=lambda item: int(item[1]) - item[1])
    for name, _ in by_remainder[: length - sum(counts.values())]:
        counts[name] += 1
    return "".join(GLYPHS[name] * count for name, count in counts.items())


def place(line: int, source: str, label: str) -> str:
    """`` (line 6)`` in the cell ``label``, `` (train.py line 6)`` elsewhere, nothing where not known."""
    if not line:
        return ""
    return f" (line {line})" if source in ("", label) else f" ({PurePath(source).name} line {line})"


def _lost(num_spans: int) -> list[str]:
    return [f"{units.count(num_spans, 'span')} lost, their time is in other"] if num_spans else []


def _blame(cell: CellTimeline, durations_ms: Mapping[int, Mapping[str, float]]) -> str:
    """Who was waited for, if it matters."""
    by_delay = sorted(stragglers.waited_for(cell), key=lambda each: -each.delay_ms)
    if by_delay and by_delay[0].delay_ms >= max(_NOTABLE_WAIT * cell.wall_ms, _LEAST_WAIT_MS):
        # ranks that cost about as much take turns: to name the first of them would mislead
        return _waited_for([each for each in by_delay if each.delay_ms >= by_delay[0].delay_ms / 2], cell)
    idle_ms = sorted(of_rank["idle"] for of_rank in durations_ms.values())
    median_ms = idle_ms[len(idle_ms) // 2] if idle_ms else 0.0
    if cell.wall_ms >= _SMALL_CELL_MS and median_ms >= _NOTABLE_IDLE * cell.wall_ms:
        last = max(cell.ranks, key=lambda rank: cell.extent(rank)[1])
        return f"rank {last.rank} ends last: the others are idle for {units.duration(median_ms)}"
    return ""


def _waited_for(worst: list[stragglers.Straggler], cell: CellTimeline) -> str:
    """``rank 1 is waited for: 1.9 s in all_reduce (line 6)``."""
    most = max(worst, key=lambda each: each.there_ms)
    where = (most.operation, most.line, most.source)
    there_ms = sum(each.there_ms for each in worst if (each.operation, each.line, each.source) == where)
    only = there_ms >= _NEARLY_ALL * sum(each.wait_ms for each in worst)
    ranks = RankSet(each.rank for each in worst)
    return (
        f"{ranks.words()} {'is waited for' if len(ranks) == 1 else 'are waited for in turn'}: "
        f"{units.duration(sum(each.delay_ms for each in worst))}{' in' if only else ', mostly in'} "
        f"{most.operation}{place(most.line, most.source, cell.label)}"
    )
