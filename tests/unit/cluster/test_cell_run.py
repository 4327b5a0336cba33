"""A cell from the messages of an agent to its result."""

from __future__ import annotations

import pytest

from hpcnb.cluster.cell_run import CellRun
from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.grouping import Item
from hpcnb.core.ranks import RankSet

ALL = RankSet.all(3)
ERROR = {
    "ename": "ValueError", "evalue": "x", "cell": "cell 5", "line": 1, "code": "f()", "traceback": "T", "key": "k",
}  # fmt: skip


@pytest.fixture
def run():
    return CellRun(5, "cell 5", ALL, 4)


def over_the_link(message):
    return m.decode(m.encode(message))


def feed(run, *messages):
    return [action for message in messages for action in run.feed(over_the_link(message))]


def reply(rank, **changes):
    fields = {
        "cell": 5, "rank": rank, "ok": True, "start_ns": 10 + rank, "end_ns": 20 + rank,
        "value": "", "has_value": False,
        "value_shown": False, "value_pickle": b"", "value_problem": "", "error": None, "notices": [], **changes,
    }  # fmt: skip
    return [fields[name] for name in m.names_of(m.CellReply(**fields))]


def done(*replies, **changes):
    fields = {"spans": {}, "strings": {}, "spans_lost": {}, "done_ns": 0, **changes}
    return m.CellDone(5, list(replies), **fields)


def output(ranks, *entries, cell=5):
    return m.Output(cell, [[RankSet(ranks), [list(entry) for entry in entries]]])


def finish(run):
    return run.finish(flood_file=lambda rank: f"/run/cell-5-rank-{rank}.txt")


def texts(items):
    return [f"[{item.ranks}] {item.text}" for item in items]


def test_output_is_grouped_and_kept_per_rank(run):
    feed(
        run,
        output([0, 1, 2], ("stdout", "a\n")),
        output([1], ("stdout", "b\n"), ("stderr", "careful\n")),
        output([0, 2], ("stdout", "c")),
        output([0, 1], ("stdout", "another cell's\n"), cell=4),
        done(*map(reply, range(3))),
    )
    result = finish(run)
    assert texts(result.items) == ["[0-2] a", "[0,2] c", "[1] b", "[1] careful"]
    assert result.outputs == {0: "a\nc", 1: "a\nb\ncareful\n", 2: "a\nc"}
    assert result.ok


def test_the_cell_ends_when_all_have_answered(run):
    assert feed(run, output([0], ("stdout", "x\n"))) == []
    assert feed(run, done(reply(0), reply(2), reply(1))) == [watch.CellEnds(RankSet())]
    assert run.watch.ended


def test_values_errors_and_notices(run):
    word = "`rank` is hpcnb's name"
    feed(
        run,
        done(
            reply(2, has_value=True, value="3"),
            reply(0, has_value=True, value="3", value_pickle=b"p", notices=[word]),
            reply(1, ok=False, error=ERROR, value_problem="no pickle", notices=[word]),
        ),
    )
    result = finish(run)
    assert result.values == {0: "3", 2: "3"}
    assert result.items == [Item(RankSet([0, 2]), "value", "repr 3")]
    assert str(result.errors[1]) == "ValueError: x"
    assert result.notices == {word: RankSet([0, 1])}
    assert (result.pickles, result.problems) == ({0: b"p"}, {1: "no pickle"})
    assert not result.ok


def display(ranks, bundle, display_id="", *, update=False, value=False):
    return m.Display(5, RankSet(ranks), bundle, {"hpcnb_value": True} if value else {}, display_id, update)


def test_equal_pictures_are_one(run):
    feed(
        run,
        output([0, 1, 2], ("stdout", "before\n")),
        display([0], {"text/plain": "<Figure>", "image/png": b"same"}),
        display([2], {"image/png": b"other"}),
        display([1], {"image/png": b"same", "text/plain": "<Figure>"}),
        output([0, 1, 2], ("stdout", "after\n")),
        done(*map(reply, range(3))),
    )
    result = finish(run)
    shown = [(str(item.ranks), item.kind, item.text) for item in result.items]
    assert shown == [
        ("0-2", "stdout", "before"), ("0,1", "display", "0"), ("2", "display", "1"), ("0-2", "stdout", "after"),
    ]  # fmt: skip
    assert [str(each.ranks) for each in result.displays] == ["0,1", "2"]


def test_an_update_changes_the_picture_of_its_own_rank(run):
    feed(
        run,
        *(display([rank], {"text/plain": "0 %"}, "bar") for rank in range(3)),
        display([1], {"text/plain": "50 %"}, "bar", update=True),
        done(*map(reply, range(3))),
    )
    result = finish(run)
    assert [each.bundle["text/plain"] for each in result.displays] == ["0 %", "50 %", "0 %"]
    assert texts(result.items) == ["[0] 0", "[1] 1", "[2] 2"]


def test_a_rich_value_is_shown_once(run):
    bundle = {"text/plain": "df", "text/html": "<table>"}
    feed(
        run,
        *(display([rank], bundle, value=True) for rank in range(3)),
        done(*(reply(rank, has_value=True, value="df", value_shown=True) for rank in range(3))),
    )
    assert finish(run).items == [Item(ALL, "value", "0")]


def test_a_rank_that_dies(run):
    exited = m.RankExited(1, 4242, -9, ["last words"], False)
    assert feed(run, exited) == []
    assert feed(run, m.RankExited(3, 4243, -9, [], False)) == []  # not in this cell
    assert feed(run, done(reply(0), reply(2))) == [watch.CellEnds(RankSet())]
    result = finish(run)
    assert result.exits == {1: -9}
    assert result.exit_lines == {1: ["last words"]}
    assert run.watch.exited == RankSet([1])
    assert "rank 1 of 4 was ended by SIGKILL" in result.failure_text()


def test_a_rank_that_dies_after_its_answer_is_not_a_failure_of_this_cell():
    run = CellRun(5, "cell 5", ALL, 3)
    feed(run, done(*map(reply, range(3))), m.RankExited(1, 4242, -9, [], False))
    assert finish(run).ok


def test_an_interrupt_and_a_rank_that_stays_busy(run):
    assert run.tell(watch.InterruptAsked()) == [watch.InterruptRanks(ALL), watch.StartGrace()]
    assert run.tell(watch.GraceOver()) == [watch.CellEnds(ALL)]
    result = finish(run)
    assert result.interrupted
    assert result.busy == ALL


def test_a_timeout_is_not_an_interrupt(run):
    run.tell(watch.TimedOut())
    feed(run, done(*(reply(rank, ok=False, error={**ERROR, "ename": "KeyboardInterrupt"}) for rank in range(3))))
    assert not finish(run).interrupted


def test_a_flood_names_its_files(run):
    feed(
        run,
        output([0, 2], ("stdout", "head\n"), ("cut", "9,000 lines (80 kB) not shown"), ("stdout", "tail\n")),
        done(*map(reply, range(3))),
    )
    result = finish(run)
    assert result.floods == {0: "/run/cell-5-rank-0.txt", 2: "/run/cell-5-rank-2.txt"}
    assert result.outputs[0] == "head\n... 9,000 lines (80 kB) not shown ...\ntail\n"
    assert [item.kind for item in result.items] == ["stdout", "cut", "stdout"]


def test_bars(run):
    assert not run.changed
    feed(run, m.Progress(5, 1, "train", 600, {0: (10, 0.5), 1: (12, 0.5)}, False))
    feed(run, m.Progress(5, 1, "train", 600, {0: (600, 9.0)}, True), m.Progress(5, 2, "", -1, {2: (1, 0.1)}, False))
    assert run.changed
    train, other = run.bars.values()
    assert (train.description, train.total, train.finished) == ("train", 600, True)
    assert train.positions == {0: (600, 9.0), 1: (12, 0.5)}
    assert not other.finished


def test_spans_wait_until_somebody_asks(run):
    run.submitted_ns = 5
    feed(run, done(*map(reply, range(3)), spans={0: b"", 1: b"", 2: b""}, strings={0: ["", "x"]}, spans_lost={1: 7}))
    result = finish(run)
    assert result.spans is not None
    assert result.spans.times == {0: (10, 20), 1: (11, 21), 2: (12, 22)}
    assert (result.spans.submitted_ns, result.spans.lost) == (5, {1: 7})
    assert [rank.spans_lost for rank in result.cell_timeline.ranks] == [0, 7, 0]
