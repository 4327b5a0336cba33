"""A timeline as a value."""

import numpy as np
import pytest

from hpcnb.core.errors import TimelineError
from hpcnb.core.spans import SPAN, SPAN_FIELDS
from hpcnb.timing.timeline import SPAN_DTYPE, RankCell, Timeline
from tests.data.make_timelines import training
from tests.data.ranks import CELL, MS, Rank, cell_of, plain_cell


def test_numpy_reads_records_as_the_rank_packs_them():
    values = list(range(1, len(SPAN_FIELDS) + 1))
    cell = RankCell.from_bytes(0, 0, 1, SPAN.pack(*values) * 2, {})
    assert SPAN_DTYPE.itemsize == SPAN.size
    assert [list(record) for record in cell.spans.tolist()] == [values, values]


def test_bytes_that_are_no_whole_records_are_refused():
    with pytest.raises(TimelineError, match=r"rank 3 sent 97 bytes of spans, .*multiple of \d+.* different versions"):
        RankCell.from_bytes(3, 0, 1, bytes(97), {})


def test_a_string_that_the_table_had_no_room_for_is_empty():
    cell = RankCell.from_bytes(0, 0, 1, b"", {1: "all_reduce"})
    assert [cell.text(number) for number in (0, 1, 2)] == ["", "all_reduce", ""]


def test_strings_come_by_number_and_are_numbered_anew():
    rank = Rank(0)
    rank.collective(0, 4)
    before = rank.cell(0, 9)
    table = {number: text for number, text in enumerate(before.strings) if text}
    far = before.spans.copy()
    for field in ("group", "name", "source"):
        far[field] = np.where(far[field] > 0, far[field] + 5000, 0)
    cell = RankCell.from_bytes(0, 0, 9, far.tobytes(), {number + 5000: text for number, text in table.items()})
    assert len(cell.strings) <= len(before.strings)
    for one, other in zip(before.spans, cell.spans, strict=True):
        for field in ("group", "name", "source"):
            assert before.text(one[field]) == cell.text(other[field])


def test_a_cell_holds_its_own_records_only():
    rank = Rank(0)
    rank.collective(0, 4, cell=CELL - 1)
    rank.collective(0, 4, cell=0)  # between cells
    rank.collective(5, 6)
    cell = cell_of([rank.cell(0, 10, child=1)], done=10)
    assert cell.ranks[0].spans["start_ns"].tolist() == [5 * MS, 0]
    untouched = rank.cell(0, 10)
    assert cell_of([untouched], done=10).ranks[0] is untouched


def test_times_of_another_clock_are_told_by_ours():
    rank = Rank(0)
    rank.collective(2, 4)
    before = rank.cell(1, 9)
    after = before.shifted(-5_000)
    assert (after.start_ns, after.end_ns) == (before.start_ns - 5_000, before.end_ns - 5_000)
    for field in ("start_ns", "end_ns", "wait_start_ns", "wait_end_ns"):
        moved = before.spans[field].astype(np.int64) - after.spans[field].astype(np.int64)
        assert set(moved[before.spans[field] != 0]) <= {5_000}
        assert not after.spans[field][before.spans[field] == 0].any()
    assert before.shifted(0) is before


def test_a_rank_that_died_is_inside_the_cell():
    cell = plain_cell({0: (10, 40)}, submitted=10, done=50)
    assert cell.extent(RankCell.from_bytes(1, 0, 0, b"", {})) == (10 * MS, 10 * MS)
    assert cell.extent(RankCell.from_bytes(1, 20 * MS, 0, b"", {})) == (20 * MS, 20 * MS)
    assert cell.extent(RankCell.from_bytes(1, 20 * MS, 90 * MS, b"", {})) == (20 * MS, 50 * MS)


def test_sizes():
    cells = [training(), plain_cell({6: (10, 40)}, submitted=10, done=50, cell=4)]
    timeline = Timeline.of(cells[:1]) + Timeline.of(cells[1:])
    assert timeline.cells == tuple(cells)
    assert (timeline.world_size, timeline.num_spans, timeline.spans_lost) == (7, 229, 0)
    assert timeline.wall_ms == pytest.approx(608.5 + 40)
    assert (Timeline.of([]).world_size, Timeline.of([]).wall_ms) == (0, 0)
    with pytest.raises(TypeError):
        timeline + 1


def test_it_says_what_it_holds():
    assert repr(Timeline.of([training()])) == "Timeline: 1 cell · 4 ranks · 608 ms · 228 spans"
    assert repr(Timeline.of([])) == "Timeline: no cells"
    lost = cell_of([RankCell.from_bytes(0, 0, 5, b"", {}, 3)], done=5)
    assert repr(Timeline.of([lost])) == "Timeline: 1 cell · 1 rank · 5.0 ms · 0 spans · 3 spans lost"
    assert Timeline.of([lost])._repr_mimebundle_() == {"text/plain": repr(Timeline.of([lost]))}
