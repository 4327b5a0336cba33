"""Writes the saved timelines of this folder: what ranks would have recorded, with known numbers.

Run from the repository root: ``python tests/data/make_timelines.py``.
"""

import mmap
from pathlib import Path

from hpcnb.core.spans import Category, Flag, Kind, RingReader, RingWriter, ring_bytes
from hpcnb.timing.timeline import CellTimeline, RankCell, Timeline

MS = 1_000_000
HERE = Path(__file__).parent


class Rank:
    """Records as a rank does, at times given in milliseconds."""

    def __init__(self, rank, num_slots=4096):
        memory = mmap.mmap(-1, ring_bytes(num_slots))
        self.rank = rank
        self.ring = RingWriter(memory, num_slots)
        self.reader = RingReader(memory)

    def write(self, kind, start, end, *, wait=(0, 0), child=0, name="", group="", **fields):
        record = {
            "kind": kind, "category": 0, "operation": 0, "flags": 0, "group": self.ring.intern(group),
            "name": self.ring.intern(name), "cell": 3, "line": 0, "step": -1, "peer": -1, "sequence": 0,
            "source": self.ring.intern("cell 3"), "num_bytes": 0, "start_ns": round(start * MS),
            "end_ns": round(end * MS), "wait_start_ns": round(wait[0] * MS), "wait_end_ns": round(wait[1] * MS),
            "child_ns": round(child * MS),
        }  # fmt: skip
        self.ring.write(*(record | fields).values())

    def cell(self, start, end):
        packed, lost = self.reader.drain()
        return RankCell.from_bytes(
            self.rank, round(start * MS), round(end * MS), packed, self.reader.strings(), lost
        )


def training(num_ranks=4, num_steps=8):
    """A training cell: rank 1 computes 20 ms longer in every step, and the others wait for it in all_reduce.

    A step of the others, in ms: data 4, forward 10, backward 30 and in it, from its 10th, an all_reduce that is
    waited for at its end; optimizer 3. The gradients of the last layer travel beside the backward pass.
    """
    ranks = []
    for number in range(num_ranks):
        rank = Rank(number)
        at = begin = 10.0 + 0.2 * number
        for step in range(num_steps):
            start = 12.0 + 75.0 * step
            late = 20.0 if number == 1 else 0.0
            common = {"step": step}
            rank.write(Kind.DATA, start, start + 4, line=2, **common)
            forward = start + 4
            rank.write(
                Kind.USER, forward, forward + 10, name="forward", category=Category.FORWARD, line=3, **common
            )
            backward = forward + 10
            issue = backward + 10
            bucket = {"name": "all_reduce", "group": "dp", "line": 4, "num_bytes": 4_200_000, **common}
            # hidden: complete before the main thread looks at it
            rank.write(
                Kind.COLLECTIVE, issue, issue + 8, wait=(issue + 8, issue + 8), sequence=2 * step,
                flags=Flag.ASYNC | Flag.FUTURE, **bucket,
            )  # fmt: skip
            ready = backward + 30 + late
            done = backward + 30 + 20 + 6  # 20 ms until rank 1 is there, 6 ms transfer
            rank.write(
                Kind.COLLECTIVE, ready, done, wait=(ready, done), sequence=2 * step + 1,
                flags=Flag.ASYNC | Flag.FUTURE, **bucket,
            )  # fmt: skip
            rank.write(
                Kind.USER, backward, done, child=done - ready, name="backward", category=Category.BACKWARD,
                line=4, **common,
            )  # fmt: skip
            rank.write(
                Kind.USER, done, done + 3, name="optimizer", category=Category.OPTIMIZER, line=5, **common
            )
            at = done + 3 + 1
            rank.write(Kind.STEP, start + 4, at, child=at - start - 5, name="train", line=2, **common)
        end = at + 1.0 + (5.0 if number == 2 else 0.0)
        in_steps = num_steps * (4 + (at - (start + 4)))
        rank.write(Kind.CELL, begin, end, child=in_steps, name="cell 3")
        ranks.append(rank.cell(begin, end))
    done = max(rank.end_ns for rank in ranks) / MS
    return CellTimeline(3, "cell 3", 9 * MS, round((done + 0.5) * MS), tuple(ranks))


if __name__ == "__main__":
    Timeline.of([training()]).save(HERE / "training_4_ranks.json")
