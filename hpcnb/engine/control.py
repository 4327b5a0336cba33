"""What the agent asks of a rank while its main thread is busy; answered on the link thread.

Nothing here runs user code or waits for the main thread.
"""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hpcnb.core.messages import InputReply, InterruptCell, LeaveRank, LookAtRank, Message, ReleaseRank, Seen, Shutdown
from hpcnb.engine import groups
from hpcnb.engine.failure import is_ours
from hpcnb.engine.recorder import CELL_FILE_PREFIX

if TYPE_CHECKING:
    from hpcnb.engine.guard import Guard
    from hpcnb.engine.interrupts import Interrupts
    from hpcnb.engine.link import RankLink
    from hpcnb.engine.prompter import Prompter

__all__ = ["Control"]

#: So many frames of a stack are told, the innermost.
_MAX_FRAMES = 20


class Control:
    """The rank's answers to its agent.

    Args:
        rank: Global rank.
        link: To the agent.
        guard: Of this rank.
        interrupts: Of this rank.
        prompter: Of this rank.
        current_cell: Number of the cell that runs; 0 if none.
        end: Ends the rank.
        leave: Ends it while the cluster goes on.
    """

    def __init__(
        self,
        rank: int,
        link: RankLink,
        guard: Guard,
        interrupts: Interrupts,
        prompter: Prompter,
        *,
        current_cell: Callable[[], int],
        end: Callable[[], None],
        leave: Callable[[], None],
    ) -> None:
        self._rank = rank
        self._link = link
        self._guard = guard
        self._interrupts = interrupts
        self._prompter = prompter
        self._current_cell = current_cell
        self._end = end
        self._leave = leave
        self._main_thread = threading.main_thread().ident or 0

    def hear(self, message: Message) -> None:
        """A message for the link thread."""
        if isinstance(message, InterruptCell):
            self._interrupts.interrupt(message.cell, message.number)
        elif isinstance(message, InputReply):
            self._prompter.answer(message)
        elif isinstance(message, ReleaseRank):
            if self._current_cell() != message.cell:
                return  # it has come out meanwhile
            release = groups.release_groups()
            self._guard.break_groups(message.reason, mismatch=message.mismatch)
            # this takes up to a second, and the rank must go on answering
            threading.Thread(target=release, name="hpcnb-release", daemon=True).start()
        elif isinstance(message, LookAtRank):
            self._link.send(Seen(message.cell, self._rank, self._frames(), groups.moved_bytes()))
        elif isinstance(message, Shutdown):
            self._end()
        elif isinstance(message, LeaveRank):
            self._leave()

    def _frames(self) -> list[Any]:
        """Frames of the main thread from its cell inwards, without ours, innermost last."""
        frames: list[Any] = []
        in_cell = 0
        frame = sys._current_frames().get(self._main_thread)
        while frame is not None:
            code = frame.f_code
            if not is_ours(code.co_filename):
                text = linecache.getline(code.co_filename, frame.f_lineno).strip()
                frames.append((code.co_filename, frame.f_lineno, code.co_name, text))
                if code.co_filename.startswith(CELL_FILE_PREFIX):
                    in_cell = len(frames)
            frame = frame.f_back
        return frames[: min(in_cell or _MAX_FRAMES, _MAX_FRAMES)][::-1]
