"""Slurm over virtual hosts, for tests: slurmctld and munged on the head, one slurmd on each host, nothing installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.hosts import HEAD_IP, Hosts

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Slurm", "why_not"]

_CONF = """ClusterName=hpcnb
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=10
"""


def why_not() -> str:
    """Why there can be no Slurm here; "" if there can."""
    missing = [need for need in ("slurmctld", "slurmd", "munged", "srun") if shutil.which(need, path=_PATH) is None]
    return f"Slurm tests need {', '.join(missing)}" if missing else ""


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Slurm:
    """A Slurm cluster of all virtual hosts, partition ``debug``; a context manager that sets SLURM_CONF.

    Args:
        hosts: That are on.
        cpus: Of each, as Slurm shall believe.
    """

    def __init__(self, hosts: Hosts, *, cpus: int = 4) -> None:
        self._hosts = hosts
        self._cpus = cpus
        self.folder = hosts.ssh_config.parent / "slurm"
        self._before: str | None = None

    def __enter__(self) -> Self:
        folder = self.folder
        (folder / "munge").mkdir(parents=True)
        (folder / "munge").chmod(0o711)
        (folder / "state").mkdir()
        folder.parent.chmod(0o711)
        folder.chmod(0o711)
        lines = [_CONF.format(folder=folder, head=HEAD_IP)]
        for host in self._hosts.hosts.values():
            (folder / f"spool.{host.name}").mkdir()
            lines.append(f"NodeName={host.name} NodeAddr={host.ip} CPUs={self._cpus} RealMemory=4000 State=UNKNOWN\n")
        lines.append("PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=500\n")
        (folder / "slurm.conf").write_text("".join(lines))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # else slurmd looks for what is not here
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        try:
            self._start(key)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, key: Path) -> None:
        folder = self.folder
        _run("munged", "--force", f"--key-file={key}", f"--socket={folder}/munge/munge.sock",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
             f"--seed-file={folder}/munge.seed", "--num-threads=2")  # fmt: skip
        _run("slurmctld", "-c")
        for name in self._hosts.names:
            self.start_node(name)
        deadline_s = time.monotonic() + 20
        while _run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() != self._hosts.names:
            if time.monotonic() > deadline_s:
                raise TimeoutError(_run("sinfo"))
            time.sleep(0.1)

    def start_node(self, name: str) -> None:
        """Start slurmd on a host, also after it was off."""
        host = self._hosts[name]
        _run(*host.command("env", f"SLURM_CONF={os.environ['SLURM_CONF']}", f"PATH={_PATH}", "slurmd"))

    def jobs(self) -> list[str]:
        """Ids of jobs that wait or run."""
        return _run("squeue", "-h", "-o", "%i").split()

    def cancel(self, job: str) -> None:
        """End a job."""
        _run("scancel", job)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            _run("scancel", "-u", "root")
        for name in self._hosts.names:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self._hosts[name].run("kill", (self.folder / f"slurmd.{name}.pid").read_text().strip())
        for name in ("slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGKILL)
        os.environ.pop("SLURM_CONF", None)
        if self._before is not None:
            os.environ["SLURM_CONF"] = self._before


def _run(*command: str) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=20, env={**os.environ, "PATH": _PATH}
    )
    return done.stdout
