"""What the recorder costs, on against off: an all-reduce loop, and a DDP step of the notebook's network. Is it right?

"gloo" is the same without hpcnb's process group: the price of passing every collective through it. Blocks of all
sides alternate many times; the ratio is the median of the ratios of neighbours, with its 95 % interval. The CPU time of
all ranks together tells what the wall clock of a busy machine cannot. Then the breakdown: its categories against stop
watches of our own, and a sleep of 50 ms in one rank before an all-reduce.
"""

from __future__ import annotations

import ast
import statistics
import time

import measure

import hpcnb

NUM_RANKS = 4
TIMEOUT_S = 120
SLEEPER = 1

SET_UP = """
import copy, time
import torch, torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

plain = dist.new_group(backend="gloo")
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
)
models = {"hpcnb": DDP(copy.deepcopy(network)), "gloo": DDP(copy.deepcopy(network), process_group=plain)}
optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for name, model in models.items()}
torch.manual_seed(rank)
images, labels = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))

def per_turn_s(num_turns, turn, loop):
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in loop:
        turn()
    return (time.perf_counter() - began_s) / num_turns, (time.process_time() - began_cpu_s) / num_turns

def all_reduce_s(num_calls, num_bytes, group):
    values = torch.zeros(num_bytes // 4)
    for _ in range(3):
        dist.all_reduce(values, group=group)
    return per_turn_s(num_calls, lambda: dist.all_reduce(values, group=group), range(num_calls))

def step_s(num_steps, name):
    model, optimizer = models[name], optimizers[name]
    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    dist.barrier(group=plain)
    return per_turn_s(num_steps, step, hpc.progress(range(num_steps)))
"""

#: some of everything, with a stop watch of its own
MIXED = """
began_s = time.perf_counter()
for _ in hpc.progress(range(4)):
    step_s(2, "hpcnb")
    time.sleep(0.02 * rank)
    dist.all_reduce(torch.ones(1000))
time.perf_counter() - began_s
"""

#: all ranks wait for one moment, so that only the sleep tells them apart
SLEEP = """
time.sleep(max(0, ({moment_ns} - time.perf_counter_ns()) / 1e9))
if rank == {sleeper}:
    time.sleep(0.05)
arrived_ns = time.perf_counter_ns()
dist.all_reduce(torch.ones(2))
arrived_ns
"""


class Ranks:
    """The cluster, its recorder switched as each side needs it."""

    def __init__(self, cluster: hpcnb.Cluster) -> None:
        self._cluster = cluster
        self._recording: bool | None = None

    def run(self, source: str, *, recording: bool) -> dict[int, str]:
        if recording is not self._recording:
            self._cluster.recording(enabled=recording)
            self._recording = recording
        result = self._cluster.run(source, timeout_s=TIMEOUT_S)
        measure.expect(result.ok, result.failure_text())
        return result.values


class Side:
    """Measures one call whose value is (seconds, seconds of CPU)."""

    def __init__(self, ranks: Ranks, call: str, *, recording: bool) -> None:
        self._ranks = ranks
        self._call = call
        self._recording = recording
        self.cpu_ms: list[float] = []

    def __call__(self) -> float:
        """Milliseconds of the slowest rank; keeps the CPU's of all ranks together."""
        texts = self._ranks.run(self._call, recording=self._recording).values()
        seconds, cpu_seconds = zip(*map(ast.literal_eval, texts), strict=True)
        self.cpu_ms.append(1e3 * sum(cpu_seconds))
        return 1e3 * max(seconds)


def costs(ranks: Ranks, *, num_rounds: int, quick: bool) -> list[measure.Row]:
    """On against off, and on against plain gloo."""
    few = 4 if quick else 1
    rows = []
    for num_bytes, words, num_calls in ((8, "8 B", 100), (1000, "1 kB", 40), (1_000_000, "1 MB", 20)):
        calls = [f"all_reduce_s({num_calls // few}, {num_bytes}, {group})" for group in (None, "plain")]
        rows += compare(ranks, f"all-reduce of {words}", calls, -(-num_rounds // 2))
    calls = [f"step_s({8 // few}, {name!r})" for name in ("hpcnb", "gloo")]
    rows += compare(ranks, "DDP step", calls, num_rounds, bar=1.01)
    weights = ranks.run("sum(p.double().sum().item() for p in models['hpcnb'].parameters())", recording=True)
    measure.expect(len(set(weights.values())) == 1, f"after the steps the networks of the ranks differ: {weights}")
    return rows


def compare(
    ranks: Ranks, what: str, calls: list[str], num_rounds: int, *, bar: float | None = None
) -> list[measure.Row]:
    """Rows of one thing to do: through hpcnb's process group, and through plain gloo."""
    sides = {
        "on": Side(ranks, calls[0], recording=True),
        "off": Side(ranks, calls[0], recording=False),
        "gloo": Side(ranks, calls[1], recording=False),
    }
    measure.interleave(sides, 2)
    for side in sides.values():
        side.cpu_ms.clear()
    times_ms = measure.interleave(sides, num_rounds)
    cpu_ms = {name: side.cpu_ms for name, side in sides.items()}
    print(f"{what}, on / off: {spread(times_ms)}; CPU: {spread(cpu_ms)}", flush=True)
    return [
        measure.Row(what, "ms", times_ms["on"], times_ms["off"], ratio_at_most=bar, paired=True),
        measure.Row("", "ms", times_ms["on"], times_ms["gloo"], paired=True, peer_name="gloo"),
        measure.Row("  CPU of all ranks", "ms", cpu_ms["on"], cpu_ms["off"], paired=True),
        measure.Row("", "ms", cpu_ms["on"], cpu_ms["gloo"], paired=True, peer_name="gloo"),
    ]


def spread(times_ms: dict[str, list[float]]) -> str:
    """How sure the ratio is."""
    ratios = measure.pair_ratios(times_ms["on"], times_ms["off"])
    low, high = measure.interval(ratios)
    of_medians = statistics.median(times_ms["on"]) / statistics.median(times_ms["off"])
    return f"pairs {statistics.median(ratios):.3f} (95 % {low:.3f}-{high:.3f}), medians {of_medians:.3f}"


def sums(cluster: hpcnb.Cluster, *, runs: int) -> list[measure.Row]:
    """The breakdown of a mixed cell against the clock of this process, and of each rank."""
    off_wall, off_inside = [], []
    for _ in range(runs):
        began_s = time.perf_counter()
        result = cluster.run(MIXED, timeout_s=TIMEOUT_S)
        wall_ms = (time.perf_counter() - began_s) * 1e3
        measure.expect(result.ok, result.failure_text())
        by_category = result.breakdown.pivot_table(
            index="rank", columns="category", values="duration_ms", aggfunc="sum", fill_value=0.0
        )
        outside = by_category[[name for name in ("idle", "dispatch") if name in by_category]].sum(axis=1)
        for rank, text in result.values.items():
            inside_ms = float(text) * 1e3
            total_ms = by_category.loc[rank].sum()
            off_wall.append(100 * abs(total_ms - wall_ms) / wall_ms)
            off_inside.append(100 * abs(total_ms - outside[rank] - inside_ms) / inside_ms)
        measure.expect(by_category.shape[0] == NUM_RANKS, f"the breakdown has {by_category.shape[0]} ranks")
    print(f"breakdown of the mixed cell, last run ({wall_ms:.0f} ms):\n{by_category.round(1).to_string()}", flush=True)
    return [
        measure.Row("breakdown: sum against wall time", "%", off_wall, at_most=1.0, worst=True),
        measure.Row("  without idle, dispatch: against the rank's clock", "%", off_inside, at_most=1.0, worst=True),
    ]


def sleeps(cluster: hpcnb.Cluster, *, runs: int) -> list[measure.Row]:
    """The others' wait for a rank that sleeps 50 ms, and for when it really came."""
    off_sleep_ms, off_arrival_ms, own_wait_ms = [], [], []
    for _ in range(runs):
        moment_ns = time.perf_counter_ns() + 60_000_000
        result = cluster.run(SLEEP.format(moment_ns=moment_ns, sleeper=SLEEPER), timeout_s=TIMEOUT_S)
        measure.expect(result.ok, result.failure_text())
        table = result.breakdown
        waits_ms = table[table.category == "communication_wait"].groupby("rank").duration_ms.sum()
        arrived_ns = {rank: int(text) for rank, text in result.values.items()}
        for rank in result.ranks:
            wait_ms = waits_ms.get(rank, 0.0)
            if rank == SLEEPER:
                own_wait_ms.append(wait_ms)
            else:
                off_sleep_ms.append(abs(wait_ms - 50))
                off_arrival_ms.append(abs(wait_ms - (max(arrived_ns.values()) - arrived_ns[rank]) / 1e6))
    return [
        measure.Row("50 ms sleep: others' wait, off by", "ms", off_sleep_ms, at_most=5.0),
        measure.Row("  against when the ranks really came, off by", "ms", off_arrival_ms, at_most=5.0, worst=True),
        measure.Row("  wait of the rank that slept", "ms", own_wait_ms, at_most=5.0),
    ]


def main(options) -> None:
    num_rounds = options.runs or (5 if options.quick else 30)
    few = min(num_rounds, 3 if options.quick else 10)
    began_s = time.monotonic()
    with measure.Place(), hpcnb.Cluster(NUM_RANKS) as cluster:
        ranks = Ranks(cluster)
        ranks.run(SET_UP, recording=True)
        rows = costs(ranks, num_rounds=num_rounds, quick=options.quick)
        ranks.run("None", recording=True)
        rows += sums(cluster, runs=few) + sleeps(cluster, runs=few)
    measure.table(rows, peer="recorder off")
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=400)
