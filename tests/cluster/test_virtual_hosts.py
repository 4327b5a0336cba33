"""The hosts that tests of many nodes run on behave as hosts do."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster import hosts as virtual
from tests.cluster import slurm as virtual_slurm
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(virtual.why_not()), reason=virtual.why_not() or "there are virtual hosts"),
]


def ssh(hosts, name, command):
    return subprocess.run(
        ["ssh", "-F", str(hosts.ssh_config), "-o", "ConnectTimeout=1", name, command],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_hosts_have_names_homes_and_reach_each_other():
    with virtual.Hosts(2) as hosts:
        done = ssh(hosts, "n2", "hostname; echo $HOME $TMPDIR; getent hosts n1 head")
        folder = hosts["n2"].folder
        assert done.stdout.splitlines()[:2] == ["n2", f"{folder}/home {folder}/tmp"]
        assert len(done.stdout.splitlines()) == 4, done.stdout
        assert ssh(hosts, "n2", "echo > /dev/tcp/n1/22").returncode == 0
        assert hosts["n1"].processes() == []
    assert not folder.exists()


def test_a_host_that_is_off_is_silent_and_comes_back():
    with virtual.Hosts(2) as hosts:
        hosts.off("n1")
        assert ssh(hosts, "n1", "true").returncode == 255
        assert ssh(hosts, "n2", "true").returncode == 0
        hosts.on("n1")
        assert ssh(hosts, "n1", "hostname").stdout == "n1\n"
        hosts.link("n1", up=False)
        assert "timed out" in ssh(hosts, "n1", "true").stderr
        hosts.link("n1", up=True)
        assert ssh(hosts, "n1", "hostname").stdout == "n1\n"


@pytest.mark.skipif(bool(virtual_slurm.why_not()), reason=virtual_slurm.why_not() or "there is Slurm")
def test_slurm_runs_jobs_on_the_hosts():
    with virtual.Hosts(2) as hosts, virtual_slurm.Slurm(hosts) as slurm:
        done = subprocess.run(["srun", "-N2", "hostname"], capture_output=True, text=True, timeout=60, check=True)
        assert sorted(done.stdout.split()) == ["n1", "n2"]
        wait_until(lambda: slurm.jobs() == [], 20)  # one whose srun has ended is completing for a moment
