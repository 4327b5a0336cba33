"""Numbers as people read them."""

import pytest

from hpcnb.core import units


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0 ms"), (0.0012, "0.0012 ms"), (0.094, "0.094 ms"), (0.1, "0.1 ms"), (9.94, "9.9 ms"), (9.96, "10 ms"),
        (42.4, "42 ms"), (999.4, "999 ms"), (999.6, "1.0 s"), (1300, "1.3 s"), (15_840, "15.8 s"),
        (99_900, "99.9 s"), (99_960, "1 min 40 s"), (185_000, "3 min 05 s"), (3_599_600, "1 h 00 min"),
        (7_620_000, "2 h 07 min"),
    ],
)  # fmt: skip
def test_durations(milliseconds, words):
    assert units.duration(milliseconds) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.71, "71 %"), (1, "100 %"), (0.0095, "1 %"), (0.0094, "0.9 %"), (0.001, "0.1 %"), (0, "0.0 %")],
)
def test_percentages_have_a_decimal_below_one(share, words):
    assert units.percent(share) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(0, "0 B"), (512, "512 B"), (1000, "1.0 kB"), (4_200_000, "4.2 MB"), (20_400_000_000, "20 GB"), (3e13, "30.0 TB")],
)
def test_sizes_are_decimal(num_bytes, words):
    assert units.size(num_bytes) == words


def test_counts():
    assert units.count(1, "rank") == "1 rank"
    assert units.count(0, "span") == "0 spans"
    assert units.count(12_345, "span") == "12,345 spans"
