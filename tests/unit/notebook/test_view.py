"""Views of a running cell, fed with what an agent sends; no process."""

from __future__ import annotations

import io

from hpcnb.cluster.cell_run import CellRun
from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet
from hpcnb.notebook.view import NotebookView, TerminalView


def cell_run(num_ranks=2):
    return CellRun(1, "cell 1", RankSet.all(num_ranks), num_ranks)


def say(run, ranks, text, kind="stdout"):
    run.feed(m.Output(1, [(RankSet(ranks), [(kind, text)])]))


def done(run, values=None, notices=()):
    replies = []
    for rank in run.watch.running:
        value = (values or {}).get(rank)
        reply = m.CellReply(
            1, rank, True, 1000, 2000, value or "", value is not None, False, b"", "", None, list(notices), False
        )
        replies.append([getattr(reply, name) for name in m.names_of(reply)])
    run.feed(m.CellDone(1, replies, {}, {}, {}, 0))
    return run.finish(flood_file=lambda rank: f"/folder/rank-{rank}.txt")


class Published(list):
    def __call__(self, bundle, display_id, update):
        self.append((bundle, display_id, update))


def test_a_notebook_cell_is_one_area_that_is_updated():
    published = Published()
    view = NotebookView(show_time=False, publish=published)
    run = cell_run()
    view.update(run)
    assert published == []  # nothing to show, nothing shown
    say(run, [0, 1], "hello\n")
    view.update(run)
    say(run, [1], "only one\n")
    view.finish(run, done(run, {0: "7", 1: "7"}))
    first, last = published
    assert first[0]["text/plain"] == "[0,1] hello"
    assert not first[2]
    assert last[1] == first[1]
    assert last[2]
    assert last[0]["text/plain"].splitlines() == ["[0,1]    hello", "[1]      only one", "Out[0,1]: 7"] or last[0][
        "text/plain"
    ].splitlines() == ["[0,1]     hello", "[1]       only one", "Out[0,1]: 7"]
    assert "Out[0,1]:" in last[0]["text/html"]


def test_a_silent_cell_without_strip_shows_nothing():
    published = Published()
    view = NotebookView(show_time=False, publish=published)
    run = cell_run()
    view.finish(run, done(run))
    assert published == []


def test_the_strip_follows_the_output():
    published = Published()
    view = NotebookView(show_time=True, publish=published)
    run = cell_run()
    say(run, [0], "x\n")
    view.finish(run, done(run))
    assert "2 ranks · " in published[-1][0]["text/plain"]
    assert "2 ranks · " in published[-1][0]["text/html"]


def test_notices_and_floods_are_told():
    published = Published()
    run = cell_run()
    say(run, [1], "9 lines not shown", "cut")
    NotebookView(show_time=False, publish=published).finish(run, done(run, notices=["mind the gap"]))
    text = published[-1][0]["text/plain"]
    assert "[0,1] mind the gap" in text
    assert "whole output, until the cluster stops: /folder/rank-1.txt" in text


def test_what_cannot_be_embedded_is_displayed_after_the_area():
    published = Published()
    run = cell_run(1)
    run.feed(m.Display(1, RankSet([0]), {"application/x+json": {}, "text/plain": "odd"}, {}, "", False))
    NotebookView(show_time=False, publish=published).finish(run, done(run))
    assert published[0][0]["text/plain"] == "[0] odd"
    assert published[1] == ({"application/x+json": {}, "text/plain": "odd"}, "", False)


def test_updated_displays_replace_the_earlier_one():
    run = cell_run(1)
    for update, text in ((False, "a"), (True, "b")):
        run.feed(m.Display(1, RankSet([0]), {"text/plain": text}, {}, "id", update))
    result = done(run)
    assert [output.bundle["text/plain"] for output in result.displays] == ["b"]
    assert len(result.items) == 1


def test_a_terminal_prints_every_line_once_for_exactly_its_ranks():
    stream = io.StringIO()
    view = TerminalView(show_time=False, stream=stream)
    run = cell_run()
    say(run, [0, 1], "both\n")
    say(run, [0], "zero\n")
    view.update(run)
    assert stream.getvalue() == "[0,1] both\n"  # a line of some ranks waits for the others
    say(run, [1], "one\n")
    say(run, [0, 1], "end\n")
    view.finish(run, done(run))
    assert stream.getvalue().splitlines() == ["[0,1] both", "[0] zero", "[1] one", "[0,1] end"]


def test_output_that_is_held_back_shows_its_newest_line_while_the_cell_runs():
    published = Published()
    view = NotebookView(show_time=False, publish=published)
    run = cell_run()
    run.feed(m.Held(1, [(RankSet([0, 1]), 1234, "step 1633")]))
    view.update(run)
    assert published[-1][0]["text/plain"] == "[0,1] ... 1,234 more lines, newest: step 1633"


def test_a_notebook_draws_what_led_to_a_question_before_it_asks(monkeypatch):
    published = Published()
    view = NotebookView(show_time=False, publish=published)
    run = cell_run()
    say(run, [1], "first\n")
    view.update(run)
    say(run, [1], "> stopped here\n")
    monkeypatch.setattr("builtins.input", lambda prompt: (prompt, published[-1][0]["text/plain"].splitlines()[-1]))
    assert view.ask(run, "[rank 1] (Pdb) ") == ("[rank 1] (Pdb) ", "[1] > stopped here")


def test_a_terminal_prints_what_led_to_a_question_before_it_asks(monkeypatch):
    stream = io.StringIO()
    view = TerminalView(show_time=False, stream=stream)
    run = cell_run()
    say(run, [1], "> stopped here\n")  # rank 0 might still say the same: a question does not wait for it
    monkeypatch.setattr("builtins.input", lambda _: stream.getvalue())
    assert "> stopped here\n" in view.ask(run, "[rank 1] (Pdb) ")


def test_the_strip_says_how_many_ranks_it_is_of():
    published = Published()
    view = NotebookView(show_time=True, publish=published)
    run = cell_run(3)
    run.feed(m.RankExited(2, 1, -9, [], False, "", "", 0.0, False))
    view.finish(run, done(run))
    text = published[-1][0]["text/plain"]
    assert text.startswith("2 of 3 ranks · "), text
    assert "2 of 3 ranks · " in published[-1][0]["text/html"]
    run = cell_run(3)
    view.finish(run, done(run))
    assert published[-1][0]["text/plain"].startswith("3 ranks · ")


def test_a_cell_that_caught_its_interrupt_says_so():
    published = Published()
    view = NotebookView(show_time=False, publish=published)
    run = cell_run()
    result = done(run)
    result.interrupted = True
    view.finish(run, result)
    assert published[-1][0]["text/plain"] == "the cell was interrupted, and ended without an error"
