"""The line of words and the bars under a cell, word for word."""

import pytest

from hpcnb.core.spans import CATEGORY_NAMES
from hpcnb.timing import strip
from hpcnb.timing.timeline import RankCell, Timeline
from tests.data.make_timelines import training
from tests.data.ranks import MS, Rank, cell_of, plain_cell


def met(*starts, end, done, times=1, **fields):
    """A cell of ranks that meet in all_reduce, at these times in ms after the last meeting."""
    ranks = [Rank(number) for number in range(len(starts))]
    child = [0.0] * len(ranks)
    for index in range(times):
        for number, (rank, start) in enumerate(zip(ranks, starts, strict=True)):
            rank.collective(index * end + start, (index + 1) * end, sequence=index, **{"line": 6, **fields})
            child[number] += end - start
    return cell_of([rank.cell(0, done, child=of) for rank, of in zip(ranks, child, strict=True)], done=done)


# --- words --------------------------------------------------------------------------------------------------


def test_words_say_the_averages_and_who_is_waited_for():
    assert strip.words(training()) == (
        "4 ranks · 608 ms · computation 3 % · forward 13 % · backward 46 % · optimizer 4 % · wait 20 % · "
        "transfer 8 % · data 5 % · idle 0.6 % · dispatch 0.3 %     "
        "rank 1 is waited for: 160 ms in all_reduce (line 4)"
    )


def test_an_empty_cell_has_only_dispatch_and_computation():
    assert (
        strip.words(plain_cell({0: (1, 2), 1: (1, 2)}, done=2)) == "2 ranks · 2.0 ms · computation 50 % · dispatch 50 %"
    )


def test_a_rank_that_ends_last_is_named_if_the_others_idle_a_tenth_of_the_time():
    assert strip.words(plain_cell({0: (0, 60), 1: (0, 100), 2: (0, 70)}, done=100)).endswith(
        "     rank 1 ends last: the others are idle for 30 ms"
    )
    assert "last" not in strip.words(plain_cell({0: (0, 91), 1: (0, 100), 2: (0, 92)}, done=100))


def test_in_a_cell_of_milliseconds_it_is_not_worth_a_sentence_who_ends_last():
    assert strip.words(plain_cell({0: (0, 1), 1: (0, 19.9)}, done=19.9)) == (
        "2 ranks · 20 ms · computation 53 % · idle 47 %"
    )


def test_waits_are_worth_a_sentence_from_two_percent_on():
    assert "is waited for: 20 ms" in strip.words(met(30, 50, end=100, done=1000))
    assert "waited for" not in strip.words(met(31, 50, end=100, done=1000))


def test_waits_of_microseconds_never_are():
    assert "waited for" not in strip.words(met(1.0, 1.4, end=1.5, done=2))


def test_an_operation_that_is_called_from_a_module_names_its_file():
    words = strip.words(met(30, 50, end=100, done=100, source="/home/me/train.py", line=12))
    assert words.endswith("rank 1 is waited for: 20 ms in all_reduce (train.py line 12)")
    assert strip.words(met(30, 50, end=100, done=100, line=0)).endswith("20 ms in all_reduce")


def test_ranks_that_take_turns_are_named_together():
    ranks = [Rank(0), Rank(1), Rank(2)]
    for sequence, starts in enumerate(((0, 30, 10), (30, 0, 10), (0, 25, 10), (10, 0, 0))):
        for rank, start in zip(ranks, starts, strict=True):
            rank.collective(100 * sequence + start, 100 * sequence + 40, sequence=sequence, line=6)
    cell = cell_of([rank.cell(0, 400, child=100) for rank in ranks], done=400)
    assert strip.words(cell).endswith("     ranks 0,1 are waited for in turn: 95 ms in all_reduce (line 6)")


def test_several_places_are_not_told_as_one():
    ranks = [Rank(0), Rank(1)]
    for sequence, (name, late) in enumerate((("barrier", 30), ("all_reduce", 20))):
        for rank, start in zip(ranks, (0, late), strict=True):
            rank.collective(100 * sequence + start, 100 * sequence + 40, sequence=sequence, name=name, line=sequence)
    cell = cell_of([rank.cell(0, 200, child=80) for rank in ranks], done=200)
    assert strip.words(cell).endswith("     rank 1 is waited for: 50 ms, mostly in barrier")


def test_lost_spans_are_said():
    cell = cell_of([RankCell.from_bytes(0, 0, 10 * MS, b"", {}, 1200)], done=10)
    assert strip.words(cell) == "1 rank · 10 ms · other 100 % · 1,200 spans lost, their time is in other"


def test_several_cells_are_summed_up_without_a_culprit():
    cells = [plain_cell({0: (0, 60), 1: (0, 100)}, done=100), plain_cell({0: (0, 100), 1: (0, 100)}, done=100, cell=4)]
    assert strip.summary(Timeline.of(cells)) == "2 cells · 2 ranks · 200 ms · computation 90 % · idle 10 %"
    assert strip.summary(Timeline.of(cells[:1])) == strip.words(cells[0])


# --- bars ---------------------------------------------------------------------------------------------------


def test_bars_have_a_row_per_rank_and_a_legend_of_what_occurs():
    assert strip.bars(training()) == [
        " 0 █>>>>><<<<<<<<<<<<<<<<++▒▒▒▒▒▒▒▒▒▒▒░░░▓▓",
        " 1 █>>>>><<<<<<<<<<<<<<<<<<<<<<<<<<++░░░▓▓·",
        " 2 █>>>>><<<<<<<<<<<<<<<<++▒▒▒▒▒▒▒▒▒▒▒░░░▓▓",
        " 3 █>>>>><<<<<<<<<<<<<<<<++▒▒▒▒▒▒▒▒▒▒▒░░░▓▓",
        "   █ computation  > forward  < backward  + optimizer  ▒ wait  ░ transfer  ▓ data  · idle",
    ]


def test_a_short_legend_stands_behind_the_last_bar():
    assert strip.bars(plain_cell({0: (0, 50), 1: (0, 100)}, done=100), width=8) == [
        " 0 ████····",
        " 1 ████████      █ computation  · idle",
    ]


def test_of_many_ranks_the_slowest_and_the_fastest_are_shown():
    cell = plain_cell({number: (0, 100 + number) for number in range(100)}, done=200)
    rows = strip.bars(cell, width=10)
    assert rows[0] == "the 8 slowest and the 8 fastest of 100 ranks, by time not spent waiting"
    assert [row.split()[0] for row in rows[1:9]] == [str(number) for number in range(99, 91, -1)]
    assert rows[9] == " … 84 ranks between"
    assert [row.split()[0] for row in rows[10:18]] == [str(number) for number in range(7, -1, -1)]


@pytest.mark.parametrize("width", [1, 3, 40, 100])
def test_a_bar_is_exactly_as_long_as_asked_for(width):
    durations_ms = {name: 1.0 + 0.37 * index for index, name in enumerate(CATEGORY_NAMES)}
    total_ms = sum(durations_ms.values())
    assert len(strip.bar(durations_ms, width=width, longest_ms=total_ms)) == width
    assert len(strip.bar(durations_ms, width=2 * width, longest_ms=2 * total_ms)) == width


def test_without_time_there_is_no_bar():
    assert strip.bar({"computation": 0.0}, width=40, longest_ms=1.0) == ""
    assert strip.text_bars({}) == []


def test_every_category_has_a_glyph_and_a_label_of_its_own():
    assert strip.GLYPHS.keys() == set(CATEGORY_NAMES) == strip.LABELS.keys()
    assert len(set(strip.GLYPHS.values())) == len(CATEGORY_NAMES)
    assert all(len(glyph) == 1 for glyph in strip.GLYPHS.values())


def test_glyphs_are_those_of_the_design():
    assert [strip.GLYPHS[name] for name in ("computation", "communication_wait", "communication_transfer", "data")] == [
        "█", "▒", "░", "▓"
    ]  # fmt: skip
