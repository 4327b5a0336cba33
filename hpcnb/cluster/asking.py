"""Ranks that ask: input() and the debugger. Puts their questions to a person and sends the answers back.

Runs on the thread that waits for the cell; knows no IPython: who can ask a person is a view that has ``ask``.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.questions import Question, Questions
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from hpcnb.cluster.cell_run import CellRun
    from hpcnb.cluster.inbox import Inbox
    from hpcnb.cluster.node import Node
    from hpcnb.cluster.result import CellResult

__all__ = ["Asker", "Asks", "Conversation"]

_NOBODY = "nobody can be asked here: run the cell with %%hpc_parallel in a notebook or in a terminal"
#: Ranks that ask at the same moment are asked from the lowest on: the first question waits so long for theirs.
_GATHER_S = 0.03
_NO_STDIN = "this front-end does not let cells ask for input (nbclient, papermill and nbconvert never do)"


@runtime_checkable
class Asks(Protocol):
    """A view that can ask a person."""

    #: Whether what was typed stays on the screen at its place; else it is shown among the output.
    shows_answers: bool

    def ask(self, run: CellRun, prompt: str) -> str:
        """Show what has been said so far, then ask; blocks until there is an answer.

        Raises:
            EOFError: The person ended the input.
            KeyboardInterrupt: The person pressed Ctrl-C.
            NotImplementedError: Nobody can be asked here.
        """


class Conversation:
    """The view of a debugger that was opened from Python: prints what ranks say, asks with a function.

    Args:
        ask: ``input``, or a function that plays the person.
        stream: Where output goes; by default standard output.
    """

    shows_answers = True

    def __init__(self, ask: Callable[[str], str], stream: TextIO | None = None) -> None:
        self._ask = ask
        self._stream = sys.stdout if stream is None else stream
        self._num_shown = 0

    def update(self, run: CellRun) -> None:
        """Print the lines that are new; one rank at a time talks in a debugger, so their order is settled."""
        items = run.items()
        for item in items[self._num_shown :]:
            if not item.complete:
                break
            self._num_shown += 1
            self._stream.write(item.text + "\n")

    def finish(self, run: CellRun, result: CellResult) -> None:
        """Print the rest."""
        del result
        self.update(run)
        self._stream.flush()

    def ask(self, run: CellRun, prompt: str) -> str:
        """See Asks."""
        self.update(run)
        self._stream.flush()
        return self._ask(prompt)


class Asker:
    """The questions of a running cell.

    Args:
        run: The cell.
        node: Where it runs.
        inbox: What arrives.
        view: Asks, if it can.
    """

    def __init__(self, run: CellRun, node: Node, inbox: Inbox, view: object) -> None:
        self._run = run
        self._node = node
        self._inbox = inbox
        self._view = view if isinstance(view, Asks) else None
        self._questions = Questions()
        self._others = RankSet()
        self._last_s = time.monotonic()
        self._gather_until_s: float | None = None

    def step(self, message: m.Message | watch.Event | None) -> float:
        """After the cell has taken a message: ask what is to be asked now.

        Returns:
            Seconds since the last step that do not count for the cell's timeout, since a person was to answer.
        """
        was_held = bool(self._questions.ranks)
        if getattr(message, "cell", 0) == self._run.result.cell:
            if isinstance(message, m.InputRequest):
                self._questions.asked(
                    Question(message.rank, message.request, message.prompt, in_debugger=message.in_debugger)
                )
            elif isinstance(message, m.DebuggerLeft):
                self._questions.left(message.rank)
        self._questions.keep(self._run.watch.running)
        question = self._questions.next(time.monotonic())
        if question is not None and self._is_gathering(question):
            question = None
        if question is not None:
            self._put(question)
        self._run.watch = replace(self._run.watch, is_debugging=bool(self._questions.ranks))
        now_s = time.monotonic()
        held_s = now_s - self._last_s if was_held or question is not None else 0.0
        self._last_s = now_s
        return held_s

    def _is_gathering(self, question: Question) -> bool:
        """Whether a rank below this one may be about to ask."""
        now_s = time.monotonic()
        others = self._run.watch.running - self._questions.ranks
        if others and not self._questions.stays_with(question):
            if self._gather_until_s is None:
                self._gather_until_s = now_s + _GATHER_S
            if now_s < self._gather_until_s:
                return True
        self._gather_until_s = None
        return False

    def _put(self, question: Question) -> None:
        text, ended = "", ""
        if self._run.watch.interrupted:
            ended = "KeyboardInterrupt"  # a cell that was stopped asks no more
        elif self._view is None:
            ended = _NOBODY
        elif not self._inbox.is_interrupted:
            try:
                text = self._ask(self._view, question)
            except EOFError:
                ended = "EOFError"
            except KeyboardInterrupt:
                if not self._inbox.is_interrupted:  # a person's press: for the cell, as it is beside a question
                    self._inbox.put(watch.InterruptAsked(time.monotonic()))
            except NotImplementedError:  # as IPython's StdinNotImplementedError
                ended = _NO_STDIN
            except Exception as error:  # noqa: BLE001 - any view; the rank must not wait for ever
                ended = f"asking failed: {type(error).__name__}: {error}"
        self._questions.answered(question, time.monotonic())
        if self._inbox.is_interrupted and not self._run.watch.interrupted:
            self._questions.drop()
            return  # the interrupt is on its way to all ranks; an answer could only come between
        self._node.link.send(m.InputReply(self._run.result.cell, question.rank, question.request, text, ended))

    def _ask(self, view: Asks, question: Question) -> str:
        prompt = f"[rank {question.rank}] {question.prompt}"
        if (others := self._questions.others(question.rank)) != self._others:
            self._others = others
            if others:
                wait = "waits" if len(others) == 1 else "wait"
                prompt = f"({others.words()} {wait} to ask too)\n{prompt}"
        with self._interruptible() as waking:
            try:
                waking.is_asking = True
                text = view.ask(self._run, prompt)
            finally:
                waking.is_asking = False
        answered: object = text
        if not isinstance(answered, str):
            msg = f"who was asked returned {answered!r:.80} ({type(answered).__name__}), not a line of text"
            raise TypeError(msg)
        if not view.shows_answers:
            self._run.say(RankSet([question.rank]), "stdout", f"{question.prompt}{text}\n")
        return text

    @contextmanager
    def _interruptible(self) -> Iterator[_Waking]:
        """Ctrl-C reaches who asks, and ``Cluster.interrupt`` from another thread ends the asking."""
        waking = _Waking()

        def arrived(event: object) -> None:
            if not isinstance(event, watch.InterruptAsked):
                return
            if not waking.wake():  # nothing ends the asking, but the ranks need not wait for that
                self._node.link.send(m.Interrupt(self._run.result.cell, self._run.watch.running))

        with waking:
            self._inbox.on_put = arrived
            try:
                if self._inbox.is_interrupted:  # just now, and nobody was told
                    raise KeyboardInterrupt
                yield waking
            finally:
                self._inbox.on_put = None


class _Waking:
    """Gets the thread that asks a person out of it, by a signal that is not taken for another press of Ctrl-C.

    The press that wakes is found in the inbox as well, and sent on from there. As a context manager it is around one
    question; ``is_asking`` while KeyboardInterrupt may be raised.
    """

    def __init__(self) -> None:
        self.is_asking = False
        self._waiter = threading.get_ident()
        self._is_main = threading.current_thread() is threading.main_thread()
        self._lock = threading.RLock()  # who asks may itself interrupt
        self._is_over = self._was_sent = self._was_taken = False
        self._before: Any = None

    def wake(self) -> bool:
        """From any thread; false if who asks is not the main thread, and cannot be woken."""
        with self._lock:
            if self._is_main and not self._is_over and not self._was_sent:
                self._was_sent = True
                signal.pthread_kill(self._waiter, signal.SIGINT)
        return self._is_main

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_ours = self._was_sent and not self._was_taken
        self._was_taken = self._was_sent
        if self.is_asking:
            raise KeyboardInterrupt
        if not is_ours and callable(self._before):
            self._before(number, frame)  # a person's Ctrl-C, beside the question

    def __enter__(self) -> None:
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
        if not self._is_main:
            return
        while self._was_sent and not self._was_taken:
            time.sleep(0.001)  # it is on its way to this thread
        signal.signal(signal.SIGINT, self._before)
