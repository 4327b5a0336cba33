"""What SIGINT does in a rank: stops cell code, and never tears a message that is being sent.

Python raises KeyboardInterrupt between any two bytecodes of the main thread. Between cells that would end the
engine's event loop; inside a send it would leave half a frame on the socket. So the handler decides.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from time import perf_counter
from types import FrameType, TracebackType

__all__ = ["Interrupts"]

#: Every interrupt comes twice: as a signal, which C code that holds the interpreter lock takes when it is done, and
#: through the link thread, which knows the cell it is meant for. Within this time they are one.
_ONE_INTERRUPT_S = 0.5


class Interrupts:
    """The rank's SIGINT handler; use as a context manager around what must not be torn."""

    def __init__(self) -> None:
        self._main_thread = threading.get_ident()
        self._held = 0
        self._pending = False
        self._cell = 0
        self._asked = 0
        self._raised = (0, 0.0)  # the cell that was interrupted last, and when
        self._task: asyncio.Task[object] | None = None
        self.cancelled = False  #: the cell that awaits was cancelled by SIGINT

    def install(self) -> None:
        """Take SIGINT over. Main thread only."""
        signal.signal(signal.SIGINT, self._on_signal)

    def interrupt(self, cell: int) -> None:
        """Interrupt this cell, now or as soon as it begins; from the link thread."""
        if self._has_raised(cell):
            return  # the agent's own signal was faster
        self._asked = cell
        if self._cell == cell:
            signal.pthread_kill(self._main_thread, signal.SIGINT)

    def begin(self, cell: int, task: asyncio.Task[object] | None = None) -> None:
        """Code of this cell begins; ``task`` if it may await.

        Raises:
            KeyboardInterrupt: The interrupt was faster than the cell; a task is cancelled instead.
        """
        self._task = task
        self.cancelled = False
        self._pending = False
        self._cell = cell
        if self._asked != cell:
            return
        if task is None:
            raise KeyboardInterrupt
        self.cancelled = True
        task.cancel()

    def end(self) -> None:
        """Cell code is over; a later signal means nothing."""
        self._cell = 0
        self._task = None
        self._pending = False

    def _has_raised(self, cell: int) -> bool:
        """Whether this cell has just been interrupted."""
        raised, raised_s = self._raised
        return raised == cell and perf_counter() - raised_s < _ONE_INTERRUPT_S

    def __enter__(self) -> None:
        self._held += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held -= 1
        if self._pending and not self._held and self._cell:
            self._pending = False
            self._raised = (self._cell, perf_counter())
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if not self._cell or self._has_raised(self._cell):
            return  # nothing runs, or this is the second signal of one interrupt
        if self._asked not in (0, self._cell):
            return  # late, for an earlier cell; one for this cell comes through the link thread as well
        if self._held:
            self._pending = True
            return
        if self._task is not None and not _runs_cell(frame):
            # the cell awaits and the loop runs: raising here would end the loop, so the cell is cancelled
            self.cancelled = True
            self._raised = (self._cell, perf_counter())
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
            return
        self._raised = (self._cell, perf_counter())
        raise KeyboardInterrupt


def _runs_cell(frame: FrameType | None) -> bool:
    """Whether IPython's run_code is on the stack: it catches KeyboardInterrupt."""
    while frame is not None:
        if frame.f_code.co_name == "run_code":
            return True
        frame = frame.f_back
    return False
