"""What a message is, and how it becomes bytes and a message again.

A message is a frozen dataclass, sent as msgpack ``[type name, field values]``: a name and values, never a
function object. Pickles travel as ``bytes`` fields and are opened only by the code that asked for them, after
the peer has proved the cluster's key. Unknown types, wrong field counts and fields that hold something else than
their annotation says are refused as MessageError. Who sends is checked in the same way, so that a slip is an error
where it was made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from hpcnb.core.errors import TransferError
from hpcnb.core.ranks import RankSet

__all__ = [
    "MAX_MESSAGE_BYTES", "PROTOCOL", "FrameReader", "Message", "MessageError", "decode", "encode", "frame", "message",
    "names_of",
]  # fmt: skip

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: bool) -> Any:
        """Only type checkers read it; in ``typing`` from Python 3.11 on."""
        return lambda decorator: decorator


PROTOCOL = 4
#: No single message is larger; what is larger is refused before it is read into memory.
MAX_MESSAGE_BYTES = 1 << 30
#: A set of ranks in a message has no higher rank: walking over a set takes time that grows with its highest.
_MAX_RANKS = 1 << 16
#: A tuple is sent as a list, as which it arrives.
_LISTS = (list, tuple)


class MessageError(ValueError):
    """Bytes that are no message of this protocol.

    Attributes:
        kind: Of which type it would have been, where that is known.
        cell: The cell that it names; 0 where it names none.
    """

    kind: type[Message] | None = None
    cell: int = 0


_TYPES: dict[str, type[Message]] = {}
_M = TypeVar("_M", bound="Message")


class Message:
    """Base of all messages; subclasses are frozen dataclasses of msgpack values and RankSet."""

    __slots__ = ()
    _names: ClassVar[tuple[str, ...]] = ()
    _kinds: ClassVar[tuple[tuple[type, ...], ...]] = ()
    _checks: ClassVar[tuple[tuple[int, Callable[[Any], bool]], ...]] = ()  # of fields that hold others


def _is_anything(_: object) -> bool:
    return True


def _check_of(annotation: Any) -> Callable[[Any], bool]:
    """Whether a value is what an annotation says, with all that it holds."""
    if annotation is Any:
        return _is_anything
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _check_of(arguments[1])
    checks = [_check_of(each) for each in arguments]
    kinds = _kinds_of(annotation)
    if origin is UnionType:
        check = lambda value: any(each(value) for each in checks)  # noqa: E731
    elif origin is tuple:
        check = lambda value: (  # noqa: E731
            isinstance(value, _LISTS)
            and len(value) == len(checks)
            and all(each(item) for each, item in zip(checks, value, strict=True))
        )
    elif all(each is _is_anything for each in checks):  # also where there are none
        check = lambda value: isinstance(value, kinds)  # noqa: E731
    elif origin is list:
        check = lambda value: isinstance(value, _LISTS) and all(map(checks[0], value))  # noqa: E731
    else:
        check = lambda value: (  # noqa: E731
            isinstance(value, dict) and all(map(checks[0], value)) and all(map(checks[1], value.values()))
        )
    return check


def _is_deep(annotation: Any) -> bool:
    """Whether ``isinstance`` does not tell all of it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, UnionType):
        return any(map(_is_deep, arguments))
    return origin is tuple or any(each is not Any for each in arguments)


def _kinds_of(annotation: Any) -> tuple[type, ...]:
    """What a value may be, as far as ``isinstance`` tells."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds_of(arguments[1])
    if origin is UnionType:
        return tuple(kind for each in arguments for kind in _kinds_of(each))
    known: dict[Any, tuple[type, ...]] = {Any: (object,), float: (float, int), tuple: _LISTS, list: _LISTS}
    return known.get(origin or annotation, (origin or annotation,))


@dataclass_transform(frozen_default=True)
def message(cls: type[_M]) -> type[_M]:
    """Make a message of a class: a frozen dataclass that the codec knows by its name."""
    cls = dataclass(frozen=True, slots=True)(cls)
    hints = get_type_hints(cls, include_extras=True)
    cls._names = tuple(field.name for field in fields(cls))  # type: ignore[arg-type]
    cls._kinds = tuple(_kinds_of(hints[name]) for name in cls._names)
    cls._checks = tuple((at, _check_of(hints[name])) for at, name in enumerate(cls._names) if _is_deep(hints[name]))
    _TYPES[cls.__name__] = cls
    return cls


def _default(value: object) -> object:
    if isinstance(value, RankSet):
        packed = value.to_bytes()
        if len(packed) <= _MAX_RANKS // 8:
            return msgpack.ExtType(1, packed)
    kind = "an int of more than 64 bits" if isinstance(value, int) else type(value).__name__
    msg = f"{kind} cannot be sent in a message"
    raise TransferError(msg)


def _extension(code: int, packed: bytes) -> object:
    if code == 1 and len(packed) <= _MAX_RANKS // 8:
        return RankSet.of_bytes(packed)
    msg = f"unknown extension {code} of {len(packed)} bytes"
    raise MessageError(msg)


def names_of(message: Message) -> tuple[str, ...]:
    """Names of the message's fields, in order."""
    cls = type(message)
    return cls._names


def _odd_field(cls: type[Message], values: Sequence[object]) -> str:
    """Which of a message's fields cannot hold what it holds, in words; "" if all can."""
    if not all(map(isinstance, values, cls._kinds)):  # of all messages that are sent and received: at C's speed
        for field, kinds, value in zip(cls._names, cls._kinds, values, strict=True):
            if not isinstance(value, kinds):
                return f"{cls.__name__}.{field} cannot be a {type(value).__name__}"
    for at, check in cls._checks:
        if not check(values[at]):
            return f"{cls.__name__}.{cls._names[at]} cannot hold that"
    return ""


def encode(message: Message) -> bytes:
    """The message as bytes; lone surrogates (``os.fsdecode`` of odd names) have no UTF-8: they are escaped.

    Raises:
        TransferError: A field holds what :func:`decode` would refuse, or what has no form in bytes.
    """
    cls = type(message)
    values = [getattr(message, name) for name in cls._names]
    if odd := _odd_field(cls, values):
        raise TransferError(odd)
    try:
        packed: bytes = msgpack.packb(
            [cls.__name__, *values], default=_default, use_bin_type=True, unicode_errors="backslashreplace"
        )
    except (ValueError, OverflowError) as error:  # nested without end, more than 4 GB
        msg = f"{cls.__name__} cannot be sent: {error}"
        raise TransferError(msg) from error
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
            raise _refusal(msg, cls, values)
        if odd := _odd_field(cls, values):
            raise _refusal(odd, cls, values)
        return cls(*values)
    except MessageError:
        raise
    except Exception as error:
        msg = f"not a message of protocol {PROTOCOL}: {type(error).__name__}: {error}"
        raise MessageError(msg) from error


def _refusal(why: str, cls: type[Message], values: Sequence[object]) -> MessageError:
    """With the cell that it names, so that who waits for that cell can be told."""
    error = MessageError(why)
    error.kind = cls
    if cls._names[:1] == ("cell",) and values and isinstance(values[0], int):
        error.cell = values[0]
    return error


_LENGTH = struct.Struct("<I")


def frame(message: Message) -> bytes:
    """The message with its length before it, for a stream socket.

    Raises:
        TransferError: As :func:`encode`, and when it is larger than MAX_MESSAGE_BYTES.
    """
    packed = encode(message)
    if len(packed) > MAX_MESSAGE_BYTES:
        msg = f"this is {len(packed):,} bytes to send; at most {MAX_MESSAGE_BYTES:,} are"
        raise TransferError(msg)
    return _LENGTH.pack(len(packed)) + packed


class FrameReader:
    """Cuts a byte stream back into messages: feed what arrived, take what is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes, refused: Callable[[MessageError], None] | None = None) -> list[Message]:
        """Messages completed by ``received``.

        Args:
            received: What arrived.
            refused: Told why a complete frame is no message; without it that is raised. Such a frame is dropped.

        Raises:
            MessageError: A frame is longer than MAX_MESSAGE_BYTES: nothing after it can be told apart.
        """
        buffer = self._buffer
        buffer += received
        messages: list[Message] = []
        at = 0
        try:
            while len(buffer) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, at)
                if length > MAX_MESSAGE_BYTES:
                    msg = f"frame of {length} bytes; at most {MAX_MESSAGE_BYTES} are taken"
                    raise MessageError(msg)
                begin, end = at + _LENGTH.size, at + _LENGTH.size + length
                if len(buffer) < end:
                    break
                at = end
                try:
                    messages.append(decode(bytes(buffer[begin:end])))
                except MessageError as error:
                    if refused is None:
                        raise
                    refused(error)
        finally:
            del buffer[:at]
        return messages
