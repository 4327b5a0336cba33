"""The breakdown plot: a stacked bar per rank."""

import pytest

from hpcnb.plots.theme import LOOKS
from hpcnb.timing.timeline import Timeline
from tests.data.ranks import plain_cell


@pytest.fixture(scope="module")
def bokeh_figure(trained):
    from hpcnb.plots import warm

    with warm.bokeh_backend() as hv:
        return hv.render(trained.plot("breakdown").object, backend="bokeh")


def test_axes_have_names_and_units(bokeh_figure):
    assert bokeh_figure.title.text == "Where the time went in cell 3"
    assert bokeh_figure.xaxis[0].axis_label == "time (ms)"
    assert list(bokeh_figure.y_range.factors) == ["rank 3", "rank 2", "rank 1", "rank 0"]


@pytest.mark.parametrize(("length_ms", "unit"), [(900, "ms"), (1100, "s"), (200_000, "min")])
def test_the_unit_is_the_one_that_reads_best(length_ms, unit):
    figure = Timeline.of([plain_cell({0: (0, length_ms)}, done=length_ms)]).plot("breakdown")
    assert f">time ({unit})<" in figure.svg
    from hpcnb.plots import warm

    with warm.bokeh_backend() as hv:
        assert hv.render(figure.object, backend="bokeh").xaxis[0].axis_label == f"time ({unit})"


def test_bars_are_as_long_as_the_table_says(bokeh_figure):
    (renderer,) = bokeh_figure.renderers
    source = renderer.data_source.data
    lengths_ms = source["top"] - source["bottom"]
    lengths = {
        (rank, category): length
        for rank, category, length in zip(source["rank"], source["category"], lengths_ms, strict=True)
    }
    assert lengths["rank 0", "wait"] == pytest.approx(160)
    assert lengths["rank 1", "backward"] == pytest.approx(400)
    assert sum(length for (rank, _), length in lengths.items() if rank == "rank 2") == pytest.approx(608.5)


def test_categories_have_our_colours_patterns_and_order(bokeh_figure):
    (renderer,) = bokeh_figure.renderers
    shown = ["computation", "forward", "backward", "optimizer", "wait", "transfer", "data", "idle", "dispatch"]
    looks = {look.label: look for look in LOOKS.values()}
    colour = renderer.glyph.fill_color.transform
    assert dict(zip(colour.factors, colour.palette, strict=True)) == {name: looks[name].colour for name in shown}
    pattern = renderer.glyph.hatch_pattern.transform
    assert list(pattern.factors) == shown
    assert list(pattern.patterns) == [looks[name].pattern or "blank" for name in shown]
    legend = [each for each in bokeh_figure.legend if each.visible]
    assert [[item.label.value for item in each.items] for each in legend] == [shown]


def test_the_static_bars_carry_their_percentages_and_a_legend(trained):
    picture = trained.plot("breakdown").svg
    assert picture.count(">26 %<") == 3  # wait of the ranks that are not slow
    assert ">66 %<" in picture  # backward of the one that is
    for name in ("computation", "forward", "backward", "wait", "transfer", "data", "idle", "dispatch"):
        assert f">{name}</text>" in picture
    assert ">other</text>" not in picture


def test_several_cells_are_added_up():
    cells = [plain_cell({0: (0, 60), 1: (0, 100)}, done=100), plain_cell({1: (0, 50)}, done=50, cell=4)]
    figure = Timeline.of(cells).plot("breakdown")
    assert figure.text.splitlines() == [
        "2 cells · 2 ranks · 150 ms · computation 70 % · idle 13 %",
        " 0 ████████████████···········",
        " 1 ████████████████████████████████████████      █ computation  · idle",
    ]
    assert ">Where the time went</text>" in figure.svg


def test_of_many_ranks_the_extremes_are_drawn(many_ranks):
    figure = many_ranks.plot("breakdown")
    assert "the 12 slowest and the 12 fastest of 100 ranks" in figure.svg
    assert figure.svg.count(">rank ") == 24
    assert ">rank 99<" in figure.svg
    assert ">rank 0<" in figure.svg
    assert ">rank 50<" not in figure.svg
