"""What a rank answers while its main thread is busy; over a link, a guard and interrupts that only remember."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from hpcnb.core.messages import InputReply, InterruptCell, LeaveRank, LookAtRank, ReleaseRank, Shutdown
from hpcnb.engine import control as control_module
from hpcnb.engine import groups
from hpcnb.engine.control import Control


class Rank:
    def __init__(self):
        self.sent, self.happened = [], []

        def remember(name):
            return lambda *args, **kwargs: self.happened.append((name, *args, *kwargs.values()))

        self.control = Control(
            3, SimpleNamespace(send=self.sent.append), SimpleNamespace(break_groups=remember("broken")),
            SimpleNamespace(interrupt=remember("interrupt")), SimpleNamespace(answer=remember("answer")),
            current_cell=lambda: 5, end=remember("end"), leave=remember("leave"),
        )  # fmt: skip


@pytest.fixture
def rank(monkeypatch):
    monkeypatch.setattr(groups, "moved_bytes", lambda: 4096)
    return Rank()


def test_messages_are_carried_out(rank):
    answer = InputReply(*[None] * len(InputReply._names))
    for message in (InterruptCell(5, 2), answer, Shutdown("bye"), LeaveRank()):
        rank.control.hear(message)
    assert rank.happened == [("interrupt", 5, 2), ("answer", answer), ("end",), ("leave",)]
    assert rank.sent == []


@pytest.mark.parametrize("is_mismatch", [False, True])
def test_groups_are_broken_before_waits_are_ended_on_a_thread_of_its_own(rank, monkeypatch, is_mismatch):
    released = threading.Event()

    def release():
        rank.happened.append(("released", threading.current_thread().name))
        released.set()

    def release_groups():
        rank.happened.append(("taken",))  # the connections as they are now
        return release

    monkeypatch.setattr(groups, "release_groups", release_groups)
    rank.control.hear(ReleaseRank(5, "rank 1 raised ValueError", is_mismatch))
    assert released.wait(5)
    assert rank.happened == [
        ("taken",),
        ("broken", "rank 1 raised ValueError", is_mismatch),
        ("released", "hpcnb-release"),
    ]


def look(rank, source, label="<cell 5>"):
    """Frames that the rank tells when this cell looks at itself."""
    exec(compile(source, label, "exec"), {"look": lambda: rank.control.hear(LookAtRank(5))})
    (seen,) = rank.sent
    assert (seen.cell, seen.rank, seen.moved_bytes) == (5, 3, 4096)
    return [(file, line, function) for file, line, function, _ in seen.frames if file != __file__]


def test_frames_from_the_cell_inwards(rank):
    source = "def f():\n    look()\n\nf()\n"
    assert look(rank, source) == [("<cell 5>", 4, "<module>"), ("<cell 5>", 2, "f")]


def test_a_deep_stack_is_cut_to_its_innermost_frames(rank):
    source = "def f(n):\n    f(n - 1) if n else look()\nf(50)\n"
    frames = look(rank, source)
    assert len(rank.sent[0].frames) == control_module._MAX_FRAMES
    assert set(frames) == {("<cell 5>", 2, "f")}


def test_without_a_cell_the_innermost_frames_are_told(rank):
    look(rank, "look()", "somewhere else")
    frames = rank.sent[0].frames
    assert len(frames) == control_module._MAX_FRAMES
    assert ("somewhere else", 1, "<module>", "") in [tuple(frame) for frame in frames]


def test_frames_of_ours_are_left_out(rank, monkeypatch):
    is_ours = control_module.is_ours
    monkeypatch.setattr(control_module, "is_ours", lambda file: file == __file__ or is_ours(file))
    assert look(rank, "look()\n") == [("<cell 5>", 1, "<module>")]
    assert len(rank.sent[0].frames) == 1


# --- groups, where there is none ------------------------------------------------------------------------------


def test_a_default_group_that_was_destroyed_is_not_built_again():
    words = (
        r"^the default process group was destroyed \(dist.destroy_process_group\) and is not made again; start anew$"
    )
    with pytest.raises(RuntimeError, match=words):
        groups.rebuild_groups(None)


def test_without_groups_there_is_nothing_to_list_to_release_or_to_count():
    assert groups.list_groups()[1] == []
    assert groups.release_groups()() is None
    assert groups.moved_bytes() == 0
