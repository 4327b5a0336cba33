"""Many ranks: what 1,024 nodes cost the notebook's kernel and the browser, and 64 and 256 ranks on this machine.

Nodes are simulated (simulated_nodes.py): real links in the real tree, an echo in the place of ranks, all on this
machine. Kernel CPU is of the notebook kernel's process, all threads, for a cell whose output is the same everywhere,
with the view and the strip; the floor is a cell that prints the same without a cluster. Bytes are those of the
kernel's messages to the front-end, against the same cell on 16 nodes. 64 ranks are real ones.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import measure
from notebook_kernel import NotebookKernel

import hpcnb

START = """
import sys; sys.path.insert(0, {folder!r})
import simulated_nodes; simulated_nodes.publish()
import hpcnb
cluster = hpcnb.Cluster(launcher="simulated", nodes={nodes}, start_timeout_s=120).start()
"""


class Bytes:
    """Counts what a front-end gets."""

    def __init__(self) -> None:
        self.count = 0

    def tick(self) -> None:
        pass

    def hear(self, message: dict) -> None:
        self.count += len(json.dumps(message["content"]))


def simulated(place: measure.Place, nodes: int, num_calls: int) -> dict[str, list[float]]:
    """CPU and wall time in ms, and bytes, of each cell."""
    found: dict[str, list[float]] = {"cpu": [], "floor": [], "wall": [], "bytes": []}
    with NotebookKernel(place) as kernel:
        kernel.run("%load_ext hpcnb\nimport time")
        kernel.run(START.format(folder=str(Path(__file__).parent), nodes=nodes))
        kernel.run("time.sleep(3)")  # imports for plots go on in the background
        for _ in range(num_calls + 2):
            for side, source in (("cpu", "%%hpc_parallel\nprint('the same')"), ("floor", "print('the same')")):
                listener = Bytes()
                before = float(kernel.run("print(time.process_time())").text)
                cell = kernel.run(source, listener=listener)
                found[side].append(1e3 * (float(kernel.run("print(time.process_time())").text) - before))
                if side == "cpu":
                    found["wall"].append(1e3 * cell.seconds)
                    found["bytes"].append(listener.count)
                    ranks = f"[0-{nodes - 1}]"
                    measure.expect(ranks in cell.text, f"output of all is not said once:\n{cell.text[:500]}")
        kernel.run("cluster.stop()")
    return {side: values[2:] for side, values in found.items()}


ALL_REDUCE = "import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()"


def real(num_ranks: int, num_calls: int, *, bars: bool) -> list[measure.Row]:
    """Start, an empty cell, memory and stop."""
    began_s = time.perf_counter()
    cluster = hpcnb.Cluster(num_ranks, threads_per_rank=1, start_timeout_s=120).start()
    started_s = time.perf_counter() - began_s
    try:
        result = cluster.run(ALL_REDUCE, timeout_s=120)
        measure.expect(result.values == dict.fromkeys(range(num_ranks), repr(float(num_ranks))), result.failure_text())
        cells_ms = []
        for _ in range(num_calls):
            began_s = time.perf_counter()
            cluster.run("pass", timeout_s=60)
            cells_ms.append(1e3 * (time.perf_counter() - began_s))
        pss_mb = [measure.pss_mb(row["pid"]) for row in cluster.status()]
    finally:
        began_s = time.perf_counter()
        cluster.stop()
        stopped_s = time.perf_counter() - began_s
    return [
        measure.Row(f"start, {num_ranks} ranks", "s", [started_s], at_most=15.0 if bars else None),
        measure.Row("  empty cell", "ms", cells_ms, at_most=25.0 if bars else None),
        measure.Row("  PSS of a rank", "MB", pss_mb, at_most=45.0 if bars else None),
        measure.Row("  stop", "s", [stopped_s], at_most=2.0 if bars else None),
    ]


def main(options) -> None:
    num_calls = options.runs or (5 if options.quick else 15)
    with measure.Place() as place:
        few = simulated(place, 16, num_calls)
        many = simulated(place, options.nodes, num_calls)
        size = f"{options.nodes} nodes"
        rows = [
            measure.Row(f"kernel CPU of a cell, {size}", "ms", many["cpu"], many["floor"], 30.0),
            measure.Row("  until it is over", "ms", many["wall"], few["wall"], peer_name="16 nodes"),
            measure.Row("  bytes to the browser", "B", many["bytes"], few["bytes"], peer_name="16 nodes"),
        ]
        measure.table(rows, peer="no cluster")
        rows = real(64, num_calls, bars=True)
        if not options.quick:
            rows += real(256, num_calls, bars=False)
        measure.table(rows, peer="")
    print(f"median CPU without the floor {statistics.median(many['cpu']) - statistics.median(many['floor']):.1f} ms")


if __name__ == "__main__":
    measure.run(main, limit_s=600, nodes={"type": int, "default": 1024, "help": "simulated nodes (default: 1024)"})
