"""What others on the network of a cluster's hosts can see and reach: what the user guide says under "What is encrypted"."""

from __future__ import annotations

import datetime
import json
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from hpcnb import Cluster
from hpcnb.core.launch import Ticket, runtime_root
from tests.cluster import slurm as virtual_slurm
from tests.cluster.hosts import HEAD_IP, Hosts, why_not
from tests.hub.hub import cmdline

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are virtual hosts"),
]


class Watching(threading.Thread):
    """Reads all command lines that are there, again and again; hosts' too, which are below this machine."""

    def __init__(self):
        super().__init__()
        self.seen: set[bytes] = set()
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.01):
            self.seen |= set(read_all("cmdline"))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def read_all(name):
    """This file of every process, as far as it is there."""
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            yield path.read_bytes()
        except OSError:
            continue  # it has ended


def process_of(word):
    """The one process below this one with a word on its command line."""
    (found,) = (each for each in psutil.Process().children(recursive=True) if word in cmdline(each))
    return found


def keys_of(cluster):
    """All that opens something: keys, and the ticket that holds some of them."""
    folder = runtime_root() / cluster.key
    spec = json.loads((folder / "cluster.json").read_text())
    keys = {value for name, value in spec.items() if name.endswith(("_public", "_secret")) and value}
    assert len(keys) == 6
    agent = process_of(str(folder))
    for connection in agent.net_connections("tcp"):
        address = f"{spec['address']}:{connection.laddr.port}"
        keys.add(
            Ticket(
                spec["cluster_name"], address, spec["server_public"], spec["nodes_public"], spec["nodes_secret"]
            ).to_text()
        )
    for path in (folder / "profile" / "security").glob("*.json"):
        keys.add(json.loads(path.read_text())["curve_serverkey"])
    return [key.encode() for key in keys]


@pytest.fixture(scope="module")
def hosts():
    with Hosts(2) as hosts, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_plm_rsh_agent": f"ssh -F {hosts.ssh_config}", "OMPI_MCA_hwloc_base_binding_policy": "none",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield hosts


@pytest.mark.parametrize("launcher", ["ssh", "mpi", "slurm"])
def test_keys_are_on_no_command_line_and_stay_in_no_environment(hosts, launcher):
    options = {"threads_per_rank": 1, "idle_timeout_s": 0, "start_timeout_s": 60}
    with Watching() as watching:
        if launcher == "ssh":
            options |= {"hosts": "n1,n2", "ssh_config": str(hosts.ssh_config)}
            environments = started(Cluster(2, launcher="ssh", **options), watching)
        elif launcher == "mpi":
            environments = started(Cluster(2, launcher="mpi", hosts="n1,n2", **options), watching)
        else:
            if why := virtual_slurm.why_not():
                pytest.skip(why)
            with virtual_slurm.Slurm(hosts):
                environments = started(Cluster(2, launcher="slurm", nodes=2, **options), watching)
    assert environments


def started(cluster, watching):
    with cluster:
        keys = keys_of(cluster)
        environments = list(read_all("environ"))
        assert not [key for key in keys if any(key in each for each in environments)]
        assert any(b"hpcnb.node" in each for each in watching.seen)
    assert not [key for key in keys if any(key in each for each in watching.seen)]
    return environments


def test_hosts_listen_on_the_clusters_network_only_and_the_store_asks_nobody(hosts):
    import torch.distributed as dist

    options = {"hosts": "n1,n2", "ssh_config": str(hosts.ssh_config), "threads_per_rank": 1, "idle_timeout_s": 0}
    with Cluster(4, launcher="ssh", **options) as cluster:
        assert cluster.run("import torch, torch.distributed as dist\ndist.all_reduce(torch.ones(2))").ok
        shown = (
            hosts["n1"].run("ss", "-ltnH")
            + subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout
        )
        addresses = {line.split()[3].rpartition(":")[0] for line in shown.splitlines()}
        assert addresses == {hosts["n1"].ip, HEAD_IP, "127.0.0.1"}  # of loopback: the controller's own sockets
        store = process_of("hpcnb.node.store")
        (listener,) = (each for each in store.net_connections("tcp") if each.status == "LISTEN")
        assert listener.laddr.ip == HEAD_IP
        stranger = dist.TCPStore(*listener.laddr, is_master=False, timeout=datetime.timedelta(seconds=10))
        assert stranger.num_keys() > 0  # as the user guide says
        assert (
            cluster.run("import os\n[os.environ[f'{name}_SOCKET_IFNAME'] for name in ('GLOO', 'NCCL')]").values[0]
            == "['eth0', 'eth0']"
        )


def test_an_interface_is_chosen_by_setup_or_environment(hosts):
    options = {"hosts": "n1", "ssh_config": str(hosts.ssh_config), "threads_per_rank": 1, "idle_timeout_s": 0}
    asks = "import os\n(os.environ['GLOO_SOCKET_IFNAME'], os.environ['NCCL_SOCKET_IFNAME'])"
    with Cluster(1, launcher="ssh", setup="export GLOO_SOCKET_IFNAME=lo", **options) as cluster:
        assert cluster.run(asks).values == {0: "('lo', 'eth0')"}
    with Cluster(1, launcher="ssh", environment={"NCCL_SOCKET_IFNAME": "lo"}, **options) as cluster:
        assert cluster.run(asks).values == {0: "('eth0', 'lo')"}
