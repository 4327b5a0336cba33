"""input() on a rank: asks the notebook for a line of text. The main thread waits, the link thread brings the answer."""

from __future__ import annotations

import builtins
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from hpcnb.core.messages import InputReply, InputRequest

if TYPE_CHECKING:
    from hpcnb.engine.link import RankLink
    from hpcnb.engine.streams import LinkStream

__all__ = ["Prompter"]

_INPUT = builtins.input


class Prompter:
    """Asks on behalf of cell code, one question at a time.

    Args:
        rank: Global rank.
        link: To the agent.
        streams: The link's stdout and stderr, sent before a question is.
        current_cell: Number of the cell that runs; 0 outside.
    """

    def __init__(
        self, rank: int, link: RankLink, streams: tuple[LinkStream, LinkStream], current_cell: Callable[[], int]
    ) -> None:
        self._rank = rank
        self._link = link
        self._streams = streams
        self._current_cell = current_cell
        self._lock = threading.Lock()  # threads of a cell ask one after the other
        self._answers: queue.SimpleQueue[InputReply] = queue.SimpleQueue()
        self._request = 0

    def install(self) -> None:
        """``input`` asks the notebook from now on."""
        builtins.input = self.input

    @staticmethod
    def uninstall() -> None:
        """In a process that a cell has forked: nobody answers it."""
        builtins.input = _INPUT

    def answer(self, reply: InputReply) -> None:
        """The answer has come; from the link thread."""
        self._answers.put(reply)

    def input(self, prompt: object = "", /) -> str:
        """As the built-in: a line without its newline.

        Blocks: until a person has answered.

        Raises:
            EOFError: The person ended the input, or nobody can be asked; the text says which.
            KeyboardInterrupt: The cell was interrupted, at this prompt or elsewhere.
        """
        reply = self.ask(str(prompt), in_debugger=False)
        if reply.ended == "KeyboardInterrupt":
            raise KeyboardInterrupt
        if reply.ended == "EOFError":
            raise EOFError
        if reply.ended:
            msg = f"input({str(prompt)!r}) has no answer: {reply.ended}"
            raise EOFError(msg)
        return reply.text

    def ask(self, prompt: str, *, in_debugger: bool) -> InputReply:
        """Ask the notebook; a debugger asks again until it says that it has been left.

        Raises:
            KeyboardInterrupt: The cell was interrupted.
        """
        cell = self._current_cell()
        if not cell:
            return InputReply(0, self._rank, 0, "", "nobody listens to what runs outside of parallel cells")
        with self._lock:
            for stream in (*self._streams, sys.__stdout__, sys.__stderr__):
                if stream is not None:
                    stream.flush()
            self._request += 1
            self._link.send(InputRequest(cell, self._rank, self._request, prompt, in_debugger))
            reply = self._answers.get()
            while (reply.cell, reply.request) != (cell, self._request):
                reply = self._answers.get()  # the late answer to a question that was interrupted
        return reply
