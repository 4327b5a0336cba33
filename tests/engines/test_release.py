"""Ranks come out of what they wait in, again and again, and nothing is lost or left by it: interrupts, releases, replacement."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time

import pytest

from hpcnb import Cluster
from hpcnb.cluster import recovery
from hpcnb.core.errors import ClusterStateError, OptionError
from hpcnb.core.ranks import RankSet
from tests.engines.scenarios import CHECK, PLACES, SETUP, setup_of

pytestmark = pytest.mark.engines

#: What takes a second may take so long on a busy machine.
_DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def module_cluster3(runtime_root):
    with Cluster(3, name="test3", threads_per_rank=1, idle_timeout_s=0, grace_s=0.1) as cluster:
        yield cluster


@pytest.fixture
def cluster3(module_cluster3):
    """Three ranks that are released after a tenth of a second; whole after every test."""
    with whole_afterwards(module_cluster3):
        yield module_cluster3


@contextlib.contextmanager
def whole_afterwards(cluster):
    """Whatever happens, the cells of other tests find all ranks."""
    try:
        yield
    finally:
        if ill := cluster.busy | (RankSet.all(cluster.world_size) - cluster.alive):
            cluster.restart_rank(*ill)


@contextlib.contextmanager
def pressed(cluster, *after_s):
    """Ctrl-C at these moments."""

    def press():
        for pause_s in after_s:
            if over.wait(pause_s):
                return
            cluster.interrupt()

    over = threading.Event()
    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run(cluster, source, timeout_s=_DEADLINE_S):
    result = cluster.run(source, timeout_s=timeout_s)
    assert result.ok, result.failure_text()
    return result


def check(cluster, new=()):
    """The next collective is right, and names are intact on all but ``new`` ranks."""
    total = float(sum(range(1, cluster.world_size + 1)))
    values = run(cluster, CHECK).values
    assert values == {rank: f"({total}, {rank not in new})" for rank in range(cluster.world_size)}


def fails(cluster, source, *words, timeout_s=_DEADLINE_S):
    """A cell that fails in time, with these words; and the next one is right."""
    run(cluster, SETUP)
    result = cluster.run(source, timeout_s=timeout_s)
    text = result.failure_text()
    assert result.timeout_s is None, text
    assert not result.ok
    assert not result.busy, text
    for each in words:
        assert re.search(each, text), text
    check(cluster)
    return result


# --- often ---------------------------------------------------------------------------------------------------------

HOLDINGS = """
import gc, os, threading
gc.collect()
pages = int(open("/proc/self/statm").read().split()[1])
len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task")), pages * 4096
"""


def holdings(cluster):
    """``{rank: (descriptors, threads, tasks, bytes resident)}``, when what was connected before has gone."""
    deadline_s = time.monotonic() + 10
    last, now = None, None
    while time.monotonic() < deadline_s:
        last, now = now, {rank: eval(value) for rank, value in run(cluster, HOLDINGS).values.items()}
        if last is not None and all(last[rank][:3] == now[rank][:3] for rank in now):
            break
        time.sleep(0.3)
    return now


@pytest.mark.slow
def test_a_hundred_releases_leave_nothing_behind(cluster3):
    run(cluster3, SETUP)

    def release():
        result = cluster3.run(
            "if rank == 0: raise ValueError('again')\ndist.all_reduce(torch.ones(1000))", timeout_s=_DEADLINE_S
        )
        assert result.timeout_s is None
        assert set(result.errors) == {0, 1, 2}
        assert {rank for rank, error in result.errors.items() if error.is_released} == {1, 2}

    for _ in range(10):  # what is made once
        release()
    before = holdings(cluster3)
    for _ in range(100):
        release()
    after = holdings(cluster3)
    for rank in before:
        assert after[rank][:3] == before[rank][:3]
        assert after[rank][3] < 1.05 * before[rank][3]
    check(cluster3)


@pytest.mark.parametrize("place", ["all_reduce", "ddp_backward", "fsdp", "pipeline"])
def test_interrupts_at_any_moment_of_live_traffic(cluster3, place):
    moments = random.Random(place)
    run(cluster3, setup_of(place))
    turn = PLACES[place].turn.replace("{trouble}", "pass").replace("\n", "\n    ")
    for number in range(15):
        with pressed(cluster3, moments.uniform(0.02, 0.4)):
            result = cluster3.run(f"while True:\n    {turn}", timeout_s=_DEADLINE_S)
        text = f"interrupt {number}: {result.failure_text()}"
        assert result.interrupted, text
        assert not result.busy, text
        assert {error.ename for error in result.errors.values()} <= {"KeyboardInterrupt", "CollectiveAborted"}, text
        assert not result.exits, text
        assert not [words for words in result.recovery if "cannot be made ready" in words], text
        check(cluster3)
    run(cluster3, f"for turn in range(3):\n    {turn}")  # with the same wrappers


# --- Ctrl-C: all ranks at one step, one press, two presses -----------------------------------------------------------


def test_ranks_stop_at_the_same_turn(cluster4):
    run(cluster4, f"{SETUP}x = torch.zeros(2)")
    for number in range(5):
        with pressed(cluster4, 0.1 + 0.07 * number):
            result = cluster4.run(
                "count = 0\nfor turn in hpc.progress(range(10**7)):\n"
                "    time.sleep(0.001 * rank)\n    x += 1\n    dist.all_reduce(x, op=dist.ReduceOp.MAX)\n    count += 1",
                timeout_s=_DEADLINE_S,
            )
        assert result.interrupted
        (error,) = {str(error) for error in result.errors.values()}
        counts = set(run(cluster4, "count").values.values())
        assert len(counts) == 1, counts
        assert error == f"KeyboardInterrupt: stopped before turn {int(counts.pop()) + 1}, as all ranks"
        assert set(result.errors) == set(range(4))
        assert not result.is_broken  # nothing was cut: connections are as they were
    assert len(set(run(cluster4, "x.tolist()").values.values())) == 1
    check(cluster4)


DEAF = {
    "swallows the interrupt": """
if rank == 1:
    while True:
        try: time.sleep(0.1)
        except KeyboardInterrupt: pass
dist.all_reduce(torch.ones(8))
""",
    "C code holds the interpreter": """
if rank == 1:
    sum(range(10**11))
dist.all_reduce(torch.ones(8))
""",
}


def test_a_rank_that_dies_while_groups_are_built_again_holds_nobody(cluster3):
    run(cluster3, SETUP)
    run(
        cluster3, "import hpcnb.engine.groups\nif rank == 1: hpcnb.engine.groups.rebuild_groups = lambda _: os._exit(3)"
    )
    began_s = time.monotonic()
    with pytest.raises(ClusterStateError, match=r"^rank 1 ended its process with status 3 meanwhile$"):
        cluster3.recover()
    assert time.monotonic() - began_s < 5.0
    cluster3.restart_rank(1)
    check(cluster3, new=[1])


@pytest.mark.parametrize("how", DEAF)
def test_one_press_brings_the_prompt_back_from_a_deaf_rank(cluster4, how):
    with whole_afterwards(cluster4):
        run(cluster4, SETUP)
        began_s = time.monotonic()
        with pressed(cluster4, 0.5):
            result = cluster4.run(DEAF[how], timeout_s=60)
        assert time.monotonic() - began_s < 0.5 + 5.0
        text = result.failure_text()
        assert result.busy == RankSet([1]), text
        assert result.exits == {}, text
        assert "rank 1 did not answer the interrupt and still runs" in text
        assert re.search(r"rank 1: is at line [3-5]", text), text
        assert "restart-rank 1" in text
        assert set(result.errors) == {0, 2, 3}
        replaced = cluster4.restart_rank(1)
        assert replaced.ranks == RankSet([1])
        check(cluster4, new=[1])


@pytest.mark.parametrize("pause_s", [0.05, 0.3, 0.8])
def test_two_presses_end_no_rank_that_answers_the_second(cluster4, pause_s):
    source = """
import time
try: time.sleep(60)
except KeyboardInterrupt: time.sleep(60)
"""
    with whole_afterwards(cluster4), pressed(cluster4, 0.5, pause_s):
        result = cluster4.run(source, timeout_s=30)
    text = result.failure_text()
    assert result.exits == {}, text
    assert not result.busy, text
    assert result.interrupted


IN_DEL = """
import time
class Slow:
    def __del__(self): time.sleep(5)
kept = Slow()
del kept
time.sleep(60)
"""
IN_CALLBACK = """
import asyncio, time
pauses = iter((5, 5))
slow = lambda: time.sleep(next(pauses, 0))
get_ipython().events.register('pre_execute', slow)
"""
NO_CALLBACK = "get_ipython().events.unregister('pre_execute', slow)"


def stops(cluster, source):
    began_s = time.monotonic()
    with whole_afterwards(cluster), pressed(cluster, 0.5):
        result = cluster.run(source, timeout_s=30)
    text = result.failure_text()
    assert result.interrupted, text
    assert not result.busy, text
    assert result.exits == {}, text
    assert time.monotonic() - began_s < 3.0


def test_an_interrupt_that_python_swallows_stops_the_cell(cluster2):
    stops(cluster2, IN_DEL)
    stops(cluster2, f"import asyncio\nawait asyncio.sleep(0)\n{IN_DEL}")


def test_an_interrupt_that_ipython_swallows_stops_the_cell(cluster2):
    run(cluster2, IN_CALLBACK)
    try:
        stops(cluster2, "time.sleep(60)")
        stops(cluster2, "await asyncio.sleep(60)")
    finally:
        cluster2.run(NO_CALLBACK, timeout_s=20)


@pytest.mark.parametrize("how", DEAF)
def test_two_presses_show_stacks_and_replace_a_deaf_rank(cluster4, how):
    with whole_afterwards(cluster4):
        run(cluster4, SETUP)
        with pressed(cluster4, 0.5, 0.5):
            result = cluster4.run(DEAF[how], timeout_s=60)
        text = result.failure_text()
        assert not result.busy, text
        assert result.timeout_s is None, text
        assert result.killed == RankSet([1]), text
        assert "rank 1 of 4 did not answer the second Ctrl-C and was ended; its names are lost" in text
        assert re.search(r"rank 1 at the second Ctrl-C:\n +cell \d+, line [3-5], in <module>", text), text
        assert "rank 1 was replaced in" in text
        assert cluster4.alive == RankSet.all(4)
        check(cluster4, new=[1])


# --- ranks are replaced ----------------------------------------------------------------------------------------------


def test_groups_that_a_cell_made_are_whole_when_a_member_is_replaced(cluster4):
    run(
        cluster4,
        f"{SETUP}pair, everybody = dist.new_group([0, 3]), dist.new_group([0, 1, 2, 3])\n"
        "for group in (everybody, mesh['tp'].get_group(), mesh['dp'].get_group()): dist.all_reduce(torch.ones(1), group=group)\n"
        "if rank in (0, 3): dist.all_reduce(torch.ones(1), group=pair)",
    )
    names = eval(cluster4.run("str(pair.group_name), str(everybody.group_name)", on="0").values[0])
    with whole_afterwards(cluster4):
        result = cluster4.run(
            "if rank == 3: os._exit(1)\ndist.all_reduce(torch.ones(1), group=everybody)", timeout_s=20
        )
        assert result.exits == {3: 1}
        assert result.timeout_s is None
        cluster4.restart_rank()
    by_name = (
        "import torch, torch.distributed as dist\nfrom torch.distributed.distributed_c10d import _resolve_process_group\n"
        f"pair, everybody = (_resolve_process_group(name) for name in {names!r})"
    )
    assert cluster4.run(by_name, on="3").ok  # the new process has them under the same names
    sums = (
        "def total(group):\n    x = torch.tensor([rank + 1.0]); dist.all_reduce(x, group=group); return x.item()\n"
        "(total(everybody), total(mesh['tp'].get_group()), total(mesh['dp'].get_group()), total(pair) if rank in (0, 3) else None)"
    )
    assert run(cluster4, sums).values == {
        0: "(10.0, 3.0, 4.0, 5.0)", 1: "(10.0, 3.0, 6.0, None)", 2: "(10.0, 7.0, 4.0, None)", 3: "(10.0, 7.0, 6.0, 5.0)",
    }  # fmt: skip
    made = "late = dist.new_group([1, 2, 3])\ntotal(late) if rank else 0"
    assert run(cluster4, made).values == {0: "0", 1: "9.0", 2: "9.0", 3: "9.0"}


def test_groups_with_hashed_names_are_whole_when_a_member_is_replaced(cluster3):
    run(
        cluster3,
        f"{SETUP}everybody = dist.new_group([0, 1, 2], use_local_synchronization=True)\n"
        "pair = dist.new_group([0, 2], use_local_synchronization=True) if rank != 1 else None\n"
        "counted = dist.new_group([1, 2])",
    )
    named = "tuple(str(group.group_name) for group in (everybody, pair, counted))"
    names = eval(cluster3.run(named, on="2").values[2])
    assert [name.isdecimal() for name in names] == [False, False, True]
    with whole_afterwards(cluster3):
        result = cluster3.run(
            "if rank == 2: os._exit(1)\ndist.all_reduce(torch.ones(1), group=everybody)", timeout_s=20
        )
        assert result.exits == {2: 1}
        cluster3.restart_rank()
    by_name = (
        "import torch, torch.distributed as dist\nfrom torch.distributed.distributed_c10d import _resolve_process_group\n"
        f"everybody, pair, counted = (_resolve_process_group(name) for name in {names!r})"
    )
    assert cluster3.run(by_name, on="2").ok
    sums = (
        "def total(group):\n    x = torch.tensor([rank + 1.0]); dist.all_reduce(x, group=group); return x.item()\n"
        "(total(everybody), total(pair) if rank != 1 else None, total(counted) if rank else None)"
    )
    assert run(cluster3, sums).values == {0: "(6.0, 4.0, None)", 1: "(6.0, None, 5.0)", 2: "(6.0, 4.0, 5.0)"}
    # torch hashes how many groups a rank has, so ranks that have more than others could make no further ones
    run(
        cluster3,
        "for group in (everybody, pair, counted):\n"
        "    if isinstance(group, dist.ProcessGroup): dist.destroy_process_group(group)",
    )


def test_ranks_that_ended_are_replaced_by_themselves_where_that_was_asked_for():
    with Cluster(2, threads_per_rank=1, idle_timeout_s=0, auto_restart=True) as cluster:
        run(cluster, SETUP)
        result = cluster.run("if rank == 1: os.kill(os.getpid(), 9)\ndist.all_reduce(torch.ones(1))", timeout_s=20)
        assert result.exits == {1: -9}
        assert "rank 1 of 2 was ended by SIGKILL" in result.failure_text()
        assert "rank 1 was replaced in" in result.failure_text()
        assert cluster.alive == RankSet.all(2)
        check(cluster, new=[1])


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ((4,), r"^no rank 4; the cluster has ranks 0-3$"),
        ((1, 9, 17), r"^no rank 9; the cluster has ranks 0-3$"),
        ((), r"^no rank has ended; to replace one that lives name it:  %hpc restart-rank 2$"),
        ((-1,), r"^no rank -1; the cluster has ranks 0-3$"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_exist_are_not_replaced(cluster4, ranks, words):
    pids = [row["pid"] for row in cluster4.status()]
    with pytest.raises(OptionError, match=words):
        cluster4.restart_rank(*ranks)
    assert [row["pid"] for row in cluster4.status()] == pids


def test_an_infinite_grace_period_leaves_ranks_where_they_are():
    with Cluster(2, threads_per_rank=1, idle_timeout_s=0, grace_s=None) as cluster:
        run(cluster, SETUP)
        with pressed(cluster, 2.5):
            result = cluster.run(
                "if rank == 0: raise ValueError('first')\ndist.all_reduce(torch.ones(1))", timeout_s=20
            )
        text = result.failure_text()
        assert result.interrupted, text  # by us: nobody else let rank 1 go
        assert result.explanations == []
        assert result.timeout_s is None
        assert not result.busy
        assert result.errors[1].ename in {"KeyboardInterrupt", "CollectiveAborted"}, text
        assert "rank 0 of 2 raised  ValueError: first" in text
        check(cluster)


# --- groups that come and go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", ["[0, 1, 2]", "[1, 2]"])
@pytest.mark.parametrize("how", ["", ", use_local_synchronization=True"])
def test_a_group_is_given_up_when_a_rank_that_belongs_to_it_has_raised(cluster3, members, how):
    fails(
        cluster3, f"if rank == 2: raise ValueError('t')\ngroup = dist.new_group({members}{how})",
        r"(was|were) in  new_group #1 \(0 B, line 2\)", "rank 2 raised ValueError", timeout_s=5,
    )  # fmt: skip
    source = (
        f"group, x = dist.new_group({members}{how}), torch.ones(1)\n"
        f"if rank in {members}: dist.all_reduce(x, group=group); dist.destroy_process_group(group)\nx.item()"
    )
    size = float(len(eval(members)))
    values = run(cluster3, source).values
    assert values == {rank: str(size if rank in eval(members) else 1.0) for rank in range(3)}


def test_a_group_whose_ranks_come_late_is_made(cluster3):
    run(cluster3, SETUP)
    source = (
        "time.sleep(1.0 * rank)\ngroup, x = dist.new_group([0, 1, 2]), torch.ones(1)\n"
        "dist.all_reduce(x, group=group)\ndist.destroy_process_group(group)\nx.item()"
    )
    assert run(cluster3, source).values == dict.fromkeys(range(3), "3.0")


def test_ranks_that_make_different_groups_are_told(cluster3):
    """Rank 2 has made one more by itself: torch counts groups, and they would look for each other in vain."""
    words = r"as operation \d of ranks 0-2, ranks? 0.* called new_group\(named \d+\) \(line 3\) and rank 2 called new_group\(named \d+\) "
    result = fails(
        cluster3, "if rank == 2: dist.new_group([2])\nelse: time.sleep(0.5)\ndist.new_group([0, 1, 2])", words
    )
    assert {error.ename for error in result.errors.values()} == {"CollectiveMismatch"}


def test_a_destroyed_group_does_not_hinder_recovery(cluster3):
    source = "group = dist.new_group([0, 1, 2])\nx = torch.ones(1)\ndist.all_reduce(x, group=group)\ndist.destroy_process_group(group)\n"
    fails(
        cluster3, f"{source}if rank == 2: raise ValueError('t')\ndist.all_reduce(x)", "ranks 0,1 were in  all_reduce",
        "rank 2 raised ValueError",
    )  # fmt: skip
    assert run(cluster3, f"{source}x.item()").values == dict.fromkeys(range(3), "3.0")


def test_a_group_that_one_rank_destroyed_does_not_hinder_recovery(cluster3, monkeypatch):
    monkeypatch.setattr(recovery, "_REBUILD_S", 1.0)
    try:
        fails(
            cluster3,
            "group = dist.new_group([0, 1, 2])\nif rank == 2: dist.destroy_process_group(group)\n"
            "else: dist.all_reduce(torch.ones(1), group=group)",
            "ranks 0,1 were in  all_reduce",
            "process groups built again",
        )
    finally:
        if cluster3._submitter.is_broken:
            cluster3.restart_rank(0, 1, 2)


def interrupt_new_group(cluster):
    run(cluster, SETUP)
    with pressed(cluster, 0.5):
        result = cluster.run(
            "if rank != 2: group = dist.new_group([0, 1, 2])\nelse: time.sleep(60)", timeout_s=_DEADLINE_S
        )
    text = result.failure_text()
    assert result.interrupted, text
    assert not result.busy, text
    assert set(result.errors) == {0, 1, 2}


def test_a_group_that_one_rank_never_makes_can_be_interrupted(cluster3):
    interrupt_new_group(cluster3)
    check(cluster3)


def test_after_a_group_that_was_never_complete_others_can_be_made(cluster3):
    try:
        interrupt_new_group(cluster3)
        check(cluster3)
        source = "group = dist.new_group([0, 1, 2])\nx = torch.ones(1)\ndist.all_reduce(x, group=group)\nx.item()"
        assert run(cluster3, source, timeout_s=3).values == dict.fromkeys(range(3), "3.0")
    finally:
        if cluster3.run("len(dist.distributed_c10d._world.pg_map)").values:
            cluster3.restart_rank(0, 1, 2)


# --- other operations --------------------------------------------------------------------------------------------------


def test_works_that_nobody_waits_for(cluster3):
    run(cluster3, f"{SETUP}tensors = [torch.full((4,), rank + 1.0) for _ in range(5)]")
    for _ in range(3):
        run(cluster3, "works = [dist.all_reduce(x, async_op=True) for x in tensors]")
        check(cluster3)  # on a connection where they are first
        run(cluster3, "for work in works: work.wait()")
    assert run(cluster3, "torch.stack(tensors).unique().tolist()").values == dict.fromkeys(range(3), "[54.0]")


@pytest.mark.parametrize("trouble", ["raise ValueError('t')", "import sys; sys.exit()", "pass"])
def test_works_that_nobody_waits_for_while_one_rank_has_left(cluster3, trouble):
    run(cluster3, SETUP)
    cluster3.run(f"x = torch.ones(1)\nif rank == 0: {trouble}\nelse: work = dist.all_reduce(x, async_op=True)")
    check(cluster3)


#: Ways to wait for ``work`` other than its own wait()
OTHER_WAITS = {
    "its future": "work.get_future().wait()",
    "what follows from its future": "work.get_future().then(lambda future: future.value()[0] + 1).wait()",
    "asking": "while not work.is_completed(): pass",
    "asking now and then": "while not work.is_completed(): time.sleep(0.1)",
}


@pytest.mark.parametrize("wait", OTHER_WAITS.values(), ids=OTHER_WAITS)
def test_other_ways_to_wait_are_right_and_are_released(cluster3, wait):
    source = f"""
{{}}
work = dist.all_reduce(x := torch.ones(2), async_op=True)
{wait}
x.sum().item()
"""
    late = "if rank == 1: time.sleep(1.5)"  # longer than the grace period
    assert run(
        cluster3, f"import time\nimport torch, torch.distributed as dist{source.format(late)}"
    ).values == dict.fromkeys(range(3), "6.0")
    left = "if rank == 1: raise ValueError('mine')"
    fails(cluster3, source.format(left), "rank 1 .*raised +ValueError", "ranks 0,2 were in +all_reduce #1 .* released")
    with pressed(cluster3, 0.5):
        result = cluster3.run(source.format("if rank == 1: time.sleep(60)"), timeout_s=_DEADLINE_S)
    assert result.interrupted, result.failure_text()
    assert not result.busy
    check(cluster3)


def test_a_rank_that_runs_far_ahead_of_a_receiver(cluster3):
    """As on plain gloo: messages are under way before the other looks for them."""
    source = """
if rank == 0: works = [dist.isend(torch.full((3,), float(k)), 1) for k in range(80)]
dist.barrier()
x = torch.empty(3)
got = [x[0].item() for _ in range(80) if dist.recv(x, 0) is not None] if rank == 1 else []
if rank == 0: [work.wait() for work in works]
dist.barrier()
got == [float(k) for k in range(80)]
"""
    run(cluster3, SETUP)
    assert run(cluster3, source).values == {0: "False", 1: "True", 2: "False"}
    check(cluster3)


AHEAD = """
sizes = [1 + k % 50 for k in range(20_000)]
if rank == 0: works = [dist.isend(torch.full((size,), float(k)), 1) for k, size in enumerate(sizes)]
dist.barrier()
"""


def test_twenty_thousand_messages_ahead_of_a_receiver(cluster3):
    run(cluster3, SETUP)
    receive = """
if rank == 1:
    time.sleep(0.2)
    for k, size in enumerate(sizes):
        x = torch.empty(size); dist.recv(x, 0)
        assert x[0] == x[-1] == k, k
if rank == 0: [work.wait() for work in works]
dist.barrier()
"""
    run(cluster3, AHEAD + receive, timeout_s=120)
    check(cluster3)


@pytest.mark.parametrize("odd", [3, 31, 32, 10_000, 19_990])
def test_a_message_that_does_not_fit_is_told_far_behind_its_sender(cluster3, odd):
    receive = f"if rank == 1:\n    for k, size in enumerate(sizes): dist.recv(torch.empty(size + (k == {odd})), 0)"
    size = 1 + odd % 50
    fails(
        cluster3, AHEAD + receive,
        rf"message \d+ from rank 0 is send\(float32\[{size}\]\) \(line 3\), "
        rf"and rank 1 expects recv\(float32\[{size + 1}\]\) \(line 6\)", timeout_s=120,
    )  # fmt: skip
    assert cluster3.run("k", on="1").values == {1: str(odd)}  # neither an earlier nor a later one


def test_a_sender_far_behind_its_receiver_is_told_too(cluster3):
    receive = """
if rank == 1: works = [dist.irecv(torch.empty(1 + k % 50), 0) for k in range(2000)]
dist.barrier()
if rank == 0:
    for k in range(2000): dist.send(torch.ones(1 + k % 50 + (k == 1000)), 1)
"""
    fails(
        cluster3, receive, r"message \d+ from rank 0 is send\(float32\[2\]\) \(line 5\), "
        r"and rank 1 expects recv\(float32\[1\]\) \(line 2\)", timeout_s=120,
    )  # fmt: skip


def test_messages_from_any_source(cluster3):
    run(cluster3, SETUP)
    source = """
x, got = torch.empty(1), []
if rank == 0: got = sorted([(dist.recv(x), x.item()) for _ in range(4)])
else: [dist.send(torch.tensor([10.0 * rank + k]), 0) for k in range(2)]
got
"""
    assert run(cluster3, source).values[0] == repr([(1, 10.0), (1, 11.0), (2, 20.0), (2, 21.0)])
    with pressed(cluster3, 0.5):
        result = cluster3.run("if rank == 0: dist.recv(x)\nelse: time.sleep(60)", timeout_s=_DEADLINE_S)
    assert result.interrupted
    assert set(result.errors) == {0, 1, 2}
    check(cluster3)


def test_a_receive_from_any_source_is_released_when_nobody_will_send(cluster3):
    fails(
        cluster3, "if rank == 0: dist.recv(torch.empty(1))\nelse: raise ValueError('t')", "rank 0 was in", timeout_s=3
    )


def test_a_receive_from_any_source_waits_as_long_as_somebody_may_send(cluster3):
    run(cluster3, SETUP)
    source = """
x = torch.empty(1)
if rank == 0: got = [(dist.recv(x), x.item()) for _ in range(2)]
elif rank == 1: time.sleep(1.0); dist.send(torch.tensor([7.0]), 0); time.sleep(1.0); dist.send(torch.tensor([8.0]), 0)
got if rank == 0 else None
"""  # rank 2 has left long before, and ranks are released after a tenth of a second
    assert run(cluster3, source).values[0] == "[(1, 7.0), (1, 8.0)]"
    check(cluster3)


def test_a_receive_from_any_source_is_released_when_all_others_wait_as_well(cluster3):
    fails(
        cluster3, "if rank == 0: dist.recv(torch.empty(1))\nelse: dist.barrier()", "they wait for each other",
        r"rank 0 waits in recv from any rank #1 \(4 B, line 1\) for any of ranks 1,2", timeout_s=5,
    )  # fmt: skip


UNEVEN = """
num_in, num_out = [rank + 1 + peer for peer in range(world_size)], [peer + 1 + rank for peer in range(world_size)]
parts = torch.cat([torch.full((num,), 10.0 * rank + peer) for peer, num in enumerate(num_in)])
expected = torch.cat([torch.full((num,), 10.0 * peer + rank) for peer, num in enumerate(num_out)])
x = torch.empty(sum(num_out))
"""
RING = """
x = torch.empty(4)
operations = [dist.P2POp(dist.isend, torch.full((4,), float(rank)), (rank + 1) % world_size),
              dist.P2POp(dist.irecv, x, (rank - 1) % world_size)]
expected = torch.full((4,), float((rank - 1) % world_size))
"""
FUNCTIONAL = """
import torch.distributed._functional_collectives as functional
expected = torch.arange(3.0)
"""
OTHERS = {
    "batch_isend_irecv": (RING, "for work in dist.batch_isend_irecv(operations): work.wait()", "(send|recv) #1"),
    "all_to_all_single": (UNEVEN, "dist.all_to_all_single(x, parts, num_out, num_in)", "all_to_all #1"),
    "functional": (
        FUNCTIONAL, "x = functional.all_gather_tensor(torch.tensor([float(rank)]), 0, dist.group.WORLD) + 0", "all_gather #1",
    ),
    "monitored_barrier": ("x = expected = torch.ones(1)", "dist.monitored_barrier()", "monitored_barrier #1"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_are_right_and_are_released(cluster3, name):
    setup, call, waits_in = OTHERS[name]
    run(cluster3, SETUP + setup)
    for _ in range(2):
        assert run(cluster3, f"{call}\nbool((x == expected).all())").values == dict.fromkeys(range(3), "True")
        result = cluster3.run(f"if rank == 2: raise ValueError('t')\n{call}", timeout_s=_DEADLINE_S)
        text = result.failure_text()
        assert result.timeout_s is None, text
        assert set(result.errors) == {0, 1, 2}, text
        assert all(re.match(waits_in, result.errors[rank].operation) for rank in (0, 1)), text
        assert "rank 2 raised ValueError" in text
        check(cluster3)


@pytest.mark.parametrize("wait_all", [False, True])
def test_a_monitored_barrier_names_who_did_not_come(cluster4, wait_all):
    late = "rank in (1, 3)"
    source = (
        f"import datetime\nif {late}: time.sleep(1.5)\n"
        f"else: dist.monitored_barrier(timeout=datetime.timedelta(seconds=0.5), wait_all_ranks={wait_all})"
    )
    result = fails(cluster4, source, r"monitored_barrier #1 .*ranks 1,3 have not called it within 0.5 s")
    assert "CollectiveAborted" in {error.ename for error in result.errors.values()}


def test_a_monitored_barrier_of_another_backend_is_torchs_own(cluster3):
    source = "plain = dist.new_group(backend='gloo')\ndist.monitored_barrier(plain)\ndist.destroy_process_group(plain)"
    run(cluster3, f"{SETUP}{source}")
    result = fails(cluster3, "dist.monitored_barrier() if rank else dist.barrier()", "rank 0 called barrier")
    assert "monitored_barrier" in result.failure_text()


BAD_PARTS = f"{UNEVEN}if rank == 2: num_in[0] += 1; parts = torch.ones(sum(num_in))\ndist.all_to_all_single(x, parts, num_out, num_in)"


def test_parts_of_an_uneven_exchange_that_do_not_fit_are_named(cluster3):
    words = r"message \d+ from rank 2 is part of an all_to_all: float32.* \(line 7\), and rank 0 expects part of an all_to_all: float32"
    result = fails(cluster3, BAD_PARTS, words)
    assert {error.ename for error in result.errors.values()} == {"CollectiveMismatch"}


def test_how_many_elements_do_not_fit_is_told(cluster3):
    fails(
        cluster3, BAD_PARTS, r"is part of an all_to_all: float32\[4\] .* expects part of an all_to_all: float32\[3\] "
    )
