"""A timeline as Chrome trace events, which Perfetto and chrome://tracing open. Notebook side.

One process per rank. Its main thread holds cells, steps, spans and the two parts of blocked time;
communication from issue to completion, which may overlap, is asynchronous slices. Times are microseconds
since the first cell was sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcnb.core.errors import TimelineError
from hpcnb.core.spans import Kind, SpanRecord
from hpcnb.timing.exposed import exposed
from hpcnb.timing.timeline import CellTimeline, RankCell, Timeline

__all__ = ["events", "export"]

_MAIN, _COMMUNICATION = 1, 2


def export(timeline: Timeline, path: str | Path) -> Path:
    """Write the events to ``path`` and return the path; see ``Timeline.to_perfetto``."""
    path = Path(path)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [')
            for number, event in enumerate(events(timeline)):
                file.write(("," if number else "") + "\n" + json.dumps(event))
            file.write("\n]}\n")
    except OSError as error:
        raise TimelineError(f"cannot write {path}: {error.strerror}; name a file in a folder that exists") from error
    return path


def events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """The trace events: names of ranks first, then slices, cell after cell and rank after rank."""
    for number in sorted({rank.rank for cell in timeline.cells for rank in cell.ranks}):
        for kind, thread, value in (
            ("process_name", 0, {"name": f"rank {number}"}),
            ("process_sort_index", 0, {"sort_index": number}),
            ("thread_name", _MAIN, {"name": "main thread"}),
            ("thread_name", _COMMUNICATION, {"name": "communication"}),
        ):
            yield {"name": kind, "ph": "M", "pid": number, "tid": thread, "args": value}
    origin_ns = min((cell.submitted_ns for cell in timeline.cells), default=0)
    for cell in timeline.cells:
        communication = exposed(cell)
        for index, rank in enumerate(cell.ranks):
            entries = communication.of_rank(index)
            waits_ns = communication.wait_ns[entries].tolist()
            wait_ns = dict(zip(communication.record[entries].tolist(), waits_ns, strict=True))
            for position, values in enumerate(rank.spans.tolist()):
                span = SpanRecord(*values)
                if position in wait_ns:
                    key = f"{rank.rank}.{cell.cell}.{position}"  # unique in the whole file
                    yield from _communication(rank, span, key, wait_ns[position], origin_ns)
                else:
                    name = _name(cell, rank, span)
                    shown = _slice(rank, name, _category(span), span.start_ns, span.end_ns, origin_ns)
                    yield shown | {"args": _args(rank, span)}


def _communication(
    rank: RankCell, span: SpanRecord, key: str, wait_ns: int, origin_ns: int
) -> Iterator[dict[str, Any]]:
    name, args = rank.text(span.name), _args(rank, span)
    common = {"name": name, "cat": "communication", "id": key, "pid": rank.rank, "tid": _COMMUNICATION}
    end_ns = max(span.start_ns, span.end_ns)
    yield common | {"ph": "b", "ts": (span.start_ns - origin_ns) / 1e3, "args": args}
    yield common | {"ph": "e", "ts": (end_ns - origin_ns) / 1e3}
    came_ns = span.wait_start_ns + wait_ns
    for what, start_ns, stop_ns in (
        ("wait", span.wait_start_ns, came_ns),
        ("transfer", came_ns, span.wait_end_ns),
    ):
        if stop_ns > start_ns:
            category = f"communication_{what}"
            yield _slice(rank, f"{name} ({what})", category, start_ns, stop_ns, origin_ns) | {"args": args}


def _slice(rank: RankCell, name: str, category: str, start_ns: int, end_ns: int, origin_ns: int) -> dict[str, Any]:
    start, length = (start_ns - origin_ns) / 1e3, max(0, end_ns - start_ns) / 1e3
    return {
        "name": name, "cat": category, "ph": "X", "ts": start, "dur": length, "pid": rank.rank, "tid": _MAIN
    }  # fmt: skip


def _name(cell: CellTimeline, rank: RankCell, span: SpanRecord) -> str:
    if span.kind == Kind.CELL:
        return cell.label
    if span.kind == Kind.STEP:
        return f"step {span.step}"
    return rank.text(span.name) or ("data" if span.kind == Kind.DATA else "span")


def _category(span: SpanRecord) -> str:
    return Kind(span.kind).name.lower() if span.kind in set(Kind) else "unknown"


def _args(rank: RankCell, span: SpanRecord) -> dict[str, Any]:
    """What a click on the slice shows: only what the record knows."""
    known: dict[str, Any] = {}
    if span.step >= 0:
        known["step"] = span.step
    if span.line:
        known |= {"line": span.line, "source": rank.text(span.source)}
    if span.kind in (Kind.COLLECTIVE, Kind.POINT_TO_POINT):
        known |= {"bytes": span.num_bytes, "group": rank.text(span.group), "sequence": span.sequence}
    if span.kind == Kind.POINT_TO_POINT:
        known["peer"] = span.peer
    return known
