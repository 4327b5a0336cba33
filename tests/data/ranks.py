"""Ranks that record what a test says, through the ring in memory that real ranks use."""

import mmap

from hpcnb.core.spans import Category, Kind, RingReader, RingWriter, ring_bytes
from hpcnb.timing.timeline import CellTimeline, RankCell

MS = 1_000_000
CELL = 3
LABEL = "cell 3"


class Rank:
    """Writes records of one cell as a rank does, at times given in milliseconds."""

    def __init__(self, rank, *, num_slots=512, cell=CELL):
        self.number_of_cell = cell
        memory = mmap.mmap(-1, ring_bytes(num_slots))
        self.rank = rank
        self.ring = RingWriter(memory, num_slots)
        self.reader = RingReader(memory)

    def write(self, kind, start, end, *, wait=None, child=0, name="", group="", source=LABEL, **fields):
        """One record; blocked from wait[0] to wait[1]."""
        wait = wait or (end, end)
        record = {
            "kind": kind, "category": 0, "operation": 0, "flags": 0, "group": self.ring.intern(group),
            "name": self.ring.intern(name), "cell": self.number_of_cell, "line": 0,
            "step": -1, "peer": -1, "sequence": 0, "source": self.ring.intern(source), "num_bytes": 0,
            "start_ns": round(start * MS), "end_ns": round(end * MS),
            "wait_start_ns": round(wait[0] * MS), "wait_end_ns": round(wait[1] * MS), "child_ns": round(child * MS),
        }  # fmt: skip
        assert fields.keys() <= record.keys()
        self.ring.write(*(record | fields).values())

    def collective(self, start, end, *, wait=None, name="all_reduce", group="all ranks [0-3]", **fields):
        """Blocked all the time unless ``wait`` says otherwise."""
        fields["category"] = Category.COMMUNICATION_TRANSFER
        self.write(Kind.COLLECTIVE, start, end, wait=wait or (start, end), name=name, group=group, **fields)

    def send(self, peer, start, end, *, name="send", **fields):
        self.write(Kind.POINT_TO_POINT, start, end, wait=(start, end), name=name, group="all", peer=peer, **fields)

    def recv(self, peer, start, end, **fields):
        self.send(peer, start, end, name="recv", **fields)

    def cell(self, start, end, *, child=None):
        """End the cell: its record, unless ``child`` is None, and everything that was recorded."""
        if child is not None:
            self.write(Kind.CELL, start, end, child=child, source="")
        packed, lost = self.reader.drain()
        strings = dict(enumerate(self.reader.strings()))
        return RankCell.from_bytes(self.rank, round(start * MS), round(end * MS), packed, strings, lost)


def cell_of(ranks, *, submitted=0.0, done, cell=CELL, label=LABEL):
    """A cell on these ranks (RankCells), times in milliseconds."""
    return CellTimeline(cell, label, round(submitted * MS), round(done * MS), tuple(ranks))


def plain_cell(parts, *, submitted=0.0, done, cell=CELL):
    """A cell without anything in it, by rank number: {0: (start, end), ...}."""
    ranks = [Rank(number, cell=cell).cell(start, end, child=0) for number, (start, end) in parts.items()]
    return cell_of(ranks, submitted=submitted, done=done, cell=cell, label=f"cell {cell}")
