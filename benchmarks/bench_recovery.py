"""How soon the prompt is back when a rank raises or dies, and after Ctrl-C; and how soon a dead rank is replaced.

4 ranks, default grace (1 s). Raise: one rank raises 0.2 s after the others began to wait for it in all_reduce; from
the raise to the prompt, in which the process groups are built again (what the recovery line says). Death: SIGKILL of
one rank in a loop of all_reduces; until the running cell tells of it, until the prompt, and until restart_rank has
brought a new process into groups and mesh. Ctrl-C: SIGINT of this process in endless cells. After each of them a
collective and the names are checked. Peer: engines of ipyparallel with a gloo group, where one raises while the others
wait in all_reduce: a cell that is not back within 10 s counts as 10 s.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import threading
import time

import ipyparallel as ipp
import measure

import hpcnb
from hpcnb.cluster.cell_run import CellRequest

NUM_RANKS = 4
TIMEOUT_S = 30
PEER_S = 10.0

SET_UP = """
import time
import torch, torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
kept, last = {"rank": rank, "tensor": torch.full((1000,), float(rank))}, world_size - 1
x = torch.ones(1000)
"""
MODELS = """
model = DDP(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
stage = PipelineStage(nn.Linear(32, 32), rank, world_size, torch.device("cpu"))
schedule = ScheduleGPipe(stage, 2, loss_fn=F.mse_loss)
"""
CHECK = """
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
(total.item(), kept["rank"] == rank and bool((kept["tensor"] == rank).all()))
"""
RAISE = """
raised_ns = 0
dist.barrier()
if rank == last:
    time.sleep(0.2)
    raised_ns = time.perf_counter_ns()
    raise ValueError("trouble")
dist.all_reduce(x)
"""
ENDLESS = {
    "all_reduce": "while True:\n    dist.all_reduce(x)\n    x.fill_(1)\n",
    "DDP steps": "while True:\n    optimizer.zero_grad()\n    model(torch.randn(16, 64)).square().mean().backward()\n"
    "    optimizer.step()\n",
    "a pipeline": "while True:\n    arguments = [torch.randn(8, 32)] if rank == 0 else []\n"
    "    schedule.step(*arguments, **({'target': torch.randn(8, 32)} if rank == last else {}))\n",
    "time.sleep": "time.sleep(60)\n",
}

PEER_SET_UP = """
import torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://{file}", rank={rank}, world_size={size})
x = torch.ones(1000)
dist.all_reduce(x)
"""
PEER_RAISE = """
import time
if {rank} == {last}:
    time.sleep(0.2)
    raise ValueError("trouble")
dist.all_reduce(x)
"""


class FirstNews:
    """A view that notes when the running cell first says something of failures."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.words = ""

    def update(self, run) -> None:
        if not self.at_s and (lines := run.news()):
            self.at_s, self.words = time.perf_counter(), "; ".join(lines)

    def finish(self, run, result) -> None:
        pass


class Trials:
    """Each method is one trial; what it measures is kept by name."""

    def __init__(self, cluster: hpcnb.Cluster) -> None:
        self._cluster = cluster
        self.seconds: dict[str, list[float]] = {}

    def note(self, name: str, seconds: float) -> float:
        self.seconds.setdefault(name, []).append(seconds)
        return seconds

    def run(self, source: str, on: str = "all") -> dict[int, str]:
        result = self._cluster.run(source, on=on, timeout_s=TIMEOUT_S)
        measure.expect(result.ok, result.failure_text())
        return result.values

    def check(self) -> None:
        values = self.run(CHECK)
        measure.expect(set(values.values()) == {"(10.0, True)"}, f"afterwards: {values}")

    def note_rebuild(self, name: str, recovery: list[str]) -> None:
        found = re.search(r"built again \(generation \d+, ([\d.]+) s\)", "\n".join(recovery))
        measure.expect(found, f"groups were not built again: {recovery}")
        self.note(name, float(found[1]))

    def raised(self) -> float:
        """One rank raises while three wait for it."""
        result = self._cluster.execute(CellRequest(RAISE, timeout_s=TIMEOUT_S))
        prompt_ns = time.perf_counter_ns()
        measure.expect(set(result.errors) == set(range(NUM_RANKS)), result.failure_text())
        measure.expect(result.errors[NUM_RANKS - 1].ename == "ValueError", result.failure_text())
        self.note_rebuild("rebuild after a raise", result.recovery)
        raised_ns = int(self.run("raised_ns", on=str(NUM_RANKS - 1))[NUM_RANKS - 1])
        self.check()
        return self.note("raise", (prompt_ns - raised_ns) / 1e9)

    def killed(self) -> float:
        """One rank is killed while all are in a loop; then it is replaced."""
        victim = len(self.seconds.get("death", ())) % NUM_RANKS
        pid = next(row["pid"] for row in self._cluster.status() if row["rank"] == victim)
        killed_s: list[float] = []

        def kill() -> None:
            killed_s.append(time.perf_counter())
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(0.4, kill)
        timer.start()
        news = FirstNews()
        try:
            result = self._cluster.execute(CellRequest(ENDLESS["all_reduce"], timeout_s=TIMEOUT_S), view=news)
            prompt_s = time.perf_counter()
        finally:
            timer.join()
        measure.expect(set(result.exits) == {victim} and result.timeout_s is None, result.failure_text())
        measure.expect(f"rank {victim} was ended by SIGKILL" in news.words, f"the running cell said {news.words!r}")
        self.note("first report", news.at_s - killed_s[0])
        self.note_rebuild("rebuild after a death", result.recovery)
        began_s = time.perf_counter()
        joined_s = self._cluster.restart_rank(victim).took_s
        restarted_s = time.perf_counter() - began_s
        self.run(SET_UP, on=str(victim))
        self.run(MODELS)
        self.check()
        self.note("joined", joined_s)
        self.note("restart", restarted_s)
        self.note("death to joined", prompt_s - killed_s[0] + joined_s)
        return self.note("death", prompt_s - killed_s[0])

    def interrupted(self, kind: str) -> float:
        """Ctrl-C in an endless cell."""
        pressed_s: list[float] = []

        def press() -> None:
            pressed_s.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.5, press)
        timer.start()
        try:
            result = self._cluster.execute(CellRequest(ENDLESS[kind], timeout_s=TIMEOUT_S))
            prompt_s = time.perf_counter()
        finally:
            timer.cancel()
            timer.join()
        measure.expect(result.interrupted and not result.busy and not result.exits, result.failure_text())
        self.check()
        return self.note(f"Ctrl-C in {kind}", prompt_s - pressed_s[0])


def peer_raised(place: measure.Place) -> float:
    """The same raise on ipyparallel's engines; they are of no use after it, so new ones are started each time."""
    peer = ipp.Cluster(n=NUM_RANKS, log_level=40, delay=0)
    try:
        client = peer.start_and_connect_sync(activate=False)
        client.wait_for_engines(NUM_RANKS, timeout=60, interactive=False)
        file = place.folder / f"rendezvous-{time.monotonic_ns()}"
        ready = [
            client[rank].execute(PEER_SET_UP.format(file=file, rank=rank, size=NUM_RANKS), block=False)
            for rank in range(NUM_RANKS)
        ]
        measure.expect(all(each.wait(30) for each in ready), "the peer's engines are not in their group after 30 s")
        began_s = time.perf_counter()
        cells = [
            client[rank].execute(PEER_RAISE.format(rank=rank, last=NUM_RANKS - 1), block=False)
            for rank in range(NUM_RANKS)
        ]
        done = measure.poll(lambda: all(cell.ready() for cell in cells), PEER_S + 0.2)
        print(f"peer: {'back' if done else f'never ({PEER_S:.0f} s)'}; ready: {[cell.ready() for cell in cells]}")
        return min(PEER_S, time.perf_counter() - began_s - 0.2)
    finally:
        with contextlib.suppress(Exception):
            peer.signal_engines_sync(signal.SIGKILL)
        peer.stop_cluster_sync()


def main(options) -> None:
    runs = options.runs or (2 if options.quick else 12)
    began_s = time.monotonic()
    with measure.Place() as place:
        with hpcnb.Cluster(NUM_RANKS, threads_per_rank=1, idle_timeout_s=0) as cluster:
            trials = Trials(cluster)
            trials.run(SET_UP)
            trials.run(MODELS)
            sides = {"raise": trials.raised, "death": trials.killed}
            sides |= {kind: functools.partial(trials.interrupted, kind) for kind in ENDLESS}
            measure.interleave(sides, 1)
            trials.seconds.clear()
            measure.interleave(sides, runs)
        peer_s = [peer_raised(place) for _ in range(1 if options.quick else 2)]
    got = trials.seconds
    rows = [
        measure.Row("one raises, three wait: to the prompt", "s", got["raise"], peer_s, at_most=1.5),
        measure.Row("  groups built again (in it)", "s", got["rebuild after a raise"], at_most=0.2),
        measure.Row("SIGKILL to the first report in the cell", "s", got["first report"]),
        measure.Row("  to the prompt", "s", got["death"]),
        measure.Row("  groups of the others built again (in it)", "s", got["rebuild after a death"], at_most=0.2),
        measure.Row("  restart_rank until the new rank runs cells", "s", got["joined"]),
        measure.Row("  until it returns: names compared too", "s", got["restart"]),
        measure.Row("  death to joined, a person's time left out", "s", got["death to joined"], at_most=1.0),
        *(measure.Row(f"Ctrl-C in {kind} to the prompt", "s", got[f"Ctrl-C in {kind}"]) for kind in ENDLESS),
    ]
    measure.table(rows, peer="ipyparallel (10 s: never)")
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=900)
