"""``hpc`` of a script: progress as lines now and then, spans and steps that are recorded nowhere."""

from __future__ import annotations

import io

import torch

from hpcnb.core import messages as m
from hpcnb.engine.script import ProgressLines, hpc_of_script


class FakeClock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def progress(position, *, total=10, finished=False):
    return m.RankProgress(0, 1, "train", total, position, 2.0, finished)


def test_lines_come_now_and_then():
    stream, clock = io.StringIO(), FakeClock()
    lines = ProgressLines(stream, clock)
    for now_s, message in [
        (100, progress(0)), (109, progress(3)), (110, progress(4)), (111, progress(5)), (111.5, progress(10, finished=True)),
        (111.6, progress(1, total=-1)), (121.6, progress(7, total=-1)), (121.7, m.RankProgress(0, 2, "", 3, 3, 0.0, True)),
    ]:  # fmt: skip
        clock.now_s = now_s
        lines.send(message)
    assert stream.getvalue() == "train  4/10 · 2 turns/s\ntrain  10/10 · 5 turns/s\ntrain  7 · 3.5 turns/s\n"


def test_what_is_no_progress_is_not_told():
    stream = io.StringIO()
    ProgressLines(stream).send(m.RankHello(0, 1, "cells"))
    assert stream.getvalue() == ""


def test_cells_find_the_same_object(capfd):
    hpc = hpc_of_script(1, 2, 1, torch.device("cpu"), None)
    assert repr(hpc).startswith("<hpc: rank 1 of 2 on cpu")

    @hpc.span("load")
    def load():
        with hpc.span("inner"):
            return list(hpc.progress("abc", "letters"))

    assert [load(), load()] == [["a", "b", "c"]] * 2
    assert capfd.readouterr().err == ""
