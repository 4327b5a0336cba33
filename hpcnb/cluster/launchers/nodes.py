"""What launchers of many nodes have in common: how ranks are spread, how nodes reach us, and what they say when not."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.preflight.checks import Check
from hpcnb.core.errors import OptionError
from hpcnb.core.launch import Ticket
from hpcnb.core.version import __version__

__all__ = ["NodeLauncher", "Problem", "fatal", "hosts_of", "problem_of", "spread"]

#: How a node says in one line that it does not start.
_FATAL = re.compile(r"^(VERSION |UNREACHABLE |.*No module named|.*(not|Not) found|.*No such file|[\w.]*Error\b)")


@dataclass(frozen=True)
class Problem:
    """Why a node does not start.

    Attributes:
        reason: One line, and what to do about it.
        lines: The last lines of what was said there.
        version_mismatch: It runs another version of hpcnb or Python.
        check: Which of the checks before a launch it is; None if they have yet to find out.
    """

    reason: str
    lines: tuple[str, ...] = ()
    version_mismatch: bool = False
    check: Check | None = None


class NodeLauncher(ABC):
    """Starts the agents of nodes, which then join the head by themselves.

    Attributes:
        layout: Number of ranks of each node.
        address: IP address of this machine that the nodes reach.
    """

    layout: list[int]
    address: str
    _python: str = sys.executable  # interpreter on the nodes

    @abstractmethod
    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """Start these, by their number from 0; returns at once."""

    @abstractmethod
    def look(self) -> Problem | None:
        """Whether one of them will not start; asked again and again until all have joined."""

    @abstractmethod
    def cancel(self) -> None:
        """Give up what was launched and has not joined."""

    def called(self, node: int) -> str:
        """What a person calls this node, by its number from 0."""
        return f"number {node}"

    def said(self) -> list[str]:
        """The last lines of what those have said that were launched and have not joined."""
        return []

    # --- checks before a launch: by default only this machine is looked at --------------------------------------

    def checks(self) -> list[Check]:
        """What can be seen from here before anything starts: that a partition exists."""
        return []

    def visit(self, arguments: Sequence[str], nodes: Sequence[int]) -> dict[str, Command]:  # noqa: ARG002 - see below
        """Run the nodes' Python with these arguments, beside any agents; returns at once.

        Returns:
            What runs, by name of the node; "" for all of them together. Empty if this launcher cannot.
        """
        return {}

    def refused(self, where: str, said: Sequence[str], status: int | None) -> Problem:
        """What a visit has come to that has found nothing out; ``status`` is None if it has not ended."""
        if status is None and not said:
            return Problem(f"node {where} has said nothing yet", check=Check(
                "start", where, "fail", "is reached, but its Python has not begun: a slow login script or file system",
                f"on {where}:  time {self._python} -c pass")
            )  # fmt: skip
        return problem_of(where, self._python, said)

    def words(self) -> str:
        """How far it is, for a person who waits: ``job 17 waits for resources``; "" for nothing of note."""
        return ""

    @property
    def is_queued(self) -> bool:
        """Whether a scheduler has yet to begin: the time for the start has not begun either."""
        return False

    def started(self) -> None:
        """All that were launched have joined. By default nothing here need go on."""
        self.cancel()

    def ended(self) -> None:  # noqa: B027 - most leave nothing here
        """The cluster has ended: nothing of it is left here."""

    def lasting(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options by which another notebook makes a launcher of the same nodes: numbers, texts and lists of these.

        Args:
            options: That this one was made with; they are, by default.
        """
        return options


def hosts_of(hosts: str | Sequence[str] | None) -> list[str]:
    """Names of hosts as a person gives them, ``n1,n2`` or a list.

    Raises:
        OptionError: One of them is no name of a host.
    """
    named = hosts.replace(",", " ").split() if isinstance(hosts, str) else list(hosts or [])
    for host in named:
        if not isinstance(host, str) or not host or host.startswith("-"):
            msg = f"{host!r} is no name of a host; for example  hosts='n1,n2'"
            raise OptionError(msg)
    return named


def spread(num_ranks: int | None, num_nodes: int, ranks_per_node: int | None) -> list[int]:
    """Number of ranks of each node, as even as can be, the first nodes having more.

    Raises:
        OptionError: There are fewer ranks than nodes, or the numbers contradict each other.
    """
    if num_ranks is None:
        return [ranks_per_node or 1] * num_nodes
    if ranks_per_node is not None and num_ranks != ranks_per_node * num_nodes:
        product = num_nodes * ranks_per_node
        msg = f"{num_nodes} nodes with {ranks_per_node} ranks each are {product} ranks, not {num_ranks}"
        raise OptionError(msg)
    if num_ranks < num_nodes:
        msg = (
            f"{num_ranks} rank{'s' if num_ranks > 1 else ''} cannot be spread over {num_nodes} nodes; give fewer nodes"
        )
        raise OptionError(msg)
    return [num_ranks // num_nodes + (node < num_ranks % num_nodes) for node in range(num_nodes)]


def fatal(said: Sequence[str]) -> int | None:
    """Which line says that a node does not start, of what a command that still runs has said; None if none does."""
    return next((index for index, line in enumerate(said) if _FATAL.match(line)), None)


def problem_of(host: str, python: str, said: Sequence[str]) -> Problem:
    """What a node that did not start has said, in words that tell what to do.

    Args:
        host: The node.
        python: Interpreter that was tried.
        said: What it wrote, line by line.
    """
    where = f"node {host}" if host.startswith("number ") else host
    lines = tuple(line for line in said if line.strip())[-15:]
    last = lines[-1] if lines else ""
    if last.startswith("VERSION "):
        return Problem(last.removeprefix("VERSION "), version_mismatch=True)
    if last.startswith("UNREACHABLE "):
        address, _, rest = last.removeprefix("UNREACHABLE ").partition(" from ")
        why = rest.partition(": ")[2]
        return Problem(
            f"node {host} cannot reach this machine at {address} ({why}); open that way in the firewall, or choose the "
            "address of another interface: address=..."
        )
    if "No module named 'hpcnb'" in last or "No module named hpcnb" in last:
        what, fix = f"no hpcnb for {python}", f"{python} -m pip install hpcnb=={__version__}"
        check = Check(
            "versions", where, "fail", f"{what}, the notebook runs hpcnb {__version__}", f"on {where}:  {fix}"
        )
        return Problem(f"node {host} has {what}; install it there:  {fix}", check=check)
    if "No module named" in last:
        return Problem(f"node {host}: {python} lacks a module: {last}", lines)
    if python in last and ("not found" in last or "No such file" in last or "could not find" in last):
        what, fix = f"no interpreter {python}", "choose one that is there"
        check = Check("python", where, "fail", what, f"{fix}:  --python PATH   (on {where}:  command -v python3)")
        return Problem(f"node {host} has {what}; {fix}: python=...", lines, check=check)
    return Problem(f"node {host} did not start: {last or 'it said nothing'}", lines[:-1])
