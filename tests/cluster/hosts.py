"""Virtual hosts on this machine, for tests: namespaces with an address, a name, processes and an sshd of their own.

The process that makes them is the *head*: tools/private_network.sh has put it into network, mount and UTS namespaces
of its own, so nothing here is seen outside, and all of it is gone when that process ends. Hosts are named n1, n2, …;
each has its own network stack (a veth on the head's bridge, rate-limited on wish), hostname, process ids, /dev/shm,
monotonic clock (where the kernel can), home and TMPDIR. They share the file system else, and one kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HEAD_IP", "Host", "Hosts", "why_not"]

_NET = "10.77.0"
HEAD_IP = f"{_NET}.254"
_NEEDS = ("ip", "tc", "nsenter", "unshare", "/usr/sbin/sshd", "ssh-keygen")
_SSHD = """Port 22
ListenAddress {ip}
HostKey {folder}/hostkey
AuthorizedKeysFile {keys}/id.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile {folder}/sshd.pid
SetEnv PATH={path} TMPDIR={folder}/tmp PYTHONPATH={python_path}
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""
_INIT = """set -e
hostname {name}
mount -t proc proc /proc
mount -t tmpfs -o size=2g none /dev/shm
mount --bind {folder}/passwd /etc/passwd
export HOME={folder}/home TMPDIR={folder}/tmp
read -r _  # the head has given us a network
/usr/sbin/sshd -f {folder}/sshd_config -E {folder}/sshd.log
set +e  # a child that was adopted interrupts the wait
trap : CHLD
while :; do sleep 3600 & wait; done
"""
_SSH_CONFIG = """Host n*
  User root
  IdentityFile {keys}/id
  StrictHostKeyChecking no
  UserKnownHostsFile {keys}/known_hosts
  LogLevel ERROR
  ConnectTimeout 5
"""


def why_not() -> str:
    """Why there can be no virtual hosts here; "" if there can."""
    if os.geteuid() != 0:
        return "virtual hosts need root"
    if os.environ.get("HPCNB_PRIVATE_NETWORK") != "1":
        return "virtual hosts need a network of their own: run tests with  make test"
    missing = [need for need in _NEEDS if shutil.which(need) is None]
    return f"virtual hosts need {', '.join(missing)}" if missing else ""


def _run(*command: str, timeout_s: float = 20.0) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s).stdout


@dataclass
class Host:
    """One virtual host.

    Attributes:
        name: ``n1``.
        ip: Its address.
        folder: Its files, as seen from the head.
        outer: The process that its namespaces live and die with.
        pid: Its first process, as seen from the head; 0 while it is off.
    """

    name: str
    ip: str
    folder: Path
    outer: subprocess.Popen[bytes] | None = None
    pid: int = 0

    def command(self, *command: str) -> list[str]:
        """The command that runs ``command`` on this host."""
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-p", "env", f"HOME={self.folder}/home",
                f"TMPDIR={self.folder}/tmp", *command]  # fmt: skip

    def run(self, *command: str, timeout_s: float = 20.0) -> str:
        """Run a command here; returns what it printed."""
        return _run(*self.command(*command), timeout_s=timeout_s)

    def processes(self) -> list[str]:
        """Command lines of all processes but its first and sshd."""
        listed = self.run("ps", "-eo", "pid=,ppid=,args=").splitlines()
        return [line for line in listed if not any(word in line for word in ("sshd", "sleep 3600", "sh /", " ps "))]


class Hosts:
    """Virtual hosts on one bridge; a context manager.

    Args:
        num_hosts: How many.
        rate: Of each link, as tc takes it, ``1gbit``; "" is not limited.
    """

    def __init__(self, num_hosts: int, *, rate: str = "") -> None:
        self._rate = rate
        self._root = Path(tempfile.mkdtemp(prefix="hpcnb-hosts-", dir="/tmp"))
        self._keys = self._root / "keys"
        self.hosts = {
            f"n{number}": Host(f"n{number}", f"{_NET}.{10 + number}", self._root / f"n{number}")
            for number in range(1, num_hosts + 1)
        }

    def __enter__(self) -> Self:
        try:
            self._prepare()
            for name in self.hosts:
                self.on(name)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def names(self) -> list[str]:
        """``["n1", "n2", …]``."""
        return list(self.hosts)

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``."""
        return self._root / "ssh_config"

    def _prepare(self) -> None:
        self._keys.mkdir(mode=0o700)
        Path("/run/sshd").mkdir(exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self._keys}/id")
        self.ssh_config.write_text(_SSH_CONFIG.format(keys=self._keys))
        _run("ip", "link", "add", "br0", "type", "bridge")
        _run("ip", "addr", "add", f"{HEAD_IP}/24", "dev", "br0")
        _run("ip", "link", "set", "br0", "up")
        names = ["127.0.0.1 localhost", f"{HEAD_IP} head"]
        names += [f"{host.ip} {host.name}" for host in self.hosts.values()]
        (self._root / "hosts").write_text("\n".join(names) + "\n")
        _run("mount", "--bind", str(self._root / "hosts"), "/etc/hosts")  # in this mount namespace
        for host in self.hosts.values():
            for folder in (host.folder / "home", host.folder / "tmp"):
                folder.mkdir(parents=True)
            (host.folder / "tmp").chmod(0o1777)
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{host.folder}/hostkey")
            passwd = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
            homes = (":".join([*f[:5], f"{host.folder}/home" if f[0] == "root" else f[5], *f[6:]]) for f in passwd)
            (host.folder / "passwd").write_text("\n".join(homes) + "\n")
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            words = {"ip": host.ip, "folder": host.folder, "keys": self._keys, "path": path, "name": host.name,
                     "python_path": os.environ.get("PYTHONPATH", "")}  # fmt: skip
            (host.folder / "sshd_config").write_text(_SSHD.format(**words))
            (host.folder / "init.sh").write_text(_INIT.format(**words))

    def on(self, name: str) -> None:
        """Switch a host on; returns when its sshd listens."""
        host = self.hosts[name]
        (host.folder / "sshd.pid").unlink(missing_ok=True)
        outer = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", *self._clock(name),
             "sh", str(host.folder / "init.sh")],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        host.outer = outer
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        _await(lambda: children.read_text().strip() != "", f"{name}: no first process")
        host.pid = int(children.read_text())
        wire = f"v-{name}"
        with contextlib.suppress(subprocess.CalledProcessError):  # of a host that was switched off
            _run("ip", "link", "del", wire)
        # unshare has made the namespaces before it forked
        _run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        _run("ip", "link", "set", wire, "master", "br0", "up")
        inside = ("nsenter", "-t", str(host.pid), "-n")
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run(*inside, "ip", "addr", "add", f"{host.ip}/24", "dev", "eth0")
        # the same as before it was switched off, which others remember
        _run(*inside, "ip", "link", "set", "eth0", "address", f"02:00:00:00:00:{int(host.ip.rpartition('.')[2]):02x}")
        _run(*inside, "ip", "link", "set", "eth0", "up")
        if self._rate:
            limit = ("root", "tbf", "rate", self._rate, "burst", "128kb", "latency", "20ms")
            _run("tc", "qdisc", "replace", "dev", wire, *limit)
            _run(*inside, "tc", "qdisc", "replace", "dev", "eth0", *limit)
        assert outer.stdin is not None
        outer.stdin.write(b"\n")
        outer.stdin.close()
        _await(lambda: _listens(host.ip), f"{name}: sshd does not start")

    @staticmethod
    def _clock(name: str) -> list[str]:
        """Monotonic clocks begin when a machine does; hosts that all show the head's would hide mistakes."""
        clock = ["--time", "--monotonic", f"{1000 * int(name[1:])}"]
        return clock if subprocess.run(["unshare", "--fork", *clock, "true"], check=False).returncode == 0 else []

    def off(self, name: str) -> None:
        """Power off: all its processes end at once, and no FIN or RST reaches anyone."""
        self.link(name, up=False)
        host = self.hosts[name]
        if host.outer is not None:
            host.outer.kill()  # and with it the host's first process, and so all of them
            host.outer.wait()
        host.outer, host.pid = None, 0

    def link(self, name: str, *, up: bool) -> None:
        """Cut or heal a host's link."""
        _run("ip", "link", "set", f"v-{name}", "up" if up else "down")

    def down(self) -> None:
        """Remove all."""
        for host in self.hosts.values():
            if host.outer is not None:
                host.outer.kill()
                host.outer.wait()
        for command in (("umount", "/etc/hosts"), ("ip", "link", "del", "br0")):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(*command)
        shutil.rmtree(self._root, ignore_errors=True)


def _listens(ip: str) -> bool:
    try:
        socket.create_connection((ip, 22), timeout=1.0).close()
    except OSError:
        return False
    return True


def _await(condition: object, problem: str, timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline_s:
            raise TimeoutError(problem)
        time.sleep(0.02)
