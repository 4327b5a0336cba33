"""What every plot is: words, a static picture, a live plot, a table; small, and from this machine only."""

import base64
import gzip
import json
import pkgutil
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from hpcnb import plots
from hpcnb.core.errors import TimelineError
from hpcnb.plots import live
from hpcnb.timing.timeline import CellTimeline, RankCell, Timeline

FRAME = {"figure", "live", "svg", "theme", "warm"}


def item_of(figure):
    """The Bokeh document in the HTML of a figure."""
    (packed,) = re.findall(r'<script type="text/plain" class="hpcnb-packed">([^<]*)</script>', figure.html)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture(scope="module", params=plots.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def figure(kind, trained):
    return trained.plot(kind)


def test_every_module_that_is_a_plot_is_listed():
    modules = {module.name for module in pkgutil.iter_modules(plots.__path__)}
    assert modules - FRAME == set(plots.KINDS)


def test_an_unknown_kind_names_those_there_are(trained):
    with pytest.raises(TimelineError, match=r"there is no plot 'pie'; .* takes one of \"breakdown\", \"timeline\""):
        trained.plot("pie")


@pytest.mark.parametrize(
    "cells",
    [
        (),
        (CellTimeline(3, "cell 3", 0, 1, ()),),
        (CellTimeline(3, "cell 3", 5, 5, (RankCell.from_bytes(0, 5, 5, b"", {}),)),),
    ],
    ids=["no cells", "no ranks", "no time"],
)
def test_without_time_on_a_rank_there_is_nothing_to_draw(kind, cells):
    with pytest.raises(TimelineError, match="no cell has been timed yet; run a %%hpc_parallel cell first"):
        Timeline.of(cells).plot(kind)


def test_a_notebook_gets_words_a_picture_and_html(figure):
    bundle = figure._repr_mimebundle_()
    assert list(bundle) == ["text/plain", "image/svg+xml", "text/html"]
    assert bundle["text/plain"] == repr(figure) == figure.text
    assert figure.text.startswith(f"{figure.words}\n 0 ")
    assert figure.text.splitlines()[-1].split()[:2] == ["█", "computation"]


def test_nothing_comes_from_another_host(figure):
    for text in (figure.svg, figure.html, json.dumps(item_of(figure))):
        assert set(re.findall(r"\w+://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"(src|href)=\"(?!data:)", text)
        assert "//cdn" not in text


def test_the_html_carries_the_static_picture_as_an_image(figure):
    ((alt, picture),) = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)"', figure.html)
    assert base64.b64decode(picture).decode() == figure.svg
    assert alt == figure.words
    assert "<svg" not in figure.html  # what cleans an untrusted notebook would remove it


def test_the_html_is_one_element_that_scripts_end_properly(figure):
    assert figure.html.count("<script") == figure.html.count("</script>") == 2
    assert figure.html.startswith('<div class="hpcnb-figure">')
    assert figure.html.endswith("</div>")


def test_numbers_of_the_live_plot_are_plain_lists(figure):
    assert "ndarray" not in json.dumps(item_of(figure))  # base64 of doubles in base64: half as large again


def test_words_of_the_html_are_text_whatever_they_say():
    from bokeh.plotting import figure as bokeh_figure

    page = live.html("<svg/>", 'waited for in "<b>x&y</b>" line 3', bokeh_figure())
    assert page.count("&quot;&lt;b&gt;x&amp;y&lt;/b&gt;&quot;") == 2
    assert "<b>" not in page


def test_the_live_plot_says_which_bokeh_it_was_made_for(figure):
    import bokeh

    assert item_of(figure)["doc"]["version"] == bokeh.__version__


def test_the_live_plot_shrinks_with_the_page(figure):
    (root,) = item_of(figure)["doc"]["roots"]
    assert root["attributes"]["sizing_mode"] == "stretch_width"
    assert root["attributes"]["max_width"] == 760
    assert not {"width", "frame_width"} & {name for name, value in root["attributes"].items() if value is not None}


def test_the_picture_is_an_svg_that_fits(figure):
    root = ElementTree.fromstring(figure.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    width, height = float(root.get("width")), float(root.get("height"))
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(text.get("x")) < width
        assert 0 < float(text.get("y")) < height


@pytest.mark.parametrize("timeline", ["trained", "long_trained", "many_ranks"])
def test_figures_are_small_enough_for_a_notebook(kind, timeline, request):
    figure = request.getfixturevalue(timeline).plot(kind)
    assert len(figure.svg) <= 20_000
    assert len(figure.html) <= 60_000
    assert len(figure.text) <= 5_000


def test_the_table_is_made_when_asked_for(figure, kind):
    columns = {"breakdown": "duration_ms", "timeline": "start_ms"}
    assert columns[kind] in figure.table.columns
    assert figure.table is figure.table


def test_a_cell_of_a_nanosecond_is_drawn(kind):
    figure = Timeline.of([CellTimeline(3, "cell 3", 5, 6, (RankCell.from_bytes(0, 5, 6, b"", {}),))]).plot(kind)
    assert figure.html
    assert figure.text.startswith("1 rank · 1e-06 ms")


def test_what_a_user_calls_a_span_stays_text(kind):
    from hpcnb.core.spans import Kind
    from tests.data.ranks import Rank, cell_of

    rank = Rank(0)
    rank.write(Kind.USER, 0, 90, name="<script>alert(1)</script>")
    figure = Timeline.of([cell_of([rank.cell(0, 100, child=90)], done=100)]).plot(kind)
    assert "<script>alert" not in figure.svg + figure.html
    ElementTree.fromstring(figure.svg)


def test_without_a_plot_nothing_heavy_is_imported():
    heavy = "{'numpy', 'pandas', 'holoviews', 'hvplot', 'bokeh', 'panel'}"
    code = f"import sys, hpcnb, hpcnb.plots, hpcnb.plots.warm; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
