"""The categories of a rank add up to the wall time of the cell, whatever it did and whatever was lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcnb.core.spans import CATEGORY_NAMES, SPAN, Category, Flag, Kind
from hpcnb.timing.breakdown import accounts, sums, totals
from hpcnb.timing.timeline import RankCell, Timeline
from tests.data.make_timelines import training
from tests.data.ranks import CELL, MS, Rank, cell_of, plain_cell

ALWAYS = {"computation", "communication_wait", "communication_transfer", "idle", "dispatch"}


def milliseconds(cell, rank=0):
    """What is not zero."""
    return {name: round(duration_ms, 6) for name, duration_ms in totals(cell)[rank].items() if duration_ms}


def alone(rank, *, start=0, end=100, child=0):
    """A cell of one rank, with neither dispatch nor idle."""
    return cell_of([rank.cell(start, end, child=child)], submitted=start, done=end)


def overlapped_ms(cell, rank=0):
    return accounts(cell)[rank].overlapped_ns.sum() / MS


# --- what a record counts as --------------------------------------------------------------------------------


def test_an_empty_cell_is_computation_dispatch_and_idle():
    cell = plain_cell({0: (2, 50), 1: (3, 60)}, submitted=1, done=64)
    assert totals(cell)[0] == {
        "computation": 48, "communication_wait": 0, "communication_transfer": 0, "idle": 10, "dispatch": 1 + 4
    }  # fmt: skip
    assert milliseconds(cell, 1) == {"computation": 57, "dispatch": 2 + 4}


@pytest.mark.parametrize(
    ("kind", "category", "name"),
    [
        (Kind.STEP, Category.OTHER, "computation"),  # a step's own category is not looked at
        (Kind.DATA, Category.COMPUTATION, "data"),
        (Kind.USER, Category.FORWARD, "forward"),
        (Kind.USER, Category.OPTIMIZER, "optimizer"),
        (Kind.USER, Category.COMPUTATION, "computation"),
        (Kind.USER, 77, "other"),  # of a later version
    ],
)
def test_time_in_a_span_counts_as_its_category(kind, category, name):
    rank = Rank(0)
    rank.write(kind, 10, 40, child=5, category=category)
    rank.write(Kind.USER, 12, 17, category=Category.BACKWARD)
    expected = {"backward": 5.0, "computation": 70.0}
    expected[name] = expected.get(name, 0) + 25
    assert milliseconds(alone(rank, child=30)) == expected


def test_a_record_of_an_unknown_kind_takes_no_time():
    rank = Rank(0)
    rank.write(200, 10, 20)
    assert milliseconds(alone(rank)) == {"computation": 100}


def test_blocked_time_leaves_the_span_around_it():
    slow, fast = Rank(1), Rank(0)
    for rank, start in ((fast, 20), (slow, 70)):
        rank.collective(start, 80)
        rank.write(Kind.USER, 10, 90, child=80 - start, category=Category.BACKWARD)
    cell = cell_of([rank.cell(0, 100, child=80) for rank in (fast, slow)], done=100)
    assert milliseconds(cell, 0) == {
        "computation": 20, "backward": 20, "communication_wait": 50, "communication_transfer": 10
    }  # fmt: skip
    assert milliseconds(cell, 1) == {"computation": 20, "backward": 70, "communication_transfer": 10}


def test_before_and_after_a_rank_are_dispatch_and_idle():
    ranks = [Rank(0), Rank(1)]
    ranks[0].write(Kind.DATA, 20, 30)
    cell = cell_of([ranks[0].cell(15, 40, child=10), ranks[1].cell(12, 70, child=0)], submitted=10, done=75)
    assert milliseconds(cell, 0) == {"computation": 15, "data": 10, "idle": 30, "dispatch": 5 + 5}
    assert milliseconds(cell, 1) == {"computation": 58, "dispatch": 2 + 5}


# --- overlapped communication -------------------------------------------------------------------------------


def test_communication_beside_computation_is_a_column_of_its_own():
    rank = Rank(0)
    rank.collective(10, 40, wait=(30, 40), flags=Flag.ASYNC)
    cell = alone(rank, child=10)
    assert milliseconds(cell) == {"computation": 90, "communication_transfer": 10}
    table = Timeline.of([cell]).breakdown()
    assert table[table["overlapped_ms"] > 0][["category", "overlapped_ms"]].to_numpy().tolist() == [
        ["communication_transfer", 20.0]
    ]


def test_operations_under_way_at_once_overlap_once():
    rank = Rank(0)
    rank.collective(10, 40, wait=(60, 60), sequence=1)
    rank.collective(20, 60, wait=(60, 60), sequence=2)
    rank.collective(25, 35, wait=(60, 60), sequence=3)
    assert overlapped_ms(alone(rank)) == 50


def test_blocked_in_one_operation_another_one_is_not_overlapped():
    rank = Rank(0)
    rank.collective(10, 80, wait=(80, 80), sequence=1)
    rank.collective(30, 50, sequence=2)
    assert overlapped_ms(alone(rank, child=20)) == 50


def test_looking_at_what_is_complete_takes_nothing_from_the_overlap():
    rank = Rank(0)
    rank.collective(10, 30, wait=(40, 41))
    assert overlapped_ms(alone(rank, child=1)) == 20


def test_communication_that_outlasts_the_cell_overlaps_up_to_its_end():
    rank = Rank(0)
    rank.collective(80, 150, wait=(150, 150))
    assert overlapped_ms(alone(rank)) == 20


def test_overlap_without_any_exposed_time_still_has_a_row():
    rank = Rank(0)
    rank.collective(10, 30, wait=(30, 30), step=4)
    table = Timeline.of([alone(rank)]).breakdown()
    row = table[table["category"] == "communication_transfer"]
    assert row[["step", "duration_ms", "overlapped_ms"]].to_numpy().tolist() == [[4, 0, 20]]


# --- what is missing or does not belong ---------------------------------------------------------------------


def test_the_time_of_lost_spans_is_in_other():
    rank = Rank(0, num_slots=128)
    for index in range(200):
        rank.write(Kind.DATA, index, index + 0.5)
    cell = alone(rank, end=200, child=100)
    lost = cell.ranks[0].spans_lost
    assert lost > 72
    assert milliseconds(cell) == {
        "computation": 100, "data": (200 - lost) * 0.5, "other": lost * 0.5
    }  # fmt: skip


def test_a_rank_without_records_is_all_other():
    dead = RankCell.from_bytes(1, 2 * MS, 30 * MS, b"", {})
    cell = cell_of([Rank(0).cell(1, 90, child=0), dead], done=100)
    assert milliseconds(cell, 1) == {"other": 28, "idle": 60, "dispatch": 12}


def test_a_rank_that_reported_no_times_is_inside_the_cell():
    cell = cell_of([RankCell.from_bytes(0, 0, 0, b"", {})], submitted=50, done=80)
    assert milliseconds(cell) == {"dispatch": 30}


def test_only_the_cell_record_was_kept_and_says_that_others_were_there():
    assert milliseconds(alone(Rank(0), child=30)) == {"computation": 70, "other": 30}


def test_records_of_an_earlier_cell_do_not_count():
    rank = Rank(0)
    rank.collective(10, 60, cell=CELL - 1)  # issued in the cell before, over in this one
    rank.write(Kind.USER, 20, 30, category=Category.FORWARD)
    cell = alone(rank, child=10)
    assert milliseconds(cell) == {"computation": 90, "forward": 10}
    assert cell.ranks[0].spans["cell"].tolist() == [CELL, CELL]


def test_damaged_records_that_claim_too_much_are_cut_down_to_the_wall_time():
    rank = Rank(0)
    rank.write(Kind.USER, 0, 300, category=Category.FORWARD)
    rank.write(Kind.DATA, 0, 50)
    cell = alone(rank)
    assert sum(totals(cell)[0].values()) == pytest.approx(100)
    assert min(totals(cell)[0].values()) >= 0


# --- tables -------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_rank_step_and_category():
    table = Timeline.of([training()]).breakdown()
    assert table.columns.tolist() == ["rank", "step", "category", "duration_ms", "overlapped_ms", "cell"]
    assert [table[name].dtype.kind for name in ("rank", "step", "duration_ms", "overlapped_ms", "cell")] == list(
        "iiffi"
    )
    of_step = table[(table["rank"] == 0) & (table["step"] == 5)]
    assert dict(zip(of_step["category"], of_step["duration_ms"].round(6), strict=True)) == {
        "computation": 1, "forward": 10, "backward": 30, "optimizer": 3, "data": 4, "communication_wait": 20,
        "communication_transfer": 6,
    }  # fmt: skip
    assert of_step["overlapped_ms"].sum() == pytest.approx(8)
    outside = table[(table["rank"] == 2) & (table["step"] == -1)]
    assert set(outside["category"]) == {"computation", "dispatch"}
    assert set(table["category"]) <= set(CATEGORY_NAMES)


def test_the_table_adds_up_to_the_wall_time_of_every_rank_and_cell():
    cells = [training(), plain_cell({0: (2, 50), 1: (3, 60)}, done=64, cell=4)]
    table = Timeline.of(cells).breakdown()
    for cell in cells:
        by_rank = table[table["cell"] == cell.cell].groupby("rank")["duration_ms"].sum()
        assert by_rank.to_numpy() == pytest.approx(cell.wall_ms, abs=1e-6)


def test_sums_are_over_all_cells():
    cells = [plain_cell({1: (2, 50), 0: (3, 60)}, done=64), plain_cell({0: (0, 10)}, done=10, cell=4)]
    assert list(sums(Timeline.of(cells))) == [0, 1]
    assert sums(Timeline.of(cells))[0]["computation"] == 67


def test_no_cells_make_an_empty_table_with_the_same_columns():
    table = Timeline.of([]).breakdown()
    assert table.empty
    assert table.columns.tolist() == ["rank", "step", "category", "duration_ms", "overlapped_ms", "cell"]


# --- anything a rank can do ---------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.tuples(st.just("compute"), st.integers(1, 9)),
    st.tuples(st.just("blocked"), st.integers(0, 3), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("flying"), st.integers(0, 3), st.integers(0, 20)),
)
SPANS = st.sampled_from(
    [(Kind.STEP, Category.COMPUTATION), (Kind.DATA, Category.DATA)]
    + [(Kind.USER, category) for category in (Category.FORWARD, Category.BACKWARD, Category.COMPUTATION)]
)
PROGRAMS = st.lists(
    st.recursive(LEAVES, lambda nested: st.tuples(st.just("span"), SPANS, st.lists(nested, max_size=4)), max_leaves=12),
    max_size=6,
)


class Simulated:
    """Runs a program in whole milliseconds and keeps, apart from the records, what happened in each."""

    def __init__(self, number, program, *, start):
        self.rank = Rank(number)
        self.at, self.sequence = start, 0
        self.spent = {}
        self.flown, self.blocked = set(), set()
        child = self.run(program, "computation")
        self.end = self.at
        self.cell = self.rank.cell(start, self.end, child=child)

    def run(self, program, category):
        """Time that records inside account for."""
        return sum([self.step(*each, category=category) for each in program])

    def step(self, what, *arguments, category):
        began = self.at
        if what == "compute":
            self.at += arguments[0]
            self.spent[category] = self.spent.get(category, 0) + arguments[0]
            return 0
        if what == "span":
            (kind, of_span), nested = arguments
            child = self.run(nested, of_span.name.lower())
            self.rank.write(kind, began, self.at, child=child, category=of_span, step=began % 3 - 1)
            return self.at - began
        self.sequence += 1
        common = {"group": f"group {arguments[0]}", "sequence": self.sequence, "step": began % 3 - 1}
        if what == "flying":
            end = began + arguments[1]
            self.rank.collective(began, end, wait=(end, end), flags=Flag.ASYNC, **common)
            self.flown |= set(range(began, end))
            return 0
        self.at += arguments[1]
        if arguments[2]:
            self.rank.collective(began, self.at, **common)
            self.flown |= set(range(began, self.at))
        else:  # complete before it is waited for
            self.rank.collective(began, began, wait=(began, self.at), **common)
        self.blocked |= set(range(began, self.at))
        return arguments[1]


@settings(max_examples=50)
@given(st.lists(PROGRAMS, min_size=1, max_size=3), st.integers(0, 5), st.integers(0, 5))
def test_every_millisecond_is_in_the_category_of_what_happened(programs, before, after):
    ran = [Simulated(number, program, start=before + number) for number, program in enumerate(programs)]
    last = max(each.end for each in ran)
    cell = cell_of([each.cell for each in ran], done=last + after)
    for number, each in enumerate(ran):
        of_rank = totals(cell)[number]
        assert sum(of_rank.values()) == pytest.approx(cell.wall_ms, abs=1e-6)
        assert min(of_rank.values()) >= 0
        blocked = of_rank.pop("communication_wait") + of_rank.pop("communication_transfer")
        assert blocked == pytest.approx(len(each.blocked), abs=1e-6)
        expected = {"dispatch": before + number + after, "idle": last - each.end, **each.spent}
        assert {name: ms for name, ms in of_rank.items() if ms} == {name: ms for name, ms in expected.items() if ms}
        beside = {at for at in each.flown - each.blocked if at < each.end}
        assert overlapped_ms(cell, number) == pytest.approx(len(beside), abs=1e-6)


@settings(max_examples=50)
@given(PROGRAMS, st.integers(0, 40))
def test_records_that_were_lost_move_their_time_to_other(program, lost):
    whole = Simulated(0, program, start=0)
    packed = whole.cell.spans.tobytes()[lost * SPAN.size :]
    part = RankCell.from_bytes(0, 0, whole.cell.end_ns, packed, dict(enumerate(whole.cell.strings)), lost)
    before, after = (totals(cell_of([rank], done=whole.end + 2))[0] for rank in (whole.cell, part))
    assert sum(after.values()) == pytest.approx(whole.end + 2, abs=1e-6)
    assert min(after.values()) >= 0
    assert all(after[name] <= before.get(name, 0) + 1e-6 for name in after if name != "other")
    assert set(after) - {"other"} <= set(before)


@settings(max_examples=50)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=6 * 5, max_size=6 * 5), st.data())
def test_records_without_sense_still_add_up(times, data):
    rank = Rank(0)
    for start, end, wait_start, wait_end, child in zip(*[iter(times)] * 5, strict=True):
        kind = data.draw(st.integers(0, 7))
        rank.write(kind, start / MS, end / MS, wait=(wait_start / MS, wait_end / MS), child=child / MS, sequence=1)
    cell = alone(rank, end=500)
    assert sum(totals(cell)[0].values()) == pytest.approx(500, abs=1e-6)
    assert min(totals(cell)[0].values()) >= 0
    assert totals(cell)[0].keys() >= ALWAYS


def test_totals_do_not_depend_on_the_short_cut_for_empty_cells():
    parts = {0: (2, 50), 1: (3, 60), 2: (3, 41)}
    plain = plain_cell(parts, submitted=1, done=64)
    ranks = [Rank(number) for number in parts]
    for rank in ranks:
        rank.write(200, 5, 6)  # a record that counts for nothing
    same = cell_of([rank.cell(*parts[rank.rank], child=0) for rank in ranks], submitted=1, done=64)
    assert totals(plain) == totals(same)
    assert np.isclose(sum(totals(plain)[2].values()), 63)
