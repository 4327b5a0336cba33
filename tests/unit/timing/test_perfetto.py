"""Chrome trace events that Perfetto opens."""

import json
from collections import Counter

import pytest

from hpcnb.core.spans import Kind
from hpcnb.timing.timeline import Timeline
from tests.data.make_timelines import training
from tests.data.ranks import Rank, cell_of, plain_cell


@pytest.fixture
def written(tmp_path):
    def write(*cells):
        path = Timeline.of(cells).to_perfetto(tmp_path / "trace.json")
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]

    return write


def test_every_event_has_what_its_phase_needs(written):
    for event in written(training()):
        assert event["ph"] in "MXbe"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["name"]
        if event["ph"] != "M":
            assert event["ts"] >= 0
            assert event["cat"]
        if event["ph"] == "X":
            assert event["dur"] >= 0


def test_ranks_are_processes_with_two_named_threads(written):
    names = [event for event in written(training()) if event["ph"] == "M"]
    assert [event["args"]["name"] for event in names if event["name"] == "process_name"] == [
        f"rank {number}" for number in range(4)
    ]
    assert {event["args"]["name"] for event in names if event["name"] == "thread_name"} == {
        "main thread", "communication"
    }  # fmt: skip


def test_slices_of_a_thread_nest(written):
    slices = [event for event in written(training()) if event["ph"] == "X"]
    for number in range(4):
        stack = []
        mine = [(event["ts"], event["ts"] + event["dur"]) for event in slices if event["pid"] == number]
        for start, end in sorted(mine, key=lambda each: (each[0], -each[1])):
            while stack and stack[-1] <= start + 1e-6:
                stack.pop()
            assert not stack or end <= stack[-1] + 1e-6
            stack.append(end)


def test_asynchronous_slices_begin_and_end_once_under_an_id_of_their_own(written):
    # the same records in two cells and on all ranks: no id may come twice
    events = written(training(), plain_cell({0: (0, 1)}, done=1, cell=4))
    counted = Counter((event["id"], event["ph"]) for event in events if event["ph"] in "be")
    assert set(counted.values()) == {1}
    assert len(counted) == 2 * 4 * 16


def test_blocked_time_is_wait_and_transfer_with_its_operation(written):
    ranks = [Rank(0), Rank(1)]
    ranks[0].collective(10, 60, wait=(20, 60), group="dp", sequence=5, num_bytes=80, line=6, step=1)
    ranks[1].collective(50, 60, group="dp", sequence=5)
    ranks[1].send(0, 70, 80)
    events = written(cell_of([rank.cell(0, 100, child=0) for rank in ranks], submitted=0, done=100))
    blocked = {event["name"]: event for event in events if event["ph"] == "X" and event["pid"] == 0}
    assert (blocked["all_reduce (wait)"]["ts"], blocked["all_reduce (wait)"]["dur"]) == (20_000, 30_000)
    assert (blocked["all_reduce (transfer)"]["ts"], blocked["all_reduce (transfer)"]["dur"]) == (50_000, 10_000)
    assert blocked["all_reduce (wait)"]["args"] == {
        "step": 1, "line": 6, "source": "cell 3", "bytes": 80, "group": "dp", "sequence": 5
    }  # fmt: skip
    (send,) = [event for event in events if event["ph"] == "b" and event["name"] == "send"]
    assert send["args"]["peer"] == 0


def test_what_a_record_does_not_name_has_a_name_all_the_same(written):
    rank = Rank(0)
    for kind in (Kind.DATA, Kind.USER, Kind.STEP, 99):
        rank.write(kind, 1, 2, step=3)
    events = written(cell_of([rank.cell(0, 10, child=4)], done=10))
    assert [(event["name"], event["cat"]) for event in events if event["ph"] == "X"] == [
        ("data", "data"), ("span", "user"), ("step 3", "step"), ("span", "unknown"), ("cell 3", "cell")
    ]  # fmt: skip


def test_no_cells_make_an_empty_trace(written):
    assert written() == []
