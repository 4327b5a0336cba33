"""pdb on a rank, with the person at the other end of the link: breakpoint(), and the last failure post mortem.

Knows pdb and frames. Stepping never leads into IPython's and our own code, which is not shown either.
"""

from __future__ import annotations

import bdb
import pdb  # noqa: T100 - this is the debugger
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import IPython

from hpcnb.core.errors import ClusterStateError, DebuggerQuit
from hpcnb.core.messages import DebuggerLeft, InputReply
from hpcnb.engine.recorder import CELL_FILE_PREFIX

if TYPE_CHECKING:
    from hpcnb.engine.link import RankLink
    from hpcnb.engine.prompter import Prompter
    from hpcnb.engine.streams import LinkStream

__all__ = ["Debugger"]

_HIDDEN_FILES = (str(Path(__file__).parents[1]), str(Path(IPython.__file__).parent))
#: What runs around a cell: a step that leaves the cell goes on until the cell is over.
_AROUND_CELLS = ("hpcnb*", "IPython*", "ipykernel*", "ipyparallel*", "asyncio*", "tornado*", "selectors", "traitlets*")


def _is_hidden(code: CodeType) -> bool:
    return code.co_filename.startswith(_HIDDEN_FILES)


def _is_statement(frame: FrameType) -> bool:
    """Whether it is a statement of a cell, at its top level."""
    return frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(CELL_FILE_PREFIX)


def _in_cell(frame: FrameType | None) -> bool:
    """Whether it is code of a cell, or was called by some."""
    while frame is not None and not frame.f_code.co_filename.startswith(CELL_FILE_PREFIX):
        frame = frame.f_back
    return frame is not None


class _RankPdb(pdb.Pdb):
    """pdb that asks through the link.

    Args:
        ask: Brings one line, or says why there is none: then the debugger is left.
        on_left: Called when the rank runs on without the debugger.
        stream: Where pdb writes.
    """

    def __init__(self, ask: Callable[[str], InputReply], on_left: Callable[[], None], stream: LinkStream) -> None:
        super().__init__(completekey="", stdout=stream, skip=_AROUND_CELLS, nosigint=True, readrc=False)  # type: ignore[arg-type] # it only writes
        self._ask = ask
        self._on_left = on_left
        self._entered: FrameType | None = None
        self.refused = False  #: it was left since nobody answers
        self.why_left = ""  #: why it was left without running on

    # --- talking --------------------------------------------------------------------------------------------

    def _cmdloop(self) -> None:
        """pdb's own goes on after an interrupt; ours lets it end the cell."""
        self.cmdloop()

    def cmdloop(self, intro: object = None) -> None:
        """Ask for commands until one of them leads on. The frame of cmd.Cmd's, without readline and streams."""
        del intro
        self.preloop()
        stop: Any = None
        while not stop:
            line = str(self.cmdqueue.pop(0)) if self.cmdqueue else self._ask_line()
            stop = self.postcmd(self.onecmd(self.precmd(line)), line)
        self.postloop()

    def _ask_line(self) -> str:
        reply = self._ask(self.prompt)
        if not reply.ended:
            return reply.text
        key = {"EOFError": "Ctrl-D", "KeyboardInterrupt": "Ctrl-C"}.get(reply.ended)
        if key is None:
            self.refused = True
            self.why_left = f"the debugger was left: {reply.ended}"
        else:
            self._left_with(key)
        return "EOF"

    def _left_with(self, key: str) -> None:
        self.why_left = f"the debugger was left with {key}, which ended the cell here; c runs on"

    def interaction(self, *args: Any, **kwargs: Any) -> None:
        """The debugger has stopped: talk, and say so when the rank runs on."""
        try:
            super().interaction(*args, **kwargs)
        finally:
            # the line -1 is how set_continue tells trace functions to stop nowhere (bdb._set_stopinfo)
            if self.quitting or self.stoplineno == -1:
                self._on_left()

    def reset(self) -> None:
        """bdb calls it before every start."""
        super().reset()
        self.refused = False
        self._left_with("q")

    # --- frames ---------------------------------------------------------------------------------------------

    def get_stack(self, f: FrameType | None, t: TracebackType | None) -> tuple[list[tuple[FrameType, int]], int]:
        """Frames from the cell's outermost on, without those of IPython and hpcnb."""
        stack, index = super().get_stack(f, t)
        current = stack[index][0] if stack else None
        cells = [at for at, (frame, _) in enumerate(stack) if frame.f_code.co_filename.startswith(CELL_FILE_PREFIX)]
        shown = [entry for entry in stack[cells[0] if cells else 0 :] if not _is_hidden(entry[0].f_code)]
        if not shown:
            return stack, index
        at = next((at for at, (frame, _) in enumerate(shown) if frame is current), len(shown) - 1)
        return shown, at

    def stop_in(self, frame: FrameType) -> None:
        """Stop in this frame as soon as it runs on: at the next instruction, not at the next line.

        So a breakpoint() that ends a function or a cell stops too (pdb does the same from Python 3.13 on).
        """
        self.reset()
        frame.f_trace_opcodes = True
        self._entered = frame
        outer: FrameType | None = frame
        while outer is not None:
            outer.f_trace = self.trace_dispatch
            self.botframe = outer
            outer = outer.f_back
        self.set_step()
        sys.settrace(self.trace_dispatch)

    def trace_dispatch(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Python's trace function; q becomes an error that says what happened."""
        if event == "opcode":
            if frame is not self._entered:
                return self.trace_dispatch
            event = "line"
        if frame is self._entered:
            frame.f_trace_opcodes = False
            self._entered = None
        try:
            return super().trace_dispatch(frame, event, arg)
        except bdb.BdbQuit:
            raise DebuggerQuit(self.why_left) from None

    def stop_here(self, frame: FrameType) -> bool:
        """Whether a step ends here: only in code that the cell has called."""
        return bool(super().stop_here(frame)) and _in_cell(frame)

    # IPython runs every statement of a cell as a code object of its own: a step leads from one to the next
    def user_call(self, frame: FrameType, argument_list: None) -> None:
        """A function is called."""
        if not _is_statement(frame):
            super().user_call(frame, argument_list)

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        """A function returns."""
        if not _is_statement(frame):
            super().user_return(frame, return_value)

    def do_run(self, arg: str) -> None:
        """Restart: a rank is no script."""
        del arg
        self.error("a cell cannot be restarted from its debugger; leave it with q and run the cell again")

    do_restart = do_run
    do_EOF = pdb.Pdb.do_quit  # noqa: N815 - cmd.Cmd's name; pdb's own prints an empty line


class Debugger:
    """The debugger of one rank.

    Args:
        rank: Global rank.
        link: To the agent.
        prompter: Asks the notebook.
        stream: The link's stdout.
        current_cell: Number of the cell that runs; 0 outside.
    """

    def __init__(
        self, rank: int, link: RankLink, prompter: Prompter, stream: LinkStream, current_cell: Callable[[], int]
    ) -> None:
        self._rank = rank
        self._link = link
        self._current_cell = current_cell
        self._failure: BaseException | None = None
        self._pdb = _RankPdb(lambda prompt: prompter.ask(prompt, in_debugger=True), self._left, stream)

    def install(self) -> None:
        """``breakpoint()`` and ``pdb.set_trace()`` stop here from now on."""
        sys.breakpointhook = self._breakpoint
        pdb.set_trace = self.set_trace

    @staticmethod
    def uninstall() -> None:
        """In a process that a cell has forked: nobody answers it."""
        sys.breakpointhook = sys.__breakpointhook__

    def keep(self, error: BaseException | None) -> None:
        """A cell has ended. Its failure is kept, with what its frames hold, until the next failure."""
        if error is not None and not isinstance(error, DebuggerQuit):
            self._failure = error

    def _left(self) -> None:
        self._link.send(DebuggerLeft(self._current_cell(), self._rank))

    def _breakpoint(self, *_: object, **__: object) -> None:
        self.set_trace(sys._getframe(1))

    def set_trace(self, frame: FrameType | None = None, **_: object) -> None:
        """Stop where it is called.

        Raises:
            DebuggerQuit: Out of the code that is debugged, when the person leaves with q.
        """
        self._pdb.stop_in(frame or sys._getframe(1))

    def end(self) -> None:
        """The cell is over: what runs from here on is not debugged."""
        if sys.gettrace() is not None and self._pdb.botframe is not None:
            sys.settrace(None)
            self._pdb.botframe = None

    def post_mortem(self) -> None:
        """Talk about the last failure, at its innermost frame.

        Raises:
            ClusterStateError: No cell has failed on this rank, or nobody answers.
        """
        error = self._failure
        if error is None:
            msg = (
                f"no cell has failed on rank {self._rank}: there is nothing to debug; "
                "to stop in a cell write breakpoint() in it"
            )
            raise ClusterStateError(msg)
        if error.__traceback__ is None or isinstance(error, SyntaxError):
            msg = (
                f"the last failure on rank {self._rank} is a {type(error).__name__}: no code ran that could be debugged"
            )
            raise ClusterStateError(msg)
        print(f"{type(error).__name__}: {error}")  # noqa: T201 - a cell's output
        debugger = self._pdb
        debugger.reset()
        debugger.interaction(None, error.__traceback__)
        if debugger.refused:
            raise ClusterStateError(debugger.why_left)
