"""What a cell costs: an empty one and one of 20 lines, for 1 to 16 ranks; and how soon its first line is seen.

hpcnb: Cluster.run. Peer: ipyparallel's DirectView.execute(block=True) on as many engines of its own. "own engines"
is the same call through cluster.client, on the very ranks that hpcnb uses. First line: from print in a rank to the
moment at which the notebook side has it, for the slowest rank of a cell (one clock: perf_counter_ns); "at the
front-end" is the same through a real notebook kernel, until the message with the line has been received.
"""

from __future__ import annotations

import functools
import re
import time
from contextlib import ExitStack

import ipyparallel as ipp
import measure
from notebook_kernel import NotebookKernel

import hpcnb
from hpcnb.cluster.cell_run import CellRequest

TIMEOUT_S = 60
#: calls of one side in a row: engines of the peer still work a little after they have answered
BLOCK = 10

EMPTY = "pass"
TWENTY_LINES = """\
import math
words = "the quick brown fox jumps over the lazy dog".split()
counts = {}
for word in words:
    counts[word] = counts.get(word, 0) + 1
longest = max(words, key=len)
def collatz(number):
    steps = 0
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps
lengths = [collatz(number) for number in range(1, 20)]
if max(lengths) > 10:
    peak = lengths.index(max(lengths)) + 1
else:
    peak = 0
roots = [math.sqrt(number) for number in range(20)]
text = f"{longest} {peak}"
total = sum(lengths) + counts["the"] + round(sum(roots))
"""
_here: dict[str, object] = {}
exec(TWENTY_LINES, _here)
TOTAL = _here["total"]

#: a line per rank, then silence: nothing but the line itself brings it to the notebook
SAY_WHEN = """\
import time
print(time.perf_counter_ns())
time.sleep(0.3)
"""


class FirstLines:
    """A view that notes when each line was first there."""

    def __init__(self) -> None:
        self.latency_ms: dict[int, float] = {}

    def update(self, run) -> None:
        now_ns = time.perf_counter_ns()
        if run.changed:
            run.changed = False
            for item in run.items():
                printed_ns = int(item.text)
                self.latency_ms.setdefault(printed_ns, (now_ns - printed_ns) / 1e6)

    def finish(self, run, result) -> None:
        pass


def timed_ms(call) -> float:
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1e3


def cells(cluster: hpcnb.Cluster, view: ipp.DirectView, *, num_calls: int) -> list[measure.Row]:
    """Rows of both cells on this number of ranks."""
    own = cluster.client[:]

    def ours(source: str) -> None:
        if not cluster.run(source, timeout_s=TIMEOUT_S).ok:
            raise measure.WrongResult(cluster.last_result.failure_text())

    rows = []
    size = cluster.world_size
    for source, name in ((EMPTY, "empty cell"), (TWENTY_LINES, "20 lines")):
        sides = {
            "ours": functools.partial(ours, source),
            "peer": functools.partial(view.execute, source, block=True),
            "own": functools.partial(own.execute, source, block=True),
        }
        if source == EMPTY:
            sides["px"] = functools.partial(view.execute, source, silent=False, block=True)
        calls = {side: functools.partial(timed_ms, call) for side, call in sides.items()}
        measure.interleave(calls, 5)  # warm-up
        times_ms = measure.interleave(calls, -(-num_calls // BLOCK), block=BLOCK, settle_s=0.05)
        at_most_ms = {4: 3.0, 16: 8.0}.get(size) if source == EMPTY else None
        what = f"{name}, {size} rank{'s' if size > 1 else ''}"
        ratio = 0.15 if at_most_ms else None
        rows += [
            measure.Row(what, "ms", times_ms["ours"], times_ms["peer"], at_most_ms, ratio),
            measure.Row("", "ms", (), times_ms["own"], peer_name="own engines"),
        ]
        if "px" in times_ms:
            rows.append(measure.Row("", "ms", (), times_ms["px"], peer_name="as %%px: silent=False"))
    totals = {
        "hpcnb": list(cluster.run("total", timeout_s=TIMEOUT_S).values.values()),
        "ipyparallel": [str(total) for total in view["total"]],
    }
    for side, values in totals.items():
        measure.expect(values == [str(TOTAL)] * size, f"20 lines came to {values} with {side}, not {TOTAL}")
    return rows


def first_line(cluster: hpcnb.Cluster, client: ipp.Client, *, num_calls: int) -> measure.Row:
    """From print to the notebook side, slowest rank of each cell."""
    size = cluster.world_size

    def ours() -> float:
        lines = FirstLines()
        result = cluster.execute(CellRequest(SAY_WHEN, timeout_s=TIMEOUT_S), view=lines)
        said = {int(text) for text in result.outputs.values()}
        measure.expect(result.ok, result.failure_text())
        measure.expect(said == lines.latency_ms.keys(), f"lines differ: {said} and {set(lines.latency_ms)}")
        return max(lines.latency_ms.values())

    def peer() -> float:
        pending = client[:].execute(SAY_WHEN, silent=False, block=False)
        latency_ms: dict[int, float] = {}
        until_s = time.perf_counter() + TIMEOUT_S
        while len(latency_ms) < size and time.perf_counter() < until_s:
            time.sleep(0.0005)  # the client's own thread receives
            over = pending.ready()  # then the client has handed the text over to the result
            texts = pending.stdout if over else [client.metadata[message].stdout for message in pending.msg_ids]
            for rank, text in enumerate(texts):
                if text.endswith("\n") and rank not in latency_ms:
                    latency_ms[rank] = (time.perf_counter_ns() - int(text)) / 1e6
        measure.expect(len(latency_ms) == size, f"{len(latency_ms)} of {size} lines were seen with ipyparallel")
        pending.wait(TIMEOUT_S)
        return max(latency_ms.values())

    sides = {"ours": ours, "peer": peer}
    measure.interleave(sides, 2)
    times_ms = measure.interleave(sides, num_calls)
    return measure.Row(f"first line, {size} ranks", "ms", times_ms["ours"], times_ms["peer"], 30.0)


class FrontEnd:
    """Notes when the line of each rank reaches the front-end."""

    def __init__(self) -> None:
        self.latency_ms: dict[int, float] = {}

    def tick(self) -> None:
        pass

    def hear(self, message: dict) -> None:
        now_ns = time.perf_counter_ns()
        if message["msg_type"] in ("display_data", "update_display_data"):
            for digits in re.findall(r"\b\d{10,}\b", message["content"]["data"].get("text/plain", "")):
                self.latency_ms.setdefault(int(digits), (now_ns - int(digits)) / 1e6)


def at_the_front_end(place: measure.Place, *, num_ranks: int, num_calls: int) -> measure.Row:
    latency_ms = []
    with NotebookKernel(place) as kernel:
        kernel.run("%load_ext hpcnb")
        kernel.run(f"%hpc start {num_ranks}")
        kernel.run("import time; time.sleep(3)")  # imports for plots go on in the background
        for _ in range(num_calls):
            front_end = FrontEnd()
            kernel.run(f"%%hpc_parallel\n{SAY_WHEN}", listener=front_end)
            lines = front_end.latency_ms
            measure.expect(len(lines) == num_ranks, f"{len(lines)} of {num_ranks} lines came to the front-end")
            latency_ms.append(max(lines.values()))
        kernel.run("%hpc stop")
    return measure.Row("  at the front-end", "ms", latency_ms, at_most=30.0)


def main(options) -> None:
    sizes = [options.ranks] if options.ranks else [1, 4] if options.quick else [1, 2, 4, 8, 16]
    num_calls = options.runs or (10 if options.quick else 50)
    num_lines = options.runs or (5 if options.quick else 10)
    began_s = time.monotonic()
    rows: list[measure.Row] = []
    with ExitStack() as stack:
        place = stack.enter_context(measure.Place())
        peer = ipp.Cluster(n=1, log_level=40, delay=0)
        stack.callback(peer.stop_cluster_sync)
        peer.start_controller_sync()
        client = stack.enter_context(peer.connect_client_sync())
        for size in sizes:
            peer.start_engines_sync(size - len(client.ids))
            client.wait_for_engines(size, timeout=TIMEOUT_S, interactive=False)
            with hpcnb.Cluster(size) as cluster:
                rows += cells(cluster, client[:], num_calls=num_calls)
                if size in (4, options.ranks):
                    rows.append(first_line(cluster, client, num_calls=num_lines))
            if size in (4, options.ranks):
                rows.append(at_the_front_end(place, num_ranks=size, num_calls=num_lines))
    measure.table(rows, peer="DirectView.execute")
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=400, ranks={"type": int, "help": "only this many ranks (default: 1, 2, 4, 8, 16)"})
