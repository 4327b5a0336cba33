"""A flood: every rank prints 10,000 lines through a real notebook kernel. Does the kernel still answer?

While the cell runs, comm messages (what widgets send) go to the kernel one after the other, each timed until its
answer is back at the front-end: on a subshell, as JupyterLab 4.4 and later sends them, and on the main shell, as other
front-ends do; there, ipykernel answers while a cell awaits something (7.4 and later), and else when it is over.
Peer: the same cell by %%px on ipyparallel engines, from the same kernel; it keeps its output in widgets, so that only
what it sends can be compared. "busy kernel" is a cell without either, beside as many busy processes.
"""

from __future__ import annotations

import contextlib
import json
import queue
import time
import uuid

import measure
from notebook_kernel import Executed, NotebookKernel

TIMEOUT_S = 120
PING_EVERY_S = 0.03

FLOOD = """\
for line in range({num_lines}):
    print("line", line, "of rank", {rank})
"""

ANSWER = """
def answer(comm, _):
    comm.on_msg(lambda message: comm.send(message["content"]["data"]))
get_ipython().kernel.comm_manager.register_target("hpcnb-benchmark", answer)
"""

#: as busy as a flood, without hpcnb: what this machine and its kernel are capable of
BUSY = """
import subprocess, sys, time
def write():
    import os, time
    nothing, until_s = os.open("/dev/null", os.O_WRONLY), time.perf_counter() + 2
    while time.perf_counter() < until_s:
        os.write(nothing, b"a line of a rank")
import inspect
source = inspect.getsource(write) + "write()"
busy = [subprocess.Popen([sys.executable, "-c", source]) for _ in range({num_ranks})]
lines, until_s = [], time.perf_counter() + 2.2
while time.perf_counter() < until_s:
    lines.append((len(lines), str(len(lines))))
print([each.wait() for each in busy])
del lines
"""

START_OURS = "%load_ext hpcnb\n%hpc start {num_ranks}"

START_PEER = """
import ipyparallel as ipp
peer = ipp.Cluster(n={num_ranks}, log_level=40, delay=0)
peer_client = peer.start_and_connect_sync()
peer_view = peer_client[:]
peer_view.block = True
peer_view.scatter("rank", range({num_ranks}), flatten=True)
peer_view.activate()
"""


class Pings:
    """Comm messages while a cell runs: the next one when the one before has been answered."""

    def __init__(self, kernel: NotebookKernel, *, subshell: str | None) -> None:
        self._kernel = kernel
        self._subshell = subshell
        self._comm = uuid.uuid4().hex
        self._number = 0
        self._sent_s: float | None = None
        self._next_s = 0.0
        self.answered_ms: list[float] = []
        opening = {"comm_id": self._comm, "target_name": "hpcnb-benchmark", "data": {}}
        kernel.tell("comm_open", opening, subshell=subshell)

    def tick(self) -> None:
        now_s = time.perf_counter()
        if self._sent_s is None and now_s >= self._next_s:
            self._number += 1
            self._sent_s = now_s
            content = {"comm_id": self._comm, "data": {"number": self._number}}
            self._kernel.tell("comm_msg", content, subshell=self._subshell)

    def hear(self, message: dict) -> None:
        content = message["content"]
        if message["msg_type"] != "comm_msg" or content["comm_id"] != self._comm or self._sent_s is None:
            return
        measure.expect(content["data"]["number"] == self._number, f"ping {self._number} got answer {content['data']}")
        now_s = time.perf_counter()
        self.answered_ms.append((now_s - self._sent_s) * 1e3)
        self._sent_s = None
        self._next_s = now_s + PING_EVERY_S

    @property
    def open(self) -> bool:
        """Whether an answer is awaited."""
        return self._sent_s is not None

    def close(self) -> None:
        self._kernel.tell("comm_close", {"comm_id": self._comm, "data": {}}, subshell=self._subshell)


class FrontEnd:
    """All that listens while a cell runs, and how much the kernel sends meanwhile."""

    def __init__(self, kernel: NotebookKernel, *pings: Pings) -> None:
        self._kernel = kernel
        self._pings = pings
        self.num_bytes = 0

    def tick(self) -> None:
        for each in self._pings:
            each.tick()

    def hear(self, message: dict) -> None:
        self.num_bytes += len(json.dumps(message["content"], ensure_ascii=False).encode())
        for each in self._pings:
            each.hear(message)

    def rest(self) -> None:
        """Wait for answers that are still open."""
        until_s = time.perf_counter() + 10
        while any(each.open for each in self._pings) and time.perf_counter() < until_s:
            with contextlib.suppress(queue.Empty):
                self.hear(self._kernel.client.get_iopub_msg(timeout=1))
        measure.expect(not any(each.open for each in self._pings), "no answer to a comm message 10 s after the cell")
        for each in self._pings:
            each.close()


class Floods:
    """Floods a kernel with one side's ranks, again and again."""

    def __init__(self, kernel: NotebookKernel, subshell: str | None, cell: str) -> None:
        self._kernel = kernel
        self._cell = cell
        self._subshell = subshell
        self.on_subshell_ms: list[float] = []
        self.on_main_shell_ms: list[float] = []
        self.sent_mb: list[float] = []
        self.kept_mb: list[float] = []
        self.last = Executed()

    def __call__(self) -> float:
        on_main = Pings(self._kernel, subshell=None)
        pings = [on_main, Pings(self._kernel, subshell=self._subshell)] if self._subshell else [on_main]
        front_end = FrontEnd(self._kernel, *pings)
        self.last = self._kernel.run(self._cell, timeout_s=TIMEOUT_S, listener=front_end)
        front_end.rest()
        self.on_main_shell_ms += on_main.answered_ms
        if self._subshell:
            self.on_subshell_ms += pings[1].answered_ms
        self.sent_mb.append(front_end.num_bytes / 1e6)
        self.kept_mb.append(self.last.num_bytes / 1e6)
        return self.last.seconds


def quiet_ms(kernel: NotebookKernel, subshell: str | None) -> list[float]:
    """How soon the kernel answers while a cell sleeps: the least that can be asked for."""
    pings = Pings(kernel, subshell=subshell)
    front_end = FrontEnd(kernel, pings)
    kernel.run("import time; time.sleep(1)", listener=front_end)
    front_end.rest()
    return pings.answered_ms


def main(options) -> None:
    runs = options.runs or (1 if options.quick else 5)
    size = {"num_ranks": options.ranks or (8 if options.quick else 16), "num_lines": 10_000}
    began_s = time.monotonic()
    with measure.Place() as place, NotebookKernel(place) as kernel:
        features = kernel.control("kernel_info_request").get("supported_features", [])
        subshell = None
        if "kernel subshells" in features:
            subshell = kernel.control("create_subshell_request")["subshell_id"]
        else:
            print("this ipykernel has no subshells: comm messages wait for the cell in any case")
        kernel.run(ANSWER)
        quiet = quiet_ms(kernel, subshell)
        kernel.run(START_OURS.format(**size))
        kernel.run(START_PEER.format(**size))
        flood = FLOOD.format(rank="rank", **size)
        ours = Floods(kernel, subshell, "%%hpc_parallel\n" + flood)
        peer = Floods(kernel, subshell, "%%px\n" + flood)
        busy = Floods(kernel, subshell, BUSY.format(**size))
        few = min(runs, 2)
        seconds = measure.interleave({"ours": ours, "peer": peer, "busy": busy}, few, settle_s=0.5)
        seconds["ours"] += [ours() for _ in range(runs - few)]
        last_lines = [f"line {size['num_lines'] - 1} of rank {rank}" for rank in range(size["num_ranks"])]
        missing = [line for line in last_lines if line not in ours.last.text]
        measure.expect(not missing, f"the output lacks the ends {missing}")
        kernel.run("peer.stop_cluster_sync()")
        kernel.run("%hpc stop")
    what = f"{size['num_ranks']} ranks x {size['num_lines']:,} lines"
    answers = [
        measure.Row("comm answered, on a subshell", "ms", ours.on_subshell_ms, peer.on_subshell_ms, 200.0, worst=True),
        measure.Row("", "ms", (), busy.on_subshell_ms, peer_name="busy kernel"),
        measure.Row("", "ms", (), quiet, peer_name="while a cell sleeps"),
    ]
    rows = [
        measure.Row(what, "s", seconds["ours"], seconds["peer"]),
        measure.Row("output in the notebook", "MB", ours.kept_mb, at_most=1.0, worst=True),
        measure.Row("  sent to the front-end meanwhile", "MB", ours.sent_mb, peer.sent_mb),
        *(answers if subshell else []),
        measure.Row("comm answered, on the main shell", "ms", ours.on_main_shell_ms, peer.on_main_shell_ms),
        measure.Row("", "ms", (), busy.on_main_shell_ms, peer_name="busy kernel"),
    ]
    measure.table(rows, peer="%%px")
    for name, side in (("hpcnb", ours), ("%%px", peer), ("busy kernel", busy)):
        late = [answer for answer in side.on_subshell_ms if answer > 200]
        print(f"{name}: {len(late)} of {len(side.on_subshell_ms)} answers on a subshell took longer than 200 ms")
    print(f"took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    measure.run(main, limit_s=400, ranks={"type": int, "help": "only this many ranks (default: 16)"})
