"""Runs what the agent sends on the engine's main thread, in the engine's IPython shell, one after the other.

While a cell runs, the shell's displays lead to the link; otherwise they are ipyparallel's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cloudpickle

from hpcnb.core.errors import TransferError
from hpcnb.core.messages import (
    CallFunction,
    CellReply,
    Check,
    Debug,
    FrameReader,
    ListGroups,
    Message,
    RankClear,
    RankDisplay,
    Rebuild,
    Recording,
    RunCell,
    Scale,
)
from hpcnb.engine import failure, groups, replicas, scaling, wrappers
from hpcnb.engine.display import LastValue, LinkDisplay
from hpcnb.engine.source import CellSource, ends_with_semicolon

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

    from hpcnb.core.board import Board
    from hpcnb.engine.boundary import Boundary
    from hpcnb.engine.debugger import Debugger
    from hpcnb.engine.guard import Guard
    from hpcnb.engine.interrupts import Interrupts
    from hpcnb.engine.link import RankLink
    from hpcnb.engine.recorder import Recorder
    from hpcnb.engine.streams import LinkStream

__all__ = ["CellRunner"]

#: Larger values stay on the ranks; a message holds at most twice as much.
_LARGEST_VALUE = 512 << 20
_EXIT = "sys.exit() or exit() ended the cell on this rank; the rank goes on. To end all ranks type %hpc stop"


class CellRunner:
    """Takes messages from the cells socket and runs them in order.

    Args:
        rank: Global rank.
        shell: The engine's shell.
        link: To the agent.
        streams: The link's stdout and stderr.
        recorder: Of this rank.
        guard: Of this rank.
        boundary: Of this rank.
        interrupts: Of this rank.
        names: What every cell finds in its namespace: rank, world_size, local_rank, device, mesh, hpc.
        debugger: Of this rank.
        board: Of the node.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a rank is made of, made in main.py
        self,
        rank: int,
        shell: InteractiveShell,
        link: RankLink,
        streams: tuple[LinkStream, LinkStream],
        recorder: Recorder,
        guard: Guard,
        boundary: Boundary,
        interrupts: Interrupts,
        names: dict[str, Any],
        debugger: Debugger,
        board: Board,
    ) -> None:
        self._rank = rank
        self._shell = shell
        self._link = link
        self._streams = streams
        self._recorder = recorder
        self._guard = guard
        self._boundary = boundary
        self._interrupts = interrupts
        self._names = names
        self._debugger = debugger
        self._board = board
        self._rebound: set[str] = set()
        self._reader = FrameReader()
        self._queue: deque[Message] = deque()
        self._busy = False
        self._hook = LastValue(shell=shell)
        self._display = LinkDisplay(send=self._send_display, clear=self._send_clear)
        self._source = CellSource(shell)
        self._shown_error: BaseException | None = None
        shell.user_ns.update(names)

    def on_readable(self) -> None:
        """The cells socket has something; called by the event loop."""
        received = self._link.cells.recv(1 << 16)
        if not received:
            asyncio.get_running_loop().remove_reader(self._link.cells)
            return  # the link thread sees the same and ends the rank
        self._queue.extend(self._reader.feed(received))
        self._next()

    def _next(self) -> None:
        while self._queue and not self._busy:
            message = self._queue.popleft()
            if isinstance(message, RunCell):
                if self._awaits(message.source):
                    self._busy = True
                    asyncio.ensure_future(self._run_awaiting(message)).add_done_callback(self._awaited)
                else:
                    self._run(message.cell, lambda message=message: self._run_source(message))  # type: ignore[misc]
            elif isinstance(message, CallFunction):
                self._run(message.cell, lambda message=message: self._call(message))  # type: ignore[misc]
            elif isinstance(message, Rebuild):
                self._run(message.cell, lambda message=message: self._rebuild(message))  # type: ignore[misc]
            elif isinstance(message, Scale):
                self._run(message.cell, lambda message=message: self._scale(message))  # type: ignore[misc]
            elif isinstance(message, ListGroups):
                self._run(message.cell, self._list_groups)
            elif isinstance(message, Debug):
                self._run(message.cell, self._debug, keep=False)
            elif isinstance(message, Check):
                self._run(message.cell, lambda message=message: self._check(message), keep=False)  # type: ignore[misc]
            elif isinstance(message, Recording):
                self._recorder.enabled = message.enabled
                self._run(message.cell, _Outcome)

    def _awaited(self, task: asyncio.Future[None]) -> None:
        self._busy = False
        task.result()
        self._next()

    def _awaits(self, source: str) -> bool:
        """Whether the cell awaits at its top level. Asking IPython transforms the source once more, so ask seldom."""
        if "await" not in source and "async" not in source:
            return False
        try:
            transformed = self._shell.transform_cell(source)
        except Exception:  # noqa: BLE001 - run_cell meets the same error and reports it
            return False
        return bool(self._shell.should_run_async(source, transformed_cell=transformed))

    # --- one cell -------------------------------------------------------------------------------------------

    def _run(self, cell: int, body: Callable[[], _Outcome], *, keep: bool = True) -> None:
        start_ns = self._enter(cell)
        outcome: _Outcome | None = None
        try:
            try:
                self._interrupts.begin(cell)
                outcome = body()
            except BaseException as error:  # noqa: BLE001 - becomes the reply; the engine lives on
                outcome = _Outcome(error=error)
            self._interrupts.end()
        except KeyboardInterrupt as error:  # between two lines above
            self._interrupts.end()
            outcome = outcome or _Outcome(error=error)
        self._debugger.end()
        if keep:
            self._debugger.keep(outcome.error)
        self._leave(cell, start_ns, outcome)

    async def _run_awaiting(self, message: RunCell) -> None:
        start_ns = self._enter(message.cell)
        outcome: _Outcome | None = None
        try:
            try:
                self._begin_source(message)
                transformed = self._shell.transform_cell(message.source)
                task: asyncio.Task[ExecutionResult] = asyncio.ensure_future(
                    self._shell.run_cell_async(message.source, store_history=False, transformed_cell=transformed)
                )
                self._interrupts.begin(message.cell, task)
                result = await task
                self._interrupts.awaited()
                outcome = self._outcome_of(result, want_pickle=message.want_pickles)
            except BaseException as error:  # noqa: BLE001 - becomes the reply; the engine lives on
                outcome = _Outcome(error=error)
            self._interrupts.end()
        except KeyboardInterrupt as error:  # between two lines above
            self._interrupts.end()
            outcome = outcome or _Outcome(error=error)
        if self._interrupts.cancelled and isinstance(outcome.error, asyncio.CancelledError):
            outcome.error = KeyboardInterrupt().with_traceback(outcome.error.__traceback__)
        self._debugger.end()
        self._debugger.keep(outcome.error)
        self._leave(message.cell, start_ns, outcome)

    def _enter(self, cell: int) -> int:
        shell = self._shell
        self._saved = (sys.stdout, sys.stderr, shell.display_pub, shell.display_trap.hook, shell.showtraceback)
        sys.stdout, sys.stderr = self._streams  # a cell may have replaced them for good
        shell.display_pub = self._display
        shell.display_trap.hook = self._hook
        shell.showtraceback = self._keep_error  # type: ignore[method-assign]
        self._shown_error = None
        self._hook.bundle = self._hook.value = None
        self._boundary.begin_cell(cell)
        return self._recorder.begin_cell(cell)

    def _leave(self, cell: int, start_ns: int, outcome: _Outcome) -> None:
        shell = self._shell
        with self._interrupts:
            for stream in self._streams:
                stream.flush()
            for buffered in (sys.__stdout__, sys.__stderr__):  # what was written to Python's own streams
                if buffered is not None:
                    buffered.flush()
            end_ns = self._recorder.end_cell()
            self._boundary.end_cell()
            sys.stdout, sys.stderr, shell.display_pub, shell.display_trap.hook, shell.showtraceback = self._saved  # type: ignore[method-assign]
            for name, value in self._names.items():  # `del rank` brings ours back
                shell.user_ns.setdefault(name, value)
            self._source.end()
            # IPython (9.5 and later) keeps whatever a cell prints for a history that cells here are not in
            getattr(shell.history_manager, "outputs", {}).clear()
            for stream in self._streams:
                stream.__dict__.pop("write", None)  # its wrapper stays when an interrupt hits it
            reply = CellReply(
                cell, self._rank, outcome.error is None, start_ns, end_ns, outcome.text, outcome.has_value,
                outcome.shown, outcome.pickled, outcome.problem,
                None if outcome.error is None else _described(self._explained(outcome.error)),
                self._notices(outcome), bool(self._guard.broken), self._guard.issued(),
            )  # fmt: skip
            try:
                self._link.send(reply)
            except TransferError as error:  # a value of a gigabyte of text: a cell without a reply would never end
                self._link.send(_without_value(reply, error))

    def _explained(self, error: BaseException) -> BaseException:
        """What DDP's wait in C++ raised becomes what other waits raise."""
        if not isinstance(error, RuntimeError):
            return error
        explained = self._guard.explained(error, *self._recorder.last_wait(), in_wait=False)
        return error if explained is error else explained.with_traceback(error.__traceback__)

    def _keep_error(self, exc_tuple: Any = None, *_: object, **__: object) -> None:
        """The error travels in the reply; IPython shows only those that end nothing, as of %run, this way."""
        self._shown_error = sys.exc_info()[1] if exc_tuple is None else exc_tuple[1]

    def _notices(self, outcome: _Outcome) -> list[str]:
        notices = [*outcome.notices, *self._guard.take_notices()]
        for name, value in self._names.items():
            if self._shell.user_ns.get(name, value) is value:
                self._rebound.discard(name)
            elif name not in self._rebound:
                self._rebound.add(name)
                notices.append(
                    f"`{name}` is hpcnb's name on every rank, and this cell gave it another value, which is kept. "
                    f"To have ours back type  del {name}"
                )
        return notices

    # --- what can be run ------------------------------------------------------------------------------------

    def _begin_source(self, message: RunCell) -> None:
        self._source.begin(message.label, message.source, message.first_line)
        self._hook.muted = ends_with_semicolon(message.source)

    def _run_source(self, message: RunCell) -> _Outcome:
        self._begin_source(message)
        result = self._shell.run_cell(message.source, store_history=False)
        return self._outcome_of(result, want_pickle=message.want_pickles)

    def _outcome_of(self, result: ExecutionResult, *, want_pickle: bool) -> _Outcome:
        error = result.error_before_exec or result.error_in_exec or self._shown_error
        if isinstance(error, SystemExit):
            return _Outcome(notices=(_EXIT,))
        if isinstance(error, SyntaxError):
            self._source.correct(error)
        outcome = _Outcome(error=error)
        if self._hook.bundle is not None and error is None:
            data, metadata = self._hook.bundle
            outcome.text = data.get("text/plain", "")
            outcome.has_value = True
            if data.keys() - {"text/plain"}:
                self._send_display(data, {**metadata, "hpcnb_value": True}, "", False)
                outcome.shown = True
        if want_pickle and error is None and self._hook.value is not None:
            outcome.pickled, outcome.problem = _pickle(self._hook.value)
        return outcome

    def _call(self, message: CallFunction) -> _Outcome:
        function, args, kwargs = cloudpickle.loads(message.payload)
        value = function(*args, **kwargs)
        outcome = _Outcome(has_value=value is not None)
        outcome.text = "" if value is None else repr(value)
        outcome.pickled, outcome.problem = _pickle(value)
        return outcome

    def _rebuild(self, message: Rebuild) -> _Outcome:
        count = groups.rebuild_groups(message)
        # on all ranks, also on one that was not released: wrappers must agree on where they are
        notices = wrappers.make_ready(self._shell.user_ns)
        return _Outcome(text=str(count), has_value=True, notices=tuple(notices))

    def _scale(self, message: Scale) -> _Outcome:
        count, mesh = scaling.scale(message, self._rank, self._board, self._guard, self._names["hpc"])
        namespace = self._shell.user_ns
        for name, value in {"world_size": message.world_size, "mesh": mesh}.items():
            if namespace.get(name) is self._names[name]:  # else the user's own, which is kept
                namespace[name] = value
            self._names[name] = value
        notices = wrappers.make_ready(namespace)
        return _Outcome(text=str(count), has_value=True, notices=tuple(notices))

    def _list_groups(self) -> _Outcome:
        outcome = _Outcome(has_value=True)
        hidden = self._shell.user_ns_hidden
        names = [name for name in self._shell.user_ns if not name.startswith("_") and name not in hidden]
        outcome.pickled, outcome.problem = _pickle((*groups.list_groups(), sorted(names)))
        return outcome

    def _debug(self) -> _Outcome:
        self._debugger.post_mortem()
        return _Outcome()

    def _check(self, message: Check) -> _Outcome:
        outcome = _Outcome()
        digests = replicas.named_digests(self._shell.user_ns, message.names, rng=message.rng)
        outcome.pickled, outcome.problem = _pickle(digests)
        return outcome

    def _send_clear(self, wait: bool) -> None:  # noqa: FBT001 - IPython's order
        for stream in self._streams:
            stream.flush()
        self._link.send(RankClear(self._recorder.cell, wait))

    def _send_display(self, data: dict[str, Any], metadata: dict[str, Any], display_id: str, update: bool) -> None:  # noqa: FBT001
        for stream in self._streams:
            stream.flush()
        self._link.send(RankDisplay(self._recorder.cell, data, metadata, display_id, update))


class _Outcome:
    """How a cell ended on this rank."""

    def __init__(
        self,
        *,
        error: BaseException | None = None,
        text: str = "",
        has_value: bool = False,
        notices: tuple[str, ...] = (),
    ) -> None:
        self.error = error
        self.text = text
        self.has_value = has_value
        self.shown = False
        self.pickled = b""
        self.problem = ""
        self.notices = notices


def _without_value(reply: CellReply, why: TransferError) -> CellReply:
    error = _described(TransferError(f"what the cell came to cannot be sent to the notebook: {why}"))
    return dataclasses.replace(
        reply, ok=False, value="", has_value=False, value_shown=False, value_pickle=b"", value_problem="", error=error,
        notices=[],
    )  # fmt: skip


def _pickle(value: object) -> tuple[bytes, str]:
    try:
        pickled = cloudpickle.dumps(value, protocol=5)
        if len(pickled) > _LARGEST_VALUE:
            return b"", f"{len(pickled):,} bytes are too much to bring to the notebook (at most {_LARGEST_VALUE:,})"
        return pickled, ""
    except Exception as error:  # noqa: BLE001 - any object may refuse; the words travel to the person
        return b"", f"a {type(value).__module__}.{type(value).__qualname__} cannot be pickled: {error}"


def _described(error: BaseException) -> dict[str, Any]:
    """The error as data; where that fails (thousands of linked causes) just its name: a reply must go."""
    try:
        return failure.describe(error)
    except Exception as problem:  # noqa: BLE001 - a cell without a reply would never end
        text = f"{type(error).__name__}, which cannot be described: {type(problem).__name__}"
        described: dict[str, Any] = dict.fromkeys(("cell", "code"), "")
        return described | {
            "ename": type(error).__name__, "evalue": text, "line": 0, "traceback": text, "key": text
        }  # fmt: skip
