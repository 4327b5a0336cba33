"""What passes between an agent and its ranks, over local sockets. Some of it goes on to notebooks as it is."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from hpcnb.core.messages.codec import Message, message
from hpcnb.core.ranks import RankSet

__all__ = [
    "CellReply",
    "DebuggerLeft",
    "GroupMade",
    "InputRequest",
    "InterruptCell",
    "LeaveRank",
    "LookAtRank",
    "RankClear",
    "RankDisplay",
    "RankHello",
    "RankProgress",
    "RankReady",
    "ReleaseRank",
    "Seen",
    "Text",
]

CellError = dict[str, Any] | None


@message
class RankReady(Message):
    """A rank has its process group and runs cells."""

    rank: int
    pid: int
    host: str
    device: str
    versions: dict[str, str]  # python, torch, hpcnb, as the rank sees them


@message
class Seen(Message):
    """What a rank's main thread does: its frames, innermost last.

    Beside it bytes that its process groups have moved so far; -1 if they cannot be asked.
    """

    cell: int
    rank: int
    frames: list[Any]  # (file, line, function, text of the line)
    moved_bytes: int


@message
class InputRequest(Message):
    """A rank waits for a line of text; the output before it has been sent. Answered by InputReply."""

    cell: int
    rank: int
    request: int  # number of the request on this rank: a late answer to an earlier one is told apart
    prompt: str
    in_debugger: bool  # it stays in a debugger until DebuggerLeft, or its reply


@message
class DebuggerLeft(Message):
    """A rank that asked from a debugger runs on."""

    cell: int
    rank: int


@message
class RankHello(Message):
    """First message of a rank on a local socket; descriptors travel beside it."""

    rank: int
    pid: int
    channel: str  # "cells": descriptors of the pipes stdout, stderr, stacks; "control": none


@message
class Text(Message):
    """A chunk of a rank's Python-level stream."""

    cell: int
    stream: str
    text: str


@message
class RankDisplay(Message):
    """A rank's rich output."""

    cell: int
    bundle: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    update: bool


@message
class RankClear(Message):
    """A rank's ``clear_output``."""

    cell: int
    wait: bool


@message
class RankProgress(Message):
    """A rank's position in one ``hpc.progress``."""

    cell: int
    bar: int
    description: str
    total: int
    position: int
    elapsed_s: float
    finished: bool


@message
class GroupMade(Message):
    """A rank uses this process group: the channel of its collectives on the board, and its ranks."""

    key: int
    members: RankSet


@message
class InterruptCell(Message):
    """For a rank's link thread: raise KeyboardInterrupt in this cell, also if it has not begun yet."""

    cell: int
    number: int  # of interrupts of this process, from 1


@message
class LeaveRank(Message):
    """For a rank's link thread: the cluster goes on without this rank, which ends."""


@message
class ReleaseRank(Message):
    """For a rank's link thread: let the main thread go from the communication that it waits in, in this cell."""

    cell: int
    reason: str
    mismatch: bool


@message
class LookAtRank(Message):
    """For a rank's link thread: say what the main thread does (Seen)."""

    cell: int


@message
class CellReply(Message):
    """How a cell ended on one rank."""

    cell: int
    rank: int
    ok: bool
    start_ns: int
    end_ns: int
    value: str  # repr of the last expression
    has_value: bool
    value_shown: bool  # it was sent as a rich display as well
    value_pickle: bytes  # empty unless asked for
    value_problem: str  # why the value cannot be pickled
    error: CellError  # see hpcnb.engine.failure
    notices: list[str]  # words for the person, for example a rebound `rank`
    is_broken: bool  # process groups must be built again before the rank can communicate
    # (channel, number of collectives in this cell, RankSet of the group)
    issued: list[Any] = field(default_factory=list)
