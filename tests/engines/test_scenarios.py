"""One rank gets into trouble while the others communicate: what is said, that all come back, and that the next cell works.

The table is in scenarios.py: every place of a communication with every trouble.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time

import psutil
import pytest

from hpcnb import Cluster
from hpcnb.core.ranks import RankSet
from tests.engines.scenarios import CHECK, PLACES, TROUBLES, program_of, setup_of

pytestmark = pytest.mark.engines

#: Cells come back within about a second; this is what a busy machine may make of it.
_DEADLINE_S = 10.0
_SETUP_S = 60.0

EVERYTHING = list(itertools.product(PLACES, TROUBLES))
ON_2_RANKS = [
    ("all_reduce", "raises"), ("all_reduce", "killed"), ("barrier", "exits"), ("barrier", "desyncs"),
    ("ddp_backward", "leaves"), ("fsdp", "stopped"), ("fsdp", "raises"), ("pipeline", "killed"), ("pipeline", "desyncs"),
]  # fmt: skip
ON_8_RANKS = [
    ("all_reduce", "killed"), ("barrier", "desyncs"), ("ddp_backward", "exits"), ("fsdp", "leaves"),
    ("pipeline", "raises"), ("pipeline", "killed"), ("pipeline", "desyncs"), ("pipeline", "stopped"),
]  # fmt: skip

#: How the trouble of rank {last} of {n} is told.
SAID = {
    "raises": r"^rank {last} of {n} raised  ValueError: trouble\n      line \d:  raise ValueError\('trouble'\)$",
    "exits": r"^rank {last} of {n} ended its process with status 3.*; its names are lost$",
    "leaves": r"rank {last} ended the cell without it$",
    "desyncs": r"rank {last} (called broadcast\(float32\[7\], root 0\)|waits in broadcast #\d+ \(28 B, line \d\)) ",
    "killed": r"^rank {last} of {n} was ended by SIGKILL.*; its names are lost$",
    "stopped": r"^rank {last} had been stopped from outside \(SIGSTOP\) and was continued$",
}
STATUS = {"exits": 3, "killed": -signal.SIGKILL}


@pytest.fixture(scope="module")
def module_cluster8(runtime_root):
    with Cluster(8, mesh="dp=4,tp=2", name="test8", threads_per_rank=1, idle_timeout_s=0) as cluster:
        yield cluster


def run(cluster, source):
    result = cluster.run(source, timeout_s=_SETUP_S)
    assert result.ok, result.failure_text()
    return result


@contextlib.contextmanager
def whole_afterwards(cluster):
    """Whatever happens, the cells of other tests find all ranks."""
    try:
        yield
    finally:
        if ill := cluster.busy | (RankSet.all(cluster.world_size) - cluster.alive):
            cluster.restart_rank(*ill)


def told(result):
    """All that a person reads of a cell, also of one that went well."""
    return "\n".join([result.failure_text(), *result.explanations])


def check_others(result, place, others):
    """Each of the others says what it was in, and that it is no failure of its own."""
    operations = PLACES[place].operations
    assert set(result.errors) >= set(others)
    for rank in others:
        error = result.errors[rank]
        assert error.is_released, error
        assert re.match(rf"({'|'.join(operations)})\b", error.operation), error
        assert error.line, error


def check_scenario(cluster, place, trouble, deadline_s=_DEADLINE_S):
    n = cluster.world_size
    last, others = n - 1, RankSet.all(n - 1)
    with whole_afterwards(cluster):
        run(cluster, setup_of(place))
        result = cluster.run(program_of(place, trouble), timeout_s=deadline_s)
        text = told(result)
        assert result.timeout_s is None, text
        assert not result.busy, text
        assert re.search(SAID[trouble].format(last=last, n=n), text, re.MULTILINE), text
        assert result.exits == ({last: STATUS[trouble]} if trouble in STATUS else {}), text
        if trouble == "stopped":
            assert result.ok, text
            assert result.values == dict.fromkeys(range(n), "'through'")
        else:
            assert not result.ok
            check_others(result, place, others)
            intact = others.words() if result.exits else "all ranks"
            assert f"all names on {intact} are intact" in text
            assert "process groups built again" in text
        if trouble == "leaves":
            assert result.values == {last: "'through'"}
        if result.exits:
            assert f"rank {last} is missing: type  %hpc restart-rank" in text
            assert cluster.alive == others
            cluster.restart_rank()
        after = run(cluster, CHECK)
        total = float(sum(range(1, n + 1)))
        assert after.values == {rank: f"({total}, {rank in others or not result.exits})" for rank in range(n)}


@pytest.mark.parametrize(("place", "trouble"), EVERYTHING)
def test_trouble_on_4_ranks(cluster4, place, trouble):
    check_scenario(cluster4, place, trouble)


@pytest.mark.parametrize(("place", "trouble"), ON_2_RANKS)
def test_trouble_on_2_ranks(cluster2, place, trouble):
    check_scenario(cluster2, place, trouble)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "trouble"), ON_8_RANKS)
def test_trouble_on_8_ranks(module_cluster8, place, trouble):
    check_scenario(module_cluster8, place, trouble, 3 * _DEADLINE_S)


# --- what the others were in -------------------------------------------------------------------------------------


def test_ranks_that_were_in_the_same_operation_are_told_in_one_line(cluster4):
    run(cluster4, setup_of("all_reduce"))
    result = cluster4.run(program_of("all_reduce", "raises"), timeout_s=_DEADLINE_S)
    (line,) = [line for line in result.failure_text().split("\n") if "released" in line]
    assert re.fullmatch(
        r"ranks 0-2 were in  all_reduce #2 \(4\.0 kB, line 4\)  for \d\.\d s and were released: rank 3 raised ValueError",
        line,
    )


def test_stages_of_a_pipeline_are_told_apart(cluster4):
    run(cluster4, setup_of("pipeline"))
    text = cluster4.run(program_of("pipeline", "raises"), timeout_s=_DEADLINE_S).failure_text()
    assert re.search(
        r"^ranks 0,1 were in  recv #\d+ \(512 B, line \d\)  for \d\.\d s and were released$", text, re.MULTILINE
    )
    assert re.search(
        r"^rank 2 was in  (send|recv) #\d+ \(512 B, line \d\)  for \d\.\d s and was released$", text, re.MULTILINE
    )


# --- the same on plain ipyparallel engines -----------------------------------------------------------------------

GLOO = """
import datetime, os, torch, torch.distributed as dist
def join(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    globals().update(rank=rank, world_size=2)
    return os.getpid()
"""


@pytest.fixture
def plain_engines(tmp_path):
    """Two ipyparallel engines with a gloo group, and their processes; killed afterwards, since they may be stuck."""
    import ipyparallel

    before = {each.pid for each in psutil.Process().children(recursive=True)}
    plain = ipyparallel.Cluster(n=2, profile_dir=str(tmp_path / "profile"), log_level=40, delay=0.01)
    client = None
    try:
        client = plain.start_and_connect_sync()
        client[:].execute(GLOO, block=True)
        joining = [client[rank].apply_async(ipyparallel.Reference("join"), rank, str(tmp_path)) for rank in (0, 1)]
        yield client, [each.get(60) for each in joining]
    finally:
        ours = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
        if client is not None:
            client.close()
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=10)


@pytest.mark.slow
def test_plain_engines_do_not_come_back_and_ours_do(plain_engines, cluster2):
    client, pids = plain_engines
    plain_s, ours_s = {}, {}
    for trouble in ("raises", "stopped"):
        client[:].execute(setup_of("all_reduce"), block=True)
        program = program_of("all_reduce", trouble)
        began_s = time.monotonic()
        waiting, troubled = (client[rank].execute(program, block=False) for rank in (0, 1))
        # ours gets into the same trouble meanwhile
        ours_began_s = time.monotonic()
        check_scenario(cluster2, "all_reduce", trouble)
        ours_s[trouble] = time.monotonic() - ours_began_s
        waiting.wait(max(0.0, began_s + 5.0 - time.monotonic()))
        plain_s[trouble] = time.monotonic() - began_s
        assert not waiting.ready(), f"plain gloo came back after {trouble}"
        assert troubled.ready() == (trouble == "raises")
        if trouble == "raises":  # what is missing is called by hand, so that the next trouble finds both
            with pytest.raises(Exception, match="trouble"):
                troubled.get()
            client[1].execute("for _ in range(2): dist.all_reduce(x)", block=True)
            waiting.wait(10)
            assert waiting.successful()
    os.kill(pids[0], signal.SIGINT)  # nor does Ctrl-C help there
    waiting.wait(1.0)
    assert not waiting.ready()
    print(f"plain engines waited on after {plain_s}; ours were whole again after {ours_s}")
