"""Writes the saved timelines of this folder: what ranks would have recorded, with known numbers.

Run from the repository root: ``python -m tests.data.make_timelines``.
"""

from pathlib import Path

from hpcnb.core.spans import Category, Flag, Kind
from hpcnb.timing.timeline import Timeline
from tests.data.ranks import MS, Rank, cell_of

HERE = Path(__file__).parent


def training(num_ranks=4, num_steps=8):
    """A training cell: rank 1 computes 20 ms longer in every step; the others wait for it in all_reduce.

    A step of the others, in ms: data 4, forward 10, backward 30 and in it, from its 10th, an all_reduce of 8 that
    nobody waits for; at its end an all_reduce: 20 until rank 1 is there, 6 of transfer; optimizer 3; 1 of the step
    itself and 1 between steps. Rank 2 computes 5 ms longer at the end.
    """
    ranks = []
    for number in range(num_ranks):
        rank = Rank(number, num_slots=8 * num_steps + 64)
        at = begin = 10.0 + 0.2 * number
        for step in range(num_steps):
            start = 12.0 + 75.0 * step
            late = 20.0 if number == 1 else 0.0
            common = {"step": step}
            rank.write(Kind.DATA, start, start + 4, line=2, **common)
            forward = start + 4
            rank.write(Kind.USER, forward, forward + 10, name="forward", category=Category.FORWARD, line=3, **common)
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
            rank.write(Kind.USER, done, done + 3, name="optimizer", category=Category.OPTIMIZER, line=5, **common)
            at = done + 3 + 1
            rank.write(Kind.STEP, start, at, child=at - start - 1, name="train", line=2, **common)
        end = at + 1.0 + (5.0 if number == 2 else 0.0)
        ranks.append(rank.cell(begin, end, child=num_steps * (at - start)))
    return cell_of(ranks, submitted=9, done=max(rank.end_ns for rank in ranks) / MS + 0.5)


if __name__ == "__main__":
    Timeline.of([training()]).save(HERE / "training_4_ranks.json")
