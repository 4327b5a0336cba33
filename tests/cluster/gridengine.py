"""Grid Engine over virtual hosts, for tests: sge_qmaster on the head, one sge_execd on each host, nothing installed.

Its programs are those of Debian's packages, unpacked into build/gridengine by tools/unpack_gridengine.sh, since
installing them starts daemons of the machine's own; or those that are installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.hosts import Hosts

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GridEngine", "why_not"]

_UNPACKED = Path(__file__).parents[2] / "build" / "gridengine"
_ROOT = _UNPACKED if _UNPACKED.exists() else Path("/")
_PROGRAMS = _ROOT / "usr/lib/gridengine"
_SHARED = _ROOT / "usr/share/gridengine"
_ARCH = "lx-amd64"
_BOOTSTRAP = """admin_user none
default_domain none
ignore_fqdn false
spooling_method classic
spooling_lib libspoolc
spooling_params {root}/default/common;{folder}/qmaster
binary_path {root}/bin
qmaster_spool_dir {folder}/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
#: What differs from Debian's configuration and queue.
_CONFIGURATION = {"execd_spool_dir": "{folder}/spool", "min_uid": "0", "min_gid": "0", "load_report_time": "00:00:02"}
_SCHEDULER = {"schedule_interval": "0:0:1", "schedd_job_info": "true", "flush_submit_sec": "1",
              "flush_finish_sec": "1", "job_load_adjustments": "NONE", "queue_sort_method": "seqno"}  # fmt: skip
_QUEUE = {"hostlist": "{hosts}", "slots": "{cpus}", "load_thresholds": "NONE", "pe_list": "smp", "shell": "/bin/sh",
          "tmpdir": "/tmp", "seq_no": "0,{order}"}  # fmt: skip


def why_not() -> str:
    """Why there can be no Grid Engine here; "" if there can."""
    missing = [name for name in ("qsub", "sge_qmaster", "sge_execd") if not (_PROGRAMS / name).exists()]
    if missing:
        return f"tests with Grid Engine need {', '.join(missing)}: run  tools/unpack_gridengine.sh build/gridengine"
    asked = subprocess.run(
        ["ldd", str(_PROGRAMS / "qsub")], capture_output=True, text=True, check=False, env=_libraries()
    )
    lacking = [line.split()[0] for line in asked.stdout.splitlines() if "not found" in line]
    return f"Grid Engine needs {', '.join(lacking)}" if lacking else ""


def _libraries() -> dict[str, str]:
    return {"LD_LIBRARY_PATH": f"{_PROGRAMS}:{_ROOT}/usr/lib/x86_64-linux-gnu"} if _ROOT == _UNPACKED else {}


class GridEngine:
    """A Grid Engine of all virtual hosts, queue ``all.q``; a context manager that sets PATH and SGE_ROOT.

    Args:
        hosts: That are on.
        cpus: Slots of each.
    """

    def __init__(self, hosts: Hosts, *, cpus: int = 4) -> None:
        self._hosts = hosts
        self._cpus = cpus
        self.folder = hosts.ssh_config.parent / "gridengine"
        self.root = self.folder / "root"
        self._before = dict(os.environ)
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        common = self.root / "default" / "common"
        common.mkdir(parents=True)
        self.folder.parent.chmod(0o711)
        (self.folder / "qmaster").mkdir()
        (self.folder / "spool").mkdir()
        (self.root / "util").symlink_to(_SHARED / "util")
        for kind in ("bin", "utilbin"):
            (self.root / kind).mkdir()
            programs = self.root / kind / _ARCH
            programs.mkdir()
            for program in _PROGRAMS.iterdir():
                (programs / program.name).symlink_to(program.resolve())
        (common / "bootstrap").write_text(_BOOTSTRAP.format(root=self.root, folder=self.folder))
        (common / "act_qmaster").write_text("head\n")
        words = {"folder": self.folder, "hosts": " ".join(self._hosts.names), "cpus": self._cpus,
                 "order": ",".join(f"[{name}={place}]" for place, name in enumerate(self._hosts.names, 1))}  # fmt: skip
        libraries = _libraries().get("LD_LIBRARY_PATH")
        os.environ |= {
            "SGE_ROOT": str(self.root), "SGE_CELL": "default", "SGE_QMASTER_PORT": "6444", "SGE_EXECD_PORT": "6445",
            "SGE_ND": "1", "PATH": f"{self.root}/bin/{_ARCH}:{self.root}/utilbin/{_ARCH}:{os.environ['PATH']}",
            **({"LD_LIBRARY_PATH": libraries} if libraries else {}),
        }  # fmt: skip
        try:
            self._start(words)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, words: dict[str, object]) -> None:
        if _ROOT == _UNPACKED:  # it loads what spools by an absolute path; this mount is seen by the head only
            _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={_ROOT}/usr/lib:/usr/lib", "/usr/lib")
        common = self.root / "default" / "common"
        _run("spoolinit", "classic", "libspoolc", f"{common};{self.folder}/qmaster", "init")
        configuration = self._changed((_SHARED / "default-configuration").read_text(), _CONFIGURATION, words)
        _run("spooldefaults", "configuration", configuration)
        _run("spooldefaults", "complexes", str(_SHARED / "util/resources/centry"))
        _run("spooldefaults", "usersets", str(_SHARED / "util/resources/usersets"))
        _run("spooldefaults", "managers", "root")
        self._daemon("sge_qmaster")
        self._await("qconf", "-sconf")
        for name in ("head", *self._hosts.names):
            _run("qconf", "-ah", name)
        _run("qconf", "-as", "head")
        _run("qconf", "-Msconf", self._changed(_run("qconf", "-ssconf"), _SCHEDULER, words))
        _run("qconf", "-Ap", str(_SHARED / "util/resources/pe/smp"))
        for name in self._hosts.names:
            self.start_node(name)
        _run("qconf", "-Aq", self._changed(_run("qconf", "-sq"), {"qname": "all.q", **_QUEUE}, words))
        self._await("sh", "-c", f"qhost | grep -c ' {_ARCH} .* [0-9.]*G ' | grep -x {len(self._hosts.names)}")

    def _changed(self, text: str, changes: dict[str, str], words: dict[str, object]) -> str:
        """A file with these settings replaced; returns its name."""
        lines = [line for line in text.splitlines() if line.split(" ")[0].split("\t")[0] not in changes]
        lines += [f"{name} {value.format(**words)}" for name, value in changes.items()]
        path = self.folder / f"settings.{len(list(self.folder.glob('settings.*')))}"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def _daemon(self, *command: str) -> None:
        log = (self.folder / "daemons.log").open("ab")
        self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        log.close()

    def _await(self, *command: str) -> None:
        deadline_s = time.monotonic() + 20
        while subprocess.run(command, capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{' '.join(command)}: {(self.folder / 'daemons.log').read_text()}")
            time.sleep(0.1)

    def start_node(self, name: str) -> None:
        """Start sge_execd on a host, also after it was off."""
        self._daemon(*self._hosts[name].command("sge_execd"))

    def jobs(self) -> list[str]:
        """Ids of jobs that wait or run."""
        return [line.split()[0] for line in _run("qstat").splitlines() if line.split()[0].isdecimal()]

    def cancel(self, job: str) -> None:
        """End a job."""
        _run("qdel", job)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            _run("qdel", "-u", "root")
        for daemon in reversed(self._daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        if _ROOT == _UNPACKED:
            subprocess.run(["umount", "-l", "/usr/lib"], capture_output=True, check=False)
        for name in set(os.environ) - set(self._before):
            del os.environ[name]
        os.environ |= self._before


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout
