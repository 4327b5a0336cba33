"""What a notebook sends to an agent: cells, orders, questions."""

from __future__ import annotations

from typing import Annotated, Any

from hpcnb.core.messages.codec import Message, message
from hpcnb.core.ranks import RankSet

__all__ = [
    "Ask",
    "CallFunction",
    "Check",
    "Continue",
    "Debug",
    "EndRanks",
    "Follow",
    "Hello",
    "InputReply",
    "Interrupt",
    "ListGroups",
    "LookAt",
    "Rebuild",
    "Recording",
    "Release",
    "RestartRanks",
    "RunCell",
    "Scale",
    "Shutdown",
    "StopAtBoundary",
]

#: Process groups: name and ranks of each.
Groups = Annotated[list[Any], list[tuple[str, list[int]]]]


@message
class Hello(Message):
    """First message of a notebook; the agent answers Welcome or Refused, and hears nothing else before it."""

    protocol: int
    hpcnb_version: str
    python_version: str
    role: str = "notebook"  # "look": asks questions only, is told nothing else, and keeps no cluster alive
    owner_pid: int = 0  # the process whose end is the cluster's too, see AgentSpec


@message
class RunCell(Message):
    """Run source on these ranks; every rank answers CellReply, each agent one CellDone."""

    cell: int
    ranks: RankSet
    source: str
    label: str  # what tracebacks call it, "cell 3"
    first_line: int  # number of the first line of source in what the person typed
    want_pickles: bool
    line_budget: int  # lines of output a rank may send before the flood is cut
    byte_budget: int
    is_init: bool  # to be run again on a rank that takes the place of another


@message
class CallFunction(Message):
    """Call a pickled (function, args, kwargs) on these ranks; answered like a cell, value pickled."""

    cell: int
    ranks: RankSet
    payload: bytes
    line_budget: int
    byte_budget: int
    label: str  # what people call it, "call of f"


@message
class Follow(Message):
    """Tell me all of this cell: CellBegan, what was said so far, and if it still runs what it says from now on."""

    cell: int


@message
class Interrupt(Message):
    """SIGINT to these ranks, where they still run this cell; 0 is whatever they run."""

    cell: int
    ranks: RankSet


@message
class StopAtBoundary(Message):
    """Ask these ranks to stop before the next step that all of them can agree on; answered by BoundaryAsked."""

    cell: int
    ranks: RankSet


@message
class Release(Message):
    """Let these ranks go from the communication they wait in; groups are broken from then on."""

    cell: int
    ranks: RankSet
    reason: str
    mismatch: bool


@message
class Continue(Message):
    """SIGCONT to these ranks, which somebody stopped."""

    ranks: RankSet


@message
class EndRanks(Message):
    """SIGKILL to these ranks, which do not answer this cell."""

    cell: int
    ranks: RankSet
    reason: str


@message
class RestartRanks(Message):
    """Fork these ranks again, to join the process groups of this generation.

    ``groups`` are those that cells have made, (name, ranks) in the order they were made, and ``num_groups`` is what
    torch has counted: the new processes make them too, since the others hold them.
    """

    ranks: RankSet
    generation: int
    groups: Groups
    num_groups: int


@message
class LookAt(Message):
    """Ask what the Python code of these ranks does now; answered by Seen, rank by rank."""

    cell: int
    ranks: RankSet


@message
class Rebuild(Message):
    """Build the process groups of ranks again, under a new generation; those with dead ranks stay broken."""

    cell: int
    ranks: RankSet
    generation: int
    dead: RankSet
    new: RankSet  # processes that join; they make the groups that have a number for a name
    num_groups: int  # that torch has counted, on the rank that has counted most: names of groups are numbers
    partial: list[str]  # names of groups that not all of their ranks have


@message
class Scale(Message):
    """Give the cluster another number of ranks: ``ranks`` stay and build their process groups again.

    Ranks in ``new`` are forked, those beyond ``world_size`` are ended. The rest is as in RestartRanks and Rebuild.
    """

    cell: int
    ranks: RankSet
    generation: int
    dead: RankSet
    new: RankSet
    num_groups: int
    partial: list[str]
    groups: Groups
    world_size: int
    mesh: str
    placement: list[list[int]]  # ranks of each node; empty where there is one
    size_before: int  # meshes over so many ranks keep a group of them; 0 where a change that failed is undone


@message
class ListGroups(Message):
    """Ask ranks what they have: the value is a pickled (number of groups counted, [(name, ranks), ...], [name, ...]).

    The first are process groups, the second the names in the user's namespace.
    """

    cell: int
    ranks: RankSet


@message
class Recording(Message):
    """Switch the recorder of these ranks on or off."""

    cell: int
    ranks: RankSet
    enabled: bool


@message
class Debug(Message):
    """Open the debugger on the last failure of these ranks; answered like a cell when it is left."""

    cell: int
    ranks: RankSet


@message
class Check(Message):
    """Digest objects of these ranks by name; answered like a cell, value a pickled list of Digest."""

    cell: int
    ranks: RankSet
    names: list[str]  # empty: all modules and optimizers
    rng: bool


@message
class InputReply(Message):
    """What a person typed, for the link thread of the rank that asked."""

    cell: int
    rank: int
    request: int
    text: str
    ended: str  # "" or why there is no text: "EOFError", "KeyboardInterrupt", or words


@message
class Ask(Message):
    """A question that the agent answers itself (Answer), also while ranks are busy."""

    request: int
    #: "status", "logs", "cluster", "init cells", "drop init cell" (true if it was there), or "leave": the notebook
    #: ends, and so does the agent if there is no other; the answer is how many others there are.
    question: str
    argument: int  # logs: the rank, or -1 for the agent; drop: which from 1 on, or -1 for all


@message
class Shutdown(Message):
    """End all ranks and the agent."""

    reason: str
