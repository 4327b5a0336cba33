"""Memory of processes: read from /proc, and whether the kernel killed one for want of it."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from hpcnb.node import memory as memory_module
from hpcnb.node.memory import Memory

NOBODY = 2**22 + 1  # no process has so large a number


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def kills(monkeypatch):
    """How often the kernel has struck: a list whose last number counts."""
    counted = [7]
    monkeypatch.setattr(memory_module, "_num_kills", lambda: counted[-1])
    return counted


def test_the_last_resident_size_is_told_once(kills):
    memory = Memory(Clock())
    memory.note(os.getpid())
    now_mb = psutil.Process().memory_info().rss / 1e6
    memory_mb, was_out_of_memory = memory.ended(os.getpid(), -signal.SIGKILL)
    assert memory_mb == pytest.approx(now_mb, rel=0.2)
    assert not was_out_of_memory
    assert memory.ended(os.getpid(), 0) == (0.0, False)


def test_a_process_that_has_just_ended_keeps_its_last_size(kills, monkeypatch):
    memory = Memory(Clock())
    memory.note(NOBODY)
    assert memory.ended(NOBODY, 0) == (0.0, False)
    memory._resident_mb[NOBODY] = 123.0
    memory.note(NOBODY)
    assert memory.ended(NOBODY, 1) == (123.0, False)


@pytest.mark.parametrize(
    ("status", "num_kills", "was_out_of_memory"),
    [(-signal.SIGKILL, 8, True), (-signal.SIGKILL, 7, False), (-signal.SIGSEGV, 8, False), (1, 8, False)],
)
def test_out_of_memory_is_a_sigkill_that_the_kernel_counted(kills, status, num_kills, was_out_of_memory):
    memory = Memory(Clock())
    kills.append(num_kills)
    assert memory.ended(NOBODY, status) == (0.0, was_out_of_memory)


def test_one_kill_of_the_kernel_is_the_reason_of_one_end(kills):
    memory = Memory(Clock())
    kills.append(9)  # twice
    assert memory.ended(NOBODY, -signal.SIGSEGV) == (0.0, False)  # what is not its own reason stays for the others
    assert [memory.ended(NOBODY, -signal.SIGKILL)[1] for _ in range(3)] == [True, True, False]


def test_what_the_kernel_did_long_ago_is_no_reason(kills):
    clock = Clock()
    memory = Memory(clock)
    kills.append(8)
    for clock.now_s in (1.9, 2.1, 4.1, 4.2):  # counted at 2.1, and that look is the older one from 4.2 on
        memory.note(os.getpid())
        assert Memory.ended(memory, NOBODY, -signal.SIGSEGV) == (0.0, False)
    assert memory.ended(NOBODY, -signal.SIGKILL) == (0.0, False)


@pytest.mark.parametrize("looks_s", [(), (2.1,), (2.1, 4.0)])
def test_what_the_kernel_did_lately_is_a_reason_though_it_was_counted_since(kills, looks_s):
    clock = Clock()
    memory = Memory(clock)
    kills.append(8)
    for clock.now_s in looks_s:
        memory.note(os.getpid())
    assert memory.ended(NOBODY, -signal.SIGKILL) == (0.0, True)


def test_the_proportional_size_is_looked_up_every_three_seconds(kills, monkeypatch):
    looked = iter([100.04, 200.0, 300.0])
    monkeypatch.setattr(memory_module, "_proportional_mb", lambda pid: next(looked))
    clock = Clock()
    memory = Memory(clock)
    assert memory.proportional_mb(1) == 100.0
    clock.now_s = 3.0
    assert memory.proportional_mb(1) == 100.0
    clock.now_s = 3.1
    assert memory.proportional_mb(1) == 200.0
    memory.ended(1, 0)
    assert memory.proportional_mb(1) == 300.0  # another process may have its number


def test_what_the_kernel_says():
    assert memory_module._num_kills() >= 0
    assert memory_module._proportional_mb(NOBODY) == 0.0
    mine_mb = memory_module._proportional_mb(os.getpid())
    assert 0.0 <= mine_mb <= psutil.Process().memory_info().rss / 1e6


@pytest.mark.parametrize(
    ("text", "count"), [("nr_free_pages 5\noom_kill 3\nother 9\n", 3), ("nr_free_pages 5\n", 0), (None, 0)]
)
def test_kernels_that_do_not_count(tmp_path, monkeypatch, text, count):
    vmstat = tmp_path / "vmstat"
    if text is not None:
        vmstat.write_text(text)
    monkeypatch.setattr(memory_module, "Path", lambda _: vmstat)
    assert memory_module._num_kills() == count


@pytest.mark.parametrize(
    ("text", "size_mb"), [("Rss: 9 kB\nPss:    2048 kB\nPss_Dirty: 1 kB\n", 2.0), ("Rss: 9 kB\n", 0.0)]
)
def test_kernels_that_do_not_tell_a_proportional_size(tmp_path, monkeypatch, text, size_mb):
    rollup = tmp_path / "smaps_rollup"
    rollup.write_text(text)
    monkeypatch.setattr(memory_module, "Path", lambda _: rollup)
    assert memory_module._proportional_mb(1) == size_mb


def test_what_cells_used_is_given_back_once_and_not_at_once(monkeypatch):
    trims, now_s = [], [0.0]
    monkeypatch.setattr(
        memory_module.ctypes, "CDLL", lambda _: type("C", (), {"malloc_trim": staticmethod(trims.append)})
    )
    used = Memory(lambda: now_s[0])
    used.trim()
    used.used()
    now_s[0] = 5.0
    used.used()
    used.trim()
    assert trims == []
    now_s[0] = 11.0
    used.trim()
    used.trim()
    assert trims == [0]
