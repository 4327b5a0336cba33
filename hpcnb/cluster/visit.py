"""A look at the nodes that a launch would use, all at once: starts it, lets the nodes meet, gathers what they say."""

from __future__ import annotations

import base64
import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem
from hpcnb.cluster.preflight.checks import HERE, Check
from hpcnb.cluster.preflight.facts import Facts, read
from hpcnb.cluster.reception import Reception

__all__ = ["Plan", "Seen", "arguments_of", "look_around", "run_on_nodes"]

#: A look waits so long for each connection that it tries.
_REACH_S = 3.0
#: Those that have arrived are told of each other when all have, or so long after the first.
_GATHER_S = 4.0
_TICK_S = 0.05


@dataclass(frozen=True)
class Plan:
    """What would be started, or could not be.

    Attributes:
        name: Of the cluster.
        layout: Number of ranks of each node.
        launcher: Of the nodes; None for this machine.
        python: Interpreter of the ranks on this machine; None for this one.
        environment: Extra environment variables of the ranks.
    """

    name: str
    layout: list[int]
    launcher: NodeLauncher | None = None
    python: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    """What a look around has come to.

    Attributes:
        facts: By node.
        problems: Why there are none, by node; "" for all that are missing.
        is_possible: Whether the launcher can look at nodes before it starts them.
    """

    facts: dict[str, Facts] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    is_possible: bool = True


def arguments_of(program: str, asked: dict[str, Any]) -> list[str]:
    """Arguments with which a Python runs one of our files that it need not have: its source, packed, goes along.

    Every launcher can pass arguments on; stdin does not reach all nodes with all of them. Nothing secret is in them.
    """
    source = resources.files("hpcnb").joinpath(program).read_bytes()
    packed = base64.b64encode(zlib.compress(source, 9)).decode()
    run = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"
    return ["-c", run, base64.b64encode(json.dumps(asked).encode()).decode()]


def look_around(
    plan: Plan, reception: Reception | None, wanted: dict[str, str], *, timeout_s: float, logs: Sequence[str] = ()
) -> Seen:
    """Look at this machine and at all nodes.

    Args:
        plan: What would be started.
        reception: Where nodes meet; None if only this machine is looked at.
        wanted: Modules to look for, by name of their distribution.
        timeout_s: Nodes that have said nothing by then are given up.
        logs: Files on the nodes whose last lines are wanted.

    Raises:
        OSError: A command cannot be run.
    """
    asked: dict[str, Any] = {
        "wanted": wanted, "environment": plan.environment, "cluster": plan.name, "kind": "", "logs": [], "head": "",
        "token": "", "reach_s": _REACH_S,
    }  # fmt: skip
    commands = {}
    seen = Seen()
    try:
        python = plan.python or sys.executable
        try:
            environment = plan.environment if plan.launcher is None else {}  # else it is the nodes'
            commands[HERE] = Command([python, *arguments_of("node/look.py", asked)], environment=environment)
        except OSError as error:
            words, fix = f"{python} cannot be run: {error.strerror}", "choose one that is there:  --python PATH"
            seen.problems[HERE] = Problem(words, check=Check("python", HERE, "fail", words, fix))
        if plan.launcher is not None and reception is not None:
            asked |= {"kind": "nodes", "logs": list(logs), "head": reception.at, "token": reception.token}
            nodes = range(len(plan.layout))
            visits = plan.launcher.visit(arguments_of("node/look.py", asked), nodes)
            seen.is_possible = bool(visits)
            commands |= visits
        _await(commands, reception, len(plan.layout), timeout_s)
        for where, command in commands.items():
            _gather(seen, where, command, plan, len(plan.layout))
    finally:
        for command in commands.values():
            command.kill()
    return seen


def run_on_nodes(
    plan: Plan, reception: Reception, program: str, asked: dict[str, Any], *, nodes: Sequence[int], timeout_s: float
) -> Seen:
    """Run another of our files on some nodes, which says facts as a look does.

    Raises:
        OSError: A command cannot be run.
    """
    assert plan.launcher is not None, "this machine needs nothing put on it"
    commands = plan.launcher.visit(arguments_of(program, asked), nodes)
    seen = Seen(is_possible=bool(commands))
    try:
        _await(commands, reception, len(nodes), timeout_s)
        for where, command in commands.items():
            _gather(seen, where, command, plan, len(nodes))
    finally:
        for command in commands.values():
            command.kill()
    return seen


def _await(commands: dict[str, Command], reception: Reception | None, num_nodes: int, timeout_s: float) -> None:
    """Until all have ended; meanwhile those that arrive meet."""
    began_s = time.monotonic()
    first_s = float("inf")
    while any(command.status is None for command in commands.values()):
        now_s = time.monotonic()
        if now_s - began_s > timeout_s:
            return
        if reception is None:
            time.sleep(_TICK_S)
            continue
        reception.turn(_TICK_S)
        if reception.num_arrived:
            first_s = min(first_s, now_s)
        lost = sum(command.status is not None and where != HERE for where, command in commands.items())
        if reception.num_arrived >= num_nodes - lost or now_s - first_s > _GATHER_S:
            reception.introduce()
            reception.part()


def _gather(seen: Seen, where: str, command: Command, plan: Plan, num_nodes: int) -> None:
    lines = command.lines()
    found = read(lines)
    for facts in sorted(found.values(), key=lambda each: each.host):
        seen.facts[where or _new_name(facts.host, seen.facts)] = facts
    is_whole = len(found) == (1 if where else num_nodes)
    if is_whole:
        return
    if where == HERE or plan.launcher is None:
        why = next((line.strip() for line in lines if "rror" in line), "it says nothing")
        check = Check("python", HERE, "fail", f"{plan.python or sys.executable} does not run: {why}",
                      "look at the interpreter (--python) and at environment=...")  # fmt: skip
        seen.problems[where] = Problem(check.words, check=check)
    else:
        said = [line for line in lines if "HPCNB-LOOK" not in line]
        seen.problems[where] = plan.launcher.refused(where, said, command.status)


def _new_name(host: str, known: dict[str, Facts]) -> str:
    """Slurm on one machine runs nodes of one name."""
    number = 2
    name = host
    while name in known:
        name, number = f"{host} #{number}", number + 1
    return name
