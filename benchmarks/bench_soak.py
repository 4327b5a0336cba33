"""Thousands of cells, interrupts and deaths of ranks on one cluster: does every name live on, and does nothing grow?

10,000 cells (each with a collective whose value is checked), 1,000 Ctrl-C at random moments in loops of all_reduce,
DDP steps, Python, time.sleep and hpc.progress, and 200 ranks killed (SIGKILL) at random moments in the same loops and
between cells, each followed by restart_rank: 4 ranks, in a random order with a seed. After each of them the names on
the ranks that lived on are compared with what they must hold, and a collective is checked. What goes wrong is counted
and the run goes on. Memory, descriptors and threads of the notebook's side (this process), of the agent and of the
ranks are compared with those after a warm-up of 5 %; of ranks before the ranks of the main part are killed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import statistics
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import measure

import hpcnb
from hpcnb.cluster.cell_run import CellRequest
from hpcnb.core.launch import RunFolder, runtime_root

NUM_RANKS = 4
#: nothing here takes so long; who does has failed
TIMEOUT_S = 30.0
#: Ctrl-C and SIGKILL come between 0 and so long after the cell was sent: before it begins, at its first lines, later
MOMENT_S = 0.4
WARM_UP = 0.05
#: with so few actions nothing has reached its limits after 5 %
WARM_UP_QUICK = 0.5
#: of the rest of cells and interrupts: without deaths, so that ranks themselves can be seen to grow
WITHOUT_DEATHS = 0.75
SHOWN = 10

SET_UP = """
import time
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
kept = {"rank": rank, "tensor": torch.full((1000,), float(rank)), "list": list(range(rank))}
num_cells, marks, turns = 0, set(), 0
"""
#: on all ranks, whenever a process is new: DDP is made by all together
MODEL = """
model = DDP(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
"""
CELL = """
num_cells += 1
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
(total.item(), num_cells)
"""
CHECK = """
whole = kept["rank"] == rank and bool((kept["tensor"] == rank).all()) and kept["list"] == list(range(rank))
(whole, num_cells, {mark} in marks)
"""

STEP = """    optimizer.zero_grad()
    model(torch.randn(16, 64)).square().mean().backward()
    optimizer.step()
"""
#: {forever} and {loop} make the same work without an end, and over about a second
WORK = {
    "all_reduce": "x = torch.ones(1000)\nwhile True:\n    turns += 1\n    dist.all_reduce(x)\n    x.fill_(1)\n",
    "DDP": f"while True:\n    turns += 1\n{STEP}",
    "python": "while {more}:\n    turns += 1\n",
    "sleep": "while {more}:\n    turns += 1\n    time.sleep({nap})\n",
    "progress": f"for turns in hpc.progress(range(10**9)):\n{STEP}",
}
KINDS = tuple(WORK)


def program(kind: str, mark: int, *, endless: bool) -> str:
    """A cell that leaves a mark and then works: without an end, or so that ranks without a peer end by themselves."""
    more, nap = ("True", "60") if endless else ("time.monotonic() < until_s", "0.05")
    return f"marks = {{{mark}}}\nuntil_s = time.monotonic() + 0.6\n" + WORK[kind].replace("{more}", more).replace(
        "{nap}", nap
    )


class WentWrong(Exception):
    """What the run counts, and goes on after."""


class Soak:
    """One cluster, and what its ranks must hold."""

    def __init__(self, seed: int) -> None:
        self.num_clusters = 0
        self.random = random.Random(seed)
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.to_prompt_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.restart_s: list[float] = []
        self.cell_ms: list[float] = []
        self._expected = dict.fromkeys(range(NUM_RANKS), 0)  # cells that each process has run
        self._mark = 0
        self.start()

    def start(self) -> None:
        """A cluster; a new one if the one before is lost."""
        if self.num_clusters:
            self.stop()
        self.num_clusters += 1
        self.cluster = hpcnb.Cluster(NUM_RANKS, threads_per_rank=1, idle_timeout_s=0).start()
        #: can be read when the agent has failed and the folder is gone
        self.log = RunFolder(runtime_root() / self.cluster.key).agent_log.open(errors="replace")
        self._num_lines = 0
        self.set_up()

    def stop(self) -> None:
        self.cluster.stop()
        self.log.close()

    def run(self, source: str, on: str = "all") -> dict[int, str]:
        """A cell that must end well."""
        result = self.cluster.run(source, on=on, timeout_s=TIMEOUT_S)
        if not result.ok or result.interrupted or result.timeout_s is not None:
            raise WentWrong(f"a cell failed: {result.failure_text() or 'it was interrupted'}")
        return result.values

    def set_up(self, on: str = "all") -> None:
        """Names of processes that are new; models of all."""
        self.run(SET_UP, on=on)
        for rank in range(NUM_RANKS):
            if on in ("all", str(rank)):
                self._expected[rank] = 0
        self.run(MODEL)

    def cell(self) -> None:
        began_s = time.perf_counter()
        values = self.run(CELL)
        self.cell_ms.append(1e3 * (time.perf_counter() - began_s))
        for rank in self._expected:
            self._expected[rank] += 1
        expected = {rank: str((10.0, number)) for rank, number in self._expected.items()}
        if values != expected:
            raise WentWrong(f"a cell gave {values}, not {expected}")

    def check(self, ranks: set[int], mark: int | None = None) -> None:
        """Names on these ranks are as they must be."""
        on = ",".join(map(str, sorted(ranks)))
        values = self.run(CHECK.format(mark=mark or self._mark), on=on)
        expected = {rank: str((True, self._expected[rank], True)) for rank in ranks}
        if values != expected:
            raise WentWrong(f"names were lost or are older: {values}, not {expected}")

    def interrupt(self) -> None:
        """Ctrl-C at a random moment of an endless cell."""
        self._mark += 1
        kind = self.random.choice(KINDS)
        moment_s = self.random.uniform(0, MOMENT_S)
        self.run(f"marks = {{{self._mark}}}")  # Ctrl-C may be faster than the cell's first line
        pressed_s: list[float] = []

        def press() -> None:
            # earlier there would be no cell, and nothing to interrupt
            measure.poll(lambda: self.cluster._submitter._command is not None, TIMEOUT_S)  # noqa: SLF001
            pressed_s.append(time.perf_counter())
            self.cluster.interrupt()

        timer = threading.Timer(moment_s, press)
        timer.start()
        try:
            result = self.cluster.execute(CellRequest(program(kind, self._mark, endless=True), timeout_s=TIMEOUT_S))
        finally:
            timer.cancel()
            timer.join()
        self.to_prompt_s[kind].append(time.perf_counter() - pressed_s[0])
        about = f"Ctrl-C after {1e3 * moment_s:.0f} ms in {kind}"
        if result.timeout_s is not None:
            raise WentWrong(f"{about}: not interrupted within {TIMEOUT_S:.0f} s: {result.failure_text()}")
        if result.busy or result.exits or not result.interrupted:
            raise WentWrong(f"{about}: {result.failure_text() or 'the cell ended by itself'}")
        self.check(set(range(NUM_RANKS)))
        self.cell()

    def kill(self) -> None:
        """SIGKILL of one rank at a random moment, in one of the loops or between cells."""
        self._mark += 1
        victim = self.random.randrange(NUM_RANKS)
        kind = self.random.choice([*KINDS, "idle"])
        moment_s = self.random.uniform(0, MOMENT_S)
        self.run(f"marks = {{{self._mark}}}")
        pid = next(row["pid"] for row in self.cluster.status() if row["rank"] == victim)
        timer = threading.Timer(moment_s, os.kill, (pid, signal.SIGKILL))
        timer.start()
        about = f"SIGKILL of rank {victim} after {1e3 * moment_s:.0f} ms in {kind}"
        try:
            if kind != "idle":
                source = program(kind, self._mark, endless=False)
                result = self.cluster.execute(CellRequest(source, timeout_s=TIMEOUT_S))
                if result.timeout_s is not None or result.busy or set(result.exits) - {victim}:
                    raise WentWrong(f"{about}: {result.failure_text()}")
        finally:
            timer.join()
        if measure.poll(lambda: victim not in self.cluster.alive, 10.0) is None:
            raise WentWrong(f"{about}: the cluster has not heard of it within 10 s")
        living = set(range(NUM_RANKS)) - {victim}
        self.check(living)
        self.restart_s.append(self.cluster.restart_rank(victim).took_s)
        self.check(living)
        self.set_up(on=str(victim))
        self.cell()

    def do(self, action: str) -> None:
        """One action; what goes wrong is kept, and the cluster is brought back to where it can go on."""
        self.counts[action] += 1
        try:
            getattr(self, action)()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            words = str(error) if isinstance(error, WentWrong) else traceback.format_exc(limit=-4)
            self.failures.append(f"{action} {self.counts[action]}: {words}")
            print(f"  FAILED  {self.failures[-1][:2000]}", flush=True)
            self._heal()

    def _heal(self) -> None:
        self.log.seek(0)
        lines = [line.rstrip() for line in self.log if "[IPController]" not in line]
        for line in lines[self._num_lines :][-25:]:
            print(f"  agent.log  {line}", flush=True)
        self._num_lines = len(lines)
        for attempt in range(4):
            with contextlib.suppress(Exception):
                measure.poll(lambda: not self.cluster.busy, 10.0)
                if attempt:
                    self.cluster.restart_rank(*(range(NUM_RANKS) if attempt == 3 else self.cluster.busy))
                elif len(self.cluster.alive) < NUM_RANKS:
                    self.cluster.restart_rank()
                self.set_up()
                return
        self.start()


# --- what grows ---------------------------------------------------------------------------------------------


def usage(pid: int) -> dict[str, float]:
    """Memory of its own in MB, descriptors and threads of a process.

    Of the resident size the part that no file and no other process has: what agent and ranks share has a fixed size,
    and counts as resident page by page as it is first written.
    """
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory": int(status["RssAnon"].split()[0]) / 1024,
        "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "threads": int(status["Threads"]),
    }


class Growth:
    """Usage of some processes, and how much of it is more than it was."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.pids = pids
        self.before = self._look()

    def _look(self) -> dict[str, dict[str, float]]:
        gc.collect()
        return {name: usage(pid) for name, pid in self.pids.items() if Path(f"/proc/{pid}").exists()}

    def rows(self) -> list[measure.Row]:
        after = self._look()
        rows = []
        for name, now in after.items():
            for what, number in now.items():
                earlier = self.before[name][what]
                unit = " MB" if what == "memory" else ""
                words = f"{name}: {what} {earlier:.4g} -> {number:.4g}{unit}"
                bar = 5.0 if what == "memory" else 0.0 if what == "descriptors" else None
                rows.append(measure.Row(words, "%", [100 * (number - earlier) / earlier], at_most=bar))
        return rows

    def words(self) -> str:
        look = self._look()
        return ", ".join(f"{name} {each['memory']:.1f} MB {each['descriptors']} fd" for name, each in look.items())


def rank_pids(cluster: hpcnb.Cluster) -> dict[str, int]:
    return {f"rank {row['rank']}": row["pid"] for row in cluster.status()}


def main(options) -> None:
    defaults = (200, 40, 20) if options.quick else (10_000, 1_000, 200)
    asked = (options.cells, options.interrupts, options.kills)
    num_cells, num_interrupts, num_kills = (
        default if number is None else number for number, default in zip(asked, defaults, strict=True)
    )
    with measure.Place(), contextlib.ExitStack() as stack:
        soak = Soak(options.seed)
        stack.callback(soak.stop)
        began_s = told_s = time.monotonic()

        def part(cells: float, kills: float) -> list[str]:
            actions = ["cell"] * round(num_cells * cells) + ["interrupt"] * round(num_interrupts * cells)
            actions += ["kill"] * round(num_kills * kills)
            soak.random.shuffle(actions)
            return actions

        warm_up = WARM_UP_QUICK if options.quick else WARM_UP
        without_deaths = (1 - warm_up) * WITHOUT_DEATHS
        growth = ranks = None
        rows: list[measure.Row] = []
        for name, actions in {
            "warm-up": part(warm_up, warm_up),
            "without deaths": part(without_deaths, 0),
            "with deaths": part(1 - warm_up - without_deaths, 1 - warm_up),
        }.items():
            for number, action in enumerate(actions):
                soak.do(action)
                if time.monotonic() - told_s > (10 if options.quick else 60):
                    told_s = time.monotonic()
                    print(
                        f"{told_s - began_s:5.0f} s  {name} {100 * number / len(actions):.0f} %: {dict(soak.counts)}, "
                        f"{len(soak.failures)} failed; {growth.words() if growth else ''}",
                        flush=True,
                    )
            if name == "warm-up":
                growth = Growth({"notebook side": os.getpid(), "agent": soak.cluster.describe()["pid"]})
                ranks = Growth(rank_pids(soak.cluster))
            elif name == "without deaths":
                alike = rank_pids(soak.cluster) == ranks.pids
                rows += ranks.rows() if alike else []
                if not alike:
                    print("note: ranks were replaced while none was killed on purpose; their growth is not told")
        assert growth is not None
        if soak.num_clusters > 1:
            print(f"note: {soak.num_clusters - 1} clusters were lost; the growth of their agents is not told")
        rows = growth.rows() + rows
        words = " ".join(f"{number} {action}s" for action, number in soak.counts.items())
        print(f"{words} in {time.monotonic() - began_s:.0f} s; {len(soak.failures)} failed")
        for failure in soak.failures[:SHOWN]:
            print(f"--- {failure[:3000]}")
        for kind, seconds in soak.to_prompt_s.items():
            rows.append(measure.Row(f"Ctrl-C in {kind} to the prompt", "s", seconds))
        few = max(1, len(soak.cell_ms) // 20)
        rows += [
            measure.Row("a cell: the last 5 % against the first", "ms", soak.cell_ms[-few:], soak.cell_ms[:few]),
            measure.Row("restart_rank", "s", soak.restart_s),
            measure.Row("actions that failed", "", [len(soak.failures)], at_most=0),
            measure.Row("clusters that were lost", "", [soak.num_clusters - 1], at_most=0),
        ]
        longest = {kind: statistics.quantiles(each, n=100)[98] for kind, each in soak.to_prompt_s.items() if each[1:]}
        print("99th percentile to the prompt: " + ", ".join(f"{kind} {s:.2f} s" for kind, s in longest.items()))
    measure.table(rows, peer="before")


if __name__ == "__main__":
    measure.run(
        main,
        limit_s=3 * 3600,
        seed={"type": int, "default": 1, "help": "of moments, victims and the order"},
        cells={"type": int, "help": "how many (default 10,000)"},
        interrupts={"type": int, "help": "how many (default 1,000)"},
        kills={"type": int, "help": "how many (default 200)"},
    )
