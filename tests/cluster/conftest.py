"""Virtual hosts, and what starts processes on them: made once per file."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.cluster import gridengine
from tests.cluster import slurm as virtual_slurm
from tests.cluster.hosts import HEAD_IP, Hosts, why_not


@pytest.fixture(scope="module")
def hosts():
    if why := why_not():
        pytest.skip(why)
    with Hosts(3) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def slurm(hosts):
    if why := virtual_slurm.why_not():
        pytest.skip(why)
    with virtual_slurm.Slurm(hosts) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def mpiexec(hosts):
    """Open MPI as root, over these hosts' ssh."""
    if shutil.which("mpiexec") is None:
        pytest.skip("there is no mpiexec")
    environment = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_plm_rsh_agent": f"ssh -F {hosts.ssh_config}", "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def sge(hosts):
    if why := gridengine.why_not():
        pytest.skip(why)
    with gridengine.GridEngine(hosts) as sge:
        yield sge


@pytest.fixture(scope="module")
def dask(hosts):
    """A Dask cluster over SSH with a worker on each of two hosts, and its client."""
    import distributed

    key = str(hosts.ssh_config.parent / "keys" / "id")
    login = {"known_hosts": None, "client_keys": [key], "username": "root", "config": None}
    with (
        distributed.SSHCluster(  # its scheduler is on the first of these hosts
            ["n1", "n1", "n2"], connect_options=login, remote_python=sys.executable,
            scheduler_options={"host": hosts["n1"].ip, "dashboard": False}, worker_options={"nthreads": 1},
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        client.wait_for_workers(2)
        yield client


@pytest.fixture(scope="module")
def engines(hosts, tmp_path_factory):
    """A cluster of ipyparallel with an engine on each of two hosts, and its client."""
    import ipyparallel

    folder = tmp_path_factory.mktemp("profile")
    cluster = ipyparallel.Cluster(n=0, controller_ip=HEAD_IP, profile_dir=str(folder), cluster_id="", log_level=40)
    cluster.start_controller_sync()
    file = folder / "security" / "ipcontroller-engine.json"
    processes = [
        subprocess.Popen(hosts[name].command(sys.executable, "-m", "ipyparallel.engine", f"--file={file}", "--log-level=40"))
        for name in ("n1", "n2")
    ]  # fmt: skip
    client = cluster.connect_client_sync()
    client.wait_for_engines(2, timeout=60)
    yield client
    client.close()
    for process in processes:
        process.terminate()
        process.wait()
    cluster.stop_cluster_sync()
