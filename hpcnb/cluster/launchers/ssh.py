"""``ssh``: a node agent on each of some hosts, all at once; the logins end when the agents have joined."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from hpcnb.cluster.launchers.addresses import address_towards
from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, hosts_of, problem_of, spread
from hpcnb.core.errors import OptionError
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
        LaunchError: The first host cannot be reached.
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
        self._hosts = named
        self.layout = spread(num_ranks, len(named), ranks_per_node)
        self._python = python or sys.executable
        self._setup = setup
        self._options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
        for flag, value in (("-l", user), ("-p", port), ("-J", jump), ("-F", ssh_config)):
            self._options += [flag, str(value)] if value is not None else []
        self.address = address or address_towards(named[0].rpartition("@")[2])
        self._logins: dict[str, Command] = {}  # that have not ended, by host

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """Log in to all of them at once; the ticket goes through the login's stdin."""
        for node in nodes:
            command = f"exec {shlex.quote(self._python)} -m hpcnb.node.join --node {node}"
            if self._setup:
                command = f"{self._setup} && {command}"
            host = self._hosts[node]
            self._logins[host] = Command(["ssh", *self._options, host, command], stdin=ticket.to_text() + "\n")

    def look(self) -> Problem | None:
        """See NodeLauncher."""
        for host, login in list(self._logins.items()):
            if login.status is None:
                continue
            del self._logins[host]
            said, status = login.lines(), login.status
            login.forget()
            if status == _SSH_FAILED:
                why = said[-1] if said else "ssh said nothing"
                return Problem(f"ssh to {host} failed: {why}; try  ssh {host} true", tuple(said[:-1]))
            if status != 0:
                return problem_of(host, self._python, said)
        return None

    def words(self) -> str:
        """See NodeLauncher."""
        return f"logging in to {', '.join(self._logins)}" if self._logins else ""

    def cancel(self) -> None:
        """See NodeLauncher."""
        for login in self._logins.values():
            login.kill()
        self._logins.clear()
