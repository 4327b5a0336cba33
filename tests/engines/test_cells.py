"""Cells on real ranks: what runs, what is said, what goes wrong and that nothing is lost by it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hpcnb.cluster.cell_run import CellRequest
from hpcnb.core import messages as m
from hpcnb.core.errors import CellFailed, ClusterStateError, SelectionError, TransferError
from hpcnb.core.ranks import RankSet

pytestmark = pytest.mark.engines


def texts(result, kind="stdout"):
    return [(str(item.ranks), item.text) for item in result.items if item.kind == kind]


def run(cluster, source, **options):
    result = cluster.run(source, **options)
    assert result.ok, result.failure_text()
    return result


# --- what runs ---------------------------------------------------------------------------------------------


def test_names_persist_and_the_last_expression_is_the_value(cluster4):
    run(cluster4, "x = rank * 10")
    assert run(cluster4, "x + 1").values == {0: "1", 1: "11", 2: "21", 3: "31"}


def test_every_rank_knows_where_it_is(cluster4):
    values = run(
        cluster4, "rank, world_size, local_rank, str(device), mesh.mesh_dim_names, mesh.get_coordinate()"
    ).values
    assert (
        values[2] == "(2, 4, 2, 'cpu', ('dp', 'tp'), [1, 0])" or values[2] == "(2, 4, 2, 'cpu', ('dp', 'tp'), (1, 0))"
    )


SHOWN = "class Odd:\n    def _repr_mimebundle_(self, **_):\n        return {bundle}\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("list(hpc.progress('ab', total=2.5))", "hpc.progress takes total= as a whole number of elements, not 2.5 (float)"),
        ("list(hpc.progress('ab', None))", "hpc.progress takes the words before the bar as text, not None (NoneType)"),
        ("display({1: 'x'}, raw=True)", "keys of a MIME bundle are text, for example 'text/plain', not 1 (int)"),
        (SHOWN.format(bundle="{'text/plain': 5}") + "Odd()", "'text/plain' in a MIME bundle is text, not 5 (int)"),
        (SHOWN.format(bundle="{'text/plain': 5}") + "display(Odd())", "'text/plain' in a MIME bundle is text, not 5 (int)"),
        (
            "import asyncio\nawait asyncio.sleep(0)\n"
            + SHOWN.format(bundle="{'text/plain': 'x', 'application/json': 1 << 70}") + "Odd()",
            "an int of more than 64 bits cannot be sent in a message",
        ),
    ],
)  # fmt: skip
def test_a_slip_in_what_is_shown_is_an_error_of_the_cell_and_names_are_kept(cluster2, source, words):
    run(cluster2, "kept = rank")
    result = cluster2.run(source)
    assert not result.exits
    assert [error.evalue[: len(words)] for error in result.errors.values()] == [words] * 2
    assert run(cluster2, "kept").values == {0: "0", 1: "1"}


def test_what_can_be_understood_is_shown(cluster2):
    source = "handle = display('x', display_id=5)\nhandle.update('y')\nfor _ in hpc.progress('abc', total=3.0): pass\n"
    assert {shown.bundle["text/plain"] for shown in run(cluster2, source).displays} == {"'y'"}
    cleared = "from IPython.display import clear_output\nclear_output(wait=1)\nprint('z')"
    assert texts(run(cluster2, source + cleared)) == [("0,1", "z")]


def test_a_value_too_large_to_be_sent_is_an_error_and_the_cell_ends(cluster2):
    run(
        cluster2,
        "from hpcnb.core.messages import codec\nmost, codec.MAX_MESSAGE_BYTES = codec.MAX_MESSAGE_BYTES, 20_000",
    )
    try:
        for source in ("'x' * 30_000", "display('x' * 30_000)"):
            result = cluster2.run(source)
            assert not result.exits
            assert ["at most 20,000 are" in error.evalue for error in result.errors.values()] == [True] * 2
    finally:
        run(cluster2, "codec.MAX_MESSAGE_BYTES = most")


def test_a_semicolon_asks_for_no_value(cluster2):
    assert run(cluster2, "1 + 1;").values == {}
    assert run(cluster2, "'a;b'").values == {0: "'a;b'", 1: "'a;b'"}


def test_top_level_await(cluster2):
    assert run(cluster2, "import asyncio\nawait asyncio.sleep(0.01)\nrank").values == {0: "0", 1: "1"}


@pytest.mark.parametrize("first", ["", "import asyncio\nawait asyncio.sleep(0)\n"], ids=["plain", "awaiting"])
def test_a_cell_whose_value_cannot_be_sent_ends(cluster2, first):
    bundle = "{'text/plain': 'odd', 'text/html': {1}}"
    source = f"{first}class Odd:\n    def _repr_mimebundle_(self, **_):\n        return {bundle}\nOdd()"
    result = cluster2.run(source, timeout_s=5)
    assert set(result.errors) == {0, 1}
    assert result.timeout_s is None
    assert run(cluster2, "rank").values == {0: "0", 1: "1"}


def test_a_value_that_awaits_to_be_pickled_can_be_interrupted(cluster2):
    source = """
import asyncio
await asyncio.sleep(0)
class Slow:
    def __reduce__(self):
        import time
        time.sleep(60)
Slow()
"""
    result = cluster2.execute(CellRequest(source, timeout_s=1, want_pickles=True))
    assert not result.busy, result.failure_text()
    assert result.timeout_s == 1


def test_shell_and_magics(cluster2):
    result = run(cluster2, "!echo from a shell\nanswer = %sx echo 42\nanswer[0]")
    assert ("0,1", "from a shell") in texts(result)
    assert result.values == {0: "'42'", 1: "'42'"}


def test_c_code_and_bytes_keep_their_place(cluster2):
    source = (
        "import os, sys\nprint('one')\nos.system('echo two')\nprint('three')\nos.write(1, b'four\\n');\n"
        "sys.stdout.buffer.write(b'five\\n');"
    )
    assert texts(run(cluster2, source)) == [("0,1", word) for word in ("one", "two", "three", "four", "five")]


def test_bytes_that_are_no_utf8_are_shown_escaped(cluster2):
    result = run(cluster2, "import os\nos.write(1, b'caf\\xe9 \\xff\\n')\nprint('\\ud800')")
    assert texts(result) == [("0,1", "caf\\xe9 \\xff"), ("0,1", "\\ud800")]


def test_stdout_and_stderr_are_told_apart_and_stay_in_order(cluster2):
    result = run(cluster2, "import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')")
    assert [(item.kind, item.text) for item in result.items] == [("stdout", "a"), ("stderr", "b"), ("stdout", "c")]


def test_figures_and_html_come_with_their_ranks(cluster2):
    source = (
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))\nplt.plot([rank, 1])\nplt.show()\n"
        "from IPython.display import HTML\nHTML('<b>same</b>')"
    )
    result = run(cluster2, source)
    shown = [(item.kind, str(item.ranks), sorted(result.displays[int(item.text)].bundle)) for item in result.items]
    assert shown == [
        ("display", "0", ["image/png", "text/plain"]),
        ("display", "1", ["image/png", "text/plain"]),
        ("value", "0,1", ["text/html", "text/plain"]),
    ]


def test_selection(cluster4):
    assert sorted(run(cluster4, "rank", on="dp=1").values) == [2, 3]
    assert sorted(run(cluster4, "rank", on="dp=0&tp=1, 3").values) == [1, 3]
    with pytest.raises(SelectionError, match=r"no rank 9; the cluster has ranks 0-3"):
        cluster4.run("1", on="9")
    with pytest.raises(SelectionError, match=r"no axis 'pp'; this cluster's mesh is dp=2,tp=2"):
        cluster4.run("1", on="pp=0")


def test_failed_and_slowest_can_be_selected(cluster4):
    assert not cluster4.run("import time\ntime.sleep(0.1 * (rank == 2))\nhpc.barrier()\nassert rank != 1").ok
    assert sorted(cluster4.run("rank", on="failed").values) == [1]
    run(cluster4, "time.sleep(0.1 * (rank == 2))\nhpc.barrier()")
    assert sorted(run(cluster4, "rank", on="slowest").values) == [2]


def test_call(cluster2):
    assert cluster2.call(lambda a, b: a + b, 1, b=2) == {0: 3, 1: 3}
    assert cluster2.call(os.getpid)[0] != os.getpid()
    with pytest.raises(CellFailed, match="ZeroDivisionError"):
        cluster2.call(lambda: 1 / 0)


def test_progress_is_one_bar_with_the_slowest_rank(cluster2):
    seen = []

    class View:
        def update(self, cell_run):
            seen.extend((key[1], dict(bar.positions), bar.finished) for key, bar in cell_run.bars.items())

        def finish(self, cell_run, result):
            self.update(cell_run)

    source = "import time\nfor _ in hpc.progress(range(8), 'work'): time.sleep(0.05 * (1 + rank))"
    assert cluster2.execute(CellRequest(source), View()).ok
    name, positions, finished = seen[-1]
    assert (name, finished, {rank: position for rank, (position, _) in positions.items()}) == (
        "work",
        True,
        {0: 8, 1: 8},
    )
    assert positions[1][1] > positions[0][1]


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_one_traceback_per_distinct_error_without_our_frames(cluster4):
    result = cluster4.run(
        "a = 1\nfor _ in hpc.progress([1]):\n    if rank:\n        raise ValueError('odd' if rank % 2 else 'even')"
    )
    text = result.failure_text()
    assert "ranks 1,3 of 4 raised  ValueError: odd" in text
    assert "rank 2 of 4 raised  ValueError: even" in text
    assert text.count("Traceback") == 2
    assert "line 4:  raise ValueError" in text
    assert "hpcnb" not in text
    assert "IPython" not in text
    assert run(cluster4, "a").values[3] == "1"


def test_syntax_error_is_told_once_with_its_line(cluster4):
    text = cluster4.execute(CellRequest("x = 1\ndef f(:\n    pass", first_line=2)).failure_text()
    assert text.count("SyntaxError") == 2  # the head and the traceback's last line
    assert "ranks 0-3 of 4 raised  SyntaxError" in text
    assert "line 3:  def f(:" in text


def test_lines_are_numbered_as_the_person_sees_them(cluster2):
    result = cluster2.execute(CellRequest("x = 1\n1 / 0", first_line=2))
    assert {error.line for error in result.errors.values()} == {3}
    assert {error.code for error in result.errors.values()} == {"1 / 0"}


def test_sys_exit_ends_the_cell_and_nothing_else(cluster2):
    result = run(cluster2, "kept = 5\nimport sys\nsys.exit(3)")
    assert "the rank goes on" in next(iter(result.notices))
    assert run(cluster2, "kept").values == {0: "5", 1: "5"}


def test_a_name_of_ours_that_is_given_another_value_is_kept_and_told_once(cluster2):
    result = run(cluster2, "rank = 'mine'")
    assert "del rank" in next(iter(result.notices))
    assert run(cluster2, "rank").notices == {}
    assert run(cluster2, "rank").values[1] == "'mine'"
    run(cluster2, "del rank")
    assert run(cluster2, "rank").values[1] == "1"


def test_values_that_cannot_be_pickled_are_named(cluster2):
    result = cluster2.execute(CellRequest("import threading\nthreading.Lock()", want_pickles=True))
    with pytest.raises(TransferError, match=r"ranks 0,1: a _thread\.lock cannot be pickled"):
        result.objects()
    with pytest.raises(TransferError, match="cannot send"):
        cluster2.call(print, threading.Lock())


def test_timeout_interrupts_and_names_are_kept(cluster2):
    result = cluster2.run("kept = rank\nimport time\nwhile True:\n    time.sleep(0.01)", timeout_s=0.3)
    assert "longer than its timeout of 0.3 s" in result.failure_text()
    assert {error.ename for error in result.errors.values()} == {"KeyboardInterrupt"}
    assert run(cluster2, "kept").values == {0: "0", 1: "1"}


@pytest.mark.parametrize(
    "loop",
    ["while True: pass", "import asyncio\nwhile True: await asyncio.sleep(0.01)", "while True: print('x' * 100)"],
)
def test_interrupt_stops_all_ranks(cluster2, loop):
    timer = threading.Timer(0.3, cluster2.interrupt)
    timer.start()
    result = cluster2.run(f"kept = 7\n{loop}")
    timer.join()
    assert result.interrupted
    assert {error.ename for error in result.errors.values()} == {"KeyboardInterrupt"}
    assert run(cluster2, "kept").values == {0: "7", 1: "7"}


def test_ctrl_c_stops_all_ranks(cluster2):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        cluster2.run("import time\ntime.sleep(60)")
    timer.join()
    assert cluster2.last_result.interrupted
    assert run(cluster2, "rank").values == {0: "0", 1: "1"}


def test_an_interrupt_between_cells_means_nothing(cluster2):
    cluster2.interrupt()
    assert run(cluster2, "rank").values == {0: "0", 1: "1"}


def test_an_interrupt_for_a_cell_that_is_over_does_not_stop_the_next_one(cluster2):
    """One that was sent while ranks had just replied, or a second one, comes when another cell runs."""
    everybody = RankSet.all(2)
    before = run(cluster2, "1").cell

    def press():
        for _ in range(20):
            time.sleep(0.01)
            cluster2._submitter.tell(m.Interrupt(before, everybody))
        cluster2._submitter.tell(m.Interrupt(0, RankSet([1])))

    thread = threading.Thread(target=press)
    thread.start()
    source = (
        "import time\nuntil_s = time.monotonic() + (0.5 if rank == 0 else 60)\nwhile time.monotonic() < until_s: pass"
    )
    result = cluster2.run(source, timeout_s=60)
    thread.join()
    assert {rank: error.ename for rank, error in result.errors.items()} == {1: "KeyboardInterrupt"}
    assert result.timeout_s is None


def test_a_stopped_rank_keeps_nobody_waiting(cluster2):
    """Its control socket is full of orders; the agent goes on, and the rank stops once when it goes on too."""
    pid = cluster2.status()[1]["pid"]
    answered_s = []

    def press():
        time.sleep(0.3)
        os.kill(pid, signal.SIGSTOP)
        for _ in range(2000):
            cluster2._submitter.tell(m.Interrupt(0, RankSet([1])))
        began_s = time.monotonic()
        try:
            cluster2.describe()
            answered_s.append(time.monotonic() - began_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=press)
    thread.start()
    result = cluster2.run("import time\ntime.sleep(60)", on="1", timeout_s=50)
    thread.join()
    assert {error.ename for error in result.errors.values()} == {"KeyboardInterrupt"}
    assert result.timeout_s is None
    assert len(answered_s) == 1
    assert run(cluster2, "rank").values == {0: "0", 1: "1"}


def test_sigint_from_elsewhere_stops_the_cell_too(cluster2):
    """A cell's own watchdog, or a person's ``kill -INT``."""
    source = "import os, threading, time\nthreading.Timer(0.6, os.kill, (os.getpid(), 2)).start()\ntime.sleep(60)"
    result = cluster2.run(source, on="1", timeout_s=60)
    assert {error.ename for error in result.errors.values()} == {"KeyboardInterrupt"}
    assert result.timeout_s is None


def test_a_rank_that_does_not_answer_the_interrupt_is_named(cluster2):
    source = "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [2])\ntime.sleep(4.5)\nsignal.pthread_sigmask(signal.SIG_UNBLOCK, [2])"
    result = cluster2.run(source, on="1", timeout_s=0.2)
    # another thread may take the signal, and Python runs the handler in the main thread when the sleep is over
    if result.busy:
        assert "rank 1 did not answer the interrupt and still runs" in result.failure_text()
        with pytest.raises(ClusterStateError, match="rank 1 still runs an earlier cell"):
            cluster2.run("1")
        assert run(cluster2, "rank", on="0").values == {0: "0"}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if all(row["state"] == "idle" for row in cluster2.status()):
            break
        time.sleep(0.1)
    assert run(cluster2, "rank").values == {0: "0", 1: "1"}


def test_a_flood_is_cut_and_the_file_has_all_of_it(cluster2):
    result = run(cluster2, "for i in range(20_000): print('line', i)")
    lines = [text for _, text in texts(result)]
    assert len(lines) < 3000
    assert lines[0] == "line 0"
    assert lines[-1] == "line 19999"
    assert set(result.floods) == {0, 1}
    assert Path(result.floods[1]).read_text() == "".join(f"line {i}\n" for i in range(20_000))


def test_background_threads_do_not_print_into_later_cells(cluster2):
    run(cluster2, "import threading\nprint('now')\nthreading.Timer(0.2, print, ['late']).start()")
    time.sleep(0.4)
    assert texts(run(cluster2, "print('next')")) == [("0,1", "next")]
    assert "late" in cluster2.logs(0)


def test_a_second_cell_at_the_same_time_is_refused(cluster2):
    started = threading.Event()

    class View:
        def update(self, _):
            started.set()

        def finish(self, *_):
            pass

    thread = threading.Thread(target=lambda: cluster2.execute(CellRequest("import time\ntime.sleep(1)"), View()))
    thread.start()
    started.wait(10)
    with pytest.raises(ClusterStateError, match="another cell is running"):
        cluster2.run("1")
    thread.join()


def test_output_is_seen_while_the_cell_runs(cluster2):
    latencies = []

    class View:
        def update(self, cell_run):
            if not latencies and (items := cell_run.items()):
                latencies.append(time.perf_counter_ns() - int(items[0].text))

        def finish(self, *_):
            pass

    assert cluster2.execute(
        CellRequest("import time\nprint(time.perf_counter_ns())\ntime.sleep(0.5)", on="0"), View()
    ).ok
    assert latencies[0] < 400e6  # before the cell has ended; benchmarks measure how much before


def test_a_failure_is_told_while_others_wait(cluster4):
    seen = []

    class View:
        def update(self, cell_run):
            if (news := cell_run.news()) and not seen:
                seen.extend(news)

        def finish(self, *_):
            pass

    source = "import torch, torch.distributed as dist\nif rank == 2: raise ValueError('first')\ndist.all_reduce(torch.ones(1))"
    result = cluster4.execute(CellRequest(source), View())
    assert "rank 2 of 4 raised  ValueError: first" in seen[0]
    assert seen[-1] == "ranks 0,1,3 still run"
    assert "ValueError: first" in result.failure_text()
    assert "ranks 0,1,3 were in  all_reduce #1" in result.failure_text()
    assert len(run(cluster4, "rank").values) == 4


@pytest.mark.parametrize("leave", ["exit()", "quit()", "import sys; sys.exit(2)"])
def test_leaving_a_cell_leaves_the_rank_alive(cluster2, leave):
    result = run(cluster2, f"kept = 1\n{leave}")
    assert "the rank goes on" in next(iter(result.notices))
    time.sleep(0.3)  # ipykernel stops its loop a tenth of a second after exit()
    assert run(cluster2, "kept").values == {0: "1", 1: "1"}


def test_processes_of_a_cell_print_and_end_as_any_other(cluster2):
    source = (
        "import multiprocessing as mp, time\nworker = mp.Process(target=print, args=('from a child',))\n"
        "worker.start(); worker.join()\nsleeper = mp.Process(target=time.sleep, args=(60,))\n"
        "sleeper.start(); time.sleep(0.1); sleeper.terminate(); sleeper.join(10)\nsleeper.exitcode"
    )
    result = run(cluster2, source)
    assert ("0,1", "from a child") in texts(result)
    assert result.values == {0: "-15", 1: "-15"}


def test_errors_that_end_nothing_are_told(cluster2, tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in cluster2.run(f"%run {tmp_path / 'bad.py'}").failure_text()


def test_clear_output_forgets_what_was_said(cluster2):
    source = "from IPython.display import clear_output\nfor i in range(3):\n    clear_output(wait=True)\n    print('state', i)"
    assert texts(run(cluster2, source)) == [("0,1", "state 2")]


def test_muted_values_are_brought_too(cluster2):
    assert cluster2.execute(CellRequest("rank + 1;", want_pickles=True)).objects() == {0: 1, 1: 2}


def test_printing_in_a_destructor_does_not_block(cluster2):
    source = "class Loud:\n    def __del__(self): print('gone')\nfor i in range(2000): print(i, Loud() is None)"
    run(cluster2, source)
