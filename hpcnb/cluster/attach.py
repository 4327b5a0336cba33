"""Finding clusters that run already: take hold of one again, list all, end all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hpcnb.cluster.cell_run import CellView
from hpcnb.cluster.cluster import Cluster, held
from hpcnb.cluster.node import Node
from hpcnb.cluster.running import Found, RunningAgent, find, read_spec
from hpcnb.core.errors import ClusterStateError, LaunchError, LinkError, OptionError, VersionMismatch
from hpcnb.core.launch import AgentSpec

__all__ = ["ClusterRow", "attach", "clusters", "ranks_words", "stop_all"]

#: An agent answers at once; one that does not within so long is listed as silent.
_LOOK_S = 3.0
#: An agent that was told to end gets so long before it is killed.
_STOP_S = 6.0


@dataclass(frozen=True)
class ClusterRow:
    """A cluster of this user on this machine.

    Attributes:
        name: As it was started.
        key: Name of its folder, which tells clusters of the same name apart; ``attach`` takes it too.
        state: ``running``, ``starting``; ``silent``: its agent does not answer; ``unreadable``: see ``problem``;
            ``removed``: its agent had ended, and what was left of it has been removed just now.
        num_ranks: World size.
        mesh: Axis names and sizes.
        host: The node it runs on.
        started_s: When, in seconds since 1970; 0 if that is not known.
        notebooks: How many are connected.
        cell: What runs, ``cell In[3] on ranks 0-3``; "" if nothing does.
        unseen: Labels of cells that ended while no notebook was connected.
        idle_left_s: Seconds until it ends itself; None while a notebook is connected.
        problem: Why it cannot be asked.
    """

    name: str
    key: str
    state: str
    num_ranks: int = 0
    mesh: str = ""
    host: str = ""
    started_s: float = 0.0
    notebooks: int = 0
    cell: str = ""
    unseen: tuple[str, ...] = ()
    idle_left_s: float | None = None
    problem: str = ""

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return time.time() - self.started_s if self.started_s else 0.0


def attach(name: str | None = None, *, view: Callable[[str], CellView | None] | None = None) -> Cluster:
    """Take hold of a cluster that runs, with all names on its ranks; it is then ``hpcnb.current()``.

    Cells that ended while nobody listened are in its ``timeline()``, the newest is its ``last_result``. A cell that
    still runs is shown by ``cluster.join()``.

    Args:
        name: As it was started, or its key in :func:`clusters`; may be left out where there is one.
        view: Called with the label of each cell that ended meanwhile; what it returns shows the cell.

    Raises:
        ClusterStateError: There is none, there are several, or this process has it already.
        LinkError: It does not answer, or its connection file is not to be trusted.
        OptionError: ``name`` is no text.
        VersionMismatch: It runs another version of hpcnb or Python.
    """
    given: object = name
    if given is not None and not isinstance(given, str):
        msg = f"attach() takes the name of a cluster, not a {type(given).__name__}"
        raise OptionError(msg)
    found, spec = _choose(name)
    cluster = Cluster.of_spec(spec)
    try:
        cluster.connect(lambda on_message: _node(found, spec, on_message=on_message))
    except VersionMismatch as error:
        msg = f"cluster {spec.cluster_name!r} runs another version: {error}"
        raise VersionMismatch(msg) from error
    except LaunchError as error:
        msg = f"cluster {spec.cluster_name!r} cannot be attached to: {error}"
        raise LinkError(msg) from error
    for ended in cluster.describe()["unseen"]:
        cluster.follow(ended["cell"], None if view is None else view(ended["label"]))
    return cluster


def _node(found: Found, spec: AgentSpec, *, on_message: Callable[[Any], None], role: str = "notebook") -> Node:
    try:
        agent = RunningAgent(found.pid, found.folder)
    except ProcessLookupError as error:
        msg = f"the node agent of cluster {spec.cluster_name!r} has just ended"
        raise LinkError(msg) from error
    return Node(spec, found.folder, agent, on_message=on_message, role=role)


def _choose(name: str | None) -> tuple[Found, AgentSpec]:
    """The one running cluster that ``name`` means."""
    known: list[tuple[Found, AgentSpec]] = []
    problems: list[LinkError] = []
    for found in _living():
        try:
            known.append((found, read_spec(found.folder)))
        except LinkError as error:
            problems.append(error)
    meant = [(found, spec) for found, spec in known if name in (None, spec.cluster_name, found.key)]
    here = {cluster.key for cluster in held()}
    for found, spec in meant:
        if found.key in here:
            msg = (
                f"this notebook has cluster {spec.cluster_name!r} already ({_words(found, spec)}); to take another one "
                "first type  %hpc detach  (it goes on) or  %hpc stop  (it ends)"
            )
            raise ClusterStateError(msg)
    if len(meant) == 1:
        return meant[0]
    if meant:
        names = {spec.cluster_name for _, spec in meant}
        found, spec = meant[-1]
        words = "; ".join(f"{each.cluster_name} ({_words(where, each)})" for where, each in meant)
        example = spec.cluster_name if len(names) == len(meant) else found.key
        msg = f"{len(meant)} clusters are running: {words}; say which, for example  %hpc attach {example}"
        raise ClusterStateError(msg)
    if problems:
        raise problems[0]
    if known:
        names = {spec.cluster_name for _, spec in known}
        msg = f"no cluster {name!r} is running; there {'are' if len(names) > 1 else 'is'} {', '.join(sorted(names))}"
        raise ClusterStateError(msg)
    msg = "no cluster of yours is running on this machine; start one with  %hpc start 4"
    raise ClusterStateError(msg)


def _living() -> list[Found]:
    """Folders with an agent; what ended agents have left is removed."""
    found = find()
    for each in found:
        if each.state == "dead":
            each.folder.remove()
    return [each for each in found if each.state == "running"]


def _words(found: Found, spec: AgentSpec) -> str:
    started = f", started {time.strftime('%H:%M', time.localtime(spec.started_s))}" if spec.started_s else ""
    return f"{found.key}: {spec.world_size} rank{'s' if spec.world_size > 1 else ''}{started}"


def clusters() -> list[ClusterRow]:
    """All clusters of this user on this machine, in the order of their start.

    What is left of clusters whose agent has ended (kill -9, out of memory) is removed; their rows say so once.

    Raises:
        LinkError: The folder that holds them belongs to someone else, or is open to others.
    """
    return [_row(found) for found in find()]


def _row(found: Found) -> ClusterRow:
    row = _named(found)
    if found.state == "dead":
        found.folder.remove()
        return replace(row, state="removed", problem="its agent had ended")
    if row.problem:
        return replace(row, state="unreadable")
    if found.state == "starting":
        return row
    node: Node | None = None
    try:
        node = _node(found, read_spec(found.folder), on_message=lambda _: None, role="look")
        said = node.ask("cluster", timeout_s=_LOOK_S)
    except LinkError as error:
        return replace(row, state="silent", problem=str(error))
    finally:
        if node is not None:
            node.let_go()
    return ClusterRow(
        said["name"], found.key, "running" if said["num_ready"] else "starting", said["num_ranks"], said["mesh"],
        said["host"], said["started_s"], said["notebooks"],
        ", ".join(f"{each['label']} on {ranks_words(each['ranks'])}" for each in said["running"]),
        tuple(each["label"] for each in said["unseen"]), said["idle_left_s"],
    )  # fmt: skip


def ranks_words(text: str) -> str:
    """``rank 3``, ``ranks 0-3``: ranks as an agent names them, for sentences."""
    return f"rank {text}" if text.isdecimal() else f"ranks {text}"


def stop_all() -> list[ClusterRow]:
    """End all clusters of this user on this machine, whoever started them; returns what there was.

    Rows have the state ``stopped``; ``killed`` where the agent did not end when told to; ``removed`` where it had
    ended before; ``starting`` where there is no agent yet, which is left alone.

    Raises:
        LinkError: The folder that holds them belongs to someone else, or is open to others.
    """
    all_found = [(found, _named(found)) for found in find()]
    told: dict[str, RunningAgent] = {}
    for found, _ in all_found:
        if found.state == "running":
            try:
                told[found.key] = RunningAgent(found.pid, found.folder)
            except ProcessLookupError:
                continue  # it has just ended
            told[found.key].signal(signal.SIGTERM)  # heard also by an agent of another version
    deadline_s = time.monotonic() + _STOP_S
    rows = [_stopped(found, row, told.get(found.key), deadline_s) for found, row in all_found]
    keys = {row.key for row in rows if row.state != "starting"}
    for cluster in held():
        if cluster.key in keys:
            cluster.stop()  # this notebook's own hold on it
    return rows


def _named(found: Found) -> ClusterRow:
    """What the connection file says; with a problem where it cannot be read."""
    try:
        spec = read_spec(found.folder)
    except (LinkError, OSError) as error:
        return ClusterRow(found.key.rpartition("-")[0], found.key, found.state, problem=str(error))
    return ClusterRow(
        spec.cluster_name, found.key, found.state, spec.world_size, spec.mesh, started_s=spec.started_s
    )  # fmt: skip


def _stopped(found: Found, row: ClusterRow, agent: RunningAgent | None, deadline_s: float) -> ClusterRow:
    if found.state == "starting":
        return replace(row, problem="it has no agent yet")
    state = "removed" if agent is None else "stopped"
    if agent is not None and not agent.wait(max(0.0, deadline_s - time.monotonic())):
        agent.kill()
        state = "killed"
    found.folder.remove()
    return replace(row, state=state, problem="")
