"""Loading and leaving: %load_ext, the first breakdown plot, and what is left when cluster or notebook end.

load: in a fresh IPython; peer: import ipyparallel. Plot: %hpc start, a first cell and at once %hpc timing breakdown,
in a real kernel; peer: the same after hpcnb.Cluster(4).start(), which imports nothing for plots ahead of time. Leaving:
seconds until no process, socket, temporary file, folder or shared-memory segment of the cluster is left after %hpc
stop, after the kernel's exit, and after kill -9 of the kernel with an idle timeout of 0; peer: ipyparallel, its kernel
killed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import measure
from notebook_kernel import NotebookKernel

NUM_RANKS = 4
#: whoever has left something after so long is told to have done so
LIMIT_S = 12.0

LOAD = """
import json, sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began_s = time.perf_counter()
{load}
seconds = time.perf_counter() - began_s
print(json.dumps([seconds, [name for name in ("torch", "pandas", "hvplot") if name in sys.modules]]))
"""
LOADS = {"ours": 'shell.run_line_magic("load_ext", "hpcnb")', "peer": "import ipyparallel"}

START_BY_API = f"import hpcnb\ncluster = hpcnb.Cluster({NUM_RANKS}).start()"
FIRST_CELL = """%%hpc_parallel
import torch.distributed as dist
import torch
total = torch.ones(1)
dist.all_reduce(total)
total.item()
"""

START_PEER = f"""
import ipyparallel
peer = ipyparallel.Cluster(n={NUM_RANKS}, log_level=40, delay=0)
peer.start_and_connect_sync()
"""


def load_s(place: measure.Place, side: str) -> float:
    """Seconds in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(load=LOADS[side])],
        capture_output=True, text=True, env=place.environment, timeout=60, check=False,
    )  # fmt: skip
    measure.expect(done.returncode == 0, f"loading failed: {done.stderr}")
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    measure.expect(side != "ours" or not heavy, f"%load_ext hpcnb imported {', '.join(heavy)}")
    return seconds


def first_plot_s(place: measure.Place, start: str) -> float:
    """Seconds from asking for the plot to having it, straight after the first cell."""
    with NotebookKernel(place) as kernel:
        kernel.run("%load_ext hpcnb")
        kernel.run(start)
        first = kernel.run(FIRST_CELL)
        measure.expect(str(float(NUM_RANKS)) in first.text, f"the first cell showed {first.text!r}")
        plot = kernel.run("%hpc timing breakdown")
        kinds = {kind for output in plot.outputs for kind in output.get("data", {})}
        measure.expect({"text/plain", "text/html"} <= kinds, f"the plot came as {sorted(kinds)}")
        kernel.run("%hpc stop")
        return plot.seconds


class Traces:
    """What a cluster that runs can leave behind: looked for from outside of it."""

    def __init__(self, place: measure.Place) -> None:
        self._place = place
        self._kernel = 0
        self._shared = self._shared_memory()
        self._files = set(self._own_files())
        self._processes: set[int] = set()

    def note(self, kernel_pid: int) -> None:
        """The cluster is up: these are its processes."""
        self._kernel = kernel_pid
        self._processes = self._place.processes() - {kernel_pid}
        measure.expect(
            len(self._processes) > NUM_RANKS, f"only {len(self._processes)} processes of a cluster were found"
        )

    def left(self) -> list[str]:
        """In words; empty when all is gone."""
        found = [f"process {pid}" for pid in self._processes if _runs(pid)]
        if found:  # most looks end here: cheap, so that looking does not slow down what is looked at
            return found
        found += [f"process {pid}" for pid in self._place.processes() - {self._kernel}]
        found += [str(path) for path in self._own_files() if path not in self._files]
        found += [
            line for line in Path("/proc/net/unix").read_text().splitlines() if f"{self._place.folder}/run" in line
        ]
        return found + sorted(self._shared_memory() - self._shared)

    def _own_files(self) -> list[Path]:
        """Everything under the runtime root, and in the folder for temporary files."""
        roots = (self._place.folder / "run", self._place.folder / "tmp")
        return [path for root in roots for path in root.rglob("*") if "ipykernel_" not in str(path)]

    @staticmethod
    def _shared_memory() -> set[str]:
        """Segments with a name; those of others on this machine may be among them, but not for long."""
        with contextlib.suppress(OSError):
            return {str(path) for path in Path("/dev/shm").iterdir()}
        return set()


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def leave_s(place: measure.Place, way: str, start: str) -> float:
    """Seconds from one of the ways to end to nothing left; LIMIT_S if something stays."""
    with NotebookKernel(place) as kernel:
        kernel.run("%load_ext hpcnb")
        traces = Traces(place)
        kernel.run(start)
        if start != START_PEER:
            kernel.run(FIRST_CELL)
        traces.note(kernel.pid)
        began_s = time.perf_counter()
        if way == "stop":
            kernel.run("%hpc stop")
        elif way == "exit":
            kernel.client.shutdown()  # the message that Jupyter sends when a notebook is shut down
        else:
            kernel.kill()
        if measure.poll(lambda: not traces.left(), LIMIT_S, every_s=0.02) is None:
            left = traces.left()
            place.kill()
            if start != START_PEER:
                print(f"after {way}, {LIMIT_S:g} s later there are still: {'; '.join(left[:8])}", flush=True)
            return LIMIT_S
        return time.perf_counter() - began_s


def leaving(place: measure.Place, *, runs: int, with_peer: bool) -> list[measure.Row]:
    start = f"%hpc start {NUM_RANKS}"
    ways = {
        "stop": ("%hpc stop: nothing is left after", start, 5.0),
        "exit": ("kernel exit: nothing is left after", start, 5.0),
        "kill": ("kill -9 of the kernel: nothing is left after", f"{start} --idle-timeout 0", 10.0),
    }
    rows = []
    for way, (what, cell, at_most_s) in ways.items():
        seconds = [leave_s(place, way, cell) for _ in range(runs)]
        peer = [leave_s(place, way, START_PEER)] if way == "kill" and with_peer else []
        rows.append(measure.Row(what, "s", seconds, peer, at_most_s, worst=True))
    return rows


def main(options) -> None:
    runs = options.runs or (1 if options.quick else 5)
    began_s = time.monotonic()
    with measure.Place() as place:
        loads = measure.interleave({side: functools.partial(load_s, place, side) for side in LOADS}, runs)
        starts = {"ours": f"%hpc start {NUM_RANKS}", "peer": START_BY_API}
        plots = measure.interleave(
            {side: functools.partial(first_plot_s, place, start) for side, start in starts.items()}, runs
        )
        rows = leaving(place, runs=runs, with_peer=not options.quick)
    rows = [
        measure.Row("%load_ext hpcnb", "s", loads["ours"], loads["peer"], 0.3, peer_name="import ipyparallel"),
        measure.Row("first breakdown plot", "s", plots["ours"], plots["peer"], 1.5, peer_name="not imported ahead"),
        *rows,
    ]
    measure.table(rows, peer="peer")
    print(f"{LIMIT_S:g} s means: after so long something was still there\ntook {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=400)
