"""What a rank has stopped waiting for is still under way in the backend: nothing that others call may meet it."""

from __future__ import annotations

import threading

import pytest

pytestmark = pytest.mark.engines

_DEADLINE_S = 20.0
SETUP = "import time, datetime, torch, torch.distributed as dist\nkept = rank * 10"
#: Rank 0 begins an operation and does not wait for its end; rank 1 comes later, with this tensor.
GIVEN_UP = """
if rank == 0:
    work = dist.all_reduce(torch.full(({first},), 3.0), async_op=True)
    try: work.wait(datetime.timedelta(seconds=0.2))
    except Exception as error: pass
else:
    time.sleep(0.6)
    x = torch.full(({second},), 5.0)
    dist.all_reduce(x, op=dist.ReduceOp.{op})
"""


def run(cluster, source):
    result = cluster.run(source, timeout_s=_DEADLINE_S)
    assert result.ok, result.failure_text()
    return result


def check(cluster):
    """The next collective is right, and no process was replaced."""
    values = run(cluster, "t = torch.tensor([rank + 1.0]); dist.all_reduce(t); (t.item(), kept)").values
    assert values == {0: "(3.0, 0)", 1: "(3.0, 10)"}


@pytest.mark.parametrize(
    ("first", "second", "op", "ename"),
    [
        (4, 4, "MAX", "CollectiveMismatch"),
        (100_000, 7, "SUM", "CollectiveMismatch"),
        (7, 100_000, "SUM", "CollectiveMismatch"),
        (4, 4, "SUM", "CollectiveAborted"),  # the tensor of the other rank may be another one by now
    ],
)
def test_a_wait_that_was_given_up_is_not_met(cluster2, first, second, op, ename):
    run(cluster2, SETUP)
    result = cluster2.run(GIVEN_UP.format(first=first, second=second, op=op), timeout_s=_DEADLINE_S)
    text = result.failure_text()
    assert not result.exits, text
    assert {rank: error.ename for rank, error in result.errors.items()} == {1: ename}, text
    if ename == "CollectiveAborted":
        assert "rank 0 does not wait for it any more" in text
    check(cluster2)


def test_clean_up_after_an_interrupt_does_not_meet_what_the_other_rank_waited_in(cluster2):
    run(cluster2, SETUP)
    source = """
try:
    if rank == 0: dist.all_reduce(torch.ones(100_000))
    else: time.sleep(30)
finally:
    time.sleep(0.17)
    dist.all_reduce(torch.ones(7))
"""
    timer = threading.Timer(1.0, cluster2.interrupt)
    timer.start()
    try:
        result = cluster2.run(source, timeout_s=_DEADLINE_S)
    finally:
        timer.join()
    text = result.failure_text()
    assert not result.exits, text
    assert result.interrupted
    check(cluster2)


def test_an_operation_before_the_one_that_was_given_up_is_completed(cluster2):
    run(cluster2, SETUP)
    source = """
if rank == 0:
    first = dist.all_reduce(torch.full((4,), 3.0), async_op=True)
    second = dist.all_reduce(torch.ones(4), async_op=True)
    try: second.wait(datetime.timedelta(seconds=0.2))
    except Exception: pass
    raise ValueError("left")
time.sleep(0.6)
x = torch.full((4,), 5.0)
dist.all_reduce(x)
assert x.tolist() == [8.0] * 4, x
dist.all_reduce(torch.ones(4))
"""
    result = cluster2.run(source, timeout_s=_DEADLINE_S)
    assert result.timeout_s is None, result.failure_text()
    assert {rank: error.ename for rank, error in result.errors.items()} == {0: "ValueError", 1: "CollectiveAborted"}
    check(cluster2)


@pytest.mark.parametrize("is_done", [False, True])
def test_work_of_connections_that_were_replaced_leaves_the_new_ones_whole(cluster2, is_done):
    run(cluster2, SETUP)
    begin = "x = torch.ones(4)\nwork = dist.irecv(x, 1) if rank == 0 else None\nkept"
    if is_done:
        begin = "x = torch.ones(4)\nwork = dist.all_reduce(x, async_op=True)\ndist.barrier()\ntime.sleep(0.2)\nkept"
    run(cluster2, begin)
    cluster2.recover()
    source = """
told = ""
if work is not None:
    try: work.wait()
    except Exception as error: told = f"{type(error).__name__}: {error}"
y = torch.ones(4)
dist.all_reduce(y)
(y[0].item(), x[0].item(), told)
"""
    values = {rank: eval(value) for rank, value in run(cluster2, source).values.items()}
    if is_done:
        assert values == dict.fromkeys((0, 1), (2.0, 2.0, ""))
    else:
        assert values[1] == (2.0, 1.0, "")
        assert values[0][:2] == (2.0, 1.0)
        assert values[0][2].startswith("CollectiveAborted: recv #1 (16 B, line 2) cannot be completed: process groups")
    check(cluster2)


def test_a_collective_of_connections_that_were_replaced_leaves_the_new_ones_whole(cluster2):
    run(cluster2, SETUP)
    cluster2.run("x = torch.ones(4)\nif rank == 0: work = dist.all_reduce(x, async_op=True)", timeout_s=_DEADLINE_S)
    source = """
if rank == 0:
    try: work.wait()
    except Exception as error: assert "built again" in str(error), error
    else: assert False
y = torch.ones(4)
dist.all_reduce(y)
y[0].item()
"""
    assert run(cluster2, source).values == dict.fromkeys((0, 1), "2.0")
    check(cluster2)


@pytest.mark.parametrize(
    "bad",
    [
        "dist.all_to_all_single(torch.empty(2, 4).T, torch.ones(2, 4).T)",
        "dist.all_to_all_single(torch.empty(2, 3).T, torch.ones(2, 3).T, [1, 2], [1, 2])",
    ],
)
def test_an_exchange_that_the_backend_refuses_can_be_repeated(cluster2, bad):
    run(cluster2, SETUP)
    source = f"""
dist.barrier()
out = torch.empty(6)
if rank == 1:
    try: {bad}
    except (RuntimeError, ValueError) as error: print(f"{{type(error).__name__}}: {{error}}")
else: time.sleep(0.5)
dist.all_to_all_single(out, torch.full((6,), rank + 1.0))
out.tolist()
"""
    assert run(cluster2, source).values == dict.fromkeys((0, 1), "[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]")
    check(cluster2)
