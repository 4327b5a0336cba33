"""Start and stop of a cluster as pure decisions: (state, event) -> (state, actions). No clock, no process."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hpcnb.core.ranks import RankSet

__all__ = [
    "Action",
    "AgentEnded",
    "Deadline",
    "Event",
    "Fail",
    "Lifecycle",
    "Linked",
    "NodeIsHere",
    "NodesWait",
    "RankEnded",
    "RankIsReady",
    "Ready",
    "Refusal",
    "Resized",
    "StageEnded",
    "StartFailure",
    "Tell",
    "advance",
]


@dataclass(frozen=True)
class Linked:
    """An agent has answered our hello."""


@dataclass(frozen=True)
class Refusal:
    """An agent will not serve us."""

    reason: str


@dataclass(frozen=True)
class StageEnded:
    """A stage of the start is done."""

    name: str
    duration_ms: float


@dataclass(frozen=True)
class NodesWait:
    """How far the launch of nodes is, in words: ``job 17 is queued``."""

    words: str


@dataclass(frozen=True)
class NodeIsHere:
    """The agent of a node has joined."""

    node: int
    host: str


@dataclass(frozen=True)
class RankIsReady:
    """A rank runs cells."""

    rank: int


@dataclass(frozen=True)
class Resized:
    """The cluster has another number of ranks."""

    world_size: int


@dataclass(frozen=True)
class RankEnded:
    """A rank's process ended: its status as in ``Popen.returncode``, its last lines, and how, where no status tells."""

    rank: int
    status: int
    last_lines: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True)
class StartFailure:
    """An agent could not start its ranks, or could not be started."""

    reason: str
    log_lines: tuple[str, ...] = ()
    version_mismatch: bool = False


@dataclass(frozen=True)
class AgentEnded:
    """The agent's process is gone."""

    reason: str
    log_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deadline:
    """The time for the start is over; what nodes were waited for, in words."""

    timeout_s: float
    waiting: str = ""


Event = (
    NodesWait
    | NodeIsHere
    | Linked
    | Refusal
    | StageEnded
    | RankIsReady
    | Resized
    | RankEnded
    | StartFailure
    | AgentEnded
    | Deadline
)


@dataclass(frozen=True)
class Tell:
    """Show the person what has been reached."""

    words: str


@dataclass(frozen=True)
class Ready:
    """All ranks run cells."""


@dataclass(frozen=True)
class Fail:
    """Give up: say why, stop what was started."""

    reason: str
    version_mismatch: bool = False


Action = Tell | Ready | Fail


@dataclass(frozen=True)
class Lifecycle:
    """Where a cluster's start is.

    Attributes:
        world_size: Ranks to wait for.
        phase: ``starting``, ``running`` or ``failed``.
        ready: Ranks that run cells.
        ended: Ranks whose process ended.
        linked: Whether the agent has answered.
        stages: Names of the stages that are done, in order.
        nodes: Numbers of the nodes that have joined, where there are several.
    """

    world_size: int
    phase: Literal["starting", "running", "failed"] = "starting"
    ready: RankSet = field(default_factory=RankSet)
    ended: RankSet = field(default_factory=RankSet)
    linked: bool = False
    stages: tuple[str, ...] = ()
    nodes: RankSet = field(default_factory=RankSet)


def advance(state: Lifecycle, event: Event) -> tuple[Lifecycle, list[Action]]:  # noqa: PLR0911 - one per event
    """The state after ``event``, and what is to be done about it."""
    if isinstance(event, RankEnded):
        rank = RankSet([event.rank])
        state = replace(state, ended=state.ended | rank, ready=state.ready - rank)
    if isinstance(event, Resized):
        everybody = RankSet.all(event.world_size)
        state = replace(
            state, world_size=event.world_size, ready=state.ready & everybody, ended=state.ended & everybody
        )
        if state.phase == "starting" and state.ready == everybody:
            return replace(state, phase="running"), [Ready()]
        return state, []
    if state.phase != "starting":
        return state, []
    if isinstance(event, Linked):
        return replace(state, linked=True), []
    if isinstance(event, StageEnded):
        state = replace(state, stages=(*state.stages, event.name))
        return state, [Tell(f"{event.name} {event.duration_ms / 1000:.1f} s")]
    if isinstance(event, NodesWait):
        return state, [Tell(event.words)]
    if isinstance(event, NodeIsHere):
        state = replace(state, nodes=state.nodes | RankSet([event.node]))
        return state, [Tell(f"node {event.host} joined, {len(state.nodes)} so far")]
    if isinstance(event, RankIsReady):
        state = replace(state, ready=state.ready | RankSet([event.rank]))
        if len(state.ready) == state.world_size:
            return replace(state, phase="running"), [Ready()]
        return state, [Tell(f"ranks {len(state.ready)} of {state.world_size}")]
    return replace(state, phase="failed"), [_failure(state, event)]


def _failure(state: Lifecycle, event: Event) -> Fail:
    if isinstance(event, Refusal):
        return Fail(event.reason, version_mismatch=True)
    if isinstance(event, RankEnded):
        how = f"ended with signal {-event.status}" if event.status < 0 else f"ended with status {event.status}"
        return Fail(_with_log(f"rank {event.rank} {event.how or how} before it was ready", event.last_lines))
    if isinstance(event, StartFailure):
        return Fail(_with_log(event.reason, event.log_lines), event.version_mismatch)
    if isinstance(event, AgentEnded):
        for line in event.log_lines:
            if line.startswith("VERSION "):
                return Fail(line.removeprefix("VERSION "), version_mismatch=True)
        return Fail(_with_log(event.reason, event.log_lines))
    timeout_s = event.timeout_s if isinstance(event, Deadline) else 0.0
    nothing = "the agent answered" if state.linked else "nothing, the agent did not answer"
    reached = ", ".join(state.stages) or nothing
    missing = RankSet.all(state.world_size) - state.ready
    waiting = f"; {event.waiting}" if isinstance(event, Deadline) and event.waiting else ""
    return Fail(f"{missing.words()} not ready after {timeout_s:.0f} s; done so far: {reached}{waiting}")


def _with_log(reason: str, lines: tuple[str, ...]) -> str:
    return "\n".join([reason, *(f"    {line}" for line in lines)]) if lines else reason
