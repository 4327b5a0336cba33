"""What is shown of a flood: the same however it arrives, within its budget, and whole in the file."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.grouping import Grouper
from hpcnb.core.ranks import RankSet
from hpcnb.node import gate
from hpcnb.node.gate import FloodGate, collapse_rewrites

plain = st.text(alphabet="ab\n", max_size=60) | st.lists(st.sampled_from(["line\n", "x", "\n", "é\u2028"])).map("".join)
rewritten = st.lists(st.sampled_from(["a", "bc", "\n", "\r", "\r\n", "\r10%", "long text"]), max_size=25).map("".join)
budgets = st.tuples(st.integers(1, 12), st.integers(1, 40))


def outputs_of(text):
    return st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), text), max_size=5)


def chunked(draw, output):
    for kind, text in output:
        cuts = draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
        for a, b in itertools.pairwise([0, *cuts, len(text)]):
            yield kind, text[a:b]


def passed(budget, output):
    """What a gate lets pass at once, what it gives at the end, and what is in its file (None: no file)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flood.txt"
        flood = FloodGate(*budget, path)
        at_once = [entry for kind, text in output for entry in flood.feed(kind, text)]
        at_end = flood.finish()
        return at_once, at_end, path.read_bytes().decode() if path.exists() else None


def joined(entries):
    """Neighbours of one kind as one, so that chunks do not show."""
    groups = itertools.groupby(entries, key=lambda entry: entry[0])
    return [(kind, "".join(text for _, text in group)) for kind, group in groups]


def shown(entries):
    """What the person sees."""
    grouper = Grouper(RankSet([0]))
    for kind, text in entries:
        grouper.add(RankSet([0]), kind, text)
    grouper.finish()
    return [(item.kind, item.text) for item in grouper.layout()]


def size_of(entries):
    texts = [text for kind, text in entries if kind != "cut"]
    return sum(text.count("\n") for text in texts), sum(map(len, texts))


@given(budgets, outputs_of(plain), st.data())
def test_the_cut_depends_on_the_text_alone(budget, output, data):
    chunks = list(chunked(data.draw, output))
    at_once, at_end, file = passed(budget, output)
    at_once_too, at_end_too, file_too = passed(budget, chunks)
    assert joined(at_once) == joined(at_once_too)
    assert at_end == at_end_too
    assert file == file_too


@given(budgets, outputs_of(rewritten), st.data())
def test_so_it_does_with_lines_that_rewrite_themselves(budget, output, data):
    chunks = list(chunked(data.draw, output))
    at_once, at_end, _ = passed(budget, output)
    at_once_too, at_end_too, _ = passed(budget, chunks)
    assert at_end == at_end_too
    assert shown([*at_once, *at_end]) == shown([*at_once_too, *at_end_too])


@given(budgets, outputs_of(plain))
def test_head_and_tail_are_within_budget_and_the_file_holds_all(budget, output):
    line_budget, byte_budget = budget
    at_once, at_end, file = passed(budget, output)
    whole = joined(output)
    num_lines, size = size_of([*at_once, *at_end])
    assert num_lines <= max(2, line_budget)  # a head and a tail have one at least
    assert size <= max(2, byte_budget)
    head = "".join(text for _, text in at_once)
    everything = "".join(text for _, text in whole)
    assert everything.startswith(head)
    if not at_end or at_end[0][0] != "cut":
        assert file is None
        assert shown([*at_once, *at_end]) == shown(whole)
    else:
        assert file == everything
        for kind in ("stdout", "stderr"):
            tail = "".join(text for each, text in at_end[1:] if each == kind)
            assert "".join(text for each, text in whole if each == kind).endswith(tail)


@given(budgets, outputs_of(plain) | outputs_of(rewritten))
def test_nothing_is_cut_within_the_budget(budget, output):
    ends = [("stdout", "\n"), ("stderr", "\n")]
    num_lines, size = size_of([*output, *ends])
    at_once, at_end, file = passed((max(2, num_lines), max(2, size)), [*output, *ends])
    assert shown([*at_once, *at_end]) == shown([*output, *ends])
    assert file is None
    assert not any(kind == "cut" for kind, _ in at_end)


def numbered(count):
    return "".join(f"line {number}\n" for number in range(count))


def test_a_flood_of_lines(tmp_path):
    flood = FloodGate(30, 10_000, tmp_path / "flood.txt")
    at_once = [entry for start in range(100) for entry in flood.feed("stdout", f"line {start}\n")]
    assert "".join(text for _, text in at_once) == numbered(20)
    assert flood.overflowed
    notice, (kind, tail) = flood.finish()
    assert notice == ("cut", "70 lines (560 B) not shown")
    assert kind == "stdout"
    assert tail == numbered(100).split("line 89\n")[1]
    assert (tmp_path / "flood.txt").read_text() == numbered(100)


def test_a_flood_without_a_newline(tmp_path):
    flood = FloodGate(30, 900, tmp_path / "flood.txt")
    at_once = [entry for _ in range(1000) for entry in flood.feed("stdout", "0123456789")]
    assert at_once == [("stdout", "0123456789")] * 60
    assert flood.finish() == [("cut", "9.1 kB not shown"), ("stdout", "0123456789" * 30)]
    assert (tmp_path / "flood.txt").stat().st_size == 10_000


def test_just_over_the_head_nothing_is_missing_and_no_file_is_left(tmp_path):
    flood = FloodGate(30, 10_000, tmp_path / "flood.txt")
    assert flood.feed("stdout", numbered(25)) == [("stdout", numbered(20))]
    assert flood.finish() == [("stdout", numbered(25)[len(numbered(20)) :])]
    assert list(tmp_path.iterdir()) == []


def test_long_lines_may_use_what_short_ones_left(tmp_path):
    # 20 short lines are the head: its share of characters that it did not use is the tail's
    flood = FloodGate(30, 900, tmp_path / "flood.txt")
    flood.feed("stdout", "x\n" * 20)
    flood.feed("stdout", "y" * 800 + "\n")
    assert flood.finish() == [("stdout", "y" * 800 + "\n")]


def test_bars_are_free(tmp_path):
    flood = FloodGate(30, 900, tmp_path / "flood.txt")
    bars = [("stderr", f"\r{number:4} of 5000 |{'#' * (number // 200)}") for number in range(5000)]
    assert [entry for bar in bars for entry in flood.feed(*bar)] == bars
    assert flood.feed("stderr", "\n") == [("stderr", "\n")]
    assert not flood.overflowed
    assert flood.finish() == []


def test_after_the_cut_of_bars_only_the_last_state_is_kept(tmp_path):
    flood = FloodGate(3, 900, tmp_path / "flood.txt")
    flood.feed("stdout", numbered(10))
    for number in range(5000):
        flood.feed("stderr", f"\r{number}")
        if number % 1000 == 0:
            flood.feed("stdout", f"at {number}\n")
    assert flood.finish() == [("cut", "13 lines (24 kB) not shown"), ("stderr", "\r4999")]


def test_what_was_in_the_file_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_FILE_LIMIT", 3000)
    flood = FloodGate(30, 900, tmp_path / "flood.txt")
    for _ in range(10):
        flood.feed("stdout", "x" * 999 + "\n")
    notice, _ = flood.finish()
    assert notice == ("cut", "9 lines (9.1 kB) not shown, the file holds the first 3.0 kB")
    assert (tmp_path / "flood.txt").stat().st_size == 3000


def test_a_file_that_cannot_be_written_is_said_aloud(tmp_path):
    flood = FloodGate(3, 900, tmp_path / "no such folder" / "flood.txt")
    flood.feed("stdout", numbered(10))
    (_, notice), (_, tail) = flood.finish()
    assert notice.startswith("7 lines (49 B) not shown, and not all could be written to a file: ")
    assert "No such file or directory" in notice
    assert tail == "line 9\n"


def test_a_full_disk_is_said_aloud(tmp_path):
    (tmp_path / "flood.txt").symlink_to("/dev/full")
    flood = FloodGate(3, 900, tmp_path / "flood.txt")
    for _ in range(50):
        flood.feed("stdout", numbered(1000))
    assert "No space left on device" in flood.finish()[0][1]


def test_lone_surrogates_do_not_break_the_file(tmp_path):
    flood = FloodGate(3, 900, tmp_path / "flood.txt")
    flood.feed("stdout", "a\udcff\n" * 10)
    flood.finish()
    assert (tmp_path / "flood.txt").read_text() == "a\\udcff\n" * 10


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\nb\n", "a\nb\n"),
        ("a\rb\rc", "\rc"),
        ("a\rb\rc\nd\re", "\rc\n\re"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("a\rb\r", "\rb\r"),
        ("\r50%", "\r50%"),
        ("a\r", "a\r"),
    ],
)
def test_collapse_rewrites(text, left):
    assert collapse_rewrites(text) == left


def test_a_gate_that_continues_adds_to_the_file_of_the_cell(tmp_path):
    path = tmp_path / "flood"
    for append, first in ((False, 0), (True, 100)):
        gate = FloodGate(9, 10_000, path, append=append)
        for number in range(first, first + 50):
            gate.feed("stdout", f"line {number}\n")
        assert gate.finish()[0][0] == "cut"
    numbers = [*range(50), *range(100, 150)]
    assert path.read_text() == "".join(f"line {number}\n" for number in numbers)
