"""What crosses a border: notebook - agent (the link) and agent - rank (local sockets). One codec, both sides.

A message is a frozen dataclass, sent as msgpack ``[type name, field values]``: a name and values, never a
function object. Pickles travel as ``bytes`` fields and are opened only by the code that asked for them, after
the peer has proved the cluster's key. Unknown types and wrong field counts are refused as MessageError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: bool) -> Any:
        """Only type checkers read it; in ``typing`` from Python 3.11 on."""
        return lambda decorator: decorator


PROTOCOL = 3
#: No single message is larger; what is larger is refused before it is read into memory.
MAX_MESSAGE_BYTES = 1 << 30
#: A set of ranks in a message has no higher rank: walking over a set takes time that grows with its highest.
_MAX_RANKS = 1 << 16


class MessageError(ValueError):
    """Bytes that are no message of this protocol."""


_TYPES: dict[str, type[Message]] = {}
_M = TypeVar("_M", bound="Message")


class Message:
    """Base of all messages; subclasses are frozen dataclasses of msgpack values and RankSet."""

    __slots__ = ()
    _names: ClassVar[tuple[str, ...]] = ()
    _checks: ClassVar[tuple[Callable[[Any], bool], ...]] = ()


CellError = dict[str, Any] | None


#: Process groups: name and ranks of each.
Groups = Annotated[list[Any], list[tuple[str, list[int]]]]


def _is_anything(_: object) -> bool:
    return True


def _check_of(annotation: Any) -> Callable[[Any], bool]:
    """Whether a value that arrives is what an annotation says, with all that it holds; a tuple arrives as a list."""
    if annotation is Any:
        return _is_anything
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _check_of(arguments[1])
    checks = [_check_of(each) for each in arguments]
    kinds = (float, int) if annotation is float else (origin or annotation,)
    if origin is UnionType:
        check = lambda value: any(each(value) for each in checks)  # noqa: E731
    elif origin is tuple:
        check = lambda value: (  # noqa: E731
            isinstance(value, list)
            and len(value) == len(checks)
            and all(each(item) for each, item in zip(checks, value, strict=True))
        )
    elif all(each is _is_anything for each in checks):  # also where there are none
        check = lambda value: isinstance(value, kinds)  # noqa: E731
    elif origin is list:
        check = lambda value: isinstance(value, list) and all(map(checks[0], value))  # noqa: E731
    else:
        check = lambda value: (  # noqa: E731
            isinstance(value, dict) and all(map(checks[0], value)) and all(map(checks[1], value.values()))
        )
    return check


@dataclass_transform(frozen_default=True)
def _message(cls: type[_M]) -> type[_M]:
    cls = dataclass(frozen=True, slots=True)(cls)
    hints = get_type_hints(cls, include_extras=True)
    cls._names = tuple(field.name for field in fields(cls))  # type: ignore[arg-type]
    cls._checks = tuple(_check_of(hints[name]) for name in cls._names)
    _TYPES[cls.__name__] = cls
    return cls


def _default(value: object) -> object:
    if isinstance(value, RankSet):
        return msgpack.ExtType(1, value.to_bytes())
    msg = f"{type(value).__name__} cannot be sent in a message"
    raise TypeError(msg)


def _extension(code: int, packed: bytes) -> object:
    if code == 1 and len(packed) <= _MAX_RANKS // 8:
        return RankSet.of_bytes(packed)
    msg = f"unknown extension {code} of {len(packed)} bytes"
    raise MessageError(msg)


def names_of(message: Message) -> tuple[str, ...]:
    """Names of the message's fields, in order."""
    cls = type(message)
    return cls._names


def encode(message: Message) -> bytes:
    """The message as bytes; lone surrogates (``os.fsdecode`` of odd names) have no UTF-8: they are escaped."""
    cls = type(message)
    packed: bytes = msgpack.packb(
        [cls.__name__, *[getattr(message, name) for name in cls._names]],
        default=_default,
        use_bin_type=True,
        unicode_errors="backslashreplace",
    )
    return packed


def decode(packed: bytes | memoryview) -> Message:
    """Inverse of :func:`encode`.

    Raises:
        MessageError: Not msgpack, no known type, another number of fields, or a field of another type or shape.
    """
    try:
        decoded = msgpack.unpackb(packed, ext_hook=_extension, raw=False, strict_map_key=False)
        name, *values = decoded
        cls = _TYPES[name]
        if len(values) != len(cls._names):
            msg = f"{name} has the fields ({', '.join(cls._names)}), but {len(values)} came"
            raise MessageError(msg)
        for field, check, value in zip(cls._names, cls._checks, values, strict=True):
            if not check(value):
                found = "that" if isinstance(value, list | dict) else f"a {type(value).__name__}"
                msg = f"{name}.{field} cannot be {found}"
                raise MessageError(msg)
        return cls(*values)
    except MessageError:
        raise
    except Exception as error:
        msg = f"not a message of protocol {PROTOCOL}: {type(error).__name__}: {error}"
        raise MessageError(msg) from error


# --- notebook <-> agent -------------------------------------------------------------------------------------


@_message
class Hello(Message):
    """First message of a notebook; the agent answers Welcome or Refused, and hears nothing else before it."""

    protocol: int
    hpcnb_version: str
    python_version: str
    role: str = "notebook"  # "look": asks questions only, is told nothing else, and keeps no cluster alive
    owner_pid: int = 0  # the process whose end is the cluster's too, see AgentSpec


@_message
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


@_message
class Refused(Message):
    """The agent's answer to a notebook it will not serve."""

    reason: str


@_message
class Stage(Message):
    """A stage of the start is done: its name, and when it began and ended (node's clock)."""

    name: str
    start_ns: int
    end_ns: int


@_message
class StartFailed(Message):
    """The agent could not start its ranks."""

    reason: str
    log_lines: list[str]


@_message
class RankReady(Message):
    """A rank has its process group and runs cells."""

    rank: int
    pid: int
    host: str
    device: str
    versions: dict[str, str]  # python, torch, hpcnb, as the rank sees them


@_message
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


@_message
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


@_message
class CallFunction(Message):
    """Call a pickled (function, args, kwargs) on these ranks; answered like a cell, value pickled."""

    cell: int
    ranks: RankSet
    payload: bytes
    line_budget: int
    byte_budget: int
    label: str  # what people call it, "call of f"


@_message
class CellRefused(Message):
    """The agent's answer to a cell that it has not begun, since another notebook was faster, or to a vain Follow."""

    cell: int
    reason: str


@_message
class CellBegan(Message):
    """A cell of another notebook has begun; also the first message that Follow brings."""

    cell: int
    label: str
    ranks: RankSet
    first_line: int
    began_ns: int  # node's clock


@_message
class Follow(Message):
    """Tell me all of this cell: CellBegan, what was said so far, and if it still runs what it says from now on."""

    cell: int


@_message
class Notice(Message):
    """Words about a cell for the person."""

    cell: int
    ranks: RankSet
    words: str


@_message
class Interrupt(Message):
    """SIGINT to these ranks, where they still run this cell; 0 is whatever they run."""

    cell: int
    ranks: RankSet


@_message
class StopAtBoundary(Message):
    """Ask these ranks to stop before the next step that all of them can agree on; answered by BoundaryAsked."""

    cell: int
    ranks: RankSet


@_message
class BoundaryAsked(Message):
    """Whether there is such a step: all ranks are in a loop of ``hpc.progress``."""

    cell: int
    found: bool


@_message
class Release(Message):
    """Let these ranks go from the communication they wait in; groups are broken from then on."""

    cell: int
    ranks: RankSet
    reason: str
    mismatch: bool


@_message
class Continue(Message):
    """SIGCONT to these ranks, which somebody stopped."""

    ranks: RankSet


@_message
class EndRanks(Message):
    """SIGKILL to these ranks, which do not answer this cell."""

    cell: int
    ranks: RankSet
    reason: str


@_message
class RestartRanks(Message):
    """Fork these ranks again, to join the process groups of this generation.

    ``groups`` are those that cells have made, (name, ranks) in the order they were made, and ``num_groups`` is what
    torch has counted: the new processes make them too, since the others hold them.
    """

    ranks: RankSet
    generation: int
    groups: Groups
    num_groups: int


@_message
class LookAt(Message):
    """Ask what the Python code of these ranks does now; answered by Seen, rank by rank."""

    cell: int
    ranks: RankSet


@_message
class Seen(Message):
    """What a rank's main thread does: its frames, innermost last.

    Beside it bytes that its process groups have moved so far; -1 if they cannot be asked.
    """

    cell: int
    rank: int
    frames: list[Any]  # (file, line, function, text of the line)
    moved_bytes: int


@_message
class RankStates(Message):
    """Where ranks are, while some wait: RankFacts of hpcnb.core.diagnosis, packed, by rank."""

    cell: int
    ranks: dict[int, Any]


@_message
class Rebuild(Message):
    """Build the process groups of ranks again, under a new generation; those with dead ranks stay broken."""

    cell: int
    ranks: RankSet
    generation: int
    dead: RankSet
    new: RankSet  # processes that join; they make the groups that have a number for a name
    num_groups: int  # that torch has counted, on the rank that has counted most: names of groups are numbers
    partial: list[str]  # names of groups that not all of their ranks have


@_message
class ListGroups(Message):
    """Ask ranks what they have: the value is a pickled (number of groups counted, [(name, ranks), ...], [name, ...]).

    The first are process groups, the second the names in the user's namespace.
    """

    cell: int
    ranks: RankSet


@_message
class Recording(Message):
    """Switch the recorder of these ranks on or off."""

    cell: int
    ranks: RankSet
    enabled: bool


@_message
class Debug(Message):
    """Open the debugger on the last failure of these ranks; answered like a cell when it is left."""

    cell: int
    ranks: RankSet


@_message
class Check(Message):
    """Digest objects of these ranks by name; answered like a cell, value a pickled list of Digest."""

    cell: int
    ranks: RankSet
    names: list[str]  # empty: all modules and optimizers
    rng: bool


@_message
class InputReply(Message):
    """What a person typed, for the link thread of the rank that asked."""

    cell: int
    rank: int
    request: int
    text: str
    ended: str  # "" or why there is no text: "EOFError", "KeyboardInterrupt", or words


@_message
class Ask(Message):
    """A question that the agent answers itself (Answer), also while ranks are busy."""

    request: int
    #: "status", "logs", "cluster", or "leave": the notebook ends, and so does the agent if there is no other; the
    #: answer is how many others there are.
    question: str
    argument: int  # logs: the rank, or -1 for the agent


@_message
class Answer(Message):
    """The agent's answer to an Ask."""

    request: int
    value: Any


@_message
class Shutdown(Message):
    """End all ranks and the agent."""

    reason: str


@_message
class Farewell(Message):
    """The agent has ended its ranks and is about to end itself."""

    reason: str


@_message
class Output(Message):
    """New output, already grouped: entries (ranks, [(kind, text), ...]).

    Kinds: ``stdout`` and ``stderr`` (chunks of a stream, not lines), ``cut`` (a notice of the flood gate).
    """

    cell: int
    entries: list[Any]


@_message
class Held(Message):
    """Output that is held back since it floods: entries (ranks, number of lines so far, newest line)."""

    cell: int
    entries: list[Any]


@_message
class Display(Message):
    """Rich output of some ranks: a MIME bundle as in Jupyter's display_data."""

    cell: int
    ranks: RankSet
    bundle: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    update: bool


@_message
class Clear(Message):
    """``clear_output`` of some ranks: forget what they said; ``wait`` until they say something else."""

    cell: int
    ranks: RankSet
    wait: bool


@_message
class Progress(Message):
    """Where one ``hpc.progress`` of some ranks is: {rank: (position, elapsed_s)} for one bar."""

    cell: int
    bar: int
    description: str
    total: int  # -1 if unknown
    positions: dict[int, Any]
    finished: bool


@_message
class Replies(Message):
    """Ranks that have answered while others still run the cell; CellDone does not repeat them."""

    cell: int
    replies: list[Any]  # CellReply fields, see CellReply


@_message
class CellDone(Message):
    """All ranks of one agent have answered: the last message of a cell from that agent."""

    cell: int
    replies: list[Any]  # CellReply fields, see CellReply
    spans: dict[int, bytes]  # records of each rank, SPAN each
    strings: dict[int, list[str]]
    spans_lost: dict[int, int]
    done_ns: int  # node's clock


# --- rank -> agent -> notebook --------------------------------------------------------------------------------


@_message
class InputRequest(Message):
    """A rank waits for a line of text; the output before it has been sent. Answered by InputReply."""

    cell: int
    rank: int
    request: int  # number of the request on this rank: a late answer to an earlier one is told apart
    prompt: str
    in_debugger: bool  # it stays in a debugger until DebuggerLeft, or its reply


@_message
class DebuggerLeft(Message):
    """A rank that asked from a debugger runs on."""

    cell: int
    rank: int


# --- agent <-> rank -----------------------------------------------------------------------------------------


@_message
class RankHello(Message):
    """First message of a rank on a local socket; descriptors travel beside it."""

    rank: int
    pid: int
    channel: str  # "cells": descriptors stdout pipe, stderr pipe, ring; "control": none


@_message
class Text(Message):
    """A chunk of a rank's Python-level stream."""

    cell: int
    stream: str
    text: str


@_message
class RankDisplay(Message):
    """A rank's rich output."""

    cell: int
    bundle: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    update: bool


@_message
class RankClear(Message):
    """A rank's ``clear_output``."""

    cell: int
    wait: bool


@_message
class RankProgress(Message):
    """A rank's position in one ``hpc.progress``."""

    cell: int
    bar: int
    description: str
    total: int
    position: int
    elapsed_s: float
    finished: bool


@_message
class GroupMade(Message):
    """A rank uses this process group: the channel of its collectives on the board, and its ranks."""

    key: int
    members: RankSet


@_message
class InterruptCell(Message):
    """For a rank's link thread: raise KeyboardInterrupt in this cell, also if it has not begun yet."""

    cell: int


@_message
class ReleaseRank(Message):
    """For a rank's link thread: let the main thread go from the communication that it waits in, in this cell."""

    cell: int
    reason: str
    mismatch: bool


@_message
class LookAtRank(Message):
    """For a rank's link thread: say what the main thread does (Seen)."""

    cell: int


@_message
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


_LENGTH = struct.Struct("<I")


def frame(message: Message) -> bytes:
    """The message with its length before it, for a stream socket."""
    packed = encode(message)
    return _LENGTH.pack(len(packed)) + packed


class FrameReader:
    """Cuts a byte stream back into messages: feed what arrived, take what is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> list[Message]:
        """Messages completed by ``received``.

        Raises:
            MessageError: A frame is longer than MAX_MESSAGE_BYTES or no message.
        """
        buffer = self._buffer
        buffer += received
        messages: list[Message] = []
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_MESSAGE_BYTES:
                msg = f"frame of {length} bytes; at most {MAX_MESSAGE_BYTES} are taken"
                raise MessageError(msg)
            if len(buffer) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            messages.append(decode(bytes(buffer[at : at + length])))
            at += length
        del buffer[:at]
        return messages
