"""The running cell of a node: output of its ranks gathered on the way up, replies and spans collected.

Knows ranks and messages; knows no socket of a notebook: what is to be said goes through ``say``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.node.held import Held
from hpcnb.node.rank_process import RankProcess

__all__ = ["CellMessage", "CellRelay", "RankMessage"]

CellMessage = m.RunCell | m.CallFunction | m.Rebuild | m.Scale | m.ListGroups | m.Recording | m.Debug | m.Check
RankMessage = (
    m.Text | m.CellReply | m.RankDisplay | m.RankClear | m.InputRequest | m.DebuggerLeft | m.RankProgress
)  # fmt: skip

#: Span rings are read so often while a cell runs; they hold some seconds of records.
_DRAIN_S = 0.25
#: A reply with a larger value goes in a message of its own.
_LARGE_BYTES = 1 << 20
#: Output of messages that carry no budget of their own.
_LINES, _BYTES = 1000, 100_000


@dataclass
class _Cell:
    """One cell that some ranks of this node have not answered."""

    number: int
    members: list[int]
    waiting: set[int]
    held: Held


class CellRelay:
    """The running cells: usually one; more where ranks still run an earlier one.

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
        self._cells: dict[int, _Cell] = {}
        self._drain_due_s = 0.0

    @property
    def due_s(self) -> float | None:
        """When :meth:`tick` has something to do; None if nothing is held."""
        if not self._cells:
            return None
        return min([self._drain_due_s, *(cell.held.due_s for cell in self._cells.values())])

    @property
    def running(self) -> list[int]:
        """Numbers of the cells that some rank has not answered."""
        return list(self._cells)

    def tick(self, now_s: float) -> None:
        """Send what has been held long enough, and read rings before they are overwritten."""
        for cell in list(self._cells.values()):
            self._say_all(cell.held.tick(now_s))
        if self._cells and now_s >= self._drain_due_s:
            self._drain_due_s = now_s + _DRAIN_S
            for cell in self._cells.values():
                for rank in cell.waiting:
                    self._ranks[rank].drain_spans()
                self._tell_held(cell)

    def _tell_held(self, cell: _Cell) -> None:
        groups: dict[tuple[int, str], list[int]] = {}
        for rank in sorted(cell.waiting):
            if (held := self._ranks[rank].held()) is not None:
                groups.setdefault(held, []).append(rank)
        if groups:
            self._say(m.Held(cell.number, [(RankSet(ranks), *held) for held, ranks in groups.items()]))

    def begin(self, message: CellMessage) -> list[RankProcess]:
        """A cell begins: send it to its ranks; returns ranks whose sockets did not take all of it."""
        members = [rank for rank in message.ranks if rank in self._ranks]
        living = {rank for rank in members if self._ranks[rank].alive}
        cell = _Cell(message.cell, members, living, Held(message.cell))
        self._cells[cell.number] = cell
        lines, size = getattr(message, "line_budget", _LINES), getattr(message, "byte_budget", _BYTES)
        clogged = []
        framed = m.frame(message)
        for rank in sorted(cell.waiting):
            process = self._ranks[rank]
            process.begin_cell(message.cell, lines, size)
            if not process.send(framed):
                clogged.append(process)
        self._drain_due_s = self._clock() + _DRAIN_S
        self._check_done(cell)
        return clogged

    def hear(self, process: RankProcess, message: RankMessage) -> None:
        """A rank said something about its cell."""
        cell = self._cells.get(process.cell)
        if isinstance(message, m.Text):
            if cell is not None and message.cell == cell.number:
                self.show(process, [(message.stream, message.text)])
            else:
                process.log(message.text)
        elif cell is None or message.cell != cell.number:
            return  # of a cell that is over on this rank
        elif isinstance(message, m.CellReply):
            cell.held.say(RankSet([process.rank]), process.end_cell(), self._clock())
            cell.held.answer([[getattr(message, name) for name in m.names_of(message)]], self._clock())
            cell.waiting.discard(process.rank)
            if len(message.value_pickle) > _LARGE_BYTES:  # alone: together they might be too large for one message
                self._say_all([*cell.held.output(), m.Replies(cell.number, cell.held.replies())])
            self._check_done(cell)
        elif isinstance(message, m.RankDisplay):
            self.show(process, process.read_pipes())
            self._say_all(cell.held.output())  # it stands after what was said before
            ranks = RankSet([process.rank])
            self._say(
                m.Display(message.cell, ranks, message.bundle, message.metadata, message.display_id, message.update)
            )
        elif isinstance(message, m.RankClear):
            self.show(process, process.read_pipes())
            self._say_all(cell.held.output())
            self._say(m.Clear(message.cell, RankSet([process.rank]), message.wait))
        elif isinstance(message, m.InputRequest | m.DebuggerLeft):
            self.show(process, process.read_pipes())
            if process.held() is not None:  # a person reads what led to the question before answering it
                cell.held.say(RankSet([process.rank]), process.release(), self._clock())
            self._say_all(cell.held.output())
            self._say(message)
        elif isinstance(message, m.RankProgress):
            position = {process.rank: (message.position, message.elapsed_s)}
            key = (message.bar, message.description, message.total)
            cell.held.move(key, position, process.rank, finished=message.finished, now_s=self._clock())

    def show(self, process: RankProcess, entries: list[tuple[str, str]]) -> None:
        """Output of a rank."""
        shown = process.show(entries)
        if (cell := self._cells.get(process.cell)) is not None:
            cell.held.say(RankSet([process.rank]), shown, self._clock())

    def lost(self, process: RankProcess) -> int:
        """A rank's process has ended: it will not answer. Its last output is sent; returns the cell it ran."""
        cell = self._cells.get(process.cell)
        entries = process.end_cell()
        if cell is None:
            return 0
        cell.held.say(RankSet([process.rank]), entries, self._clock())
        self._say_all(cell.held.output())
        return cell.number

    def forget(self, number: int, rank: int) -> None:
        """Do not wait for this rank in this cell."""
        if (cell := self._cells.get(number)) is not None:
            cell.waiting.discard(rank)
            self._check_done(cell)

    def _check_done(self, cell: _Cell) -> None:
        if cell.waiting:
            return
        self._say_all(cell.held.output())
        self._say_all(cell.held.progress())
        spans: dict[int, bytes] = {}
        strings: dict[int, dict[int, str]] = {}
        lost: dict[int, int] = {}
        for rank in cell.members:
            spans[rank], strings[rank], lost[rank] = self._ranks[rank].take_spans(cell.number)
        self._say(m.CellDone(cell.number, cell.held.replies(), spans, strings, lost, time.perf_counter_ns()))
        del self._cells[cell.number]

    def _say_all(self, messages: list[m.Message]) -> None:
        for message in messages:
            self._say(message)
