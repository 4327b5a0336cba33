"""``mpi``: an agent on each node that mpiexec reaches, by hosts that are named or by the batch job that this is in.

mpiexec (Open MPI, or MPICH and others with Hydra) only starts the agents: they leave it as soon as they have joined, so
that neither one that ends nor a Ctrl-C takes the others along. Ranks communicate with gloo and NCCL, not with MPI.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from hpcnb.cluster.launchers.addresses import address_towards, has_address, own_address
from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, fatal, hosts_of, problem_of, spread
from hpcnb.cluster.preflight.checks import Check
from hpcnb.cluster.preflight.ssh import of_login
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.launch import TICKET_VARIABLE, Ticket

__all__ = ["MpiLauncher"]

_ASK_S = 20.0


class MpiLauncher(NodeLauncher):
    """Starts agents with mpiexec.

    Args:
        num_ranks: World size; by default ``ranks_per_node`` on every node.
        hosts: Names of hosts, ``n1,n2`` or a list; without them mpiexec asks the batch job that it is in.
        nodes: How many, where no hosts are named.
        ranks_per_node: The same on every node.
        mpiexec: The command, and options that always come first.
        python: Interpreter on the nodes; by default the path of this one.
        address: IP address of this machine that the nodes reach.

    Raises:
        OptionError: Neither hosts nor a number of nodes, or numbers that contradict each other.
        LaunchError: There is no mpiexec, or none that is known.
    """

    def __init__(
        self,
        num_ranks: int | None,
        *,
        hosts: str | list[str] | None = None,
        nodes: int | None = None,
        ranks_per_node: int | None = None,
        mpiexec: str = "mpiexec",
        python: str | None = None,
        address: str | None = None,
    ) -> None:
        self._hosts = hosts_of(hosts)
        if not self._hosts and nodes is None:
            msg = "launcher mpi needs hosts, or the number of nodes of the batch job; for example  hosts='n1,n2'"
            raise OptionError(msg)
        if self._hosts and nodes not in (None, len(self._hosts)):
            msg = f"{len(self._hosts)} hosts are named, and nodes={nodes}; one of the two is enough"
            raise OptionError(msg)
        self.layout = spread(num_ranks, len(self._hosts) or nodes or 1, ranks_per_node)
        self._mpiexec = shlex.split(mpiexec)
        if not self._mpiexec or shutil.which(self._mpiexec[0]) is None:
            msg = (
                f"launcher mpi needs the command {mpiexec}, and there is none here; load a module, or give mpiexec=..."
            )
            raise LaunchError(msg)
        self._python = python or sys.executable
        self.address = address or (address_towards(self._hosts[0]) if self._hosts else own_address())
        self._commands: list[Command] = []

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """See NodeLauncher; the ticket goes through the environment, which only this user sees."""
        arguments = ["-m", "hpcnb.node.join", "--nodes", ",".join(map(str, nodes))]
        self._commands.append(self._run(arguments, nodes, ticket.to_text()))

    def visit(self, arguments: Sequence[str], nodes: Sequence[int]) -> dict[str, Command]:
        """See NodeLauncher."""
        return {"": self._run(arguments, nodes, "none")}

    def _run(self, arguments: Sequence[str], nodes: Sequence[int], ticket: str) -> Command:
        hosts = ",".join(self._hosts[node] for node in nodes) if self._hosts else ""
        words = [*self._mpiexec, "-n", str(len(nodes)), *self._one_per_node(hosts), self._python, *arguments]
        return Command(words, environment={TICKET_VARIABLE: ticket})

    def called(self, node: int) -> str:
        """See NodeLauncher."""
        return self._hosts[node] if self._hosts else super().called(node)

    def said(self) -> list[str]:
        """See NodeLauncher."""
        return [line for command in self._commands for line in command.lines()[-3:]]

    def _one_per_node(self, hosts: str) -> list[str]:
        asked = subprocess.run(
            [*self._mpiexec[:1], "--version"], capture_output=True, text=True, timeout=_ASK_S, check=False
        )  # fmt: skip
        said = asked.stdout + asked.stderr
        if "Open MPI" in said or "OpenRTE" in said:
            return ["--map-by", "ppr:1:node", "-x", TICKET_VARIABLE, *(["--host", hosts] if hosts else [])]
        if "HYDRA" in said or "Intel" in said:
            return ["-ppn", "1", "-genvlist", TICKET_VARIABLE, *(["-hosts", hosts] if hosts else [])]
        first = said.splitlines()[0] if said else "nothing"
        msg = f"{self._mpiexec[0]} is neither Open MPI nor MPICH (it says: {first}); use  --launcher ssh  or slurm"
        raise LaunchError(msg)

    def look(self) -> Problem | None:
        """See NodeLauncher."""
        for command in self._commands:
            said = command.lines()
            last = fatal(said)
            if command.status not in (None, 0):
                refused = self.refused("", said, command.status)
                if last is None or (refused.check is not None and refused.check.name != "mpiexec"):
                    return refused
            if last is not None:
                return problem_of("of mpiexec", self._python, said[: last + 1])
        return None

    def refused(self, where: str, said: Sequence[str], status: int | None) -> Problem:
        """See NodeLauncher: mpiexec speaks for all nodes, also for the ssh that it uses."""
        text = "\n".join(said)
        named = [host for host in self._hosts if re.search(rf"\b{re.escape(host)}\b", text)]
        plain = [line.strip() for line in said if re.search(r"\w", line)]
        why = plain[-1] if plain else f"it ended with status {status}"
        if self._python in text and re.search("unable to (launch|find)|execvp error", text):
            host = next(iter(re.findall(r"Node: *(\S+)", text)), where or "a node")
            fix = f"choose one that is there:  --python PATH   (on {host}:  command -v python3)"
            check = Check("python", host, "fail", f"no interpreter {self._python}", fix)
        elif (of_ssh := of_login(where or next(iter(named), "a node"), said)) is not None:
            check = of_ssh
        else:
            hosts = f" --host {','.join(self._hosts)}" if self._hosts else ""
            trial = f"{shlex.join(self._mpiexec)} -n {len(self.layout)}{hosts} hostname   shows more"
            return Problem(
                f"mpiexec failed: {why}", tuple(plain[-15:-1]), check=Check("mpiexec", "nodes", "fail", why, trial)
            )
        return Problem(f"mpiexec failed: {check.where}: {check.words}; {check.fix}", check=check)

    def checks(self) -> list[Check]:
        """See NodeLauncher: names that have no address make mpiexec say everything but that."""
        return [
            Check("names", host, "fail", f"the name {host} has no address here",
                  f"look for a slip; else give it one:  echo 'IP {host}' | sudo tee -a /etc/hosts")
            for host in self._hosts if not has_address(host)
        ]  # fmt: skip

    def started(self) -> None:
        """See NodeLauncher: mpiexec ends by itself when all agents have joined."""
        for command in self._commands:
            command.wait(5.0)
        self.cancel()

    def cancel(self) -> None:
        """See NodeLauncher."""
        for command in self._commands:
            command.kill()
        self._commands = []
