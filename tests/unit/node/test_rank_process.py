"""What the agent holds of a rank: output of cells and between them, spans, and words for its state."""

from __future__ import annotations

import mmap
import os
import socket

import pytest

from hpcnb.core.launch import RunFolder
from hpcnb.core.messages import MessageError, RankReady, Text, frame
from hpcnb.core.spans import SPAN, RingReader, RingWriter, ring_bytes
from hpcnb.node import rank_process
from hpcnb.node.rank_process import RankProcess

READY = RankReady(3, 1, "n1", "cpu", {})


@pytest.fixture
def process(tmp_path):
    (tmp_path / "cells").mkdir()
    process = RankProcess(3, RunFolder(tmp_path), memoryview(mmap.mmap(-1, ring_bytes(8))))
    yield process
    process.close()


@pytest.fixture
def pipes(process):
    """The write ends of the rank's descriptors 1 and 2."""
    ends = {}
    for name in ("stdout", "stderr"):
        read, ends[name] = os.pipe()
        os.set_blocking(read, False)
        process._pipes[read] = (name, rank_process._decoder())
    yield ends
    for end in ends.values():
        os.close(end)


@pytest.fixture
def ring(process):
    writer = RingWriter(process.memory, 8)
    process._ring = RingReader(process.memory)
    return writer


def test_output_of_a_cell_passes_and_other_output_is_logged(process, pipes):
    os.write(pipes["stdout"], b"between cells\n")
    assert process.show(process.read_pipes()) == []
    process.begin_cell(1, 100, 1000)
    os.write(pipes["stdout"], b"from C\n")
    assert process.show([("stdout", "from Python\n")]) == [("stdout", "from Python\n")]
    assert process.end_cell() == [("stdout", "from C\n")]
    assert process.show([("stderr", "late\n")]) == []
    assert process.folder.rank_log(3).read_text() == "between cells\nlate\n"
    assert list(process.last_lines) == ["from Python", "from C", "late"]  # should it die: what the last cell said
    process.begin_cell(2, 100, 1000)
    assert list(process.last_lines) == []


def test_a_flood_is_cut_and_the_next_cell_begins_anew(process):
    process.begin_cell(1, 6, 1000)
    numbered = "".join(f"{number}\n" for number in range(20))
    assert process.show([("stdout", numbered)]) == [("stdout", "0\n1\n2\n3\n")]
    assert process.end_cell() == [("cut", "14 lines (36 B) not shown"), ("stdout", "18\n19\n")]
    assert process.folder.flood(1, 3).read_text() == numbered
    process.begin_cell(2, 6, 1000)
    assert process.show([("stdout", "x\n")]) == [("stdout", "x\n")]
    assert process.end_cell() == []


def test_bytes_that_are_no_utf8_are_shown_escaped_wherever_they_are_cut(process, pipes):
    process.begin_cell(1, 100, 1000)
    shown = []
    for piece in (b"r\xc3", b"\xa9 \xff", b"!\n"):
        os.write(pipes["stdout"], piece)
        shown += process.show(process.read_pipes())
    assert "".join(text for _, text in shown) == "r\u00e9 \\xff!\n"
    process.end_cell()


def test_a_pipe_that_is_closed_is_let_go(process):
    read, write = os.pipe()
    os.set_blocking(read, False)
    process._pipes[read] = ("stdout", rank_process._decoder())
    os.write(write, b"last")
    os.close(write)
    assert process.read_pipes() == [("stdout", "last")]
    assert process.descriptors == []
    assert process.read_pipes() == []


def test_the_log_is_limited(process, monkeypatch):
    monkeypatch.setattr(rank_process, "_LOG_LIMIT", 10)
    for _ in range(5):
        process.log("1234\n")
    assert process.folder.rank_log(3).read_text() == "1234\n" * 2


def test_messages_of_a_socket_in_pieces(process):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    process._cells = ours
    assert process.read_messages() == []
    framed = frame(Text(1, "stdout", "hello")) * 2
    theirs.sendall(framed[:30])
    assert len(process.read_messages()) == 30 // (len(framed) // 2)
    theirs.sendall(framed[30:])
    assert process.read_messages()[-1].text == "hello"
    theirs.close()
    assert process.read_messages() == []
    assert process.descriptors == []


def test_a_bad_message_is_refused_and_a_stream_that_is_lost_is_read_no_more(process):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    process._cells = ours
    text, bad = Text(1, "stdout", "hello"), b"\x03\x00\x00\x00abc"
    refused = []
    for _ in range(2):
        theirs.sendall(frame(text) + bad + frame(text))
        assert process.read_messages(refused.append) == [text, text]
    assert len(refused) == 2
    theirs.sendall(b"\xff" * 8)
    with pytest.raises(MessageError, match="frame of 4294967295 bytes"):
        process.read_messages(refused.append)
    assert process.descriptors == []
    assert process.read_messages(refused.append) == []
    assert len(refused) == 2
    theirs.close()


def test_a_socket_that_does_not_take_all_is_sent_the_rest(process):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    process._cells = ours
    size = 4 << 20
    assert not process.send(b"x" * size)
    received = 0
    while received < size:
        received += len(theirs.recv(1 << 20))
        process.send_rest()
    assert process.send_rest()
    theirs.close()
    assert process.send(b"nobody hears this")


def test_spans_of_a_cell(process, ring):
    def write():
        ring.write(*[0] * (len(SPAN.unpack(bytes(SPAN.size)))))

    write()  # between cells
    process.begin_cell(1, 10, 10)
    ring.intern("of a cell before")
    number = ring.intern("all_reduce")
    for _ in range(5):
        write()
    ring.write(*[0] * 5, number, *[0] * 12)
    process.drain_spans()
    write()
    process.end_cell()
    spans, strings, lost = process.take_spans(1)
    assert (len(spans), strings, lost) == (7 * SPAN.size, {number: "all_reduce"}, 0)
    process.begin_cell(2, 10, 10)
    for _ in range(20):
        write()
    process.end_cell()
    assert process.take_spans(1) == (b"", {}, 0)
    spans, _, lost = process.take_spans(2)
    assert len(spans) // SPAN.size + lost == 20
    assert lost > 0


def test_what_it_does_in_words(process, ring):
    assert process.state() == "not started"
    process.pid = 4242
    assert process.state() == "starting"
    process.ready = READY
    assert process.state() == "idle"
    process.begin_cell(7, 10, 10)
    assert process.state() == "runs cell 7"
    name, group = ring.intern("all_reduce"), ring.intern("dp")
    ring.enter_communication(name, group, 17, 6, 0, 4096, 0, -1, 0, -1)
    assert process.state() == "in all_reduce #17 of dp (4,096 B, line 6)"
    ring.enter_communication(name, group, 18, 0, 0, 8, 0, -1, 0, -1)
    assert process.state() == "in all_reduce #18 of dp (8 B)"
    ring.leave_communication()
    process.end_cell()
    assert process.state() == "idle"
    process.status = -9
    assert process.state() == "dead"
    assert not process.alive
