"""Checks before a launch, and after one that failed: looks at this machine and at nodes, and says what is wrong."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcnb.cluster.preflight.checks import HERE, Check, Report, lines_of
from hpcnb.cluster.preflight.facts import Facts
from hpcnb.cluster.preflight.nodes import of_node, of_peers
from hpcnb.cluster.preflight.resources import folder, limits
from hpcnb.cluster.preflight.wants import Wants
from hpcnb.cluster.reception import Reception
from hpcnb.cluster.visit import Plan, Seen, look_around
from hpcnb.core.errors import LaunchError
from hpcnb.core.units import count
from hpcnb.core.version import __version__

if TYPE_CHECKING:
    from hpcnb.cluster.node import Node
    from hpcnb.cluster.nodes import Nodes

__all__ = ["doctor", "examine", "explained"]

#: What agents and ranks import, by name of the distribution.
_WANTED = {
    "torch": "torch", "pyzmq": "zmq", "msgpack": "msgpack", "ipyparallel": "ipyparallel", "ipykernel": "ipykernel",
    "ipython": "IPython", "numpy": "numpy", "cloudpickle": "cloudpickle",
}  # fmt: skip
#: Nodes that have said nothing by then are given up: when asked for, and when a launch has failed.
_LOOK_S, _EXPLAIN_S = 25.0, 12.0
_INSTALL_S = 120.0
_MOST_LINES = 15
#: The check of nodes whose launcher cannot run anything there but agents.
_UNSEEN = "look"


def doctor(num_ranks: int | None = None, *, launcher: str = "local", install: bool = False, **options: Any) -> Report:
    """Check what a start with these options needs, without starting anything; prints as a table.

    Args:
        num_ranks: As for :class:`hpcnb.Cluster`.
        launcher: Who would start the nodes.
        install: Put this hpcnb on nodes that have none, or another version.
        options: The others of :class:`hpcnb.Cluster`.

    Returns:
        Every check in one line, with what mends it; true if none fails.

    Raises:
        MeshError: The mesh does not fit the number of ranks.
        OptionError: There is no such launcher or option, or a number is out of range.
    """
    from hpcnb.cluster.cluster import Cluster

    began_s = time.monotonic()
    try:
        plan = Cluster(num_ranks, launcher=launcher, **options).plan
    except LaunchError as error:
        words, _, fix = str(error).rpartition("; ")
        check = Check("launcher", HERE, "fail", words or fix, fix if words else "")
        return Report(f"launcher {launcher}", (check,), time.monotonic() - began_s)
    found: dict[str, Facts] = {}
    checks = examine(plan, timeout_s=_LOOK_S, found=found)
    if install:
        from hpcnb.cluster.installing import install_on

        done = install_on(plan, found, python=_python(), timeout_s=_INSTALL_S)
        checks = [*done, *(examine(plan, timeout_s=_LOOK_S) if done else checks)]
    return Report(_title(plan), tuple(checks), time.monotonic() - began_s)


def _title(plan: Plan) -> str:
    ranks = count(sum(plan.layout), "rank")
    return f"{ranks} on {HERE}" if plan.launcher is None else f"{ranks} on {count(len(plan.layout), 'node')}"


def examine(
    plan: Plan, *, timeout_s: float, logs: Sequence[str] = (), found: dict[str, Facts] | None = None
) -> list[Check]:
    """Everything that can be checked about a plan.

    Args:
        plan: What would be started.
        timeout_s: Nodes that have said nothing by then are given up.
        logs: Files on the nodes whose last lines are wanted, as checks of the name ``log``.
        found: Is filled with what was seen, by node.
    """
    if plan.launcher is None:
        seen = look_around(plan, None, _WANTED, timeout_s=timeout_s)
        return _of_all(plan, seen)
    checks = plan.launcher.checks()
    if any(check.level == "fail" for check in checks):
        return checks  # nothing would start, so nobody can be looked at
    try:
        reception = Reception(plan.launcher.address)
    except OSError as error:
        words = f"nodes are told to reach this machine at {plan.launcher.address}: {error.strerror or error}"
        return [
            *checks,
            Check("address", HERE, "fail", words, "--address IP   (ip -br addr  shows those of this machine)"),
        ]
    with reception:
        seen = look_around(plan, reception, _WANTED, timeout_s=timeout_s, logs=logs)
    if found is not None:
        found |= seen.facts
    return [*checks, *_of_address(plan.launcher.address, len(plan.layout)), *_of_all(plan, seen)]


def _of_address(address: str, num_nodes: int) -> list[Check]:
    if address.startswith("127.") and num_nodes > 1:
        words = f"nodes are told to reach this machine at {address}, which stands for each of them itself"
        return [Check("address", HERE, "warn", words, "--address IP   (ip -br addr  shows those of this machine)")]
    return [Check("address", HERE, "ok", f"nodes reach it at {address}, any port of {_ports()}")]


def _of_all(plan: Plan, seen: Seen) -> list[Check]:
    checks: list[Check] = []
    for where, problem in seen.problems.items():
        checks.append(problem.check or Check("start", where or "nodes", "fail", problem.reason))
    if not seen.is_possible:
        words = "nodes of this launcher can be looked at only once they have started"
        checks.append(Check(_UNSEEN, "nodes", "ok", words))
    checks += of_peers(seen.facts, _ports())
    most = max(plan.layout)
    for where, facts in seen.facts.items():
        is_here = where == HERE
        num_ranks = (sum(plan.layout) if plan.launcher is None else 0) if is_here else most
        wants = _wants(plan, num_ranks=num_ranks, is_here=is_here)
        if is_here and plan.launcher is not None:  # only the head is here
            checks += [*limits(where, facts, wants), *folder(where, facts)]
            continue
        if not is_here:
            checks.append(Check("login", where, "ok", f"{facts.executable} runs"))
        checks += of_node(where, facts, wants)
        checks += [Check("log", where, "ok", line) for lines in facts.logs.values() for line in lines]
    return checks


def _wants(plan: Plan, *, num_ranks: int, is_here: bool) -> Wants:
    return Wants(
        python=_python(),
        hpcnb=__version__,
        packages={name: _version(name) for name in _WANTED},
        num_ranks=num_ranks,
        world_size=sum(plan.layout),
        address=plan.launcher.address if plan.launcher is not None else "",
        ports=_ports(),
        is_here=is_here,
    )


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"


def _ports() -> str:
    """The kernel gives listeners one of these."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return f"{first}-{last}"


# --- after a launch that failed ---------------------------------------------------------------------------------


def explained(error: LaunchError, plan: Plan, nodes: Nodes | None, node: Node | None) -> LaunchError:
    """The same error with the checks that fail, and the last lines of the log of the first node that failed.

    What the error says already is not looked for again. Ctrl-C leaves it at that.
    """
    problem = nodes.problem if nodes is not None else None
    if problem is not None and problem.check is not None:
        return error
    logs = nodes.logs() if nodes is not None else []
    try:
        checks = examine(plan, timeout_s=_EXPLAIN_S, logs=logs)
    except KeyboardInterrupt:
        return type(error)(f"{error}\n(the checks of what is wrong were interrupted;  %hpc doctor  begins them again)")
    except OSError as trouble:
        return type(error)(f"{error}\n(what is wrong could not be checked: {trouble})")
    failed = [check for check in checks if check.level == "fail"]
    said = failed or [check for check in checks if check.level == "warn"]
    lines = [str(error), *(f"  {line}" for line in lines_of(said))]
    if not said and any(check.name == _UNSEEN for check in checks):
        lines.append("  this machine is well; nodes of this launcher cannot be looked at")
    elif not said:
        lines.append("  all checks of  %hpc doctor  are well, so it is none of those")
    where, log = _first_log(checks, failed)
    if not log and nodes is None and node is not None:
        where, log = "the agent", list(node.agent.log_lines())
    if any(line.strip() not in str(error) for line in log):
        lines += [f"  last lines of the log of {where}:", *(f"    {line}" for line in log[-_MOST_LINES:])]
    return type(error)("\n".join(lines))


def _first_log(checks: list[Check], failed: list[Check]) -> tuple[str, list[str]]:
    by_node: dict[str, list[str]] = {}
    for check in checks:
        if check.name == "log":
            by_node.setdefault(check.where, []).append(check.words)
    first = next((check.where for check in failed if check.where in by_node), next(iter(by_node), ""))
    return first, by_node.get(first, [])
