"""The running cell of a node: output of its ranks gathered on the way up, replies and spans collected.

Knows ranks and messages; knows no socket of a notebook: what is to be said goes through ``say``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.gather import Gather
from hpcnb.node.rank_process import RankProcess

__all__ = ["CellMessage", "CellRelay"]

CellMessage = m.RunCell | m.CallFunction | m.Rebuild | m.Recording

#: Span rings are read so often while a cell runs; they hold some seconds of records.
_DRAIN_S = 0.25
#: Bars move so often.
_PROGRESS_S = 0.1
#: Output of messages that carry no budget of their own.
_LINES, _BYTES = 1000, 100_000


class CellRelay:
    """At most one running cell.

    Args:
        ranks: Of this node, by global rank.
        say: Sends a message to every notebook.
        clock: Monotonic seconds.
    """

    def __init__(
        self, ranks: dict[int, RankProcess], say: Callable[[m.Message], None], clock: Callable[[], float]
    ) -> None:
        self._ranks = ranks
        self._say = say
        self._clock = clock
        self._gather = Gather()
        self._cell = 0
        self._members: list[int] = []
        self._waiting: set[int] = set()
        self._replies: list[Any] = []
        self._drain_due_s = 0.0
        self._progress_due_s: float | None = None
        self._positions: dict[tuple[int, str, int], dict[int, tuple[int, float]]] = {}
        self._unfinished: dict[tuple[int, str, int], set[int]] = {}

    @property
    def due_s(self) -> float | None:
        """When :meth:`tick` has something to do; None if nothing is held."""
        due = [time_s for time_s in (self._gather.due_s, self._progress_due_s) if time_s is not None]
        if self._cell:
            due.append(self._drain_due_s)
        return min(due, default=None)

    def tick(self, now_s: float) -> None:
        """Send what has been held long enough, and read rings before they are overwritten."""
        if self._gather.due_s is not None and now_s >= self._gather.due_s:
            self._flush_output()
        if self._progress_due_s is not None and now_s >= self._progress_due_s:
            self._flush_progress()
        if self._cell and now_s >= self._drain_due_s:
            self._drain_due_s = now_s + _DRAIN_S
            for rank in self._members:
                self._ranks[rank].drain_spans()
            self._tell_held()

    def _tell_held(self) -> None:
        groups: dict[tuple[int, str], list[int]] = {}
        for rank in self._members:
            if (held := self._ranks[rank].held()) is not None:
                groups.setdefault(held, []).append(rank)
        if groups:
            self._say(m.Held(self._cell, [(RankSet(ranks), *held) for held, ranks in groups.items()]))

    def begin(self, message: CellMessage) -> list[RankProcess]:
        """A cell begins: send it to its ranks; returns ranks whose sockets did not take all of it."""
        self._cell = message.cell
        self._members = [rank for rank in message.ranks if rank in self._ranks]
        self._waiting = {rank for rank in self._members if self._ranks[rank].alive}
        self._replies = []
        self._unfinished.clear()
        lines, size = getattr(message, "line_budget", _LINES), getattr(message, "byte_budget", _BYTES)
        clogged = []
        framed = m.frame(message)
        for rank in sorted(self._waiting):
            process = self._ranks[rank]
            process.begin_cell(message.cell, lines, size)
            if not process.send(framed):
                clogged.append(process)
        self._drain_due_s = self._clock() + _DRAIN_S
        self._check_done()
        return clogged

    def hear(self, process: RankProcess, message: m.Message) -> None:
        """A rank said something about its cell."""
        if isinstance(message, m.Text):
            if message.cell == process.cell != 0:
                self.show(process, [(message.stream, message.text)])
            else:
                process.log(message.text)
        elif isinstance(message, m.CellReply) and message.cell == process.cell:
            self._gather.add(process.rank, process.end_cell(), self._clock())
            self._replies.append([getattr(message, name) for name in m.names_of(message)])
            self._waiting.discard(process.rank)
            self._check_done()
        elif isinstance(message, m.RankDisplay):
            self.show(process, process.read_pipes())
            self._flush_output()  # it stands after what was said before
            ranks = RankSet([process.rank])
            self._say(
                m.Display(message.cell, ranks, message.bundle, message.metadata, message.display_id, message.update)
            )
        elif isinstance(message, m.RankProgress):
            self._progressed(process.rank, message)

    def show(self, process: RankProcess, entries: list[tuple[str, str]]) -> None:
        """Output of a rank."""
        self._gather.add(process.rank, process.show(entries), self._clock())

    def lost(self, process: RankProcess) -> None:
        """A rank's process has ended: it will not answer. Its last output is sent before anything else."""
        self._gather.add(process.rank, process.end_cell(), self._clock())
        self._flush_output()

    def forget(self, rank: int) -> None:
        """Do not wait for this rank."""
        self._waiting.discard(rank)
        self._check_done()

    def _check_done(self) -> None:
        if not self._cell or self._waiting:
            return
        self._flush_output()
        self._flush_progress()
        spans: dict[int, bytes] = {}
        strings: dict[int, list[str]] = {}
        lost: dict[int, int] = {}
        for rank in self._members:
            spans[rank], strings[rank], lost[rank] = self._ranks[rank].take_spans()
        self._say(m.CellDone(self._cell, self._replies, spans, strings, lost))
        self._cell = 0

    def _flush_output(self) -> None:
        if entries := self._gather.take():
            self._say(m.Output(self._cell, entries))

    def _progressed(self, rank: int, message: m.RankProgress) -> None:
        key = (message.bar, message.description, message.total)
        self._positions.setdefault(key, {})[rank] = (message.position, message.elapsed_s)
        unfinished = self._unfinished.setdefault(key, set())
        (unfinished.discard if message.finished else unfinished.add)(rank)
        if self._progress_due_s is None:
            self._progress_due_s = self._clock() + _PROGRESS_S

    def _flush_progress(self) -> None:
        self._progress_due_s = None
        for key, positions in self._positions.items():
            self._say(m.Progress(self._cell, *key, positions, not self._unfinished.get(key)))
        self._positions.clear()
