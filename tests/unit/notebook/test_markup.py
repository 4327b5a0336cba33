"""The merged output as text and HTML: labels, escapes, colours, pictures, bars."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.cluster.cell_run import Bar
from hpcnb.cluster.result import RichOutput
from hpcnb.core.grouping import Item
from hpcnb.core.ranks import RankSet
from hpcnb.notebook import markup


def item(ranks, text, kind="stdout", **more):
    return Item(RankSet(ranks), kind, text, **more)


def test_text_has_a_label_per_line():
    items = [item(range(4), "loss 0.5"), item([1, 3], "odd"), item([0], "repr 7", "value"), item([2], "many", "cut")]
    assert markup.items_text(items, []).splitlines() == [
        "[0-3]   loss 0.5",
        "[1,3]   odd",
        "Out[0]: 7",
        "[2]     ... many ...",
    ]


def test_values_of_several_lines_are_indented():
    assert markup.items_text([item([0], "repr [1,\n 2]", "value")], []) == "Out[0]: [1,\n         2]"


def test_html_escapes_and_keeps_colours():
    html = markup.items_html([item([0], "<b>\x1b[31mred\x1b[0m & \x1b[2Kplain")], [])
    assert "&lt;b&gt;<span" in html
    assert ">red</span> &amp; plain" in html
    assert "\x1b" not in html


def test_every_rank_set_has_one_colour_and_its_label_in_words():
    html = markup.items_html([item([0], "a"), item([1], "b"), item([0], "c")], [])
    assert html.count("<b ") == 3
    assert html.count("[0]") == 2
    assert html.split("<b style=")[1][:20] == html.split("<b style=")[3][:20] != html.split("<b style=")[2][:20]


def test_pictures_are_in_their_place_with_words_beside_them():
    displays = [RichOutput(RankSet([0]), {"image/png": "AAAA", "text/plain": '<Figure "1">'}, {})]
    items = [item([0], "before"), item([0], "0", "display"), item([0], "after")]
    html = markup.items_html(items, displays)
    assert html.index("before") < html.index("data:image/png;base64,AAAA") < html.index("after")
    assert 'alt="&lt;Figure &quot;1&quot;&gt;"' in html
    assert markup.items_text(items, displays).splitlines()[1] == '[0] <Figure "1">'


@pytest.mark.parametrize(
    ("bundle", "inside"),
    [
        ({"image/svg+xml": "<svg/>"}, True),
        ({"text/html": "<table></table>"}, True),
        ({"text/html": "<div></div><SCRIPT>go()</SCRIPT>"}, False),
        ({"application/vnd.plotly.v1+json": {}}, False),
    ],
)
def test_what_can_be_shown_inside(bundle, inside):
    assert markup.embeddable(RichOutput(RankSet([0]), bundle, {})) is inside


class _Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@given(
    st.lists(
        st.tuples(st.integers(1, 15), st.text(max_size=40), st.sampled_from(["stdout", "stderr", "cut"])), max_size=8
    )
)
def test_html_is_balanced_whatever_ranks_print(lines):
    parser = _Balance()
    parser.feed(markup.items_html([Item(RankSet.of_bits(bits), kind, text) for bits, text, kind in lines], []))
    assert parser.open == []


@given(st.text(alphabet="\x1b[0123456789;mK a<", max_size=60))
def test_any_escape_sequence_is_survived(text):
    parser = _Balance()
    parser.feed(markup.items_html([item([0], text)], []))
    assert parser.open == []


def test_bars_name_the_slowest_and_the_fastest_rank():
    text = markup.bar_text(Bar("train", 600, {0: (400, 10.0), 1: (300, 10.0), 2: (500, 10.0)}))
    assert text.startswith("train  ━━━━━━━━━━━━━━━━━━━━──────────  400/600 · 40 steps/s · 0:05 left")
    assert text.endswith("slowest rank 1 (-25 %) · fastest rank 2 (+25 %)")


def test_bars_without_an_end_and_slow_ones():
    assert markup.bar_text(Bar("", -1, {0: (3, 6.0)})) == "3 · 2 s/step"
    assert markup.bar_text(Bar("x", 10, {0: (0, 0.0)})) == "x  " + "─" * 30 + "  0/10"
