"""A timeline survives its file, and a broken file says what is wrong with it."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcnb import Timeline
from hpcnb.core.errors import TimelineError
from hpcnb.core.spans import SPAN_FIELDS
from hpcnb.timing.breakdown import sums
from tests.data.make_timelines import training
from tests.data.ranks import Rank, cell_of, plain_cell

SAVED = Path(__file__).parents[2] / "data" / "training_4_ranks.json"


def facts(timeline):
    return [
        (
            cell.cell, cell.label, cell.submitted_ns, cell.done_ns,
            [
                (rank.rank, rank.start_ns, rank.end_ns, rank.spans_lost, rank.strings, rank.spans.tolist())
                for rank in cell.ranks
            ],
        )
        for cell in timeline.cells
    ]  # fmt: skip


def test_what_is_saved_is_what_is_loaded(tmp_path):
    cells = [training(), plain_cell({0: (1, 2), 7: (1, 3)}, done=4, cell=12)]
    path = Timeline.of(cells).save(tmp_path / "run.json")
    assert path == tmp_path / "run.json"
    assert facts(Timeline.load(str(path))) == facts(Timeline.of(cells))


def test_an_empty_timeline_is_a_file_too(tmp_path):
    assert Timeline.load(Timeline.of([]).save(tmp_path / "empty.json")).cells == ()


@settings(max_examples=30)
@given(name=st.text(), lost=st.integers(0, 2**31 - 1), kind=st.integers(0, 255), category=st.integers(0, 255))
def test_any_text_and_any_number_survive(tmp_path_factory, name, lost, kind, category):
    rank = Rank(0)
    rank.write(kind, -5, 2**33, name=name, category=category, flags=255, sequence=2**32 - 1, num_bytes=2**64 - 1)
    whole = rank.cell(0, 10, child=3)
    cell = cell_of([type(whole)(0, 0, 10, whole.spans, whole.strings, lost)], done=10)
    path = Timeline.of([cell]).save(tmp_path_factory.getbasetemp() / "any.json")
    assert facts(Timeline.load(path)) == facts(Timeline.of([cell]))


def test_the_file_is_for_people_too(tmp_path):
    lines = Timeline.of([training()]).save(tmp_path / "run.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 228  # a line per span
    assert '["user", "forward"' in lines[4]


def test_the_saved_timeline_of_the_repository_is_what_its_script_makes():
    assert facts(Timeline.load(SAVED)) == facts(Timeline.of([training()]))
    assert sums(Timeline.load(SAVED))[1]["backward"] == pytest.approx(400)


def test_fields_may_stand_in_another_order(tmp_path):
    document = json.loads(SAVED.read_text(encoding="utf-8"))
    document["fields"].reverse()
    for rank in document["cells"][0]["ranks"]:
        rank["spans"] = [span[::-1] for span in rank["spans"]]
    path = tmp_path / "reversed.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert facts(Timeline.load(path)) == facts(Timeline.load(SAVED))


# --- broken files -------------------------------------------------------------------------------------------


def damaged(**changes):
    """The saved timeline with something in its one cell, rank or span changed."""
    document = json.loads(SAVED.read_text(encoding="utf-8"))
    cell = document["cells"][0]
    for where, change in changes.items():
        {"document": document, "cell": cell, "rank": cell["ranks"][0]}[where].update(change)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no JSON, or cut off"),
        (SAVED.read_text(encoding="utf-8")[:5000], "is no JSON, or cut off"),
        ("[" * 100_000, "is no JSON, or cut off"),
        ("[1, 2]", "holds no hpcnb timeline"),
        ('{"traceEvents": []}', "holds no hpcnb timeline"),
        (damaged(document={"version": 99}), "is a timeline of version 99; this hpcnb reads 1"),
        (damaged(document={"cells": None}), "is damaged"),
        (damaged(document={"cells": [3]}), "is damaged"),
        (damaged(document={"fields": ["kind"]}), "is damaged"),
        (damaged(cell={"submitted_ns": "soon"}), "'soon' stands where a whole number belongs"),
        (damaged(cell={"done_ns": 1.5}), "is damaged"),
        (damaged(cell={"label": 3}), "stands where text belongs"),
        (damaged(rank={"rank": -1}), "-1 is out of range"),
        (damaged(rank={"strings": [None]}), "is damaged"),
        (damaged(rank={"spans": [[1, 2, 3]]}), "span 0 has 3 fields"),
        (damaged(rank={"spans": [["nonsense"] + [0] * (len(SPAN_FIELDS) - 1)]}), "'nonsense' stands where"),
        (damaged(rank={"spans": [[2**70] * len(SPAN_FIELDS)]}), "is damaged"),
        (damaged(rank={"spans": [[300] * len(SPAN_FIELDS)]}), "is damaged"),
        (damaged(rank={"spans": [[True] * len(SPAN_FIELDS)]}), "is damaged"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, text, reason):
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TimelineError, match=f"broken.json.*{reason}"):
        Timeline.load(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(TimelineError, match="is no JSON"):
        Timeline.load(path)


def test_no_such_file_and_no_such_folder(tmp_path):
    with pytest.raises(TimelineError, match=r"cannot read .*nothing.json: No such file.*timeline.save"):
        Timeline.load(tmp_path / "nothing.json")
    with pytest.raises(TimelineError, match=r"cannot read .*Is a directory"):
        Timeline.load(tmp_path)
    for write in (Timeline.of([]).save, Timeline.of([]).to_perfetto):
        with pytest.raises(TimelineError, match=r"cannot write .*No such file.*a folder that exists"):
            write(tmp_path / "no" / "where.json")


def test_a_disk_that_is_full_is_said():
    if not Path("/dev/full").exists() or shutil.which("true") is None:
        pytest.skip("no /dev/full here")
    with pytest.raises(TimelineError, match="cannot write /dev/full: No space left"):
        Timeline.of([training()]).save("/dev/full")
