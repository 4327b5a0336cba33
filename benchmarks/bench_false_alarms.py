"""Nobody is released while bytes still flow: collectives of 20 s each on a network of 5 Mbit/s.

A cluster of 4 ranks in a network namespace of its own, whose loopback is slowed (tc tbf): gloo, the rendezvous and
ipyparallel's controller share 5 Mbit/s, the link to this process is a unix socket and is not slowed. all_reduce,
all_gather, broadcast, reduce, the making of a DDP model and its steps, sized so that each takes about 20 s (the making
10); in every second turn ranks come up to 3 s apart. Whoever is released, every explanation of a failure and every
error is a false alarm; while ranks only wait for bytes the running cell must say that they transfer. Needs root and
iproute2.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time

import measure

import hpcnb
from hpcnb.cluster.cell_run import CellRequest

NUM_RANKS = 4
RATE = "5mbit"
TIMEOUT_S = 600
MOST_APART_S = 3.0
#: a cell that waits longer than the grace period, and a little, has to say in what
SAYS_AFTER_S = 2.0

SET_UP = """
import time
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
"""
#: {values} is a number of floats
KINDS = {
    "all_reduce": "x = torch.ones({values})\n{apart}\ndist.all_reduce(x)\nbool((x == world_size).all())",
    "all_gather": "x, out = torch.full(({values},), float(rank)), torch.empty(world_size * {values})\n{apart}\n"
    "dist.all_gather_into_tensor(out, x)\n"
    "bool((out.view(world_size, -1) == torch.arange(world_size)[:, None]).all())",
    "broadcast": "x = torch.full(({values},), float(rank))\n{apart}\ndist.broadcast(x, 2)\nbool((x == 2).all())",
    # who only sends is through long before the others
    "reduce": "x = torch.ones({values})\n{apart}\ndist.reduce(x, 1)\nrank != 1 or bool((x == world_size).all())",
    "DDP made": "network = nn.Linear({values} // 100, 100, bias=False)\n{apart}\nmodel = DDP(network)\nTrue",
    # of the model that was made before
    "DDP step": "model.zero_grad()\n{apart}\nmodel(torch.ones(1, network.in_features)).sum().backward()\n"
    "bool((network.weight.grad == 1).all())",
}


class Words:
    """A view that keeps what the running cell said about who waits."""

    def __init__(self) -> None:
        self.lines: set[str] = set()

    def update(self, run) -> None:
        # without how long: the same words over and over
        self.lines |= {line.partition(", since")[0] for line in run.news()}

    def finish(self, run, result) -> None:
        pass


class Trials:
    """Collectives on the slow network, and what was said about them."""

    def __init__(self, cluster: hpcnb.Cluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self.values = dict.fromkeys(KINDS, 20_000)
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.false_alarms: list[str] = []
        self.has_model = True
        self.num_released = self.num_silent = self.num_said = self.num_waits = 0

    def calibrate(self, seconds: float) -> None:
        """Choose how many values of each kind take so long."""
        for kind in KINDS:
            if kind == "DDP step":
                continue  # of the model that is made; it moves twice as much as the making
            full_s = seconds / 2 if kind == "DDP made" else seconds
            for aim_s in (min(3.0, full_s / 3), full_s):
                took_s, _ = self._run(kind, apart=False)
                self.values[kind] = max(2000, int(self.values[kind] * aim_s / took_s)) // 1000 * 1000
            print(f"{kind}: {4 * self.values[kind] / 1e6:.2f} MB per rank", flush=True)

    def _run(self, kind: str, *, apart: bool) -> tuple[float, set[str]]:
        late_s = [round(self._random.uniform(0, MOST_APART_S), 2) if apart else 0 for _ in range(NUM_RANKS)]
        source = KINDS[kind].format(values=self.values[kind], apart=f"time.sleep({late_s}[rank])")
        words = Words()
        began_s = time.perf_counter()
        result = self._cluster.execute(CellRequest(source, timeout_s=TIMEOUT_S), view=words)
        took_s = time.perf_counter() - began_s
        self.has_model = self.has_model if kind != "DDP made" else result.ok
        alarms = [*result.explanations, *result.recovery, *(str(error) for error in result.errors.values())]
        if alarms or result.exits or result.timeout_s is not None:
            self.false_alarms.append(f"{kind}, {took_s:.1f} s, ranks late by {late_s}: {'; '.join(alarms)}")
            self.num_released += sum(error.is_released for error in result.errors.values())
            print(f"  FALSE ALARM  {self.false_alarms[-1]}", flush=True)
        else:
            measure.expect(set(result.values.values()) == {"True"}, f"{kind} gave {result.values}")
        return took_s, words.lines

    def turn(self, kind: str, *, apart: bool) -> None:
        took_s, lines = self._run(kind, apart=apart)
        self.seconds[kind].append(took_s)
        if took_s > SAYS_AFTER_S + (MOST_APART_S if apart else 0):
            said = any("transfer" in line for line in lines)
            self.num_said += said
            self.num_silent += not said
        self.num_waits += not apart and any(" wait" in line for line in lines)
        said = " | ".join(sorted(lines)) or "nothing"
        print(f"{kind}{' apart' if apart else ''}: {took_s:.1f} s; it said: {said}", flush=True)


def go_inside(options) -> None:
    """Start this program again, in a network namespace of its own; does not return."""
    sys.stdout.flush()
    arguments = ["--inside", "--minutes", str(options.minutes), "--seed", str(options.seed)]
    arguments += ["--quick"] if options.quick else []
    os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, *arguments])


def slow_down() -> None:
    """The namespace's loopback, as slow as it shall be."""
    # whole frames have to fit into the burst
    subprocess.run(["ip", "link", "set", "lo", "up", "mtu", "1500"], check=True)
    shape = ["tbf", "rate", RATE, "burst", "32kbit", "latency", "10s"]
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", *shape], check=True)


def main(options) -> None:
    if not options.inside:
        missing = [tool for tool in ("unshare", "ip", "tc") if shutil.which(tool) is None]
        if os.geteuid() != 0 or missing:
            print(f"skipped: it needs root, and iproute2 ({', '.join(missing) or 'which is here'})")
            return
        go_inside(options)
    slow_down()
    minutes = 1.0 if options.quick else options.minutes
    with measure.Place(), hpcnb.Cluster(NUM_RANKS, threads_per_rank=1, idle_timeout_s=0) as cluster:
        trials = Trials(cluster, options.seed)
        result = cluster.run(SET_UP, timeout_s=60)
        measure.expect(result.ok, result.failure_text())
        trials.calibrate(5.0 if options.quick else 20.0)
        until_s = time.monotonic() + 60 * minutes
        number = 0
        while time.monotonic() < until_s:
            kind = list(KINDS)[number % len(KINDS)]
            if kind != "DDP step" or trials.has_model:
                trials.turn(kind, apart=number // len(KINDS) % 2 == 1)
            number += 1
    alarms = len(trials.false_alarms)
    rows = [measure.Row(f"{kind} at {RATE}", "s", each) for kind, each in trials.seconds.items()]
    rows += [
        measure.Row("false alarms: released, explained or failed", "", [alarms], at_most=0),
        measure.Row("  ranks released", "", [trials.num_released], at_most=0),
        measure.Row("long cells that did not say that bytes flow", "", [trials.num_silent], at_most=0),
        measure.Row("  that said so", "", [trials.num_said]),
        measure.Row("cells with all ranks there that said one waits", "", [trials.num_waits]),
    ]
    measure.table(rows, peer="")


if __name__ == "__main__":
    measure.run(
        main,
        limit_s=2 * 3600,
        minutes={"type": float, "default": 10.0, "help": "for so long, after the sizes have been found"},
        seed={"type": int, "default": 1, "help": "of how late ranks come"},
        inside={"action": "store_true", "help": "the network namespace is here already"},
    )
