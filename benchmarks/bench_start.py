"""Cold start: a fresh Python process to the first all-reduce, and what the ranks weigh then.

hpcnb: import hpcnb, Cluster(n).start(), one cell. Peer: ipyparallel.Cluster as it comes, torch imported on all
engines at once with OMP_NUM_THREADS=1, gloo over a TCPStore on 127.0.0.1. Both are timed inside the process from
its first line on. Memory is PSS of each rank, from /proc/PID/smaps_rollup, while the cluster is idle.
"""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict

import measure

TIMEOUT_S = 120

OURS = """
import time; began_s = time.perf_counter()
import json, sys
import hpcnb
with hpcnb.Cluster(int(sys.argv[1])) as cluster:
    result = cluster.run('''
import torch
import torch.distributed as dist
total = torch.ones(1) * (rank + 1)
dist.all_reduce(total)
total.item()
''')
    seconds = time.perf_counter() - began_s
    result.raise_for_errors()
    time.sleep(0.5)
    said = {row["pid"]: row["memory_mb"] for row in cluster.status()}
    print(json.dumps([seconds, [float(text) for text in result.values.values()], said]), flush=True)
    sys.stdin.readline()
"""

PEER = """
import time; began_s = time.perf_counter()
import json, os, socket, sys
import ipyparallel as ipp

def first_all_reduce(rank, world_size, port):
    import torch
    import torch.distributed as dist
    store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    total = torch.ones(1) * (rank + 1)
    dist.all_reduce(total)
    return total.item()

num_ranks = int(sys.argv[1])
cluster = ipp.Cluster(n=num_ranks, log_level=40)
try:
    client = cluster.start_and_connect_sync()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pending = [client[rank].apply_async(first_all_reduce, rank, num_ranks, port) for rank in range(num_ranks)]
    values = [each.get(timeout=90) for each in pending]
    seconds = time.perf_counter() - began_s
    time.sleep(0.5)
    pids = client[:].apply_sync(os.getpid)
    print(json.dumps([seconds, values, dict.fromkeys(pids, 0.0)]), flush=True)
    sys.stdin.readline()
finally:
    cluster.stop_cluster_sync()
"""


class Start:
    """Starts one side in a fresh process, again and again, and keeps what the ranks weighed."""

    def __init__(self, place: measure.Place, script: str, num_ranks: int) -> None:
        self._place = place
        self._script = script
        self._num_ranks = num_ranks
        #: MB per rank: "rank" of the median rank; "all" processes with the mark, divided by ranks
        self.memory_mb: dict[str, list[float]] = defaultdict(list)

    def __call__(self) -> float:
        child = subprocess.Popen(
            [sys.executable, "-c", self._script, str(self._num_ranks)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**self._place.environment, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip
        try:
            line = child.stdout.readline() if select.select([child.stdout], [], [], TIMEOUT_S)[0] else ""
            if line:
                seconds, values, said_mb = json.loads(line)
                self._weigh({int(pid): mb for pid, mb in said_mb.items()}, child.pid)
            _, errors = child.communicate("\n", timeout=60)
        except subprocess.TimeoutExpired:
            line, errors = "", f"no end within {TIMEOUT_S} s"
        finally:
            child.kill()
            child.wait()
            left = measure.poll(lambda: not self._place.processes(), 5.0, every_s=0.05) is None
            if left:
                print(f"note: {self._place.kill()} processes were left after a stop", file=sys.stderr)
        if not line or child.returncode:
            raise RuntimeError(f"a start of {self._num_ranks} ranks failed:\n{errors}")
        right = self._num_ranks * (self._num_ranks + 1) / 2
        measure.expect(values == [right] * self._num_ranks, f"the all-reduce gave {values}, not {right:g} everywhere")
        return seconds

    def _weigh(self, said_mb: dict[int, float], child: int) -> None:
        ranks = {pid: measure.pss_mb(pid) for pid in said_mb}
        others = self._place.processes() - ranks.keys() - {child}
        self.memory_mb["rank"].append(statistics.median(ranks.values()))
        self.memory_mb["all"].append((sum(ranks.values()) + sum(map(measure.pss_mb, others))) / len(ranks))
        for pid, mb in said_mb.items():
            measure.expect(
                not mb or abs(mb - ranks[pid]) <= 0.1 * mb,
                f"status() says {mb:.1f} MB for process {pid}, the kernel of the system says {ranks[pid]:.1f} MB",
            )


def starts(place: measure.Place, num_ranks: int, *, num_ours: int, num_peer: int) -> list[measure.Row]:
    ours, peer = Start(place, OURS, num_ranks), Start(place, PEER, num_ranks)
    seconds = measure.interleave({"ours": ours, "peer": peer}, min(num_ours, num_peer))
    seconds["ours"] += [ours() for _ in range(num_ours - num_peer)]
    bars = {4: (3.5, 0.35, None), 16: (7.0, None, 60.0)}
    at_most_s, ratio_at_most, at_most_mb = bars.get(num_ranks, (None, None, None))
    what = f"{num_ranks} ranks: start to first all-reduce"
    return [
        measure.Row(what, "s", seconds["ours"], seconds["peer"], at_most_s, ratio_at_most),
        measure.Row("  memory of a rank (PSS)", "MB", ours.memory_mb["rank"], peer.memory_mb["rank"], at_most_mb),
        measure.Row("  memory of all processes / ranks", "MB", ours.memory_mb["all"], peer.memory_mb["all"]),
    ]


def main(options) -> None:
    sizes = [options.ranks] if options.ranks else [4] if options.quick else [4, 16]
    began_s = time.monotonic()
    with measure.Place() as place:
        rows = []
        for num_ranks in sizes:
            runs = options.runs or (1 if options.quick else 5)
            few = num_ranks > 4 and not options.runs  # the peer takes half a minute
            rows += starts(place, num_ranks, num_ours=runs, num_peer=1 if few else runs)
    measure.table(rows, peer="ipyparallel.Cluster")
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=600, ranks={"type": int, "help": "only this many ranks (default: 4, then 16)"})
