"""The timeline plot: a row per rank over a common axis."""

import pytest

from hpcnb.core.spans import Kind
from hpcnb.plots.theme import BANDS, LOOKS
from hpcnb.timing.timeline import Timeline
from tests.data.ranks import Rank, cell_of, plain_cell


@pytest.fixture(scope="module")
def element(trained):
    return trained.plot("timeline").object


@pytest.fixture(scope="module")
def bokeh_figure(element):
    from hpcnb.plots import warm

    with warm.bokeh_backend() as hv:
        return hv.render(element, backend="bokeh")


def test_axes_have_names_and_units(bokeh_figure):
    assert bokeh_figure.title.text == "What each rank did in cell 3"
    assert bokeh_figure.xaxis[0].axis_label == "time (ms)"
    assert (bokeh_figure.x_range.start, bokeh_figure.x_range.end) == (0, pytest.approx(608.5))
    ticks = bokeh_figure.yaxis[0]
    assert [ticks.major_label_overrides[at] for at in ticks.ticker.ticks] == [f"rank {rank}" for rank in range(4)]
    assert (bokeh_figure.y_range.start, bokeh_figure.y_range.end) == (4, 0)  # rank 0 on top


def test_rectangles_are_where_the_spans_are(element):
    table = element.dframe()
    waits = table[table["category"] == "wait"]
    assert len(waits) == 3 * 8
    assert (waits["right"] - waits["left"]).to_numpy() == pytest.approx(20)
    assert set((waits["bottom"] // 1).astype(int)) == {0, 2, 3}


def test_what_stands_under_the_pointer(element):
    tips = set(element.dframe()["tip"])
    assert "rank 1 · transfer · all_reduce · 6.0 ms · 4.2 MB · line 4 · step 0" in tips
    assert "rank 0 · forward · 10 ms · line 3 · step 7" in tips
    assert "rank 2 · step 3 · 74 ms" in tips
    assert "rank 2 · computation · cell 3 · 607 ms · 15 ms of it in no span" in tips


def test_categories_and_bands_have_our_colours_and_order(bokeh_figure):
    (renderer,) = [each for each in bokeh_figure.renderers if "category" in each.data_source.data]
    looks = {look.label: look for look in (*LOOKS.values(), *BANDS.values())}
    colour = renderer.glyph.fill_color.transform
    assert all(looks[name].colour == value for name, value in zip(colour.factors, colour.palette, strict=True))
    (legend,) = [each for each in bokeh_figure.legend if each.visible]
    assert [item.label.value for item in legend.items] == [
        "computation", "forward", "backward", "optimizer", "wait", "transfer", "data", "idle", "dispatch", "step",
        "communication in flight",
    ]  # fmt: skip
    assert renderer.hover_glyph is None  # it would cover nested spans


def test_the_text_is_a_row_of_glyphs_per_rank(trained):
    lines = trained.plot("timeline").text.splitlines()
    assert lines[0] == "4 ranks · 608 ms"
    assert lines[1].startswith(" 0 ▓><<<▒▒█><<<▒▒░><<<▒▒")
    assert lines[2].startswith(" 1 ▓><<<<<█><<<<<░><<<<<")
    assert {len(line) for line in lines[1:5]} == {3 + 60}
    assert lines[5] == "   █ computation  > forward  < backward  + optimizer  ▒ wait  ░ transfer  ▓ data  · idle"


def test_no_column_of_the_text_is_empty_where_a_rank_had_ended():
    cell = plain_cell({0: (0, 33.1), 1: (0, 100)}, done=100)
    rows = Timeline.of([cell]).plot("timeline").text.splitlines()[1:3]
    assert rows == [" 0 " + "█" * 20 + "·" * 40, " 1 " + "█" * 60]


def test_many_spans_become_shares_and_the_words_say_so(long_trained):
    figure = long_trained.plot("timeline")
    assert "12,611 of 12,615 intervals are shorter than" in figure.words
    tips = figure.object.dframe()["tip"]
    assert tips.str.contains(r"^rank 0 · backward · \d+ short intervals · [\d.]+ m?s · \d+ % of ").any()
    assert len(tips) <= 1500


def test_of_many_ranks_the_extremes_are_drawn(many_ranks):
    figure = many_ranks.plot("timeline")
    assert figure.words == "100 ranks · 200 ms · the 8 slowest and the 8 fastest ranks are drawn"
    assert figure.svg.count(">rank ") == 16


def test_names_that_the_user_gave_are_written_on_their_spans():
    rank = Rank(0)
    rank.write(Kind.USER, 0, 60, name="load")
    rank.write(Kind.USER, 60, 61, name="too short for its name")
    picture = Timeline.of([cell_of([rank.cell(0, 100, child=61)], done=100)]).plot("timeline").svg
    assert ">load</text>" in picture
    assert "too short" not in picture


def test_cells_stand_beside_each_other():
    cells = [plain_cell({0: (0, 60)}, done=60), plain_cell({0: (1000, 1040)}, submitted=1000, done=1040, cell=4)]
    figure = Timeline.of(cells).plot("timeline")
    assert "What each rank did in 2 cells, pauses between cells cut out" in figure.svg
    assert figure.words == "1 rank · 100 ms"
