"""Every message there and back, streams cut anywhere, and bytes that are no message."""

from __future__ import annotations

import dataclasses
import functools
import struct
import types
import typing

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpcnb.core import messages as m
from hpcnb.core.errors import TransferError
from hpcnb.core.messages import codec
from hpcnb.core.ranks import RankSet

ALL_TYPES = sorted(codec._TYPES.values(), key=lambda cls: cls.__name__)

numbers = st.integers(-(2**63), 2**64 - 1)
rank_sets = st.sets(st.integers(0, 40)).map(RankSet)
scalars = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text() | st.binary() | rank_sets
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | numbers, inner, max_size=3),
    max_leaves=8,
)
SIMPLE = {
    int: numbers, str: st.text(), bool: st.booleans(), bytes: st.binary(), float: st.floats(allow_nan=False),
    RankSet: rank_sets, typing.Any: anything, type(None): st.none(),
}  # fmt: skip


def values_of(annotation):
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values_of(arguments[1])
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments)).map(list)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    assert origin is types.UnionType, annotation
    return st.one_of(*map(values_of, arguments))


def messages_of(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, *[values_of(hints[field.name]) for field in dataclasses.fields(cls)])


any_message = st.sampled_from(ALL_TYPES).flatmap(messages_of)


@pytest.mark.parametrize("cls", ALL_TYPES, ids=lambda cls: cls.__name__)
def test_every_type_comes_back(cls):
    @given(messages_of(cls))
    def comes_back(message):
        received = m.decode(m.encode(message))
        assert type(received) is cls
        assert received == message

    comes_back()


def cut(packed, sizes):
    """``packed`` in pieces of these sizes, again and again."""
    at, turn = 0, 0
    while at < len(packed):
        size = sizes[turn % len(sizes)]
        yield packed[at : at + size]
        at, turn = at + size, turn + 1


@given(st.lists(any_message, max_size=5), st.lists(st.integers(1, 40), min_size=1))
def test_a_stream_may_arrive_in_any_pieces(messages, sizes):
    reader = m.FrameReader()
    stream = b"".join(map(m.frame, messages))
    received = [message for piece in cut(stream, sizes) for message in reader.feed(piece)]
    assert received == messages
    assert m.FrameReader().feed(stream) == messages
    assert reader.feed(b"") == []


def only_message_errors(function, packed):
    try:
        function(packed)
    except m.MessageError as refused:
        assert str(refused)  # noqa: PT017 - either outcome is right, and a refusal says something


@given(st.binary(max_size=200))
@example(b"\x91" * 100_000)  # nested too deep
@example(b"\xdf\xff\xff\xff\xff")  # a map that says it has 2**32 entries
@example(b"\xc6\xff\xff\xff\xff")  # bytes that say they are 4 GB long
@example(b"\x81\x90\x01")  # a map with a list as key
@example(b"\x92\xa7Refused\xc7\x00\x02")  # an extension of a kind that we do not have
def test_random_bytes_are_refused(packed):
    only_message_errors(m.decode, packed)
    only_message_errors(m.FrameReader().feed, packed)
    only_message_errors(m.FrameReader().feed, struct.pack("<I", len(packed)) + packed)


@given(any_message, st.data())
def test_damaged_messages_are_refused_or_read(message, data):
    packed = bytearray(m.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    only_message_errors(m.decode, bytes(packed))
    only_message_errors(m.decode, bytes(packed[: data.draw(st.integers(0, len(packed)))]))


def restart(groups):
    """As somebody packs it who does not look at what groups are."""
    return msgpack.packb(["RestartRanks", msgpack.ExtType(1, RankSet([0]).to_bytes()), 1, groups, 2])


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"", f"not a message of protocol {m.PROTOCOL}"),
        (b"\x91\xa3Foo", "KeyError: 'Foo'"),
        (b"\x91\xa7Refused", "has the fields \\(reason\\), but 0 came"),
        (b"\x93\xa7Refused\xa1a\xa1b", "has the fields \\(reason\\), but 2 came"),
        (b"\x92\xa7Refused\x07", "Refused.reason cannot be a int"),
        (restart(b"groups"), "RestartRanks.groups cannot be a bytes"),
        (restart([["3", [0, 1]], ["4", [b"5"]]]), "RestartRanks.groups cannot hold that"),
        (restart([["3", [0, 1], 7]]), "RestartRanks.groups cannot hold that"),
        (restart([3]), "RestartRanks.groups cannot hold that"),
        (restart({"3": [0]}), "RestartRanks.groups cannot be a dict"),
        (msgpack.packb(["StartFailed", "x", ["line", None]]), "StartFailed.log_lines cannot hold that"),
        (msgpack.packb(["RankReady", 1, 1, "", "", {"torch": 2}]), "RankReady.versions cannot hold that"),
        (msgpack.packb(["RankStates", 1, {"0": 1}]), "RankStates.ranks cannot hold that"),
        (b"\x93\xa9Interrupt\x03\xc8\x20\x01\x01" + bytes(8193), "unknown extension 1 of 8193 bytes"),
        (m.encode(m.Refused("x")) + b"\0", "extra data"),
        (b"\x92\xa7Refused\xc7\x00\x02", "unknown extension 2"),
    ],
)
def test_refusals_say_why(packed, words):
    with pytest.raises(m.MessageError, match="(?i)" + words):
        m.decode(packed)


def test_an_oversize_frame_is_refused_before_it_is_read():
    header = struct.pack("<I", m.MAX_MESSAGE_BYTES + 1)
    with pytest.raises(m.MessageError, match=rf"frame of {m.MAX_MESSAGE_BYTES + 1} bytes; at most"):
        m.FrameReader().feed(header)
    assert m.FrameReader().feed(struct.pack("<I", m.MAX_MESSAGE_BYTES)) == []


def test_what_is_no_message_value_cannot_be_sent():
    with pytest.raises(TypeError, match="complex cannot be sent in a message"):
        m.encode(m.Answer(1, 1j))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (m.RankProgress(1, 1, "train", 3.0, 0, 0.0, False), "RankProgress.total cannot be a float"),
        (m.RankProgress(1, 1, None, 3, 0, 0.0, False), "RankProgress.description cannot be a NoneType"),
        (m.RankDisplay(1, {1: "x"}, {}, "", False), "RankDisplay.bundle cannot hold that"),
        (m.Check(1, RankSet([0]), ["model", object()], False), "Check.names cannot hold that"),
        (m.Check(1, RankSet([0]), ["model"], 1), "Check.rng cannot be a int"),
        (m.RestartRanks(RankSet([0]), 1, [("3", [0, "1"])], 2), "RestartRanks.groups cannot hold that"),
        (m.Interrupt(1, RankSet([1 << 16])), "RankSet cannot be sent"),
        (m.Answer(1 << 64, None), "an int of more than 64 bits cannot be sent"),
        (m.Answer(1, functools.reduce(lambda inner, _: [inner], range(2000), [])), "Answer cannot be sent: recursion"),
    ],
)
def test_a_slip_is_an_error_where_it_was_made(message, words):
    """What the other side would refuse is not sent, and one error says which field."""
    with pytest.raises(TransferError, match=words):
        m.frame(message)


def test_what_is_too_large_for_a_frame_is_not_sent(monkeypatch):
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 100)
    assert m.FrameReader().feed(m.frame(m.Refused("x" * 80)))
    with pytest.raises(TransferError, match="this is 109 bytes to send; at most 100 are"):
        m.frame(m.Refused("x" * 98))


def test_a_tuple_travels_as_a_list():
    sent = m.RestartRanks(RankSet([0]), 1, (("3", (0, 1)),), 2)
    assert m.decode(m.encode(sent)).groups == [["3", [0, 1]]]


def framed(packed):
    return struct.pack("<I", len(packed)) + packed


def test_a_bad_frame_is_dropped_and_those_around_it_are_read():
    before, after, bad = m.frame(m.Follow(1)), m.frame(m.Follow(2)), framed(b"\x92\xa6Follow\xa1x")
    reader, refused = m.FrameReader(), []
    assert reader.feed(before + bad + after, refused.append) == [m.Follow(1), m.Follow(2)]
    assert [str(error) for error in refused] == ["Follow.cell cannot be a str"]
    with pytest.raises(m.MessageError, match=r"Follow\.cell"):
        reader.feed(bad)
    assert reader.feed(after) == [m.Follow(2)]  # not the bad one once more


@pytest.mark.parametrize(
    ("values", "kind", "cell"),
    [
        (["Check", 7, msgpack.ExtType(1, b"\x01"), ["model"], 1], m.Check, 7),
        (["Check", 7], m.Check, 7),
        (["Check", "7", 1, 1, 1], m.Check, 0),
        (["Ask", 7, 7, 7], m.Ask, 0),
        (["Foo", 7], None, 0),
    ],
)
def test_a_refusal_knows_the_cell_that_was_named(values, kind, cell):
    with pytest.raises(m.MessageError) as refused:
        m.decode(msgpack.packb(values))
    assert (refused.value.kind, refused.value.cell) == (kind, cell)


def test_lone_surrogates_travel_escaped():
    # os.fsdecode of a name that is no UTF-8, in an error's text: without this the reply of the rank is lost
    assert m.decode(m.encode(m.Refused("no file a\udcff"))) == m.Refused("no file a\\udcff")
    source = "name = 'a\ud800'"
    cell = m.decode(m.encode(m.RunCell(1, RankSet([0]), source, "cell 1", 1, False, 10, 10, False)))
    names: dict[str, str] = {}
    exec(cell.source, names)
    assert names["name"] == "a\ud800"


def test_messages_are_values():
    message = m.Refused("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.reason = "y"
    assert not hasattr(message, "__dict__")
