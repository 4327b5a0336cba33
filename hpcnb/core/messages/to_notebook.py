"""What an agent sends to notebooks: how the start goes, what cells say, how they end."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from hpcnb.core.messages.codec import Message, message
from hpcnb.core.ranks import RankSet

__all__ = [
    "Answer",
    "BoundaryAsked",
    "CellBegan",
    "CellDone",
    "CellRefused",
    "Clear",
    "Display",
    "Farewell",
    "Held",
    "Listening",
    "NodeJoined",
    "NodeLost",
    "Notice",
    "Output",
    "Progress",
    "RankExited",
    "RankStates",
    "Refused",
    "Replies",
    "Scaled",
    "Stage",
    "StartFailed",
    "Welcome",
]


@message
class Welcome(Message):
    """The agent's answer: what it is, and how far its cluster has come."""

    protocol: int
    hpcnb_version: str
    python_version: str
    host: str
    agent_pid: int
    first_rank: int
    num_ranks: int
    generation: int  # of process groups, as the last Rebuild said
    last_cell: int  # highest number that a cell has had
    is_broken: bool  # process groups must be built again before ranks can communicate


@message
class Refused(Message):
    """The agent's answer to a notebook it will not serve."""

    reason: str


@message
class Stage(Message):
    """A stage of the start is done: its name, and when it began and ended (node's clock)."""

    name: str
    start_ns: int
    end_ns: int


@message
class Listening(Message):
    """The head of a cluster of many nodes hears them now, at this ``host:port``."""

    address: str


@message
class NodeJoined(Message):
    """The agent of a node belongs to the cluster."""

    node: int
    host: str
    ranks: RankSet
    folder: str  # on that host


@message
class NodeLost(Message):
    """The agent of a node does not belong to the cluster any more; RankExited of each of its ranks went before."""

    node: int
    host: str
    why: str


@message
class Scaled(Message):
    """The cluster has another number of ranks from now on; the new ones are not ready yet."""

    world_size: int
    mesh: str
    placement: list[list[int]]  # ranks of each node; empty where there is one


@message
class StartFailed(Message):
    """The agent could not start its ranks."""

    reason: str
    log_lines: list[str]


@message
class RankExited(Message):
    """A rank's process ended. ``status`` as in ``Popen.returncode``: negative is the signal."""

    rank: int
    pid: int
    status: int
    last_lines: list[str]
    expected: bool
    was_in: str  # the operation it waited in: "all_reduce #17 (4.2 MB, line 6)"; "" if none
    last_operation: str  # the last one of its cell that was over; "" if none
    memory_mb: float  # its last known resident size; 0 if unknown
    was_out_of_memory: bool  # the kernel killed it for want of memory
    how: str = ""  # in words, where the status does not tell: it was lost with its node


@message
class CellRefused(Message):
    """The agent's answer to a cell that it has not begun, since another notebook was faster, or to a vain Follow."""

    cell: int
    reason: str


@message
class CellBegan(Message):
    """A cell of another notebook has begun; also the first message that Follow brings."""

    cell: int
    label: str
    ranks: RankSet
    first_line: int
    began_ns: int  # node's clock


@message
class Notice(Message):
    """Words about a cell for the person."""

    cell: int
    ranks: RankSet
    words: str


@message
class BoundaryAsked(Message):
    """Whether there is such a step: all ranks are in a loop of ``hpc.progress``."""

    cell: int
    found: bool


@message
class RankStates(Message):
    """Where ranks are, while some wait: RankFacts of hpcnb.core.rank_facts, packed, by rank."""

    cell: int
    ranks: dict[int, Any]


@message
class Answer(Message):
    """The agent's answer to an Ask."""

    request: int
    value: Any


@message
class Farewell(Message):
    """The agent has ended its ranks and is about to end itself."""

    reason: str


@message
class Output(Message):
    """New output, already grouped: entries (ranks, [(kind, text), ...]).

    Kinds: ``stdout`` and ``stderr`` (chunks of a stream, not lines), ``cut`` (a notice of the flood gate).
    """

    cell: int
    entries: list[Any]


@message
class Explained(Message):
    """What was done about a cell while no notebook listened to it, and why."""

    cell: int
    words: str


@message
class Held(Message):
    """Output that is held back since it floods: entries (ranks, number of lines so far, newest line)."""

    cell: int
    entries: list[Any]


@message
class Display(Message):
    """Rich output of some ranks: a MIME bundle as in Jupyter's display_data."""

    cell: int
    ranks: RankSet
    bundle: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    update: bool


@message
class Clear(Message):
    """``clear_output`` of some ranks: forget what they said; ``wait`` until they say something else."""

    cell: int
    ranks: RankSet
    wait: bool


@message
class Progress(Message):
    """Where one ``hpc.progress`` of some ranks is: {rank: (position, elapsed_s)} for one bar."""

    cell: int
    bar: int
    description: str
    total: int  # -1 if unknown
    positions: dict[int, Any]
    finished: bool


@message
class Replies(Message):
    """Ranks that have answered while others still run the cell; CellDone does not repeat them."""

    cell: int
    replies: list[Any]  # CellReply fields, see CellReply


@message
class CellDone(Message):
    """All ranks of one agent have answered: the last message of a cell from that agent."""

    cell: int
    replies: list[Any]  # CellReply fields, see CellReply
    spans: dict[int, bytes]  # records of each rank, SPAN each
    strings: dict[int, dict[int, str]]  # that its records name, by number
    spans_lost: dict[int, int]
    done_ns: int  # agent's clock
    offsets_ns: dict[int, int] = field(default_factory=dict)  # by rank: its node's clock less the agent's; 0 where none
