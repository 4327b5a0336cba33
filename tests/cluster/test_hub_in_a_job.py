"""A JupyterHub that starts a person's server as a job of Slurm: clusters of its notebooks use that job's nodes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.cluster import slurm as virtual_slurm
from tests.cluster.hosts import HEAD_IP, Hosts, why_not
from tests.hub.hub import Hub
from tests.hub.hub import why_not as why_no_hub
from tests.hub.kernel import Kernel
from tests.waiting import wait_until

WHY_NOT = why_not() or virtual_slurm.why_not() or why_no_hub()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there are all"),
]

#: As batchspawner does: a job, and in it a step that is the server. It runs as root, since the hosts know nobody else.
_CONFIG = """
from jupyterhub.spawner import SimpleLocalProcessSpawner

class JobSpawner(SimpleLocalProcessSpawner):
    async def start(self):
        self.ip = "{node_ip}"
        return await super().start()

c.JupyterHub.spawner_class = JobSpawner
c.JupyterHub.hub_bind_url = "http://{head_ip}:{hub_port}"
c.SimpleLocalProcessSpawner.home_dir_template = "{home}"
c.Spawner.env_keep = ["PATH", "SLURM_CONF"]
c.Spawner.cmd = ["salloc", "--nodes=2", "--nodelist=n1,n2", "srun", "--nodes=1", "--ntasks=1", *c.Spawner.cmd]
c.Spawner.args += ["--allow-root"]
c.Spawner.environment["HPCNB_RUNTIME_DIR"] = "{home}/run"
"""
_ALL_REDUCE = """%%hpc_parallel
import os, socket, torch, torch.distributed as dist
x = torch.ones(1)
dist.all_reduce(x)
(os.environ["SLURM_JOB_ID"], socket.gethostname(), x.item())
"""


def left(hosts, names, home):
    processes = [
        line for name in names for line in hosts[name].processes() if "slurmd" not in line and "slurmstepd" not in line
    ]
    return processes + [str(path) for path in (home / "run").glob("hpcnb-*/*")]


@pytest.fixture
def hub():
    with Hosts(2) as hosts, virtual_slurm.Slurm(hosts) as slurm:
        home = Path(f"/tmp/hpcnb-job-{os.getpid()}")
        (home / "run").mkdir(parents=True)
        config = _CONFIG.format(node_ip=hosts["n1"].ip, head_ip=HEAD_IP, hub_port=8081, home=home)
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        try:
            with Hub(config=config, environment={"PATH": path}) as hub:
                hub.hosts, hub.slurm, hub.work = hosts, slurm, home
                yield hub
        finally:
            shutil.rmtree(home, ignore_errors=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_a_server_in_a_job_uses_the_nodes_of_its_job(hub, end):
    server = hub.start_server("ada")
    (job,) = hub.slurm.jobs()
    kernel = Kernel(server.url, hub.token)
    assert "n1" in kernel.run("import socket; socket.gethostname()")
    shown = kernel.run("%load_ext hpcnb\n%hpc start --launcher slurm --ranks-per-node 2 --threads 1")
    assert "4 ranks ready" in shown, shown
    shown = kernel.run(_ALL_REDUCE)
    found = re.findall(r"\('(\d+)', '(n\d)', 4\.0\)", shown)
    assert set(found) == {(job, "n1"), (job, "n2")}, shown
    assert hub.slurm.jobs() == [job]
    if end == "stop":
        hub.stop_server(server)
    else:
        hub.slurm.cancel(job)
    wait_until(lambda: not hub.slurm.jobs(), 60)
    wait_until(lambda: not left(hub.hosts, ("n1", "n2"), hub.work), 30)
