"""``%hpc doctor --install``: puts this hpcnb on nodes that have none or another version, and nothing else."""

from __future__ import annotations

import hashlib

from hpcnb.cluster import wheel
from hpcnb.cluster.preflight.checks import HERE, Check
from hpcnb.cluster.preflight.facts import Facts
from hpcnb.cluster.reception import Reception
from hpcnb.cluster.visit import Plan, run_on_nodes
from hpcnb.core.version import __version__

__all__ = ["install_on"]


def install_on(plan: Plan, found: dict[str, Facts], *, python: str, timeout_s: float) -> list[Check]:
    """Install on those nodes that need it and run the notebook's version of Python.

    Args:
        plan: What would be started.
        found: Facts by node.
        python: Version of the notebook's Python, ``3.11``.
        timeout_s: Nodes that have said nothing by then are given up.

    Returns:
        What was done, node by node; empty if nothing was to be done.

    Raises:
        OSError: The address of the plan is not one of this machine's, or a command cannot be run.
    """
    needy = {
        where for where, facts in found.items()
        if where != HERE and facts.hpcnb != __version__ and facts.python.startswith(f"{python}.")
    }  # fmt: skip
    if plan.launcher is None or not needy:
        return []
    packed = wheel.pack()
    names = [plan.launcher.called(node) for node in range(len(plan.layout))]
    # by name where nodes are named; else all, and those that have it get the same once more
    nodes = [node for node, name in enumerate(names) if name in needy] or list(range(len(names)))
    with Reception(plan.launcher.address, packed) as reception:
        asked = {
            "head": reception.at, "token": reception.token, "file": wheel.file_name(),
            "sha256": hashlib.sha256(packed).hexdigest(),
        }  # fmt: skip
        done = run_on_nodes(plan, reception, "node/put.py", asked, nodes=nodes, timeout_s=timeout_s)
    return [_check(where, facts) for where, facts in done.facts.items()] + [
        problem.check or Check("install", where or "a node", "fail", problem.reason)
        for where, problem in done.problems.items()
    ]


def _check(where: str, facts: Facts) -> Check:
    if not (why := facts.hpcnb_problem):
        return Check("install", where, "ok", f"hpcnb {__version__} was put there, for {facts.executable}")
    words = f"hpcnb {__version__} could not be put there: {why}"
    fix = f"on {where}:  {facts.executable} -m pip install hpcnb=={__version__}"
    if "No module named pip" in why:
        fix = f"on {where}:  {facts.executable} -m ensurepip   (or an environment that has pip:  --python PATH)"
    elif "externally-managed" in why:
        fix = f"make an environment there and name it:  {facts.executable} -m venv DIR;  --python DIR/bin/python"
    return Check("install", where, "fail", words, fix)
