"""What of a rank's output is shown: everything, or head and tail with the rest in a file. Pure but for that file.

The cut depends on the text alone, not on how it was split into chunks, so that ranks that print the same are
still grouped after it.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TextIO

__all__ = ["FloodGate", "collapse_rewrites", "size_words"]

#: The file of a flood holds at most so many characters (it may lie in memory, under /run or /tmp).
_FILE_LIMIT = 64 << 20
Entry = tuple[str, str]


def collapse_rewrites(text: str) -> str:
    """Drop what carriage returns overwrite: of ``a\\rb\\rc`` only ``\\rc`` is left."""
    if "\r" not in text:
        return text
    text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    for index, line in enumerate(lines):
        at = line.rstrip("\r").rfind("\r")
        if at >= 0:
            lines[index] = line[at:]
    return "\n".join(lines)


def size_words(num_bytes: int) -> str:
    """``172 kB``."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class FloodGate:
    """Lets the head of one rank's output of one cell pass, keeps its tail, and writes the whole to a file.

    Args:
        line_budget: Lines shown of a flood: two thirds head, one third tail.
        byte_budget: Characters shown of a flood, split the same way.
        path: The file of the whole output; written only if there is a flood.
    """

    def __init__(self, line_budget: int, byte_budget: int, path: Path) -> None:
        self._head_lines = max(1, line_budget * 2 // 3)
        self._head_size = max(1, byte_budget * 2 // 3)
        self._tail_lines = max(1, line_budget - self._head_lines)
        self._tail_size = max(1, byte_budget - self._head_size)
        self._path = path
        self._lines = 0
        self._size = 0
        self._head: list[str] = []
        self._file: TextIO | None = None
        self._file_left = _FILE_LIMIT
        self._tail: deque[Entry] = deque()
        self._tail_held = 0
        self._cut_lines = 0
        self._cut_size = 0

    @property
    def overflowed(self) -> bool:
        """Whether output was cut."""
        return self._file is not None

    def feed(self, kind: str, text: str) -> list[Entry]:
        """What of this chunk is shown at once."""
        text = collapse_rewrites(text)
        if self._file is not None:
            self._keep(kind, text)
            return []
        if text.startswith("\r") and "\n" not in text:
            return [(kind, text)]  # a bar that rewrites itself costs nothing
        shown = self._room(text)
        self._lines += text.count("\n", 0, shown)
        self._size += shown
        self._head.append(text[:shown])
        if shown < len(text):
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
            for piece in self._head:
                self._write(piece)
            self._head.clear()
            self._keep(kind, text[shown:])
        return [(kind, text[:shown])] if shown else []

    def _room(self, text: str) -> int:
        """How many characters of ``text`` still belong to the head."""
        if self._lines + text.count("\n") <= self._head_lines and self._size + len(text) <= self._head_size:
            return len(text)
        at, lines = 0, self._lines
        while lines < self._head_lines:
            newline = text.find("\n", at)
            if newline < 0:
                at = len(text)
                break
            at, lines = newline + 1, lines + 1
        return min(at, self._head_size - self._size)

    def _write(self, text: str) -> None:
        if self._file is not None and self._file_left > 0:
            self._file.write(text[: self._file_left])
            self._file_left -= len(text)

    def _keep(self, kind: str, text: str) -> None:
        self._write(text)
        self._cut_lines += text.count("\n")
        self._cut_size += len(text)
        self._tail.append((kind, text))
        self._tail_held += len(text)
        while self._tail_held - len(self._tail[0][1]) >= self._tail_size:
            self._tail_held -= len(self._tail.popleft()[1])

    def finish(self) -> list[Entry]:
        """The cell is over: the notice of what was cut, and the tail."""
        if self._file is None:
            return []
        self._file.close()
        surplus = self._tail_held - self._tail_size
        entries: list[Entry] = []
        lines_left = self._tail_lines
        for kind, text in reversed(self._tail):
            if lines_left <= 0:
                break
            pieces = text.splitlines(keepends=True)[-lines_left:]
            lines_left -= len(pieces)
            entries.append((kind, "".join(pieces)))
        entries.reverse()
        held = sum(len(text) for _, text in entries)
        if held > self._tail_size and surplus > 0:
            kind, text = entries[0]
            entries[0] = (kind, text[held - self._tail_size :])
        shown_lines = sum(text.count("\n") for _, text in entries)
        shown_size = sum(len(text) for _, text in entries)
        limit = "" if self._file_left > 0 else f", the file holds the first {size_words(_FILE_LIMIT)}"
        notice = f"{self._cut_lines - shown_lines:,} lines ({size_words(self._cut_size - shown_size)}) not shown{limit}"
        return [("cut", notice), *entries]
