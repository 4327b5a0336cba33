"""What the cells of a node have said, for notebooks that come later. Pure: knows no socket and no clock.

Kept packed, as it was sent. A cell is in the journal while it runs, and afterwards until a notebook has taken it,
unless one that follows it was connected when it ended. All of it together is bounded.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet

__all__ = ["Journal"]

#: All cells together keep at most so much.
_LIMIT_BYTES = 32 << 20
#: What keeping a message costs beside its bytes.
_OVERHEAD_BYTES = 400
_TOO_LARGE = "it was too large to be kept until a notebook came"
#: Places of these fields in the list that a CellReply travels as.
_REPLY = [each.name for each in dataclasses.fields(m.CellReply)]
_RANK, _IS_BROKEN = _REPLY.index("rank"), _REPLY.index("is_broken")
_PICKLE, _PROBLEM = _REPLY.index("value_pickle"), _REPLY.index("value_problem")


@dataclass
class _Said:
    """One message as it was sent."""

    kind: type[m.Message]
    packed: bytes
    stripped: bool = False

    @property
    def num_bytes(self) -> int:
        return len(self.packed) + _OVERHEAD_BYTES


@dataclass
class _Pages:
    """One cell. Messages have serial numbers; displays are also found by (ranks, display id) and by ranks."""

    began: m.CellBegan
    followers: set[bytes]
    said: dict[int, _Said] = field(default_factory=dict)
    updates: dict[tuple[int, str], int] = field(default_factory=dict)
    shown: dict[int, list[int]] = field(default_factory=dict)
    cleared: set[int] = field(default_factory=set)
    asked: dict[int, tuple[int, int]] = field(default_factory=dict)  # rank: its open question, (request, serial number)
    bars: dict[tuple[int, str, int], m.Progress] = field(default_factory=dict)
    held: m.Held | None = None
    answered: RankSet = field(default_factory=RankSet)
    done: bool = False
    num_displays_lost: int = 0
    text_lost: bool = False

    def packed(self) -> list[bytes]:
        """All of it; bars and notices come first, as their place among the output does not matter."""
        notices = []
        if self.num_displays_lost:
            are = "pictures or other rich outputs are" if self.num_displays_lost > 1 else "picture or other output is"
            notices.append(f"the first {self.num_displays_lost} {are} lost: too much to keep until a notebook came")
        if self.text_lost:
            notices.append("the beginning of the output is lost: too much to keep until a notebook came")
        first: list[m.Message] = [self.began, *self.bars.values()]
        first += [m.Notice(self.began.cell, self.began.ranks, words) for words in notices]
        if self.held is not None and not self.done:
            first.append(self.held)
        return [*map(m.encode, first), *(each.packed for each in self.said.values())]


class Journal:
    """What cells said.

    Args:
        limit_bytes: All cells together keep at most so much of it; the oldest pictures go first.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._cells: dict[int, _Pages] = {}
        self._serial = itertools.count()
        self._broken = RankSet()
        self.num_bytes = 0

    @property
    def broken(self) -> RankSet:
        """Ranks that cannot communicate until groups are built again.

        By what they said last, of whatever cell; or since a rank of their last cell has not lived to answer it.
        """
        return self._broken

    @property
    def running(self) -> list[m.CellBegan]:
        """Cells that have not ended, in order."""
        return [pages.began for pages in self._cells.values() if not pages.done]

    @property
    def unseen(self) -> list[m.CellBegan]:
        """Cells that have ended while nobody followed them, in order."""
        return [pages.began for pages in self._cells.values() if pages.done]

    def is_attended(self, cell: int, connected: Collection[bytes]) -> bool:
        """Whether a notebook that is connected listens to a cell; also true of what is not kept."""
        pages = self._cells.get(cell)
        return pages is None or not pages.followers.isdisjoint(connected)

    def begin(self, began: m.CellBegan, follower: bytes) -> None:
        """A cell begins; ``follower`` is the notebook that sent it."""
        self._cells[began.cell] = _Pages(began, {follower})

    def add(self, message: m.Message, packed: bytes, connected: Collection[bytes]) -> None:
        """A message to notebooks; what is of no cell is not kept.

        Args:
            message: What is said.
            packed: The same as it is sent.
            connected: Notebooks that hear it.
        """
        pages = self._cells.get(getattr(message, "cell", 0))
        if isinstance(message, m.Replies | m.CellDone):
            self._note_broken(pages, message)
        if pages is None:
            return
        if isinstance(message, m.Progress):
            _move(pages.bars, message)
        elif isinstance(message, m.Held):
            pages.held = message
        else:
            number = next(self._serial)
            if isinstance(message, m.Clear):
                pages.cleared.add(message.ranks.bits)
            elif isinstance(message, m.Display):
                self._replace(pages, message, number)
            self._close_questions(pages, message)
            if isinstance(message, m.InputRequest):
                pages.asked[message.rank] = (message.request, number)
            said = pages.said[number] = _Said(type(message), packed)
            self.num_bytes += said.num_bytes
        if isinstance(message, m.CellDone):
            pages.done = True
            if not pages.followers.isdisjoint(connected):
                self.forget(message.cell)
        self._trim()

    def _note_broken(self, pages: _Pages | None, message: m.Replies | m.CellDone) -> None:
        answered = RankSet(fields[_RANK] for fields in message.replies)
        self._broken -= answered
        self._broken |= RankSet(fields[_RANK] for fields in message.replies if fields[_IS_BROKEN])
        if pages is None:
            return
        pages.answered |= answered
        if isinstance(message, m.CellDone) and pages.answered != pages.began.ranks:
            self._broken |= pages.answered

    def answered(self, reply: m.InputReply) -> None:
        """A notebook has answered a question: whoever follows the cell from now on must not ask it again."""
        pages = self._cells.get(reply.cell)
        if pages is not None and pages.asked.get(reply.rank, (None, 0))[0] == reply.request:
            self._drop(pages, pages.asked.pop(reply.rank)[1])

    def _close_questions(self, pages: _Pages, message: m.Message) -> None:
        """A rank that speaks of something else waits for no answer any more: its question was given up."""
        ranks: list[int] = []
        if isinstance(message, m.InputRequest | m.DebuggerLeft):
            ranks = [message.rank]
        elif isinstance(message, m.Replies):
            ranks = [fields[_RANK] for fields in message.replies]
        elif isinstance(message, m.CellDone):
            ranks = list(pages.asked)
        for rank in ranks:
            if rank in pages.asked:
                self._drop(pages, pages.asked.pop(rank)[1])

    def follow(self, cell: int, follower: bytes) -> list[bytes]:
        """All that is kept of a cell, packed, CellBegan first; nothing if nothing is.

        A cell that still runs has one more follower; one that has ended is forgotten: it has been seen.
        """
        pages = self._cells.get(cell)
        if pages is None:
            return []
        packed = pages.packed()
        if pages.done:
            self.forget(cell)
        else:
            pages.followers.add(follower)
        return packed

    def forget(self, cell: int) -> None:
        """Nobody will want to read this cell."""
        if (pages := self._cells.pop(cell, None)) is not None:
            self.num_bytes -= sum(each.num_bytes for each in pages.said.values())

    # --- bounds ---------------------------------------------------------------------------------------------

    def _replace(self, pages: _Pages, display: m.Display, number: int) -> None:
        """Of an animation the last picture stays, whether it updates its display or clears what was before."""
        ranks = display.ranks.bits
        if display.update and display.display_id:
            if (earlier := pages.updates.get((ranks, display.display_id))) is not None:
                self._drop(pages, earlier)
            pages.updates[ranks, display.display_id] = number
        elif ranks in pages.cleared:
            pages.cleared.discard(ranks)
            for earlier in pages.shown.pop(ranks, []):
                self._drop(pages, earlier)
        pages.shown.setdefault(ranks, []).append(number)

    def _drop(self, pages: _Pages, number: int) -> None:
        if (said := pages.said.pop(number, None)) is not None:
            self.num_bytes -= said.num_bytes

    def _trim(self) -> None:
        """Pictures first, then objects and spans, then text; how a cell ended is always kept."""
        for step in (self._drop_display, self._strip_answer, self._drop_text):
            while self.num_bytes > self._limit and step():
                pass

    def _drop_display(self) -> bool:
        for pages in self._cells.values():
            for number, said in pages.said.items():
                if said.kind is m.Display:
                    self._drop(pages, number)
                    pages.num_displays_lost += 1
                    return True
        return False

    def _strip_answer(self) -> bool:
        for pages in self._cells.values():
            for said in pages.said.values():
                if said.kind in (m.Replies, m.CellDone) and not said.stripped:
                    self.num_bytes -= said.num_bytes
                    said.packed, said.stripped = _stripped(said.packed), True
                    self.num_bytes += said.num_bytes
                    return True
        return False

    def _drop_text(self) -> bool:
        for pages in self._cells.values():
            for number, said in pages.said.items():
                if said.kind not in (m.Replies, m.CellDone):
                    self._drop(pages, number)
                    pages.text_lost = True
                    return True
        return False


def _stripped(packed: bytes) -> bytes:
    """An answer without objects and spans, which may be large."""
    answer = m.decode(packed)
    assert isinstance(answer, m.Replies | m.CellDone)
    replies: list[Any] = []
    for values in answer.replies:
        reply = list(values)
        if reply[_PICKLE]:
            reply[_PICKLE], reply[_PROBLEM] = b"", _TOO_LARGE
        replies.append(reply)
    if isinstance(answer, m.Replies):
        return m.encode(dataclasses.replace(answer, replies=replies))
    return m.encode(dataclasses.replace(answer, replies=replies, spans={}, strings={}))


def _move(bars: dict[tuple[int, str, int], m.Progress], news: m.Progress) -> None:
    """Of each bar the newest position of every rank; a round of an inner loop takes the place of the one before."""
    key = (news.bar, news.description, news.total)
    for number, description, total in list(bars):
        if number < news.bar and (description, total) == key[1:] and bars[number, description, total].finished:
            del bars[number, description, total]
    earlier = bars.get(key)
    positions = {**earlier.positions, **news.positions} if earlier is not None else news.positions
    bars[key] = dataclasses.replace(news, positions=positions)
