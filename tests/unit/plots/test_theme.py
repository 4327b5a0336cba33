"""Categories are told apart by colour, and without it."""

import pytest

from hpcnb.core.spans import CATEGORY_NAMES
from hpcnb.plots import svg
from hpcnb.plots.theme import BANDS, LOOKS
from hpcnb.timing.strip import ORDER


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_every_category_has_a_look_in_the_order_of_the_bars():
    assert tuple(LOOKS) == ORDER
    assert set(LOOKS) == set(CATEGORY_NAMES)


def test_no_two_categories_look_alike():
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.pattern for look in LOOKS.values()}) == len(LOOKS)
    labels = [look.label for look in (*LOOKS.values(), *BANDS.values())]
    assert len(set(labels)) == len(labels)


def test_patterns_are_those_of_bokeh_and_of_the_static_picture():
    from bokeh.core.enums import HatchPattern

    for look in LOOKS.values():
        assert not look.pattern or look.pattern in svg._TILES
        assert not look.pattern or look.pattern in set(HatchPattern)


@pytest.mark.parametrize("name", [name for name in LOOKS if name not in ("idle", "dispatch")])
def test_what_is_written_on_a_colour_can_be_read(name):
    assert contrast(LOOKS[name].colour, LOOKS[name].ink) >= 3
