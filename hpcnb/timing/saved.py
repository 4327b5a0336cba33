"""A timeline as JSON: one line per span, kinds and categories as words. Notebook side.

::

    {"format": "hpcnb timeline", "version": 1, "fields": ["kind", "category", ...],
     "cells": [{"cell": 3, "label": "cell 3", "submitted_ns": ..., "done_ns": ...,
                "ranks": [{"rank": 0, "start_ns": ..., "end_ns": ..., "spans_lost": 0, "strings": ["", ...],
                           "spans": [["collective", "computation", 0, ...], ...]}]}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcnb.core.errors import TimelineError
from hpcnb.core.spans import SPAN_FIELDS, Category, Kind
from hpcnb.timing.timeline import SPAN_DTYPE, CellTimeline, RankCell, Spans, Timeline

__all__ = ["load", "save"]

_FORMAT = "hpcnb timeline"
_VERSION = 1
_FIELDS = [name for name, _ in SPAN_FIELDS]
_KINDS = {int(kind): kind.name.lower() for kind in Kind}
_CATEGORIES = {int(category): category.name.lower() for category in Category}
_KIND_NUMBERS = {name: number for number, name in _KINDS.items()}
_CATEGORY_NUMBERS = {name: number for number, name in _CATEGORIES.items()}


def save(timeline: Timeline, path: str | Path) -> Path:
    """Write ``timeline`` to ``path`` and return the path; see ``Timeline.save``."""
    path = Path(path)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(_lines(timeline))
    except OSError as error:
        raise TimelineError(f"cannot write {path}: {error.strerror}; name a file in a folder that exists") from error
    return path


def load(path: str | Path) -> Timeline:
    """Read a timeline from ``path``; see ``Timeline.load``."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TimelineError(f"cannot read {path}: {error.strerror}; timeline.save(path) writes one") from error
    except (ValueError, RecursionError) as error:
        raise TimelineError(f"{path} is no JSON, or cut off ({error}); timeline.save(path) writes it anew") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise TimelineError(f"{path} holds no hpcnb timeline; Timeline.load reads what timeline.save(path) wrote")
    if document.get("version") != _VERSION:
        raise TimelineError(
            f"{path} is a timeline of version {document.get('version')}; this hpcnb reads {_VERSION}: "
            f"load it with the hpcnb that saved it, or pip install --upgrade hpcnb"
        )
    try:
        return _timeline(document)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise TimelineError(
            f"{path} is damaged ({type(error).__name__}: {error}); timeline.save(path) writes it anew"
        ) from error


def _lines(timeline: Timeline) -> Iterator[str]:
    head = {"format": _FORMAT, "version": _VERSION, "fields": _FIELDS}
    yield json.dumps(head)[:-1] + ', "cells": ['
    for number, cell in enumerate(timeline.cells):
        head = {name: getattr(cell, name) for name in ("cell", "label", "submitted_ns", "done_ns")}
        yield "," * (number > 0) + "\n" + json.dumps(head)[:-1] + ', "ranks": ['
        for position, rank in enumerate(cell.ranks):
            head = {name: getattr(rank, name) for name in ("rank", "start_ns", "end_ns", "spans_lost")}
            head["strings"] = list(rank.strings)
            yield "," * (position > 0) + "\n " + json.dumps(head)[:-1] + ', "spans": ['
            for index, (kind, category, *rest) in enumerate(rank.spans.tolist()):
                span = [_KINDS.get(kind, kind), _CATEGORIES.get(category, category), *rest]
                yield "," * (index > 0) + "\n  " + json.dumps(span)
            yield "]}"
        yield "]}"
    yield "\n]}\n"


def _timeline(document: Mapping[str, Any]) -> Timeline:
    fields = document["fields"]
    if sorted(fields) != sorted(_FIELDS):
        raise ValueError(f"fields are {fields}")
    order = [fields.index(name) for name in _FIELDS]
    return Timeline.of(
        CellTimeline(
            _integer(cell["cell"]),
            _string(cell["label"]),
            _integer(cell["submitted_ns"]),
            _integer(cell["done_ns"]),
            tuple(
                RankCell(
                    _natural(rank["rank"]),
                    _integer(rank["start_ns"]),
                    _integer(rank["end_ns"]),
                    _spans(rank["spans"], order),
                    tuple(_string(text) for text in rank["strings"]),
                    _natural(rank["spans_lost"]),
                )
                for rank in cell["ranks"]
            ),
        )
        for cell in document["cells"]
    )


def _spans(saved: list[list[Any]], order: list[int]) -> Spans:
    spans = np.zeros(len(saved), SPAN_DTYPE)
    for index, row in enumerate(saved):
        if len(row) != len(order):
            raise ValueError(f"span {index} has {len(row)} fields")
        kind, category, *rest = (row[position] for position in order)
        kind = _KIND_NUMBERS.get(kind, kind) if isinstance(kind, str) else kind
        category = _CATEGORY_NUMBERS.get(category, category) if isinstance(category, str) else category
        spans[index] = tuple(_integer(value) for value in (kind, category, *rest))
    return spans


def _integer(value: object) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**64:
        raise ValueError(f"{value!r} stands where a whole number belongs")
    return value


def _natural(value: object) -> int:
    number = _integer(value)
    if not 0 <= number < 2**31:
        raise ValueError(f"{number} is out of range")
    return number


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} stands where text belongs")  # noqa: TRY004 - the file is wrong, not a type
    return value
