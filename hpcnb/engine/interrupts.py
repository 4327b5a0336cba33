"""What SIGINT does in a rank: stops the cell it is meant for, and never tears a message that is being sent.

Python raises KeyboardInterrupt between any two bytecodes of the main thread. Between cells that would end the
engine's event loop; inside a send it would leave half a frame on the socket. So the handler decides.

A signal names no cell, and the kernel may give it to another thread, so that the handler runs late, in the next cell.
Therefore every interrupt comes twice: the agent first sends an *order*, which names the cell and is heard by the link
thread, and then the signal, which C code that holds the interpreter lock takes when it is done. The handler carries out
an order for the cell that runs, once, however many signals come.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from time import perf_counter
from types import FrameType, TracebackType

__all__ = ["Interrupts"]

#: The signal that belongs to an order comes within this time of it, also on a busy machine.
_ONE_INTERRUPT_S = 0.5
#: A signal whose order has not been heard waits so long for it; then nobody has ordered it.
_HEAR_S = 0.1
#: A signal that comes just before a thread blocks does not wake it. It is sent again, after pauses that double.
_FIRST_PAUSE_S, _NUM_SIGNALS = 0.02, 8


class Interrupts:
    """The rank's SIGINT handler; use as a context manager around what must not be torn."""

    def __init__(self) -> None:
        self._main_thread = threading.get_ident()
        self._held = 0
        self._pending = False
        self._cell = 0
        self._ordered = 0  # the cell that is to be interrupted, until it is
        self._heard_s = float("-inf")  # when the last order was
        self._raised = (0, 0.0)  # the cell that was interrupted last, and when
        self._insisting = 0  # the cell that a thread signals again for
        self._task: asyncio.Task[object] | None = None
        self.cancelled = False  #: the cell that awaits was cancelled by SIGINT

    def install(self) -> None:
        """Take SIGINT over. Main thread only."""
        signal.signal(signal.SIGINT, self._on_signal)

    def interrupt(self, cell: int) -> None:
        """Interrupt this cell, now or as soon as it begins; from the link thread."""
        self._heard_s = perf_counter()
        raised, raised_s = self._raised
        if raised == cell and self._heard_s - raised_s < _ONE_INTERRUPT_S:
            return  # the agent's own signal was faster
        self._ordered = cell
        if self._is_due(cell):
            signal.pthread_kill(self._main_thread, signal.SIGINT)
            if self._is_due(cell) and self._insisting != cell:
                self._insisting = cell
                threading.Thread(target=self._insist, args=(cell,), name="hpcnb-interrupt", daemon=True).start()

    def _is_due(self, cell: int) -> bool:
        """Whether this cell runs and is still to be interrupted."""
        return self._ordered == cell == self._cell

    def _insist(self, cell: int) -> None:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_NUM_SIGNALS):
            time.sleep(pause_s)
            if not self._is_due(cell):
                break
            signal.pthread_kill(self._main_thread, signal.SIGINT)
            pause_s *= 2
        if self._insisting == cell:
            self._insisting = 0

    def begin(self, cell: int, task: asyncio.Task[object] | None = None) -> None:
        """Code of this cell begins; ``task`` if it may await.

        Raises:
            KeyboardInterrupt: The interrupt was faster than the cell; a task is cancelled instead.
        """
        # an earlier cell may have been stopped before it let signals in again
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self._task = task
        self.cancelled = False
        self._pending = False
        self._cell = cell
        if not self._is_due(cell):
            return
        self._carry_out()
        if task is None:
            raise KeyboardInterrupt
        self.cancelled = True
        task.cancel()

    def awaited(self) -> None:
        """The cell's task is done, and the rest of the cell awaits nothing: from now on a signal raises."""
        self._task = None

    def end(self) -> None:
        """Cell code is over; a later signal means nothing."""
        self._cell = 0
        self._task = None
        self._pending = False

    def _carry_out(self) -> None:
        """The cell is being interrupted: signals that follow mean nothing until there is another order."""
        self._ordered = 0
        self._raised = (self._cell, perf_counter())

    def _is_meant(self) -> bool:
        """Whether a signal is for the cell that runs."""
        until_s = perf_counter() + _HEAR_S
        while not self._is_due(self._cell):
            now_s = perf_counter()
            if now_s - self._heard_s < _ONE_INTERRUPT_S:
                return False  # one more of an order that was carried out, or late, for an earlier cell
            if now_s > until_s:
                return True  # nobody ordered it: `kill -INT`, _thread.interrupt_main()
            time.sleep(0.001)  # the link thread, which may be about to hear the order, gets the interpreter
        return True

    def __enter__(self) -> None:
        self._held += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held -= 1
        if self._pending and not self._held and self._cell:
            self._pending = False
            if self._is_meant():
                self._carry_out()
                raise KeyboardInterrupt

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if not self._cell:
            return
        if self._held:
            self._pending = True
            return
        if not self._is_meant():
            return
        self._carry_out()
        if self._task is not None and not _runs_cell(frame):
            # the cell awaits and the loop runs: raising here would end the loop, so the cell is cancelled
            self.cancelled = True
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
            return
        raise KeyboardInterrupt


def _runs_cell(frame: FrameType | None) -> bool:
    """Whether IPython's run_code is on the stack: it catches KeyboardInterrupt."""
    while frame is not None:
        if frame.f_code.co_name == "run_code":
            return True
        frame = frame.f_back
    return False
