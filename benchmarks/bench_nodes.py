"""Clusters of four hosts with two ranks each over SSH: start, a cell, stop, and how soon a lost host is told of.

Hosts are virtual: network namespaces with an sshd each, on this machine, so this runs as root, as
``tools/private_network.sh .venv/bin/python benchmarks/bench_nodes.py``. Peer: ipyparallel's SSH launcher with the same
hosts and engines, until all engines have registered (which have imported no torch and have no process group), and its
DirectView. Both start in a process that has imported what it needs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = sys.path[0]  # hosts run this copy

import ipyparallel as ipp
import measure
from traitlets.config import Config

import hpcnb
from hpcnb.cluster.cell_run import CellRequest
from tests.cluster.hosts import HEAD_IP, Host, Hosts, why_not

NUM_RANKS = 8
LOOP = "while True:\n    dist.all_reduce(x)\n    x.fill_(1)"


def seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def ours(hosts: Hosts) -> hpcnb.Cluster:
    return hpcnb.Cluster(
        NUM_RANKS, launcher="ssh", hosts=hosts.names, ssh_config=str(hosts.ssh_config), threads_per_rank=1,
        mesh="dp=4,tp=2",
    )  # fmt: skip


def peer(hosts: Hosts) -> ipp.Cluster:
    config = Config()
    options = ["-F", str(hosts.ssh_config)]
    for name in ("SSHLauncher", "SSHEngineLauncher", "SSHEngineSetLauncher"):
        config[name].ssh_args = options
        config[name].scp_args = options
        config[name].remote_python = sys.executable
        config[name].remote_profile_dir = str(hosts.ssh_config.parent / "profile")  # not the one here: files are sent
    config.SSHEngineSetLauncher.engines = dict.fromkeys(hosts.names, NUM_RANKS // len(hosts.names))
    return ipp.Cluster(engines="ssh", n=NUM_RANKS, controller_ip=HEAD_IP, delay=0, log_level=40, config=config)


def our_round(hosts: Hosts, times: dict[str, list[float]]) -> None:
    cluster = ours(hosts)
    times["start"].append(seconds(cluster.start))
    try:
        for _ in range(20):
            times["cell"].append(1e3 * seconds(lambda: cluster.run("pass", timeout_s=30)))
        result = cluster.run("import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)\nx.item()")
        measure.expect(result.values == dict.fromkeys(range(NUM_RANKS), "8.0"), result.failure_text())
    finally:
        times["stop"].append(seconds(cluster.stop))
    left = [line for host in hosts.hosts.values() for line in host.processes() if "hpcnb" in line]
    measure.expect(not left, f"left behind: {left}")


def peer_round(hosts: Hosts, times: dict[str, list[float]]) -> None:
    cluster = peer(hosts)

    def start() -> None:
        cluster.start_controller_sync()
        cluster.start_engines_sync()
        cluster.connect_client_sync().wait_for_engines(NUM_RANKS, timeout=120, interactive=False)

    try:
        times["start"].append(seconds(start))
        view = cluster.connect_client_sync()[:]
        for _ in range(20):
            times["cell"].append(1e3 * seconds(lambda: view.execute("pass", block=True)))
    finally:
        times["stop"].append(seconds(cluster.stop_cluster_sync))


def kill_agent(host: Host) -> None:
    pids = [line.split()[0] for line in host.processes() if "-m hpcnb.node" in line]
    host.run("kill", "-9", pids[0])


def lost(hosts: Hosts, harm: Callable[[], None]) -> tuple[float, float]:
    """Seconds from the harm to the prompt, and until the host is back."""
    with ours(hosts) as cluster:
        cluster.run("import torch, torch.distributed as dist\nx = torch.ones(4)\nkept = rank")
        happened: list[float] = []

        def do() -> None:
            happened.append(time.perf_counter())
            harm()

        timer = threading.Timer(1.0, do)
        timer.start()
        result = cluster.execute(CellRequest(LOOP, timeout_s=60))
        prompt_s = time.perf_counter() - happened[0]
        timer.join()
        measure.expect(set(result.exits) == {2, 3}, result.failure_text())
        names = cluster.run("kept", on="~(2,3)").values
        measure.expect(names == {rank: str(rank) for rank in range(NUM_RANKS) if rank not in (2, 3)}, names)
        hosts.on("n2")
        return prompt_s, seconds(cluster.restart_rank)


def main(options) -> None:
    if why := why_not():
        sys.exit(why)
    num_rounds = options.runs or (1 if options.quick else 5)
    mine: dict[str, list[float]] = {"start": [], "cell": [], "stop": []}
    theirs: dict[str, list[float]] = {"start": [], "cell": [], "stop": []}
    with measure.Place(), Hosts(4) as hosts:
        for number in range(num_rounds):
            our_round(hosts, mine)
            if number < 3:  # minutes each
                peer_round(hosts, theirs)
        killed = [lost(hosts, lambda: kill_agent(hosts["n2"])) for _ in range(num_rounds)]
        off = [lost(hosts, lambda: hosts.off("n2")) for _ in range(num_rounds)]
    rows = [
        measure.Row("start, 4 hosts x 2 ranks", "s", mine["start"], theirs["start"], ratio_at_most=0.25),
        measure.Row("empty cell", "ms", mine["cell"], theirs["cell"]),
        measure.Row("stop", "s", mine["stop"], theirs["stop"], at_most=3.0),
        measure.Row("agent killed: until the prompt", "s", [prompt_s for prompt_s, _ in killed], at_most=5.0),
        measure.Row("  until its ranks are back", "s", [back_s for _, back_s in killed]),
        measure.Row("power off: until the prompt", "s", [prompt_s for prompt_s, _ in off], at_most=10.0),
        measure.Row("  until its ranks are back", "s", [back_s for _, back_s in off]),
    ]
    measure.table(rows, peer="ipyparallel SSH")


if __name__ == "__main__":
    measure.run(main, limit_s=900)
