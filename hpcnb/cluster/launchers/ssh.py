"""``ssh``: a node agent on each of some hosts, all at once; the logins end when the agents have joined."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence

from hpcnb.cluster.launchers.addresses import address_towards
from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, hosts_of, spread
from hpcnb.cluster.preflight.checks import Check
from hpcnb.cluster.preflight.ssh import of_login
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.launch import Ticket

__all__ = ["SshLauncher"]

#: A login that does not come about within so long has failed.
_CONNECT_S = 10
#: The status of ssh itself, when it is not that of the command.
_SSH_FAILED = 255


class SshLauncher(NodeLauncher):
    """Starts agents over SSH.

    Args:
        num_ranks: World size; by default ``ranks_per_node`` on every host.
        hosts: Names as ssh takes them, ``n1,n2`` or a list; also ``user@host``.
        ranks_per_node: The same on every host.
        python: Interpreter on the hosts; by default the path of this one.
        user: Login name.
        port: Of sshd.
        jump: Host to go through, as ``ssh -J`` takes it.
        ssh_config: File for ``ssh -F``.
        setup: Shell command before Python, ``source env.sh``.
        address: IP address of this machine that the hosts reach; by default the one on the way to the first host.

    Raises:
        OptionError: No hosts, or numbers that contradict each other.
        LaunchError: There is no ssh here, or no way to any of the hosts.
    """

    def __init__(  # noqa: PLR0913 - all but the first are options by name
        self,
        num_ranks: int | None,
        *,
        hosts: str | list[str] | None = None,
        ranks_per_node: int | None = None,
        python: str | None = None,
        user: str | None = None,
        port: int | None = None,
        jump: str | None = None,
        ssh_config: str | None = None,
        setup: str | None = None,
        address: str | None = None,
    ) -> None:
        if not (named := hosts_of(hosts)):
            msg = (
                "launcher ssh needs the names of hosts; for example  hosts='n1,n2'  or  "
                "%hpc start 8 --launcher ssh --hosts n1,n2"
            )
            raise OptionError(msg)
        if shutil.which("ssh") is None:
            msg = "launcher ssh needs the command ssh, and there is none here; install it:  apt install openssh-client"
            raise LaunchError(msg)
        self._hosts = named
        self.layout = spread(num_ranks, len(named), ranks_per_node)
        self._python = python or sys.executable
        self._setup = setup
        self._asked: list[str] = []  # options of ssh that the person has given
        for flag, value in (("-l", user), ("-p", port), ("-J", jump), ("-F", ssh_config)):
            self._asked += [flag, str(value)] if value is not None else []
        self._options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", *self._asked]
        self.address = address or _address_towards_one_of([host.rpartition("@")[2] for host in named])
        self._logins: dict[str, Command] = {}  # that have not ended, by host

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """Log in to all of them at once; the ticket goes through the login's stdin."""
        for node in nodes:
            arguments = ["-m", "hpcnb.node.join", "--node", str(node)]
            self._logins[self._hosts[node]] = self._login(node, arguments, ticket.to_text() + "\n")

    def visit(self, arguments: Sequence[str], nodes: Sequence[int]) -> dict[str, Command]:
        """See NodeLauncher."""
        return {self.called(node): self._login(node, arguments) for node in nodes}

    def _login(self, node: int, arguments: Sequence[str], stdin: str = "") -> Command:
        command = f"exec {shlex.join([self._python, *arguments])}"
        if self._setup:
            command = f"{self._setup} && {command}"
        return Command(["ssh", *self._options, self._hosts[node], command], stdin=stdin)

    def called(self, node: int) -> str:
        """See NodeLauncher."""
        return self._hosts[node].rpartition("@")[2]

    def look(self) -> Problem | None:
        """See NodeLauncher."""
        for host, login in list(self._logins.items()):
            if login.status is None:
                continue
            del self._logins[host]
            said, status = login.lines(), login.status
            login.forget()
            if status != 0:
                return self.refused(host, said, status)
        return None

    def refused(self, where: str, said: Sequence[str], status: int | None) -> Problem:
        """See NodeLauncher: what ssh itself says is told from what Python there says."""
        if status != _SSH_FAILED:
            return super().refused(where, said, status)
        host = next((each for each in self._hosts if where in (each, each.rpartition("@")[2])), where)
        why = said[-1] if said else "ssh said nothing"
        if (check := of_login(host, said, self._asked)) is not None:
            return Problem(f"ssh to {host} failed: {why}: {check.words}; {check.fix}", check=check)
        login = " ".join(["ssh", *self._asked, host])
        unknown = Check("login", where, "fail", f"ssh failed: {why}", f"{login} true   shows more with -v")
        return Problem(f"ssh to {host} failed: {why}; try  {login} true", tuple(said[:-1]), check=unknown)

    def said(self) -> list[str]:
        """See NodeLauncher."""
        return [f"{host}: {lines[-1]}" for host, login in self._logins.items() if (lines := login.lines())]

    def words(self) -> str:
        """See NodeLauncher."""
        return f"logging in to {', '.join(self._logins)}" if self._logins else ""

    def cancel(self) -> None:
        """See NodeLauncher."""
        for login in self._logins.values():
            login.kill()
        self._logins.clear()


def _address_towards_one_of(hosts: Sequence[str]) -> str:
    """The address on the way to the first that has one: a slip in one name is told by its own login."""
    for host in hosts[:-1]:
        try:
            return address_towards(host)
        except LaunchError:
            continue
    return address_towards(hosts[-1])
