"""What code may show: MIME bundles that are none are its own error, in words, and are not sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hpcnb.core.errors import TransferError
from hpcnb.engine.display import LastValue, LinkDisplay

CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.fixture
def sent():
    return []


@pytest.fixture
def display(sent):
    return LinkDisplay(send=lambda *shown: sent.append(shown), clear=sent.append)


@pytest.mark.parametrize(
    ("data", "metadata", "words"),
    [
        ({1: "x"}, {}, "keys of a MIME bundle are text, for example 'text/plain', not 1 (int)"),
        ({"text/plain": 5}, {}, "'text/plain' in a MIME bundle is text, not 5 (int)"),
        ({"text/html": b"<b>"}, {}, "'text/html' in a MIME bundle is text, not b'<b>' (bytes)"),
        ("x", {}, "a MIME bundle is a dict, for example {'text/plain': 'words'}, not a str"),
        ({"text/plain": "x"}, {1: 2}, "keys of metadata of a MIME bundle are text, for example 'text/plain', not 1 (int)"),
        ({"application/json": {(1, 2): 3}}, {}, "'application/json' in a MIME bundle holds the key (1, 2) (tuple), which JSON cannot"),
        ({"application/json": [[{1}]]}, {}, "'application/json' in a MIME bundle holds a set, which JSON cannot"),
        ({"application/json": 1j}, {}, "'application/json' in a MIME bundle holds a complex, which JSON cannot"),
        ({"application/json": CIRCLE}, {}, "'application/json' in a MIME bundle holds itself, or is nested too deep, which JSON cannot"),
    ],
)  # fmt: skip
def test_what_no_front_end_could_show_is_an_error_of_who_shows_it(display, sent, data, metadata, words):
    with pytest.raises(TransferError) as error:
        display.publish(data, metadata)
    assert str(error.value) == words
    assert sent == []
    hook = SimpleNamespace(bundle=None)  # its class wants a shell
    with pytest.raises(TransferError):
        LastValue.write_format_data(hook, data, metadata)
    assert hook.bundle is None


def test_what_is_shown_as_it_is(display, sent):
    bundle = {
        "text/plain": "x", "image/png": b"\x89PNG", "application/json": [1, {"a": (None, True), 2: 1.5}],
        "application/vnd.any": 7,
    }  # fmt: skip
    display.publish(bundle, {"text/plain": {"isolated": True}}, transient={"display_id": 5}, update=1)
    assert sent == [(bundle, {"text/plain": {"isolated": True}}, "5", True)]
    display.publish({"text/plain": "y"}, None)
    assert sent[1] == ({"text/plain": "y"}, {}, "", False)


def test_waiting_is_a_yes_or_no(display, sent):
    display.clear_output(wait=1)
    assert sent == [True]
    assert isinstance(sent[0], bool)
