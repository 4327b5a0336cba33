"""A kernel that is restarted finds its cluster again; one that is shut down, or whose server ends, leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import KernelManager

import hpcnb
from tests.waiting import wait_until

pytestmark = pytest.mark.notebook


class Kernel:
    """A kernel and what its cells show."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel()
        self._connect()

    def _connect(self):
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, source):
        """What the cell showed as plain text, and the error's text if there was one."""
        shown = {}

        def hear(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                shown[len(shown)] = content["text"]
            elif message["msg_type"] in ("display_data", "execute_result", "update_display_data"):
                place = content.get("transient", {}).get("display_id", len(shown))
                shown[place] = content["data"].get("text/plain", "") + "\n"
            elif message["msg_type"] == "error":
                shown[len(shown)] = "\n".join(content["traceback"])

        self.client.execute_interactive(source, timeout=90, output_hook=hear)
        return "".join(shown.values())

    def start_cell(self, source, until):
        """Send a cell and return when its output holds ``until``."""
        self.client.execute(source)
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if until in str(message["content"].get("data", "")) or until in message["content"].get("text", ""):
                return

    def restart(self, *, now):
        self.client.stop_channels()
        self.manager.restart_kernel(now=now)
        self._connect()

    def crash(self):
        """Killed, and started again: without the interrupt that comes before a restart."""
        self.manager.signal_kernel(signal.SIGKILL)
        wait_until(lambda: not self.manager.is_alive(), 10)
        self.restart(now=True)

    def close(self, *, now=False):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)


@pytest.fixture
def runtime_root(monkeypatch):
    """Without the clusters that other tests share: `%hpc attach` then needs no name."""
    with tempfile.TemporaryDirectory(prefix="hpcnb-", dir="/tmp") as folder:
        monkeypatch.setenv("HPCNB_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def kernel(runtime_root):
    kernel = Kernel()
    yield kernel
    if kernel.manager.has_kernel:
        kernel.close()


def folders(runtime_root):
    return set(runtime_root.glob("hpcnb-*/*"))


@pytest.mark.parametrize("now", [False, True])
def test_a_restarted_kernel_takes_its_cluster_again(kernel, runtime_root, now):
    before = folders(runtime_root)
    kernel.run("%load_ext hpcnb")
    kernel.run("%hpc start 2 --name kept")
    kernel.run("%%hpc_parallel\nx = rank + 10")
    kernel.restart(now=now)
    kernel.run("%load_ext hpcnb")
    shown = kernel.run("%hpc attach")
    assert "attached to cluster 'kept': 2 ranks, mesh dp=2" in shown
    assert "still runs" not in shown
    assert "Out[0]: 10\nOut[1]: 11" in kernel.run("%%hpc_parallel --no-time\nx")
    again = kernel.run("%hpc attach")
    assert "this notebook has cluster 'kept' already (2 ranks); to take another one first type  %hpc detach" in again
    kernel.close()
    wait_until(lambda: folders(runtime_root) == before, 10)


def test_what_ended_meanwhile_is_shown_and_what_runs_is_joined(kernel, runtime_root, tmp_path):
    kernel.run("%load_ext hpcnb")
    kernel.run("%hpc start 2")
    flags = [tmp_path / "first", tmp_path / "second"]
    source = (
        "%%hpc_parallel --no-time --on {on}\nimport os, time\nprint('began {on}', flush=True)\n"
        "while not os.path.exists('{flag}'): time.sleep(0.02)\nprint('ended {on}')"
    )
    kernel.start_cell(source.format(on=0, flag=flags[0]), "began 0")
    kernel.crash()
    flags[0].touch()
    kernel.run("%load_ext hpcnb")
    kernel.run(WAIT_UNSEEN)
    shown = kernel.run("%hpc attach")
    assert "ended while no notebook was here:\n[0] began 0\n[0] ended 0" in shown
    assert "cell In[" in shown
    kernel.start_cell(source.format(on=1, flag=flags[1]), "began 1")
    kernel.crash()
    kernel.run("%load_ext hpcnb")
    shown = kernel.run("%hpc attach")
    assert "still runs on rank 1: %hpc join shows it" in shown
    busy = kernel.run("%%hpc_parallel --on 1\n1")
    assert "rank 1 still runs an earlier cell" in busy
    assert kernel.run("%%hpc_parallel --no-time --on 0\nrank") == "Out[0]: 0\n"
    flags[1].touch()
    assert "[1] began 1\n[1] ended 1" in kernel.run("%hpc join")
    assert "no cell is running on this cluster" in kernel.run("%hpc join")


WAIT_UNSEEN = """
import hpcnb, time
until = time.monotonic() + 30
while not hpcnb.clusters()[0].unseen and time.monotonic() < until:
    time.sleep(0.05)
"""


def test_a_kernel_that_is_shut_down_in_a_cell_leaves_nothing(kernel, runtime_root):
    before = folders(runtime_root)
    kernel.run("%load_ext hpcnb")
    kernel.run("%hpc start 1")
    kernel.start_cell("import time\nprint('stuck', flush=True)\nwhile True: time.sleep(1)", "stuck")
    kernel.close()  # asks, and kills when nothing comes of it
    wait_until(lambda: folders(runtime_root) == before, 15)


SERVER = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3")
for source in ("%load_ext hpcnb", "%hpc start 1 --name owned"):
    client.execute_interactive(source, timeout=60, output_hook=lambda _: None)
print(manager.provisioner.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kernel_first", [False, True])
def test_nothing_is_left_when_the_server_is_killed(runtime_root, tmp_path, kernel_first):
    before = folders(runtime_root)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed server leaves the connection file of its kernel
    )  # fmt: skip
    pid = 0
    try:
        pid = int(server.stdout.readline())
        (folder,) = folders(runtime_root) - before
        agent = psutil.Process(int((folder / "agent.lock").read_text()))
        family = [agent, *agent.children(recursive=True)]
        if kernel_first:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: [row.notebooks for row in hpcnb.clusters() if row.name == "owned"] == [0], 10)
            assert agent.is_running()
        server.kill()
        wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in family), 15)
        assert folders(runtime_root) == before
    finally:
        server.kill()
        server.communicate()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL) if pid else None


def test_verbs_about_all_clusters(kernel):
    kernel.run("%load_ext hpcnb")
    assert "no cluster of yours is running on this machine" in kernel.run("%hpc status --all")
    assert "no cluster of yours is running on this machine" in kernel.run("%hpc attach")
    kernel.run("%hpc start 2 --name mine")
    shown = kernel.run("%hpc status --all")
    assert shown.startswith("1 cluster on this machine\nname  ranks  mesh  node")
    assert re.search(r"^mine  2      dp=2  \S+ +running  \d+ s ago +1$", shown, re.MULTILINE)
    shown = kernel.run("%hpc detach")
    assert shown == "cluster 'mine' goes on without this notebook;  %hpc attach mine  takes it again\n"
    assert "no cluster is running; start one" in kernel.run("%hpc join")
    assert "cluster 'mine' (2 ranks, no notebook) is also running:" in kernel.run("%hpc start 1 --name other")
    kernel.run("%hpc stop")
    assert "no cluster 'other' is running; there is mine" in kernel.run("%hpc attach other")
    kernel.run("%hpc attach mine")
    assert kernel.run("%hpc stop --all") == "cluster 'mine' stopped\n"
    assert "no cluster is running; start one" in kernel.run("%hpc status")
    assert kernel.run("%hpc stop --all") == "no cluster of yours is running on this machine\n"


def test_how_a_cell_failed_meanwhile_is_shown(kernel, runtime_root, tmp_path):
    kernel.run("%load_ext hpcnb")
    kernel.run("%hpc start 2")
    flag = tmp_path / "go"
    source = (
        "%%hpc_parallel --no-time\nimport os, time, torch, torch.distributed as dist\nprint('began', flush=True)\n"
        f"while not os.path.exists('{flag}'): time.sleep(0.02)\n"
        "if rank == 1: raise ValueError('bad shard')\ndist.all_reduce(torch.ones(1))"
    )
    kernel.start_cell(source, "began")
    kernel.crash()
    flag.touch()
    kernel.run("%load_ext hpcnb")
    kernel.run(WAIT_UNSEEN)
    shown = kernel.run("%hpc attach")
    assert "ValueError: bad shard" in shown
    assert re.search(r"rank 0 was in +all_reduce #1 \(4 B, line 6\) .* and was released", shown)
    assert "all names on all ranks are intact" in shown
    assert kernel.run("%hpc interrupt").strip() == "no cell is running"


def test_a_cluster_that_somebody_else_stopped_does_not_hinder_the_next(kernel, runtime_root):
    kernel.run("%load_ext hpcnb")
    kernel.run("%hpc start 1 --name gone")
    hpcnb.attach("gone").stop()
    assert "the node agent ended, and its ranks with it" in kernel.run("%%hpc_parallel\n1")
    shown = kernel.run("%hpc start 1 --name next")
    assert "cluster 'gone' has ended" in shown
    assert "Out[0]: 1" in kernel.run("%%hpc_parallel --no-time\n1")
