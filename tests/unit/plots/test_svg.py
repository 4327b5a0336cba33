"""Static pictures, read back as the shapes that they are."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.plots import svg
from hpcnb.plots.theme import LOOKS, Look

PLAIN, HATCHED = LOOKS["computation"], LOOKS["communication_wait"]
NAMESPACE = "{http://www.w3.org/2000/svg}"


def draw(boxes, *, length_ms=680, rows=("rank 0", "rank 1"), looks=(PLAIN, HATCHED), **options):
    """A pixel is a millisecond, from 64 on; rows are 28 high, from 26 on."""
    return svg.picture(
        title="title", axis=svg.TimeAxis(length_ms), axis_label="time", rows=rows, boxes=boxes, looks=looks, **options
    )


def shapes(picture):
    """(fill, left, right, top, bottom) of every box in the picture, in the order of painting."""
    found = []
    for path in ElementTree.fromstring(picture).findall(f"{NAMESPACE}path"):
        if path.get("stroke") == "#ddd":
            continue  # the grid
        x = y = base = 0.0
        height = float(path.get("stroke-width", 0))
        for command, numbers in re.findall(r"([MmhvVz])([^MmhvVz]*)", path.get("d")):
            values = [float(number) for number in numbers.split()]
            if command == "M":
                x, y = values
                base = y
            elif command == "m":
                x, y = x + values[0], y + values[1]
            elif command == "v":
                y += values[0]
            elif command == "h":
                top, bottom = (y - height / 2, y + height / 2) if height else (y, base)
                found.append((path.get("stroke") or path.get("fill"), x, x + values[0], top, bottom))
                x += values[0]
    return found


def test_a_box_is_where_its_row_and_times_are():
    (shape,) = shapes(draw([svg.Box(1, 100, 102, 0.25, 0.75, PLAIN)]))
    assert shape == (PLAIN.colour, 164, 166, 26 + 28 * 1.25, 26 + 28 * 1.75)


def test_wide_neighbours_are_told_apart_by_a_hair():
    boxes = [svg.Box(0, start, start + 10, 0, 1, PLAIN) for start in (0, 10)]
    assert [(left, right) for _, left, right, _, _ in shapes(draw(boxes))] == [(64, 73.5), (74, 83.5)]


def test_what_is_too_short_to_see_is_drawn_all_the_same():
    ((_, left, right, _, _),) = shapes(draw([svg.Box(0, 100, 100.0001, 0, 1, PLAIN)]))
    assert right - left == pytest.approx(0.1)


def test_neighbours_of_different_heights_on_one_base_are_a_staircase():
    boxes = [
        svg.Box(0, 10 * index, 10 * index + 10, top, 1.0, PLAIN) for index, top in enumerate((0.5, 0.25, 0.25, 0.75))
    ]
    picture = draw(boxes, looks=[PLAIN])
    assert picture.count("<path") == 2  # and the grid
    assert [(left, right, top) for _, left, right, top, _ in shapes(picture)] == [
        (64, 74, 40), (74, 84, 33), (84, 94, 33), (94, 104, 47)
    ]  # fmt: skip
    assert {bottom for *_, bottom in shapes(picture)} == {54}


BOXES = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 600), st.integers(5, 40), st.sampled_from([0.0, 0.5]),
        st.sampled_from([PLAIN, HATCHED]),
    ),
    max_size=30,
)  # fmt: skip


@given(BOXES)
def test_any_boxes_come_back_in_the_order_of_painting(drawn):
    boxes = [svg.Box(row, start, start + length, top, 1.0, look) for row, start, length, top, look in drawn]
    found = shapes(draw(boxes))
    assert len(found) == len(boxes)
    for (_, left, right, top, bottom), box in zip(found, boxes, strict=True):
        assert left == pytest.approx(64 + box.start_ms, abs=0.06)
        assert right == pytest.approx(64 + box.end_ms, abs=0.6)
        assert (top, bottom) == pytest.approx((26 + 28 * (box.row + box.top), 26 + 28 * (box.row + 1)), abs=0.06)


def test_patterns_have_names_of_their_own_in_a_page_of_many_pictures():
    pictures = [draw([svg.Box(0, 0, end, 0, 1, HATCHED)]) for end in (10, 20)]
    names = [set(re.findall(r'id="([^"]+)"', picture)) for picture in pictures]
    assert all(names)
    assert not names[0] & names[1]
    for picture, of_picture in zip(pictures, names, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", picture)) == of_picture


def test_texts_are_written_where_they_fit():
    boxes = [svg.Box(0, 0, 50, 0, 1, PLAIN, "fits"), svg.Box(0, 60, 70, 0, 1, PLAIN, "does not")]
    assert ">fits</text>" in draw(boxes)
    assert "does not" not in draw(boxes)
    assert "fits" not in draw(boxes, row_height=10)


def test_names_are_text_whatever_they_are():
    odd = Look("a < b & c", "x", "#000", "#fff", "")
    picture = draw([svg.Box(0, 0, 300, 0, 1, odd, '"<&>"')], looks=[odd], rows=["<b>", "&"])
    texts = [text.text for text in ElementTree.fromstring(picture).iter(f"{NAMESPACE}text")]
    assert {'"<&>"', "<b>", "&", "a < b & c"} <= set(texts)


def test_a_long_legend_takes_several_rows():
    looks = list(LOOKS.values())
    root = ElementTree.fromstring(draw([], looks=looks, rows=["rank 0"]))
    swatches = root.findall(f"{NAMESPACE}rect")[1:]
    assert len(swatches) == len(looks)
    assert len({swatch.get("y") for swatch in swatches}) == 2


def test_many_rows_share_the_height():
    picture = draw([], rows=[f"rank {number}" for number in range(40)])
    assert float(ElementTree.fromstring(picture).get("height")) < 600


@pytest.mark.parametrize(
    ("length_ms", "unit", "ticks"),
    [
        (8, "ms", [0, 1, 2, 3, 4, 5, 6, 7, 8]), (608.5, "ms", [0, 100, 200, 300, 400, 500, 600]),
        (1000, "s", [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (34_900, "s", [0, 5, 10, 15, 20, 25, 30]),
        (179_000, "s", [0, 20, 40, 60, 80, 100, 120, 140, 160]), (600_000, "min", [0, 2, 4, 6, 8, 10]),
    ],
)  # fmt: skip
def test_an_axis_has_round_numbers_in_the_unit_that_reads_best(length_ms, unit, ticks):
    axis = svg.TimeAxis(length_ms)
    assert axis.unit == unit
    assert axis.ticks() == pytest.approx(ticks)
    assert f">time ({unit})</text>" in draw([], length_ms=length_ms)


@given(st.floats(1e-6, 1e9))
def test_any_axis_has_a_few_ticks_inside(length_ms):
    axis = svg.TimeAxis(length_ms)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(64 <= axis.x(tick * axis.unit_ms) <= 744 + 1e-6 for tick in ticks)
