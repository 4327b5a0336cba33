"""Another number of ranks for a cluster that runs: what stays, what is given up, what new ranks lack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

import hpcnb
from hpcnb.cluster import scaling
from hpcnb.core.errors import (
    CellInterrupted,
    ClusterStateError,
    LaunchError,
    MeshError,
    OptionError,
    SelectionError,
)
from hpcnb.core.ranks import RankSet
from tests.waiting import wait_until

pytestmark = pytest.mark.engines

TORCH = "import os, torch, torch.distributed as dist\n"


def sum_over(group):
    """A cell that adds up the numbers of ranks, counted from 1."""
    return f"{TORCH}total = torch.tensor([rank + 1.0])\ndist.all_reduce(total, group={group})\nint(total)"


SUM = sum_over(None)


def run(cluster, source, **options):
    result = cluster.run(source, **options)
    assert result.ok, result.failure_text()
    return result


def values(cluster, source, **options):
    """What the last expression was, where it is the same on all ranks."""
    (value,) = set(run(cluster, source, **options).values.values())
    return value


def pids(cluster):
    return {row["rank"]: row["pid"] for row in cluster.status()}


def test_two_four_three_two(elastic):
    """Ranks come and go, and those that stay keep their processes, names and numbers."""
    run(elastic, "kept = [rank]\nplace = id(kept)")
    before = pids(elastic)
    for size in (4, 3, 2):
        told = []
        scaled = elastic.scale(size, on_stage=told.append)
        assert elastic.world_size == size
        assert (scaled.world_size, scaled.mesh) == (size, f"dp={size}")
        assert "groups rebuilt" in told
        assert {rank: pid for rank, pid in pids(elastic).items() if rank < 2} == before
        assert [row["rank"] for row in elastic.status()] == list(range(size))
        assert values(elastic, SUM) == str(sum(range(1, size + 1)))
        sizes = "world_size, dist.get_world_size(), mesh.size(), hpc.world_size, hpc.mesh is mesh"
        assert values(elastic, sizes) == f"({size}, {size}, {size}, {size}, True)"
        assert values(elastic, "os.environ['WORLD_SIZE'] + os.environ['LOCAL_WORLD_SIZE']") == f"'{size}{size}'"
        places = run(elastic, "rank, local_rank, int(os.environ['RANK']), dist.get_rank(), mesh.get_rank()").values
        assert places == {rank: f"({', '.join([str(rank)] * 5)})" for rank in range(size)}
        assert run(elastic, "place == id(kept) and kept == [rank]", on="0,1").values == {0: "True", 1: "True"}
        assert elastic.client.ids == list(range(size))
        assert elastic.client[:]["rank"] == list(range(size))
    with pytest.raises(SelectionError, match="3"):
        elastic.run("1", on="3")
    assert elastic.running


def test_what_is_told(elastic):
    run(elastic, "import math\nx, y = 1, 2")
    grown = elastic.scale(3)
    assert (grown.new, grown.removed, grown.lost) == (RankSet([2]), RankSet(), ("math", "x", "y"))
    first, *rest = repr(grown).splitlines()
    assert first.startswith("3 ranks (1 new: 2) · mesh dp=3 · groups rebuilt (generation ")
    assert first.endswith(" s · names that rank 2 lacks: math, x, y")
    assert rest[0].startswith("define them there (--on 2), then on all ranks  hpc.resync(model, optimizer)")
    shrunk = elastic.scale(1)
    assert (shrunk.new, shrunk.removed) == (RankSet(), RankSet([1, 2]))
    assert repr(shrunk).startswith("1 rank (1,2 removed) · mesh dp=1 · groups rebuilt (generation ")
    assert len(repr(shrunk).splitlines()) == 1
    assert values(elastic, SUM) == "1"


def test_nothing_is_left_of_ranks_that_were_removed(elastic):
    elastic.scale(3)
    elastic.run("import os, sys; os.write(1, b'x'); sys.__stdout__.flush()", on="2")
    folder = elastic._running_node().folder
    folder.rank_log(2).write_text("something")
    gone = pids(elastic)[2]
    elastic.scale(2)
    assert not psutil.pid_exists(gone)
    assert not folder.rank_log(2).exists()
    elastic.scale(3)
    assert elastic.logs(2) == ""


def test_atexit_of_a_removed_rank_runs(elastic, tmp_path):
    elastic.scale(3)
    run(elastic, f"import atexit, pathlib\natexit.register(pathlib.Path({str(tmp_path)!r}, 'left').touch)", on="2")
    elastic.scale(2)
    assert (tmp_path / "left").exists()


def test_a_rank_that_does_not_leave_is_killed(elastic):
    elastic.scale(3)
    run(elastic, "import atexit, time\natexit.register(time.sleep, 60)", on="2")
    gone = pids(elastic)[2]
    assert elastic.scale(2).took_s < 20
    wait_until(lambda: not psutil.pid_exists(gone))
    assert values(elastic, SUM) == "3"


# --- groups and meshes ----------------------------------------------------------------------------------------


def test_groups_of_a_person(elastic):
    """Groups whose ranks all stay go on; those with ranks that were removed say so, and do not hang."""
    run(elastic, f"{TORCH}pair = dist.new_group([0, 1])\nboth = dist.new_group()")
    elastic.scale(4)
    assert run(elastic, sum_over("pair"), on="0,1").values == {0: "3", 1: "3"}
    assert run(elastic, sum_over("both"), on="0,1").values == {0: "3", 1: "3"}
    run(elastic, f"{TORCH}four = dist.new_group(range(4))\nodd = dist.new_group([1, 3])")
    assert values(elastic, sum_over("four")) == "10"
    assert run(elastic, sum_over("odd"), on="1,3").values == {1: "6", 3: "6"}
    elastic.scale(2)
    assert values(elastic, sum_over("pair")) == "3"
    result = elastic.run(sum_over("four"))
    (told,) = set(map(str, result.errors.values()))
    assert told == (
        "CollectiveAborted: all_reduce cannot be called: ranks 2,3 of its group of ranks 0-3 are gone, since the cluster "
        "was brought to 2 ranks; make the group or mesh again, and what was made with it (DDP, fully_shard)"
    )
    assert not result.is_broken
    assert "rank 3 of its group of ranks 1,3 is gone" in str(elastic.run("dist.barrier(group=odd)", on="1").errors[1])
    elastic.scale(4)  # what was given up does not come back with other processes of these numbers
    result = elastic.run("dist.barrier(group=four)", on="0,1")
    assert set(result.errors) == {0, 1}
    assert values(elastic, f"{TORCH}again = dist.new_group()\n{sum_over('again')}") == "10"


def test_meshes(elastic):
    """The first axis grows where none is named; collectives along axes of the new mesh, of old meshes too."""
    elastic.scale(2, mesh="dp=1,tp=2")
    assert (elastic.world_size, str(elastic.mesh)) == (2, "dp=1,tp=2")
    run(elastic, f"{TORCH}old = mesh")
    assert str(elastic.scale(4).mesh) == "dp=2,tp=2"
    along = "total = torch.tensor([rank + 1.0])\ndist.all_reduce(total, group=mesh.get_group({!r}))\nint(total)"
    assert run(elastic, TORCH + along.format("tp")).values == {0: "3", 1: "3", 2: "7", 3: "7"}
    assert run(elastic, along.format("dp")).values == {0: "4", 1: "6", 2: "4", 3: "6"}
    assert set(run(elastic, "1", on="tp=1").values) == {1, 3}
    assert run(elastic, along.replace("mesh", "old").format("tp"), on="0,1").values == {0: "3", 1: "3"}
    run(elastic, "middle = mesh")
    with pytest.raises(MeshError, match=r"2 and 4 fit.*%hpc scale 3 --mesh dp=3,tp=1"):
        elastic.scale(3)
    with pytest.raises(MeshError, match="needs 4 ranks, but the cluster has 3"):
        elastic.scale(3, mesh="dp=2,tp=2")
    assert str(elastic.scale(3, mesh="dp=3,tp=1").mesh) == "dp=3,tp=1"
    assert values(elastic, along.format("dp")) == "6"
    result = elastic.run(along.replace("mesh", "middle").format("tp"), on="2")
    assert "rank 3 of its group of ranks 2,3 is gone" in str(result.errors[2])
    # a rank that is replaced makes the mesh, and older groups, under the names that the others have
    elastic.restart_rank(1)
    assert values(elastic, TORCH + along.format("dp")) == "6"
    assert run(elastic, "dist.new_group([0, 1]) is not None").ok


def test_an_old_mesh_over_all_ranks_keeps_its_ranks(elastic):
    """What is sharded over two ranks can be gathered there when the cluster has four."""
    run(
        elastic,
        f"""{TORCH}
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.fsdp import fully_shard
whole = torch.arange(8.0)
sharded = distribute_tensor(whole, mesh, [Shard(0)])
torch.manual_seed(0)
model = fully_shard(torch.nn.Linear(4, 4), mesh=mesh)
""",
    )
    elastic.scale(4)
    gathered = "torch.equal(sharded.full_tensor(), whole)"
    assert run(elastic, gathered, on="0,1").values == {0: "True", 1: "True"}
    step = "model(torch.ones(2, 4)).sum().backward()\nmodel.weight.grad.full_tensor().flatten().tolist() == [2.0] * 16"
    assert run(elastic, step, on="0,1").values == {0: "True", 1: "True"}
    again = f"""{TORCH}
from torch.distributed.tensor import Shard, distribute_tensor
anew = distribute_tensor(torch.arange(8.0), mesh, [Shard(0)])
torch.equal(anew.full_tensor(), torch.arange(8.0)), anew.to_local().numel()
"""
    assert values(elastic, again) == "(True, 2)"
    elastic.scale(2)
    assert run(elastic, gathered).values == {0: "True", 1: "True"}
    error = str(elastic.run("anew.full_tensor()").errors[0])
    assert "ranks 2,3 of its group of ranks 0-3 are gone" in error


BUILD = f"""{TORCH}
from torch.nn.parallel import DistributedDataParallel as DDP
def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer = build()
inputs, targets = torch.randn(24, 3), torch.randn(24, 2)
def step(model, optimizer, inputs, targets):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
def share(tensor):
    return tensor.chunk(world_size)[rank]
def same():  # as one process that has all of the data; sums of other parts are rounded in another order
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), alone.parameters()))
"""
TRAIN = """
for _ in range(3):
    step(ddp, optimizer, share(inputs), share(targets))
    step(alone, reference, inputs, targets)
same()"""


def test_training_goes_on_as_in_one_process(elastic):
    elastic.execute(hpcnb.cluster.cell_run.CellRequest(BUILD, label="cell 1", is_init=True))
    run(elastic, "alone, reference = build()\nddp = DDP(model)")
    assert values(elastic, TRAIN) == "True"
    grown = elastic.scale(4)
    assert grown.replayed == ("cell 1",)
    assert grown.lost == ("alone", "ddp", "reference")
    run(elastic, "alone, reference = build()", on="2,3")
    run(elastic, "hpc.resync(model, optimizer, alone, reference)\nddp = DDP(model)")
    assert values(elastic, TRAIN) == "True"
    elastic.scale(3)  # the group has another size in place: the same DDP divides by three
    assert values(elastic, TRAIN) == "True"
    elastic.scale(2)
    assert values(elastic, TRAIN) == "True"
    assert elastic.check("model", "optimizer").ok


# --- what goes on beside --------------------------------------------------------------------------------------


def test_times_of_new_ranks(elastic):
    elastic.scale(4)
    run(elastic, SUM)
    breakdown = elastic.last_result.cell_timeline
    assert [rank.rank for rank in breakdown.ranks] == [0, 1, 2, 3]
    table = elastic.timeline().breakdown()
    assert {0, 1, 2, 3} <= set(table["rank"])
    last = elastic.last_result
    assert last.world_size == 4


def test_new_ranks_are_watched(elastic):
    """A hang, a mismatch, a failure and a death on ranks that came later."""
    elastic.scale(4)
    run(elastic, TORCH)
    result = elastic.run("if rank != 3:\n    dist.barrier()")
    assert "ranks 0-2 were in  " in result.failure_text()
    result = elastic.run("dist.all_reduce(torch.ones(2 if rank == 2 else 3))")
    assert "CollectiveMismatch" in result.failure_text()
    assert "rank 2" in result.failure_text()
    assert values(elastic, SUM) == "10"
    result = elastic.run("if rank == 3:\n    os.kill(os.getpid(), 9)\ndist.barrier()")
    assert set(result.exits) == {3}
    assert elastic.restart_rank().ranks == RankSet([3])
    assert values(elastic, SUM) == "10"
    assert values(elastic, "world_size, mesh.size(), hpc.world_size") == "(4, 4, 4)"
    elastic.restart_rank(0)
    assert values(elastic, SUM) == "10"


def test_dead_ranks_are_replaced_or_just_go(elastic):
    elastic.scale(4)
    run(elastic, "x = 1")
    elastic.run("import os\nif rank in (1, 3):\n    os._exit(3)")
    assert elastic.alive == RankSet([0, 2])
    scaled = elastic.scale(3)
    assert (scaled.new, scaled.lost) == (RankSet([1]), ("os", "x"))
    assert values(elastic, SUM) == "6"
    elastic.run("import os\nif rank == 2:\n    os._exit(3)")
    assert elastic.scale(2).removed == RankSet()
    assert values(elastic, SUM) == "3"
    elastic.run("old = mesh\nif rank == 1:\n    os._exit(3)")
    assert elastic.scale(3).new == RankSet([1, 2])
    assert values(elastic, SUM) == "6"
    error = elastic.run("dist.barrier(group=old.get_group())", on="0").errors[0]
    assert "rank 1 of its group of ranks 0,1 is gone" in str(error)


def test_cells_marked_with_init_run_on_new_ranks(elastic):
    request = hpcnb.cluster.cell_run.CellRequest
    elastic.execute(request("model = [rank]", label="cell In[1]", is_init=True))
    elastic.execute(request("of_one = 1", on="1", label="cell In[2]", is_init=True))
    scaled = elastic.scale(4)
    assert scaled.replayed == ("cell In[1]",)
    assert scaled.lost == ("of_one",)
    assert run(elastic, "model").values == {rank: f"[{rank}]" for rank in range(4)}
    elastic.scale(2)
    assert elastic.scale(3).replayed == ("cell In[1]",)


def test_a_name_of_ours_that_a_person_has_taken_is_kept(elastic):
    run(elastic, "world_size = 'mine'")
    elastic.scale(3)
    assert run(elastic, "world_size").values == {0: "'mine'", 1: "'mine'", 2: "3"}
    run(elastic, "del world_size", on="0,1")
    assert values(elastic, "world_size") == "3"


def test_two_notebooks(elastic):
    """Another notebook that is connected learns of the size, and one that comes later finds it."""
    source = """
import sys, hpcnb
hpcnb.attach("elastic")
cluster = hpcnb.current()
print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
cluster.detach()
"""

    def notebook():
        process = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        return process

    def ask(process, expression):
        process.stdin.write(f"{expression}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def end(process):
        process.stdin.close()
        assert process.wait(20) == 0
        process.stdout.close()

    with_us = notebook()
    elastic.scale(4)
    assert ask(with_us, "cluster.world_size, str(cluster.mesh), len(cluster.alive)") == "(4, 'dp=4', 4)"
    assert ask(with_us, "cluster.run('rank * world_size').values") == "{0: '0', 1: '4', 2: '8', 3: '12'}"
    after = notebook()
    assert ask(after, "cluster.world_size, str(cluster.mesh), len(cluster.alive)") == "(4, 'dp=4', 4)"
    assert [(row.num_ranks, row.mesh) for row in hpcnb.clusters() if row.name == "elastic"] == [(4, "dp=4")]
    assert ask(after, "cluster.scale(3).world_size") == "3"
    assert elastic.world_size == 3
    assert values(elastic, SUM) == "6"
    assert ask(with_us, "cluster.world_size, cluster.run('world_size').values[2]") == "(3, '3')"
    end(with_us)
    end(after)
    late = notebook()
    assert ask(late, "cluster.world_size, len(cluster.run('1').values)") == "(3, 3)"
    end(late)


# --- what goes wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, True, "4", 2.0, None])
def test_no_number_of_ranks(elastic, size):
    with pytest.raises(OptionError, match="a cluster has at least 1 rank"):
        elastic.scale(size)


def test_sizes_that_cannot_be(elastic):
    with pytest.raises(OptionError, match="has 2 ranks and mesh dp=2 already"):
        elastic.scale(2)
    with pytest.raises(OptionError, match=r"room for 64 ranks on a node.*%hpc start 65"):
        elastic.scale(65)
    with pytest.raises(MeshError, match="write axis=size"):
        elastic.scale(4, mesh="tp")
    assert values(elastic, SUM) == "3"


def test_not_while_a_cell_runs(elastic):
    thread = threading.Thread(target=elastic.run, args=("import time\ntime.sleep(30)",))
    thread.start()
    wait_until(lambda: elastic.busy)
    with pytest.raises(ClusterStateError, match="another cell is running"):
        elastic.scale(3)
    elastic.interrupt()
    thread.join()
    assert elastic.world_size == 2


def new_ranks(cluster, known):
    """Processes that have been forked from the template and are none of these."""
    agent = psutil.Process(cluster.describe()["pid"])
    template = next(child for child in agent.children() if known <= {each.pid for each in child.children()})
    return [child.pid for child in template.children() if child.pid not in known]


def meddle(cluster, what):
    """While ranks are forked: call ``what`` with their processes."""
    agent = psutil.Process(cluster.describe()["pid"])
    ranks = set(pids(cluster).values())
    template = next(child for child in agent.children() if ranks <= {each.pid for each in child.children()})
    known = {each.pid for each in template.children()}

    def look():
        found = []
        wait_until(lambda: found.extend(each.pid for each in template.children() if each.pid not in known) or found)
        what(found)

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_a_new_rank_that_does_not_start(elastic):
    run(elastic, "kept = rank")
    thread = meddle(elastic, lambda found: os.kill(found[0], signal.SIGKILL))
    with pytest.raises(LaunchError, match=r"rank [23] ended with status -9 before it was ready") as raised:
        elastic.scale(4)
    thread.join()
    assert str(raised.value).splitlines()[-1] == "the cluster has 2 ranks; all names on ranks 0,1 are intact"
    assert (elastic.world_size, str(elastic.mesh)) == (2, "dp=2")
    assert values(elastic, SUM) == "3"
    assert run(elastic, "kept, world_size, mesh.size()").values == {0: "(0, 2, 2)", 1: "(1, 2, 2)"}
    assert len(elastic.status()) == 2
    elastic.scale(4)
    assert values(elastic, SUM) == "10"


def test_an_interrupt_while_ranks_are_added(elastic):
    run(elastic, "kept = rank")

    def stop(found):
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        elastic.interrupt()

    thread = meddle(elastic, stop)
    with pytest.raises(CellInterrupted, match="scaling was interrupted\nthe cluster has 2 ranks"):
        elastic.scale(4)
    thread.join()
    assert values(elastic, SUM) == "3"
    assert run(elastic, "kept, world_size").values == {0: "(0, 2)", 1: "(1, 2)"}
    wait_until(lambda: not new_ranks(elastic, set(pids(elastic).values())) or len(elastic.status()) == 2)
    elastic.scale(3)
    assert values(elastic, SUM) == "6"


def test_a_change_that_nobody_undoes_is_completed_before_the_next_cell(elastic, monkeypatch):
    """As when the notebook is killed at the worst moment: any notebook finds it so."""
    run(elastic, "kept = rank")

    async def not_undone(_submitter, error, *_, **__):
        return error

    with monkeypatch.context() as patch:
        patch.setattr(scaling, "_undone", not_undone)
        thread = meddle(elastic, lambda found: os.kill(found[0], signal.SIGKILL))
        with pytest.raises(LaunchError):
            elastic.scale(4)
        thread.join()
    assert elastic.world_size == 4
    assert elastic.describe()["is_half_scaled"]
    assert values(elastic, SUM) == "10"
    assert not elastic.describe()["is_half_scaled"]
    assert run(elastic, "kept, world_size, mesh.size()", on="0,1").values == {0: "(0, 4, 4)", 1: "(1, 4, 4)"}
    assert len(set(pids(elastic).values())) == 4
    elastic.scale(2)
    assert values(elastic, SUM) == "3"
