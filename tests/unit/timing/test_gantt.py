"""Rectangles of the timeline picture: all spans where they can be drawn, else shares of slices."""

import pytest

from hpcnb.core.spans import Category, Kind
from hpcnb.timing.gantt import gantt
from hpcnb.timing.timeline import Timeline
from tests.data.make_timelines import training
from tests.data.ranks import Rank, cell_of, plain_cell


def of_one(rank, *, end=100, **options):
    return gantt(Timeline.of([cell_of([rank.cell(0, end, child=0)], done=end)]), **options)


def short(picture, *, band="main"):
    return [
        (each.category, each.name, each.start_ms, each.end_ms, each.detail)
        for each in picture.rectangles
        if each.band == band
    ]


def test_what_is_nested_is_painted_after_what_is_around_it():
    rank = Rank(0)
    rank.write(Kind.USER, 20, 30, name="inner", category=Category.FORWARD, line=4)
    rank.write(Kind.USER, 10, 40, name="outer", line=3)
    rank.write(Kind.DATA, 50, 60, line=2)
    assert short(of_one(rank)) == [
        ("computation", "cell 3", 0, 100, "100 ms of it in no span"),
        ("computation", "outer", 10, 40, "line 3"),
        ("forward", "inner", 20, 30, "line 4"),
        ("data", "data", 50, 60, "line 2"),
    ]


def test_nesting_counts_and_not_the_category():
    rank = Rank(0)
    rank.write(Kind.USER, 20, 30, name="forward", category=Category.FORWARD)
    rank.write(Kind.USER, 10, 40, name="optimizer", category=Category.OPTIMIZER)
    rank.write(Kind.USER, 50, 60, name="forward", category=Category.FORWARD)
    spans = [(each.name, each.start_ms) for each in of_one(rank).rectangles]
    assert spans == [("cell 3", 0), ("forward", 50), ("optimizer", 10), ("forward", 20)]


def test_blocked_time_is_wait_and_then_transfer_and_the_band_below_shows_it_from_its_issue():
    ranks = [Rank(0), Rank(1)]
    ranks[0].collective(10, 60, wait=(20, 60), num_bytes=4_200_000, line=6, step=2)
    ranks[1].collective(50, 60)
    picture = gantt(Timeline.of([cell_of([rank.cell(0, 100, child=0) for rank in ranks], done=100)]))
    detail = "4.2 MB · line 6 · step 2"
    of_rank_0 = [each for each in picture.rectangles if each.rank == 0 and each.name == "all_reduce"]
    assert [(each.band, each.category, each.start_ms, each.end_ms, each.detail) for each in of_rank_0] == [
        ("main", "communication_wait", 20, 50, detail),
        ("main", "communication_transfer", 50, 60, detail),
        ("communication", "communication", 10, 60, detail),
    ]


def test_dispatch_and_idle_stand_around_the_cell():
    cell = plain_cell({0: (10, 40), 1: (10, 80)}, submitted=5, done=90)
    picture = gantt(Timeline.of([cell]), ranks=frozenset([0]))
    assert [(each.category, each.start_ms, each.end_ms) for each in picture.rectangles] == [
        ("computation", 5, 35), ("idle", 35, 75), ("dispatch", 0, 5), ("dispatch", 75, 85)
    ]  # fmt: skip


def test_steps_have_a_band_of_their_own():
    rank = Rank(0)
    rank.write(Kind.STEP, 10, 40, name="train", step=7)
    assert short(of_one(rank), band="step") == [("step", "step 7", 10, 40, "")]


def test_only_names_that_the_user_gave_are_marked_as_such():
    rank = Rank(0)
    rank.write(Kind.USER, 10, 40, name="load the shard", source="/x/loader.py", line=9)
    rank.write(Kind.USER, 50, 60, name="forward", category=Category.FORWARD)
    marked = [each for each in of_one(rank).rectangles if each.named]
    assert [(each.name, each.detail) for each in marked] == [("load the shard", "loader.py line 9")]


def test_pauses_between_cells_are_cut_out():
    cells = [
        plain_cell({0: (10, 40)}, submitted=10, done=40),
        plain_cell({0: (1000, 1020)}, submitted=1000, done=1020, cell=4),
    ]
    picture = gantt(Timeline.of(cells))
    assert [(each.name, each.start_ms, each.end_ms) for each in picture.rectangles] == [
        ("cell 3", 0, 30), ("cell 4", 30, 50)
    ]  # fmt: skip
    assert picture.wall_ms == 50


def many(num_spans=400, num_ranks=2):
    """Half of every 10 ms is forward, and a fifth is data; one long span is backward."""
    ranks = []
    for number in range(num_ranks):
        rank = Rank(number, num_slots=4096)
        for index in range(num_spans):
            rank.write(Kind.USER, 10 * index, 10 * index + 5, name="forward", category=Category.FORWARD)
            rank.write(Kind.DATA, 10 * index + 5, 10 * index + 7)
        rank.write(Kind.USER, 10 * num_spans, 12 * num_spans, name="backward", category=Category.BACKWARD)
        ranks.append(rank.cell(0, 12 * num_spans, child=9 * num_spans))
    return Timeline.of([cell_of(ranks, done=12 * num_spans)])


def test_short_spans_become_shares_of_slices():
    picture = gantt(many(), most=300)
    assert len(picture.rectangles) <= 300
    assert [(each.rank, each.name) for each in picture.spans if each.category == "backward"] == [
        (0, "backward"), (1, "backward")
    ]  # fmt: skip
    slice_ms = picture.shares[0].end_ms - picture.shares[0].start_ms
    inner = [each for each in picture.shares if each.end_ms < 3900]
    forward = [each for each in inner if each.category == "forward"]
    assert sum(each.took_ms for each in forward) == pytest.approx(len(forward) * slice_ms / 2, rel=0.05)
    for each in picture.shares:
        assert each.top - each.bottom == pytest.approx(each.took_ms / slice_ms)
    assert "intervals are shorter than" in picture.left_out
    assert picture.left_out.startswith("1,600 of 1,604 ")


def test_shares_of_a_slice_stand_on_each_other_and_fill_it_at_most():
    heights = {}
    for share in gantt(many(), most=300).shares:
        place = (share.rank, share.band, share.start_ms)
        assert share.bottom == heights.get(place, 0.0)
        heights[place] = share.top
    assert max(heights.values()) <= 1


def test_a_share_says_how_many_spans_and_how_much_it_stands_for():
    share = next(each for each in gantt(many(), most=300).shares if each.category == "forward")
    number = int(share.name.split()[0])
    assert share.name == f"{number} short intervals"
    assert share.took_ms == pytest.approx(5 * number, abs=5)
    assert share.detail.endswith(" ms")
    assert " % of " in share.detail


@pytest.mark.parametrize("most", [60, 100, 250, 1000])
def test_never_more_rectangles_than_asked_for_and_nearly_as_many(most):
    number = len(gantt(many(), most=most).rectangles)
    assert most / 2 < number <= most


def test_a_training_is_drawn_span_by_span():
    picture = gantt(Timeline.of([training()]))
    assert not picture.left_out
    assert not picture.shares
    of_rank_1 = [each for each in picture.spans if each.rank == 1 and each.band == "main"]
    assert sum(each.took_ms for each in of_rank_1 if each.category == "data") == 32
    assert not [each for each in of_rank_1 if each.category == "communication_wait"]


def test_without_cells_there_is_nothing_to_draw():
    assert gantt(Timeline.of([])).rectangles == ()
