"""``mpi``: an agent on each node that mpiexec reaches, by hosts that are named or by the batch job that this is in.

mpiexec (Open MPI, or MPICH and others with Hydra) only starts the agents: they leave it as soon as they have joined, so
that neither one that ends nor a Ctrl-C takes the others along. Ranks communicate with gloo and NCCL, not with MPI.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from hpcnb.cluster.launchers.addresses import address_towards, own_address
from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, fatal, hosts_of, problem_of, spread
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
            if (last := fatal(said)) is not None:
                return problem_of("of mpiexec", self._python, said[: last + 1])
            if command.status not in (None, 0):
                return Problem(
                    f"mpiexec failed: {said[-1] if said else f'status {command.status}'}", tuple(said[-15:-1])
                )
        return None

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
