"""What of a rank's output is shown: everything, or head and tail with the rest in a file. Pure but for that file.

The cut depends on the text alone, not on how it was split into chunks, so that ranks that print the same are
still grouped after it. What a bar has overwritten (carriage returns) costs nothing and is not shown.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path
from typing import Literal, TextIO

from hpcnb.core import units

__all__ = ["FloodGate", "collapse_rewrites"]

#: The file of a flood holds at most so many characters (it may lie in memory, under /run or /tmp).
_FILE_LIMIT = 64 << 20
_BREAK = re.compile(r"[\r\n]")
Entry = tuple[str, str]


def collapse_rewrites(text: str) -> str:
    r"""Drop what carriage returns overwrite: of ``a\rb\rc`` only ``\rc`` is left."""
    if "\r" not in text:
        return text
    text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    for index, line in enumerate(lines):
        at = line.rstrip("\r").rfind("\r")
        if at >= 0:
            lines[index] = line[at:]
    return "\n".join(lines)


class FloodGate:
    """Lets the head of one rank's output of one cell pass, keeps its tail, and writes the whole to a file.

    Output within both budgets is shown as a whole.

    Args:
        line_budget: Lines shown of a flood: two thirds head, the rest tail.
        byte_budget: Characters shown of a flood, split the same way.
        path: The file of the whole output; left only if something is not shown.
        append: Whether the file may hold what an earlier gate of the same cell wrote.
    """

    def __init__(self, line_budget: int, byte_budget: int, path: Path, *, append: bool = False) -> None:
        self._mode: Literal["a", "w"] = "a" if append else "w"
        self._line_budget = line_budget
        self._byte_budget = byte_budget
        self._head_lines = max(1, line_budget * 2 // 3)
        self._head_size = max(1, byte_budget * 2 // 3)
        self._path = path
        # the head: complete lines, and the line that each stream is in (its size; whether it ends with \r)
        self._lines = 0
        self._size = 0
        self._open_size: dict[str, int] = {}
        self._returned: dict[str, bool] = {}
        self._head: list[str] = []
        self._last: Entry = ("", "")
        # what follows it
        self._file: TextIO | None = None
        self._file_left = _FILE_LIMIT
        self._file_problem = ""
        self._tail_size = 0
        self._tail: deque[Entry] = deque()
        self._open: dict[str, str] = {}
        self._cut_lines = 0
        self._cut_size = 0

    @property
    def overflowed(self) -> bool:
        """Whether output is held back, or was cut."""
        return self._tail_size > 0

    @property
    def held(self) -> tuple[int, str]:
        """While output is held back: how many lines so far, and the newest one."""
        newest = self._tail[-1][1] if self._tail else ""
        return self._cut_lines, newest[:200]

    def feed(self, kind: str, text: str) -> list[Entry]:
        """What of this chunk is shown at once."""
        if self.overflowed:
            self._keep(kind, text)
            return []
        room = self._admit(kind, text)
        shown = collapse_rewrites(text[:room])
        self._remember(kind, shown)
        if room < len(text):
            self._overflow()
            self._keep(kind, text[room:])
        return [(kind, shown)] if shown else []

    def _admit(self, kind: str, text: str) -> int:
        """How many characters of ``text`` still belong to the head; counts them."""
        at, returned = 0, self._returned.get(kind, False)
        self._open_size.setdefault(kind, 0)
        while at < len(text) and self._lines < self._head_lines:
            match = _BREAK.search(text, at)
            end = match.start() if match else len(text)
            if returned and end > at:
                self._open_size[kind], returned = 0, False
            room = self._head_size - self._size - sum(self._open_size.values())
            self._open_size[kind] += min(room, end - at)
            is_line = match is not None and match[0] == "\n"
            if end - at + is_line > room:
                return min(end, at + room)
            if is_line:
                self._size += self._open_size[kind] + 1
                self._lines += 1
                self._open_size[kind] = 0
            if match is not None:
                returned = not is_line
                end += 1
            at = end
        self._returned[kind] = returned
        return at

    # --- the file -------------------------------------------------------------------------------------------

    def _remember(self, kind: str, text: str) -> None:
        """Keep the head for the file; of a bar that rewrites itself only its last state."""
        if kind == self._last[0]:
            text = collapse_rewrites(self._last[1] + text)
        else:
            self._head.append(self._last[1])
        at = text.rfind("\n") + 1
        if at:
            self._head.append(text[:at])
        self._last = (kind, text[at:])

    def _overflow(self) -> None:
        self._tail_size = max(1, self._byte_budget - self._size - sum(self._open_size.values()))
        self._tail = deque(maxlen=max(1, self._line_budget - self._lines))
        try:
            self._file = self._path.open(self._mode, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._file_problem = str(error)
        for piece in (*self._head, self._last[1]):
            self._write(piece)
        self._head.clear()

    def _write(self, text: str) -> None:
        if self._file is None or self._file_left <= 0:
            return
        try:
            self._file.write(text[: self._file_left])
        except OSError as error:  # /run and /tmp are small on some machines
            self._file_problem = str(error)
            self._file_left = 0
        self._file_left -= len(text)

    def _close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._file_problem = str(error)

    # --- the tail -------------------------------------------------------------------------------------------

    def _keep(self, kind: str, text: str) -> None:
        self._write(text)
        self._cut_lines += text.count("\n")
        self._cut_size += len(text)
        *lines, rest = collapse_rewrites(self._open.get(kind, "") + text).split("\n")
        limit = self._tail_size + 2  # longer lines are cut in any case; one more tells that they are
        newest = lines[-(self._tail.maxlen or 1) :]
        self._tail.extend((kind, line.rstrip("\r")[-limit:]) for line in newest)
        if rest.endswith("\r\r"):
            rest = rest.rstrip("\r") + "\r"
        self._open[kind] = rest[-limit:]

    def finish(self) -> list[Entry]:
        """The cell is over: the notice of what was cut, if anything was, and the tail."""
        if not self.overflowed:
            return []
        self._close()
        open_lines = [(kind, self._open.get(kind, "").rstrip("\r")) for kind in ("stdout", "stderr")]
        lines = [(kind, f"{line}\n") for kind, line in self._tail]
        lines += [(kind, line) for kind, line in open_lines if line]
        num_lines = self._cut_lines + len(lines) - len(self._tail)
        lines = lines[-(self._tail.maxlen or 1) :]
        shown = _last_part(lines, self._tail_size)
        size = sum(len(text) for _, text in shown)
        if len(lines) == num_lines and size == sum(len(line) for _, line in lines):
            if self._mode == "w":
                self._path.unlink(missing_ok=True)
            return shown
        notice = f"{units.size(self._cut_size - size)} not shown"
        if lines_left := self._cut_lines - sum(text.count("\n") for _, text in shown):
            words = "1 line" if lines_left == 1 else f"{lines_left:,} lines"
            notice = f"{words} ({units.size(self._cut_size - size)}) not shown"
        if self._file_problem:
            notice += f", and not all could be written to a file: {self._file_problem}"
        elif self._file_left <= 0:
            notice += f", the file holds the first {units.size(_FILE_LIMIT)}"
        return [("cut", notice), *shown]


def _last_part(lines: list[Entry], size: int) -> list[Entry]:
    """The last ``size`` characters, neighbours of one kind joined."""
    pieces: list[Entry] = []
    for kind, line in reversed(lines):
        if size <= 0:
            break
        pieces.append((kind, line[-size:]))
        size -= len(line)
    entries: list[Entry] = []
    for kind, text in reversed(pieces):
        if entries and entries[-1][0] == kind:
            entries[-1] = (kind, entries[-1][1] + text)
        else:
            entries.append((kind, text))
    return entries
