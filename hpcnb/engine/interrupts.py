"""What SIGINT does in a rank: stops the cell it is meant for, and never tears a message that is being sent.

Python raises KeyboardInterrupt between any two bytecodes of the main thread. Between cells that would end the
engine's event loop; inside a send it would leave half a frame on the socket. So the handler decides.

A signal names no cell, and the kernel may give it to another thread, so that the handler runs late, in the next cell.
Therefore every interrupt comes twice: the agent first sends an *order*, which names the cell, has a number and is heard
by the link thread, and then the signal, which C code that holds the interpreter lock takes when it is done. The handler
carries out every order for the cell that runs, once, however many signals come.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from time import perf_counter
from types import FrameType, TracebackType

__all__ = ["Interrupts"]

#: Signals of one order come within this time of it, also on a busy machine.
_ONE_INTERRUPT_S = 0.5
#: A signal whose order has not been heard waits so long for it; then nobody has ordered it.
_HEAR_S = 0.1
#: A signal that comes just before a thread blocks does not wake it. It is sent again, after pauses that double.
_FIRST_PAUSE_S, _NUM_SIGNALS = 0.02, 8
#: On KeyboardInterrupts that are ours: they are delivered again where Python swallows them.
_MARK = "_hpcnb_is_ordered"


class Interrupts:
    """The rank's SIGINT handler; use as a context manager around what must not be torn.

    Orders are written by the link thread only, and what has been carried out by the main thread only: a signal handler
    must not wait for a lock.
    """

    def __init__(self) -> None:
        self._main_thread = threading.get_ident()
        self._held = 0
        self._pending = False
        self._cell = 0
        self._ordered = (0, 1, 0)  # a cell, and the numbers of the first and of the last order for it
        self._carried_out = 0  # number of the last order that was
        self._heard_s = float("-inf")  # when the last order was
        self._unordered = (0, 0.0)  # the cell that was interrupted although no order had been heard, and when
        self._swallowed = False  # an interrupt of this cell was raised where Python goes on regardless
        self._insisting = threading.Lock()
        self._insists = False
        self._anew = threading.Event()
        self._task: asyncio.Task[object] | None = None
        self._hook_before = sys.unraisablehook
        self._hook = self._on_unraisable  # one object, to be recognized
        self.cancelled = False  #: the cell that awaits was cancelled by SIGINT

    def install(self) -> None:
        """Take SIGINT over. Main thread only."""
        signal.signal(signal.SIGINT, self._on_signal)

    def interrupt(self, cell: int, number: int) -> None:
        """Interrupt this cell, now or as soon as it begins; from the link thread. Orders are numbered by the agent."""
        self.hear(cell, number)
        if self._is_due():
            signal.pthread_kill(self._main_thread, signal.SIGINT)
            if self._is_due():
                self._insist()

    def hear(self, cell: int, number: int) -> None:
        """This is ordered; the signal comes by itself."""
        before, first, last = self._ordered
        if number <= last:
            return
        self._heard_s = perf_counter()
        if before != cell:
            first = number
        unordered, raised_s = self._unordered
        if unordered == cell and self._heard_s - raised_s < _ONE_INTERRUPT_S:
            self._unordered = (0, 0.0)
            first = number + 1  # the agent's own signal was faster by far
        self._ordered = (cell, first, number)

    def _next(self) -> int:
        """Number of the order that the running cell is to be interrupted for; 0 if there is none."""
        cell, first, last = self._ordered
        number = max(first, self._carried_out + 1)
        return number if cell == self._cell and number <= last else 0

    def _is_due(self) -> bool:
        """Whether a cell runs and is still to be interrupted."""
        return self._cell != 0 and (self._swallowed or self._next() != 0)

    def _insist(self) -> None:
        """Signal again until nothing is due."""
        with self._insisting:
            self._anew.set()
            if not self._insists:
                self._insists = True
                threading.Thread(target=self._signal_again, name="hpcnb-interrupt", daemon=True).start()

    def _signal_again(self) -> None:
        while True:
            with self._insisting:
                if not self._anew.is_set():
                    self._insists = False
                    return
                self._anew.clear()
            pause_s = _FIRST_PAUSE_S
            for _ in range(_NUM_SIGNALS):
                if self._anew.wait(pause_s):
                    break  # from the beginning
                if not self._is_due():
                    break
                signal.pthread_kill(self._main_thread, signal.SIGINT)
                pause_s *= 2

    def begin(self, cell: int, task: asyncio.Task[object] | None = None) -> None:
        """Code of this cell begins; ``task`` if it may await.

        Raises:
            KeyboardInterrupt: The interrupt was faster than the cell; a task is cancelled instead.
        """
        # an earlier cell may have been stopped before it let signals in again
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self._task = task
        self.cancelled = False
        self._pending = self._swallowed = False
        if sys.unraisablehook is not self._hook:
            self._hook_before, sys.unraisablehook = sys.unraisablehook, self._hook
        self._cell = cell
        if not self._is_due():
            return
        error = self._carry_out()
        if task is None:
            raise error
        self.cancelled = True
        task.cancel()

    def awaited(self) -> None:
        """The cell's task is done, and the rest of the cell awaits nothing: from now on a signal raises."""
        self._task = None

    def end(self) -> None:
        """Cell code is over; a later signal means nothing."""
        self._cell = 0
        self._task = None
        self._pending = self._swallowed = False
        if sys.unraisablehook is self._hook:  # else the cell has set one, which stays
            sys.unraisablehook = self._hook_before

    def _carry_out(self) -> KeyboardInterrupt:
        """The cell is being interrupted: signals that follow mean nothing until there is another order."""
        if self._swallowed:
            self._swallowed = False
        elif number := self._next():
            self._carried_out = number
        else:
            self._unordered = (self._cell, perf_counter())
        error = KeyboardInterrupt()
        setattr(error, _MARK, self._cell)
        return error

    def _is_meant(self) -> bool:
        """Whether a signal is for the cell that runs."""
        until_s = perf_counter() + _HEAR_S
        while not self._is_due():
            now_s = perf_counter()
            if now_s - self._heard_s < _ONE_INTERRUPT_S:
                return False  # one more of an order that was carried out, or late, for an earlier cell
            if now_s > until_s:
                return True  # nobody ordered it: `kill -INT`, _thread.interrupt_main()
            time.sleep(0.001)  # the link thread, which may be about to hear the order, gets the interpreter
        return True

    def _again(self) -> None:
        """The interrupt that is being carried out stops something else than the cell."""
        self._held += 1  # no signal in here
        self._swallowed = True
        self._insist()
        self._held -= 1

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Python goes on after an error in ``__del__``, in a callback of the garbage collector or of C code."""
        if self._cell and getattr(unraisable.exc_value, _MARK, 0) == self._cell:
            self._again()
            return
        self._hook_before(unraisable)

    def __enter__(self) -> None:
        self._held += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held -= 1
        if self._pending and not self._held and self._cell:
            self._pending = False
            if self._is_meant():
                raise self._carry_out()

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if not self._cell:
            return
        if self._held:
            self._pending = True
            return
        if not self._is_meant():
            return
        error = self._carry_out()
        if _is_in(frame, "trigger"):  # callbacks beside the cell's code: IPython goes on after them
            self._again()
        elif self._task is not None and not _is_in(frame, "run_code"):
            # the cell awaits and the loop runs: raising here would end the loop, so the cell is cancelled
            self.cancelled = True
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
            return
        raise error


def _is_in(frame: FrameType | None, function: str) -> bool:
    """Whether this function of IPython runs: ``run_code`` reports KeyboardInterrupt, ``trigger`` drops it."""
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__", "").startswith("IPython."):
            return True
        frame = frame.f_back
    return False
