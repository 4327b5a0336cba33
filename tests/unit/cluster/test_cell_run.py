"""A cell from the messages of an agent to its result."""

from __future__ import annotations

import pytest

from hpcnb.cluster.cell_run import CellRun
from hpcnb.cluster.result import RankExit
from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.board import Activity, stamp
from hpcnb.core.grouping import Item
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
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
        "value_shown": False, "value_pickle": b"", "value_problem": "", "error": None, "notices": [],
        "is_broken": False, "issued": [], **changes,
    }  # fmt: skip
    return [fields[name] for name in m.names_of(m.CellReply(**fields))]


def done(*replies, **changes):
    fields = {"spans": {}, "strings": {}, "spans_lost": {}, "done_ns": 0, **changes}
    return m.CellDone(5, list(replies), **fields)


def output(ranks, *entries, cell=5):
    return m.Output(cell, [[RankSet(ranks), [list(entry) for entry in entries]]])


def rank_exited(rank, **changes):
    fields = {
        "pid": 4242, "status": -9, "last_lines": [], "expected": False, "was_in": "", "last_operation": "",
        "memory_mb": 0.0, "was_out_of_memory": False, **changes,
    }  # fmt: skip
    return m.RankExited(rank=rank, **fields)


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
    exited = rank_exited(
        1, last_lines=["last words"], was_in="all_reduce #1 (4 B)", last_operation="barrier #3", memory_mb=20.0
    )
    assert feed(run, exited) == []
    assert feed(run, rank_exited(3)) == []  # not in this cell
    assert feed(run, done(reply(0), reply(2))) == [watch.CellEnds(RankSet())]
    result = finish(run)
    assert result.exits == {1: -9}
    assert result.exit_details == {1: RankExit(-9, ["last words"], "all_reduce #1 (4 B)", "barrier #3", 20.0)}
    assert result.is_broken
    assert run.watch.exited == RankSet([1])
    assert "rank 1 of 4 was ended by SIGKILL" in result.failure_text()


def test_a_rank_without_an_answer_is_a_failure_that_names_it(run):
    assert feed(run, done(reply(0), reply(2))) == [watch.CellEnds(RankSet())]
    result = finish(run)
    assert not result.ok
    assert result.is_broken
    assert (result.exits, result.exit_details) == ({1: None}, {1: RankExit(None)})
    assert "rank 1 of 4 ended before it answered; its names are lost" in result.failure_text()
    run.heard_before(rank_exited(1, last_lines=["last words"], was_in="all_reduce #1 (4 B)"))
    assert result.exits == {1: -9}
    assert "rank 1 of 4 was ended by SIGKILL while it waited in all_reduce #1 (4 B)" in result.failure_text()


def test_what_was_heard_with_the_cell_stays(run):
    feed(run, rank_exited(1, was_in="barrier #1"), done(reply(0), reply(2)))
    run.heard_before(rank_exited(1))
    run.heard_before(rank_exited(2))
    assert list(run.result.exits) == [1]
    assert run.result.exit_details[1].was_in == "barrier #1"


def test_a_rank_that_dies_after_its_answer_is_not_a_failure_of_this_cell():
    run = CellRun(5, "cell 5", ALL, 3)
    feed(run, done(*map(reply, range(3))), rank_exited(1))
    assert finish(run).ok


def test_an_interrupt_and_a_rank_that_stays_busy(run):
    assert run.tell(watch.InterruptAsked(10.0)) == [watch.StopAtBoundary(ALL)]
    assert feed(run, m.BoundaryAsked(5, False)) == [watch.InterruptRanks(ALL)]
    assert run.tell(watch.Tick(13.0))[-1] == watch.CellEnds(ALL)
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
    feed(run, done(*map(reply, range(3)), spans={0: b"", 1: b"", 2: b""}, strings={0: {1: "x"}}, spans_lost={1: 7}))
    result = finish(run)
    assert result.spans is not None
    assert result.spans.times == {0: (10, 20), 1: (11, 21), 2: (12, 22)}
    assert (result.spans.submitted_ns, result.spans.lost) == (5, {1: 7})
    assert [rank.spans_lost for rank in result.cell_timeline.ranks] == [0, 7, 0]


# --- ranks that wait in vain ----------------------------------------------------------------------------------


def waits(rank, age_s):
    """Rank 0 to 2 in one collective."""
    inside = Inside("all_reduce #1 (32 B, line 2)", 7, stamp(0, 1), ALL, age_s)
    return {rank: RankFacts(Activity.CELL, 5, inside=inside, issues={7: Issues(stamp(0, 1))}).pack()}


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_who_waits_for_whom_is_news_while_the_cell_runs(clock):
    run = CellRun(5, "cell 5", ALL, 4, clock=clock)
    assert run.news() == []
    computes = {2: RankFacts(Activity.CELL, 5).pack()}
    look = [watch.LookAtRanks(RankSet([2]))]
    assert feed(run, m.RankStates(5, {**waits(0, 3.0), **waits(1, 2.0), **computes})) == look
    assert run.changed
    assert run.news() == ["ranks 0,1 wait in all_reduce #1 (32 B, line 2) for rank 2, since 3 s"]
    frames = [["<cell 5>", 4, "<module>", "g(x)"], ["/lib/x.py", 70, "g", "sleep(9)"]]
    assert feed(run, m.Seen(5, 2, frames, 0), m.Seen(5, 1, [], 0)) == []
    feed(run, m.RankStates(5, {**waits(0, 4.0), **waits(1, 3.0), **computes}))
    assert run.news()[1:] == ["rank 2 is at line 4:  g(x)"]
    assert run.result.stacks == {}


def test_a_rank_that_waits_for_one_that_raised_is_released(clock):
    run = CellRun(5, "cell 5", ALL, 4, clock=clock)
    feed(run, m.Replies(5, [reply(2, ok=False, error=ERROR)]))
    clock.now_s += 1.0
    states = m.RankStates(5, {**waits(0, 3.0), **waits(1, 3.0), 2: RankFacts(Activity.IDLE).pack()})
    reason = "rank 2 raised ValueError"
    assert feed(run, states) == [watch.Say(reason), watch.ReleaseRanks(RankSet([0, 1]), reason)]
    assert run.result.explanations == [reason]
    assert run.news() == [
        "rank 2 of 4 raised  ValueError: x\n      line 1:  f()",
        f"ranks were released: {reason}",
        "ranks 0,1 still run",
    ]
    aborted = {**ERROR, "ename": "CollectiveAborted", "operation": "all_reduce #1 (32 B, line 2)", "waited_s": 3.2}
    feed(run, done(*(reply(rank, ok=False, error=aborted, is_broken=True) for rank in (0, 1))))
    result = finish(run)
    assert result.is_broken
    assert (
        "ranks 0,1 were in  all_reduce #1 (32 B, line 2)  for 3.2 s and were released: rank 2" in result.failure_text()
    )


def test_an_infinite_grace_period_releases_nobody(clock):
    run = CellRun(5, "cell 5", ALL, 4, grace_s=float("inf"), clock=clock)
    feed(run, m.Replies(5, [reply(2)]))
    clock.now_s += 1000.0
    assert feed(run, m.RankStates(5, {**waits(0, 990.0), **waits(1, 990.0)})) == []


def test_who_waits_for_a_dead_rank_is_told_how_it_ended(clock):
    run = CellRun(5, "cell 5", ALL, 4, clock=clock)
    feed(run, rank_exited(2, was_out_of_memory=True, memory_mb=900.0))
    clock.now_s += 0.25
    _, release = feed(run, m.RankStates(5, {**waits(0, 3.0), **waits(1, 3.0)}))
    assert release.reason == "rank 2 was killed: out of memory (900 MB resident when last seen)"
    assert run.news()[0] == release.reason


def test_a_mismatch_that_a_rank_found_is_the_reason_for_the_others(clock):
    run = CellRun(5, "cell 5", ALL, 4, clock=clock)
    mismatch = {**ERROR, "ename": "CollectiveMismatch", "evalue": "as operation 1 of ranks 0-2, ..."}
    feed(run, m.Replies(5, [reply(2, ok=False, error=mismatch)]))
    _, release = feed(run, m.RankStates(5, {**waits(0, 0.1), **waits(1, 0.1)}))
    assert (release.reason, release.mismatch) == ("as operation 1 of ranks 0-2, ...", True)


@pytest.mark.parametrize("which", ["is_broken", "exited", "nothing"])
def test_whether_groups_must_be_built_again(run, which):
    if which == "exited":
        feed(run, rank_exited(1))
    feed(run, done(*(reply(rank, is_broken=which == "is_broken") for rank in range(3))))
    assert finish(run).is_broken == (which != "nothing")


def test_messages_of_an_earlier_cell_are_not_ours(run):
    states = {**waits(0, 30.0), 1: RankFacts(Activity.IDLE).pack(), 2: RankFacts(Activity.IDLE).pack()}
    assert feed(run, m.RankStates(4, states), m.BoundaryAsked(4, False), m.Seen(4, 1, [], 0)) == []
    assert run.watch.report == ()
