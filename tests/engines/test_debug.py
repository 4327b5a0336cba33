"""Ranks that ask: post-mortem, breakpoint() and input() on real ranks, with a person who follows a script."""

from __future__ import annotations

import threading
import time

import pytest

from hpcnb.cluster.cell_run import CellRequest
from hpcnb.core.errors import CellFailed, ClusterStateError, OptionError

pytestmark = pytest.mark.engines

FAILING = """def divide(x):
    y = x + 1
    return 1 / (y - rank - 1)
divide(rank)"""


class Person:
    """A view that answers from a script: ``{rank: [lines]}``, in the order in which that rank asks."""

    shows_answers = False

    def __init__(self, script):
        self.script = {rank: list(lines) for rank, lines in script.items()}
        self.prompts = []
        self.seen = []  # what had been said when each prompt appeared

    def ask(self, run, prompt):
        self.prompts.append(prompt)
        self.seen.append([item.text for item in run.items()])
        answer = self.script[int(prompt.rsplit("[rank ", 1)[1].split("]")[0])].pop(0)
        if isinstance(answer, type):
            raise answer
        return answer() if callable(answer) else answer

    def update(self, run):
        pass

    def finish(self, run, result):
        pass


def execute(cluster, source, script=None, **options):
    person = Person(script or {})
    return cluster.execute(CellRequest(source, **options), person), person


def asked(person):
    """Ranks in the order in which they were served."""
    return [int(prompt.rsplit("[rank ", 1)[1].split("]")[0]) for prompt in person.prompts]


# --- after a failure -----------------------------------------------------------------------------------------


def debug(cluster, rank, *commands):
    """What the debugger said."""
    lines = list(commands)
    return cluster.debug(rank, ask=lambda prompt: lines.pop(0)).outputs[rank].splitlines()


def test_post_mortem_starts_in_the_innermost_frame_of_the_cell(cluster2):
    failed = cluster2.execute(CellRequest(FAILING, label="cell In[7]", first_line=2))
    assert not failed.ok
    said = debug(cluster2, 1, "p x, y", "w", "u", "p rank", "l", "q")
    assert said[:4] == [
        "ZeroDivisionError: division by zero", "> <cell In[7]>(4)divide()", "-> return 1 / (y - rank - 1)", "(1, 2)",
    ]  # fmt: skip
    text = "\n".join(said)
    assert "<cell In[7]>(5)<module>()" in text
    assert "  5  ->\tdivide(rank)" in text
    assert "hpcnb" not in text
    assert "IPython" not in text
    # the last result is still the cell's
    assert cluster2.last_result is failed


def test_the_failure_is_kept_until_the_next_one(cluster2):
    cluster2.run("kept = 'first'\n1 / 0")
    assert cluster2.run("rank").ok
    assert "ZeroDivisionError: division by zero" in debug(cluster2, 0, "q")
    cluster2.run("{}['missing']", on="0")
    assert "KeyError: 'missing'" in debug(cluster2, 0, "q")
    assert "ZeroDivisionError: division by zero" in debug(cluster2, 1, "q")


def test_a_failed_call_can_be_debugged(cluster2):
    with pytest.raises(CellFailed):
        cluster2.call(lambda x: x.nothing, 5)
    assert "5" in debug(cluster2, 0, "p x", "c")


def test_there_is_nothing_to_debug(cluster2):
    with pytest.raises(OptionError, match="no rank 2; the cluster has ranks 0-1"):
        cluster2.debug(2)
    cluster2.run("x = = 1")
    with pytest.raises(CellFailed, match="the last failure on rank 0 is a SyntaxError: no code ran"):
        cluster2.debug(0)


def test_names_can_be_changed_and_the_end_of_input_leaves(cluster2):
    cluster2.run("value = 1\n1 / 0")
    lines = ["!value = 41", "p value + 1"]

    def ask(prompt):
        assert prompt == "[rank 0] (Pdb) "
        if lines:
            return lines.pop(0)
        raise EOFError

    assert cluster2.debug(0, ask=ask).outputs[0].splitlines()[-1] == "42"
    assert cluster2.run("value").values == {0: "41", 1: "1"}


def test_a_debugger_that_nobody_answers_says_why(cluster2):
    cluster2.run("1 / 0")

    def ask(_):
        raise NotImplementedError

    with pytest.raises(CellFailed, match="the debugger was left: this front-end does not let cells ask for input"):
        cluster2.debug(0, ask=ask)


# --- breakpoint() --------------------------------------------------------------------------------------------


def test_breakpoint_on_one_rank_while_the_others_wait_in_a_barrier(cluster4):
    source = (
        "import torch.distributed as dist\nvalue = rank\nif rank == 1:\n    print('before')\n    breakpoint()\n"
        "    value += 10\n    value += 100\ndist.barrier()\nvalue"
    )
    result, person = execute(cluster4, source, {1: ["p value", "n", "n", "p value", "c"]}, first_line=2)
    assert result.ok, result.failure_text()
    assert result.values == {0: "0", 1: "111", 2: "2", 3: "3"}
    assert person.prompts == ["[rank 1] (Pdb) "] * 5
    assert person.seen[0][0] == "before"
    assert person.seen[0][-1] == "-> breakpoint()"
    assert person.seen[1][-2:] == ["(Pdb) p value", "1"]
    assert person.seen[2][-1] == "-> value += 10"
    assert result.outputs[1].splitlines()[-3:] == ["(Pdb) p value", "11", "(Pdb) c"]


@pytest.mark.parametrize("leave", ["q", EOFError])
def test_leaving_ends_the_cell_on_that_rank_with_an_error_of_its_own(cluster2, leave):
    result, _ = execute(cluster2, "kept = rank\nif rank == 1:\n    breakpoint()\n    kept = 9\nkept", {1: [leave]})
    assert result.values == {0: "0"}
    assert result.errors[1].ename == "DebuggerQuit"
    assert result.errors[1].line == 3
    key = {"q": "q", EOFError: "Ctrl-D"}[leave]
    assert result.errors[1].evalue == f"the debugger was left with {key}, which ended the cell here; c runs on"
    assert "Traceback" not in result.failure_text()
    assert cluster2.run("kept").values == {0: "0", 1: "1"}


def test_ranks_are_served_one_after_the_other(cluster4):
    commands = {rank: ["p rank", "n", "c"] for rank in range(4)}
    result, person = execute(cluster4, "hpc.barrier()\nbreakpoint()\na = 1\nb = 2\nb", commands)
    assert result.ok, result.failure_text()
    served = asked(person)
    # a rank is stayed with until it leaves, whichever comes first
    assert [served[index : index + 3] for index in range(0, 12, 3)] == [
        [rank] * 3 for rank in dict.fromkeys(served)
    ]  # fmt: skip
    assert sorted(set(served)) == [0, 1, 2, 3]
    assert any("wait to ask too)\n[rank" in prompt for prompt in person.prompts)


def test_a_step_over_a_collective_gives_the_others_their_turn(cluster2):
    source = "breakpoint()\nhpc.barrier()\nhpc.barrier()\n'done'"
    result, person = execute(cluster2, source, {0: ["n", "c"], 1: ["n", "c"]})
    assert result.ok, result.failure_text()
    assert sorted(asked(person)) == [0, 0, 1, 1]


def test_those_who_wait_are_patient_with_a_person_who_thinks(cluster2):
    """Longer than the grace period after which ranks that wait in vain are released."""

    def think():
        time.sleep(2.5)
        return "c"

    result, _ = execute(cluster2, "if rank: breakpoint()\nhpc.barrier()\n'done'", {1: [think]})
    assert result.ok, result.failure_text()


def test_those_who_wait_for_a_rank_that_was_left_with_q_are_released(cluster2):
    result, _ = execute(cluster2, "kept = 1\nif rank: breakpoint()\nhpc.barrier()", {1: ["q"]})
    assert result.errors[1].ename == "DebuggerQuit"
    assert result.errors[0].ename == "CollectiveAborted"
    assert "rank 1 raised DebuggerQuit" in result.failure_text()
    # its groups are whole again
    assert cluster2.run("hpc.barrier()\nkept").values == {0: "1", 1: "1"}
    # and the rank that waited can be looked at
    assert debug(cluster2, 0, "u 9", "p kept", "q")[-1] == "1"


def test_pdb_set_trace_and_breakpoints_in_a_loop(cluster2):
    source = "import pdb\nfrom pdb import set_trace\nfor i in range(2):\n    pdb.set_trace()\n    i\nset_trace()\ni"
    result, person = execute(cluster2, source, {0: ["c"] * 3, 1: ["c"] * 3})
    assert result.ok, result.failure_text()
    assert sorted(asked(person)) == [0, 0, 0, 1, 1, 1]


def test_stepping_out_of_the_cell_ends_the_debugger(cluster2):
    for source in ("breakpoint()\nx = 1", "import asyncio\nbreakpoint()\nawait asyncio.sleep(0)\nx = 1"):
        result, _ = execute(cluster2, source, {0: ["s"] * 9}, on="0")
        assert result.ok, result.failure_text()
        stops = [text for text in result.outputs[0].splitlines() if text.startswith("->")]
        assert stops == [f"-> {line}" for line in source.splitlines() if "import" not in line]
    assert cluster2.run("import sys\nsys.gettrace()").values == {}


def test_steps_of_a_cell_lead_from_statement_to_statement_and_into_its_functions(cluster2):
    source = "def f(x):\n    return x + 1\nbreakpoint()\ny = f(1)\nfor _ in hpc.progress([1]):\n    y += 1\ny"
    result, _ = execute(cluster2, source, {0: ["n", "s", "s", "s", "n", "n", "n", "p y", "c"]}, on="0")
    assert result.values == {0: "3"}
    shown = [text for text in result.outputs[0].splitlines() if text.startswith((">", "--", "->"))]
    assert [text for text in shown if not text.startswith(">")] == [
        "-> breakpoint()", "-> y = f(1)", "--Call--", "-> def f(x):", "-> return x + 1", "--Return--", "-> return x + 1",
        "-> for _ in hpc.progress([1]):", "-> y += 1", "-> for _ in hpc.progress([1]):",
    ]  # fmt: skip


def test_a_breakpoint_at_the_end_of_a_cell_stops_there(cluster2):
    result, person = execute(cluster2, "x = 1\nbreakpoint()", {0: ["p x", "c"]}, on="0")
    assert result.ok, result.failure_text()
    assert len(person.prompts) == 2


def test_locals_of_functions_can_be_changed(cluster2):
    source = "def f():\n    x = 1\n    breakpoint()\n    return x\nf()"
    result, _ = execute(cluster2, source, {0: ["!x = 5", "c"]}, on="0")
    assert result.values == {0: "5"}


def test_without_anybody_to_ask_the_cell_says_so(cluster2):
    text = cluster2.run("breakpoint()\n1").failure_text()
    assert text == (
        "ranks 0,1 of 2 raised  DebuggerQuit: the debugger was left: nobody can be asked here: run the cell with "
        "%%hpc_parallel in a notebook or in a terminal\n      line 1:  breakpoint()"
    )


def test_a_person_who_fails_does_not_leave_ranks_waiting(cluster2):
    result, _ = execute(cluster2, "breakpoint()\n1", {})
    assert "asking failed: KeyError: 0" in result.failure_text()


# --- input() -------------------------------------------------------------------------------------------------


def test_input(cluster2):
    result, person = execute(cluster2, "print('so far')\ninput('name? ')", {0: ["Ada"], 1: ["Grace"]})
    assert result.values == {0: "'Ada'", 1: "'Grace'"}
    assert sorted(prompt.splitlines()[-1] for prompt in person.prompts) == ["[rank 0] name? ", "[rank 1] name? "]
    assert person.seen[0][0] == "so far"


def test_input_from_a_thread(cluster2):
    source = (
        "import threading\nheard = []\nthreads = [threading.Thread(target=lambda: heard.append(input())) for _ in 'ab']\n"
        "for thread in threads: thread.start()\nfor thread in threads: thread.join()\nsorted(heard)"
    )
    result, _ = execute(cluster2, source, {0: ["1", "2"]}, on="0")
    assert result.values == {0: "['1', '2']"}


def test_the_end_of_input_is_what_it_is_elsewhere(cluster2):
    result, _ = execute(cluster2, "input('name? ')", {0: [EOFError], 1: ["Ada"]})
    assert {rank: error.ename for rank, error in result.errors.items()} == {0: "EOFError"}
    assert not result.interrupted


@pytest.mark.parametrize("source", ["input('name? ')", "breakpoint()\n1", "for _ in hpc.progress(range(3)): input()"])
def test_one_ctrl_c_at_a_prompt_interrupts_the_cell(cluster4, source):
    result, person = execute(cluster4, f"kept = 3\n{source}", {rank: [KeyboardInterrupt] for rank in range(4)})
    assert result.interrupted
    assert {rank: error.ename for rank, error in result.errors.items()} == dict.fromkeys(range(4), "KeyboardInterrupt")
    assert asked(person) == [0]  # the others are not asked any more
    assert cluster4.run("hpc.barrier()\nkept").values == dict.fromkeys(range(4), "3")


def test_ctrl_c_leaves_a_post_mortem(cluster2):
    cluster2.run("1 / 0")

    def ask(_):
        raise KeyboardInterrupt

    cluster2.debug(0, ask=ask)
    assert cluster2.run("hpc.barrier()").ok


def test_input_without_anybody_to_ask(cluster2):
    assert "input('x? ') has no answer: nobody can be asked here" in cluster2.run("input('x? ')").failure_text()
    caught = "try: input()\nexcept EOFError as error: print(error)"
    assert "has no answer" in cluster2.run(caught).outputs[0]


def test_forked_processes_do_not_ask(cluster2):
    source = (
        "import multiprocessing as mp\ndef child(queue):\n    try: input()\n    except EOFError: queue.put('no input')\n"
        "queue = mp.get_context('fork').Queue()\nworker = mp.get_context('fork').Process(target=child, args=(queue,))\n"
        "worker.start()\nanswer = queue.get(timeout=30)\nworker.join()\nanswer"
    )
    result, _ = execute(cluster2, source)
    assert result.values == {0: "'no input'", 1: "'no input'"}


# --- interrupts and timeouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["input('go on? ')", "breakpoint()\n1", "import asyncio\nawait asyncio.sleep(0)\ninput()"]
)
def test_an_interrupt_from_another_thread_ends_the_asking(cluster2, source):
    """The main thread asks, as in a terminal; it is woken, and both ranks stop."""

    def wait():
        thread = threading.Thread(target=cluster2.interrupt)
        thread.start()
        time.sleep(60)  # ended by the interrupt

    result, _ = execute(cluster2, f"kept = 3\nhpc.barrier()\n{source}", {0: [wait], 1: [wait]})
    assert result.interrupted
    assert {error.ename for error in result.errors.values()} == {"KeyboardInterrupt"}
    assert cluster2.run("kept").values == {0: "3", 1: "3"}


def test_an_interrupt_gets_ranks_out_of_a_question_whoever_waits(cluster2):
    """Another thread than the main one runs the cell and asks: nothing ends its asking, but the ranks go on."""
    asked, answer = threading.Event(), threading.Event()
    results = []

    def ask():
        asked.set()
        answer.wait(60)
        return "late"

    thread = threading.Thread(target=lambda: results.append(execute(cluster2, "input()", {0: [ask], 1: [ask]})[0]))
    thread.start()
    assert asked.wait(60)
    cluster2.interrupt()
    deadline = time.monotonic() + 60
    while any(row["state"] != "idle" for row in cluster2.status()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(row["state"] == "idle" for row in cluster2.status())
    answer.set()
    thread.join(60)
    assert {error.ename for error in results[0].errors.values()} == {"KeyboardInterrupt"}
    # the late answer is not taken for one to the next question
    assert execute(cluster2, "input()", {0: ["new"]}, on="0")[0].values == {0: "'new'"}


def test_time_at_a_prompt_does_not_count(cluster2):
    def think():
        time.sleep(1.0)
        return "done"

    result, _ = execute(cluster2, "input()", {0: [think]}, on="0", timeout_s=0.5)
    assert result.values == {0: "'done'"}
    result, _ = execute(cluster2, "input()\nimport time\ntime.sleep(60)", {0: [think]}, on="0", timeout_s=0.5)
    assert "longer than its timeout of 0.5 s" in result.failure_text()


def test_a_fresh_rank_has_nothing_to_debug(cluster2):
    from hpcnb import Cluster

    with Cluster(1, threads_per_rank=1, idle_timeout_s=0) as fresh:
        with pytest.raises(CellFailed, match=r"no cell has failed on rank 0: there is nothing to debug"):
            fresh.debug(0)
        fresh.run("1")
        assert fresh.last_result.label.startswith("cell ")
    with pytest.raises(ClusterStateError, match="is not running"):
        fresh.debug(0)
