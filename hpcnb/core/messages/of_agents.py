"""What passes between the agents of a cluster: those of nodes and the head, which notebooks talk to.

Beside this, cells and orders go down and what ranks say goes up in the same messages that notebooks send and hear.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from hpcnb.core.messages.codec import Message, message

__all__ = ["Alarm", "Assignment", "Failed", "Join", "NodeBelow", "NodeHello", "NodeRefused", "NodeWelcome", "Orphaned",
           "Ping", "Pong", "StepProposed", "StopAtStep"]  # fmt: skip


@message
class Join(Message):
    """A process on a node wants to become its agent; the head answers Assignment or NodeRefused."""

    protocol: int
    hpcnb_version: str
    python_version: str
    node: int  # its number, from 0
    host: str


@message
class Assignment(Message):
    """What the agent of a node is to be: an AgentSpec, and the files that go into its folder (mode 0600)."""

    spec: dict[str, Any]
    files: dict[str, bytes]


@message
class NodeRefused(Message):
    """The head will not have this agent, or not any more: it ends."""

    reason: str


@message
class NodeHello(Message):
    """First message of a node's agent to who is above it; answered by NodeWelcome or NodeRefused.

    Said again, to the head, when who was between is lost.
    """

    protocol: int
    node: int
    host: str
    started_ns: int  # of the process, by the node's clock: another process of the same node is told apart
    folder: str  # where the node keeps what is too much to be sent
    address: str = ""  # host:port where it listens for nodes below it
    public: str = ""  # its CURVE public key for them
    below: list[int] = field(default_factory=list)  # nodes that speak through it
    cells: list[int] = field(default_factory=list)  # that it has heard of


@message
class NodeBelow(Message):
    """A node has been welcomed by one that is between it and the head: its NodeHello, passed on."""

    node: int
    host: str
    started_ns: int
    folder: str
    address: str
    public: str


@message
class NodeWelcome(Message):
    """The agent belongs to the cluster."""


@message
class Failed(Message):
    """Ranks of a node could not be started, or (``is_over``) ended with what they were started from."""

    node: int
    reason: str
    log_lines: list[str]
    is_over: bool


@message
class Ping(Message):
    """The head asks whether a node is there, twice a second; answered at once by Pong."""

    sent_ns: int  # head's clock


@message
class Pong(Message):
    """The answer: the node's clock is compared with the head's."""

    sent_ns: int  # as in the Ping
    node_ns: int  # node's clock, between the two


@message
class Alarm(Message):
    """Somewhere ranks wait, or one has failed: tell where yours are, for so long from now."""

    seconds: float


@message
class Orphaned(Message):
    """Who is above has lost its own way to the head: go there yourself."""


@message
class StepProposed(Message):
    """The first step at which ranks of this node can stop; they wait there until StopAtStep. 0: there is none."""

    cell: int
    step: int


@message
class StopAtStep(Message):
    """Stop at this step, which no rank of the cell has passed; 0: go on."""

    cell: int
    step: int
