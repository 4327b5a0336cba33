"""What a rank's main thread does, also when C code holds the interpreter and no Python thread of the rank can say it.

The rank's link thread is asked first. If it does not answer, a signal makes Python's faulthandler write the stack to
a pipe: from C, without the interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.launch import STACK_SIGNAL
from hpcnb.node.rank_process import RankProcess

__all__ = ["Looks", "frames_of"]

#: The link thread answers within so long, unless C code holds the interpreter.
_ANSWER_S = 0.15
#: A dump is written in pieces; it is over when nothing has come for so long.
_DUMP_S = 0.03
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)


def frames_of(dump: str) -> list[Any]:
    """Frames of a dump of faulthandler, innermost last: (file, line, function, ""); those below a cell are left out."""
    frames = [(match["file"], int(match["line"]), match["function"], "") for match in _FRAME.finditer(dump)]
    in_cell = [index for index, frame in enumerate(frames) if frame[0].startswith("<cell ")]
    return frames[: in_cell[-1] + 1 if in_cell else 10][::-1]


class Looks:
    """Looks at ranks that have not been answered yet.

    Args:
        say: Sends a message to every notebook.
        clock: Monotonic seconds.
    """

    def __init__(self, say: Callable[[m.Message], None], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._asked: dict[int, tuple[RankProcess, int, float]] = {}
        self._dumps: dict[int, tuple[int, str, float]] = {}
        self._owing: dict[int, int] = {}  # ranks that have not answered: process id

    @property
    def due_s(self) -> float:
        """When :meth:`tick` has something to do; infinite if nothing is open."""
        dues = [due_s for *_, due_s in (*self._asked.values(), *self._dumps.values())]
        return min(dues, default=float("inf"))

    def ask(self, process: RankProcess, cell: int) -> None:
        """Look at a rank. One that still owes an answer is not asked again, unread questions would fill its socket.

        It is waited for all the same: it answers now, or its stack is dumped.
        """
        if self._owing.get(process.rank) != process.pid:
            self._owing[process.rank] = process.pid
            process.send_control(m.LookAtRank(cell))
        self._asked[process.rank] = (process, cell, self._clock() + _ANSWER_S)

    def seen(self, message: m.Seen) -> None:
        """The link thread answered."""
        self._owing.pop(message.rank, None)
        self._asked.pop(message.rank, None)
        self._say(message)

    def dumped(self, rank: int, text: str) -> None:
        """faulthandler wrote."""
        cell, before, _ = self._dumps.get(rank, (0, "", 0.0))
        self._dumps[rank] = (cell, before + text, self._clock() + _DUMP_S)

    def tick(self, now_s: float) -> None:
        """Signal ranks that did not answer, and tell dumps that are complete."""
        for rank, (process, cell, due_s) in list(self._asked.items()):
            if now_s >= due_s:
                del self._asked[rank]
                if process.alive:
                    self._dumps[rank] = (cell, "", now_s + 1.0)
                    process.signal(STACK_SIGNAL)
        for rank, (cell, dump, due_s) in list(self._dumps.items()):
            if now_s >= due_s:
                del self._dumps[rank]
                if frames := frames_of(dump):
                    self._say(m.Seen(cell, rank, frames, -1))
