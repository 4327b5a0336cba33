"""An exception of a cell as data: what a person needs to see, without a frame of ours or of IPython.

Pure but for reading the traceback. The notebook side groups ranks whose ``key`` is equal and prints one
traceback per distinct error.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import IPython

from hpcnb.core.errors import CollectiveError, HpcnbError
from hpcnb.engine.recorder import CELL_FILE_PREFIX

__all__ = ["describe", "is_ours"]

_OURS = (str(Path(__file__).parents[1]), str(Path(IPython.__file__).parent))
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_CELL_FILE = re.compile(r'File "<(cell [^"]+)>", line (\d+)')
#: A traceback shows at most so many frames of libraries below the cell's own.
_MAX_FRAMES = 12


def is_ours(file: str) -> bool:
    """Whether code of this file belongs to hpcnb or IPython, which a person need not see."""
    return file.startswith(_OURS)


def describe(error: BaseException) -> dict[str, Any]:
    """The error as msgpack values.

    Returns:
        ``ename``, ``evalue``, ``cell`` (label, "" if no cell code was involved), ``line`` (of the innermost cell
        code, 0 if unknown), ``code`` (that line's text), ``traceback`` (text) and ``key``: equal for errors that
        a person would call the same (addresses are left out of it). Of a CollectiveError also ``operation``, as
        words, and ``waited_s``; of a wait that was given up by another error ``operation``.
    """
    summary = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _clean(summary)
    cell, line, code = _cell_position(error, summary)
    text = _CELL_FILE.sub(lambda match: f"C{match[1][1:]}, line {match[2]}", "".join(summary.format())).rstrip()
    # errors of ours say what to do; one line of cell code, which ``line`` and ``code`` tell, adds nothing
    says_all = isinstance(error, HpcnbError) and not isinstance(error, CollectiveError) and len(summary.stack) <= 1
    try:
        evalue = str(error)
    except Exception as problem:  # noqa: BLE001 - a broken __str__ is the user's; the error itself must still be told
        evalue = f"<str() of this {type(error).__name__} raised {type(problem).__name__}>"
    waited: dict[str, Any] = {}
    if isinstance(error, CollectiveError):
        waited = {"operation": error.operation, "waited_s": error.waited_s}
    elif operation := getattr(error, "given_up", ""):
        waited = {"operation": operation}
    return {
        "ename": type(error).__name__,
        "evalue": evalue,
        "cell": cell,
        "line": line,
        "code": code,
        "traceback": "" if says_all else text,
        "key": _ADDRESS.sub("0x", text),
        **waited,
    }


def _clean(summary: traceback.TracebackException) -> None:
    frames = [frame for frame in summary.stack if not is_ours(frame.filename)]
    in_cell = [index for index, frame in enumerate(frames) if frame.filename.startswith(CELL_FILE_PREFIX)]
    keep_from = in_cell[-1] + 1 if in_cell else 0
    if len(frames) - keep_from > _MAX_FRAMES:  # deep inside a library: its innermost frames tell most
        frames[keep_from : len(frames) - _MAX_FRAMES] = []
    summary.stack[:] = frames
    for linked in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if linked is not None:
            _clean(linked)


def _cell_position(error: BaseException, summary: traceback.TracebackException) -> tuple[str, int, str]:
    if isinstance(error, SyntaxError) and (error.filename or "").startswith(CELL_FILE_PREFIX):
        return (error.filename or "")[1:-1], error.lineno or 0, (error.text or "").strip()
    for frame in reversed(summary.stack):
        if frame.filename.startswith(CELL_FILE_PREFIX):
            return frame.filename[1:-1], frame.lineno or 0, (frame.line or "").strip()
    return "", 0, ""
