"""What the guard costs per collective, and what it costs that somebody watches.

Guard: an all_reduce of 8 bytes through hpcnb's process group, with the guard and with functions that do nothing in its
place; blocks of all sides alternate within one cell, and the ratio is the median of the ratios of neighbours, with its
95 % interval. Peers: the same on a plain gloo group, and on one made with TORCH_DISTRIBUTED_DEBUG=DETAIL, which is
torch's own check of mismatches. The difference of two blocks is a few microseconds in hundreds, which vary with how
the two cores are shared, so the guard's part is also timed by itself: "guard within the call" by a clock around its two
functions (less what the clock costs around functions that do nothing) as a share of the call, and "guard alone" in a
loop, on all ranks at once: a signature, a place on the board, a look at the others.

Watching: while a loop of all_reduces of 1 kB runs, the agent is stopped (SIGSTOP) and continued in turns. A stopped
agent does nothing at all, so the difference holds, besides looking at ranks, also reading spans and waking up: what
watching costs is at most this. Windows are short and many, since the load of a machine drifts; what an agent has to
catch up with after it was stopped is left out. Its CPU time over the windows in which it runs says the same without
the noise of the clock: as a share of one core, beside that of an agent without a cell, and with a cell that sleeps.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import measure
import numpy as np

import hpcnb
from hpcnb.cluster.cell_run import CellRequest

if TYPE_CHECKING:
    from typing_extensions import Self

TIMEOUT_S = 900
SIDES = ("on", "off", "gloo", "detail")

SET_UP = """
import time
import torch, torch.distributed as dist
from torch._C._distributed_c10d import DebugLevel, set_debug_level
from hpcnb.engine.process_group import HpcnbProcessGroup

guard = HpcnbProcessGroup.guard
theirs = {name: getattr(type(guard), name) for name in ("issue", "signature")}
nothing = {"issue": lambda *_: 0, "signature": lambda *_: (0, 0)}
plain = dist.new_group(backend="gloo")
set_debug_level(DebugLevel.DETAIL)
detail = dist.new_group(backend="gloo")
set_debug_level(DebugLevel.OFF)
groups = {"on": None, "off": None, "gloo": plain, "detail": detail}

def block_us(side, num_calls, num_values):
    '''Microseconds of a call: by the clock, and of this rank's CPU.'''
    for name, function in nothing.items():  # all ranks are here: the barrier's end
        setattr(type(guard), name, function if side == "off" else theirs[name])  # an instance's dict would be slower
    values, group = torch.zeros(num_values), groups[side]
    for _ in range(60):  # so many until the interpreter has specialized on what it finds now
        dist.all_reduce(values, group=group)
    dist.barrier(group=plain)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(num_calls):
        dist.all_reduce(values, group=group)
    cpu_s, seconds = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    dist.barrier(group=plain)
    return 1e6 * seconds / num_calls, 1e6 * cpu_s / num_calls

def interleaved(sides, num_rounds, num_calls, num_values):
    times = {side: [] for side in sides}
    for turn in range(num_rounds):
        first = turn % len(sides)
        for side in sides[first:] + sides[:first]:
            times[side].append(block_us(side, num_calls, num_values))
    for name in nothing:
        setattr(type(guard), name, theirs[name])
    return times

def clocked(function, spent):
    clock = time.perf_counter_ns
    def call(*args):
        began_ns = clock()
        result = function(*args)
        spent[0] += clock() - began_ns
        return result
    return call

def share(num_calls):
    '''Percent of an all_reduce that passes in the guard.'''
    values, parts = torch.zeros(2), []
    for functions in (theirs, nothing):
        spent = [0]
        for name in nothing:
            setattr(type(guard), name, clocked(functions[name], spent))
        for _ in range(60):
            dist.all_reduce(values)
        spent[0], began_ns = 0, time.perf_counter_ns()
        for _ in range(num_calls):
            dist.all_reduce(values)
        parts.append((spent[0], time.perf_counter_ns() - began_ns))
        dist.barrier(group=plain)
    for name in nothing:
        setattr(type(guard), name, theirs[name])
    (with_ns, took_ns), (clock_ns, _) = parts
    return 100 * (with_ns - clock_ns) / took_ns

def guard_us(num_calls):
    '''The guard's part of a call, without the call: always the first of a channel that all ranks have.'''
    values = [torch.zeros(2)]
    channel = guard.collectives("benchmark", list(range(world_size)))
    guard.issue(channel, guard.signature("all_reduce", values, ("sum",)), 1, 0)
    dist.barrier(group=plain)
    began_s = time.perf_counter()
    for _ in range(num_calls):
        channel.newest = 0
        guard.issue(channel, guard.signature("all_reduce", values, ("sum",)), 1, 0)
    return 1e6 * (time.perf_counter() - began_s) / num_calls
"""

#: until the notebook says so: rank 0 looks for a file every 200 calls, and an all_reduce tells all ranks alike
LOOP = """
import os
values, stop = torch.zeros(250), torch.zeros(1)
stamps_ns = []
while not stop.item():
    for _ in range({calls}):
        dist.all_reduce(values)
    stop.fill_(float(rank == 0 and os.path.exists({flag!r})))
    dist.all_reduce(stop)
    stamps_ns.append(time.perf_counter_ns())
stamps_ns if rank == 0 else None
"""
CALLS = 50


def run(cluster: hpcnb.Cluster, source: str) -> dict[int, object]:
    result = cluster.execute(CellRequest(source, timeout_s=TIMEOUT_S, want_pickles=True))
    measure.expect(result.ok, result.failure_text())
    return result.objects() if result.pickles else {}


# --- guard --------------------------------------------------------------------------------------------------


def guard_costs(num_ranks: int, *, num_rounds: int, num_calls: int) -> list[measure.Row]:
    with hpcnb.Cluster(num_ranks, threads_per_rank=1, idle_timeout_s=0) as cluster:
        run(cluster, SET_UP)
        run(cluster, f"interleaved({SIDES}, 2, {num_calls}, 2)")
        by_rank = run(cluster, f"interleaved({SIDES}, {num_rounds}, {num_calls}, 2)")
        alone = run(cluster, "[guard_us(2000) for _ in range(5)]")
        shares = run(cluster, f"[share({num_calls}) for _ in range({num_rounds})]")
        mended = run(cluster, "total = torch.ones(2); dist.all_reduce(total); total.tolist()")
    measure.expect(mended == dict.fromkeys(range(num_ranks), [num_ranks] * 2), f"an all_reduce gave {mended}")
    blocks = {side: np.array([by_rank[rank][side] for rank in range(num_ranks)]) for side in SIDES}
    wall_us = {side: list(each[:, :, 0].max(axis=0)) for side, each in blocks.items()}
    cpu_us = {side: list(each[:, :, 1].sum(axis=0)) for side, each in blocks.items()}
    for words, times_us in (("clock", wall_us), ("CPU of all ranks", cpu_us)):
        ratios = measure.pair_ratios(times_us["on"], times_us["off"])
        low, high = measure.interval(ratios)
        print(
            f"{num_ranks} ranks, guard on / off, {words}: {statistics.median(ratios):.3f} (95 % {low:.3f}-{high:.3f})"
        )
    what = f"all_reduce of 8 B, {num_ranks} ranks"
    return [
        measure.Row(what, "us", wall_us["on"], wall_us["off"], ratio_at_most=1.03, paired=True),
        measure.Row("  CPU of all ranks", "us", cpu_us["on"], cpu_us["off"], paired=True),
        measure.Row("  against plain gloo", "us", wall_us["on"], wall_us["gloo"], paired=True, peer_name="gloo"),
        measure.Row("  against torch's check", "us", wall_us["on"], wall_us["detail"], paired=True, peer_name="DETAIL"),
        measure.Row("  plain gloo against torch's check", "us", wall_us["gloo"], wall_us["detail"], paired=True,
                    peer_name="DETAIL"),
        measure.Row("  guard within the call", "% of it", [percent for each in shares.values() for percent in each],
                    at_most=3.0),
        measure.Row("  guard alone, per call", "us", [us for each in alone.values() for us in each]),
    ]  # fmt: skip


# --- watching -----------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Background:
    """A cell that runs while this thread does something else."""

    def __init__(self, cluster: hpcnb.Cluster, source: str) -> None:
        self._cluster, self._source = cluster, source
        self._thread = threading.Thread(target=self._run)
        self.values: dict[int, object] = {}
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            self.values = run(self._cluster, self._source)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(TIMEOUT_S)
        if self.error is not None:
            raise self.error


def shares(pids: dict[str, int], seconds: float) -> dict[str, float]:
    """Percent of one core that each process uses."""
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    began_s = time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - began_s
    return {name: 100 * (cpu_s(pid) - before[name]) / took_s for name, pid in pids.items()}


def watch_costs(place: measure.Place, *, num_windows: int, window_s: float, num_ranks: int = 4) -> list[measure.Row]:
    flag = place.folder / "stop"
    with hpcnb.Cluster(num_ranks, threads_per_rank=1, idle_timeout_s=0) as cluster:
        run(cluster, SET_UP)
        agent = int(cluster.describe()["pid"])
        pids = {"agent": agent, "notebook": os.getpid()}
        looks = 3 if window_s < 2 else 10
        told = {"no cell": shares(pids, looks)}
        with Background(cluster, f"time.sleep({looks + 1})"):
            time.sleep(0.5)
            told["a cell that sleeps"] = shares(pids, looks)
        late = f"if rank == 0:\n    time.sleep({looks + 2})\nx = torch.zeros(2); dist.all_reduce(x)"
        with Background(cluster, late):
            time.sleep(1.5)
            told["3 ranks that wait for one"] = shares(pids, looks)
        loop = LOOP.format(calls=CALLS, flag=str(flag))
        with Background(cluster, loop) as background:
            try:
                time.sleep(1.0)
                told["a loop of all_reduces"] = shares(pids, looks)
                windows = switch(agent, num_windows, window_s)
            finally:
                flag.touch()
        stamps_s = np.array(background.values[0]) / 1e9
    for name, each in told.items():
        print(f"{name}: agent {each['agent']:.2f} % of one core, notebook side {each['notebook']:.2f} %")
    per_call_us = {True: [], False: []}
    for looks_on, began_s, ended_s in windows:
        inside = stamps_s[(stamps_s >= began_s) & (stamps_s <= ended_s)]
        measure.expect(len(inside) > 2, "a window without a call")
        per_call_us[looks_on].append(1e6 * (inside[-1] - inside[0]) / ((len(inside) - 1) * (CALLS + 1)))
    on, off = per_call_us[True], per_call_us[False]
    low, high = measure.interval(measure.pair_ratios(on, off))
    print(f"agent on / stopped: {statistics.median(measure.pair_ratios(on, off)):.4f} (95 % {low:.4f}-{high:.4f})")
    return [
        measure.Row(
            f"all_reduce of 1 kB, {num_ranks} ranks, watched", "us", on, off, ratio_at_most=1.005, paired=True,
            peer_name="agent stopped",
        ),
        measure.Row("  agent: share of one core with a cell that sleeps", "%", [told["a cell that sleeps"]["agent"]],
                    [told["no cell"]["agent"]], at_most=0.5, peer_name="no cell"),
        measure.Row("  agent: share of one core in the loop", "%", [told["a loop of all_reduces"]["agent"]],
                    [told["no cell"]["agent"]], peer_name="no cell"),
    ]  # fmt: skip


def switch(agent: int, num_windows: int, window_s: float) -> list[tuple[bool, float, float]]:
    """Let the agent run and stop it in turns: (ran, from, to) of windows, the beginnings left out."""
    windows = []
    settle_s = min(0.5, window_s / 3)
    try:
        for number in range(num_windows):
            for runs in (True, False) if number % 2 else (False, True):
                os.kill(agent, signal.SIGCONT if runs else signal.SIGSTOP)
                time.sleep(settle_s)
                began_s = time.perf_counter()
                time.sleep(window_s)
                windows.append((runs, began_s, time.perf_counter()))
    finally:
        os.kill(agent, signal.SIGCONT)
    return windows


def main(options) -> None:
    num_rounds = options.runs or (10 if options.quick else 100)
    num_windows, window_s = (options.runs or 4, 1.0) if options.quick else (options.runs or 30, 5.0)
    began_s = time.monotonic()
    rows: list[measure.Row] = []
    with measure.Place() as place:
        for num_ranks in (2, 4):
            rows += guard_costs(num_ranks, num_rounds=num_rounds, num_calls=50 if options.quick else 200)
        rows += watch_costs(place, num_windows=num_windows, window_s=window_s)
    measure.table(rows, peer="guard off")
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=1800)
