"""The process group of real ranks: right numbers, seen by the recorder, rebuilt, closed to the network."""

from __future__ import annotations

import time

import psutil
import pytest

pytestmark = pytest.mark.engines

COLLECTIVES = """
import torch, torch.distributed as dist
t = torch.arange(4.) + rank
world = torch.stack([torch.arange(4.) + r for r in range(4)])
def same(a, b): torch.testing.assert_close(a, b, rtol=0, atol=0)
x = t.clone(); dist.all_reduce(x); same(x, world.sum(0))
x = t.clone(); dist.broadcast(x, 2); same(x, world[2])
out = [torch.empty(4) for _ in range(4)]; dist.all_gather(out, t); same(torch.stack(out), world)
out = torch.empty(16); dist.all_gather_into_tensor(out, t); same(out, world.flatten())
x = torch.empty(1); dist.reduce_scatter_tensor(x, t.clone()); same(x, world.sum(0)[rank : rank + 1])
x = torch.empty(1); dist.reduce_scatter(x, list(t.clone().split(1))); same(x, world.sum(0)[rank : rank + 1])
x = torch.empty(4); dist.all_to_all_single(x, t); same(x, world[:, rank])
x = t.clone(); dist.reduce(x, 1)
if rank == 1: same(x, world.sum(0))
x = torch.empty(4); dist.scatter(x, list(world) if rank == 0 else None); same(x, t)
dist.gather(t, out if False else ([torch.empty(4) for _ in range(4)] if rank == 3 else None), dst=3)
dist.barrier()
x = torch.empty(4)
if rank == 0: dist.send(t, 1)
if rank == 1: dist.recv(x, 0); same(x, world[0])
ops = [dist.P2POp(dist.isend, t, (rank + 1) % 4), dist.P2POp(dist.irecv, x, (rank - 1) % 4)]
for work in dist.batch_isend_irecv(ops): work.wait()
same(x, world[rank - 1])
work = dist.all_reduce(x, async_op=True); work.wait()
objects = [None] * 4; dist.all_gather_object(objects, {"rank": rank}); assert objects[3] == {"rank": 3}
"""


def names_of(result):
    spans = result.cell_timeline.ranks[0]
    return [
        spans.strings[name]
        for kind, name in zip(spans.spans["kind"], spans.spans["name"], strict=True)
        if kind in (1, 2)
    ]


def run(cluster, source, **options):
    result = cluster.run(source, **options)
    assert result.ok, result.failure_text()
    return result


def test_collectives_are_right_and_seen(cluster4):
    names = names_of(run(cluster4, COLLECTIVES))
    for name in (
        "all_reduce",
        "broadcast",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "reduce",
        "scatter",
        "gather",
        "barrier",
        "send",
        "recv",
    ):
        assert name in names, names


def test_the_group_and_every_axis_is_ours(cluster4):
    source = (
        "import torch.distributed as dist\nfrom hpcnb.engine.process_group import HpcnbProcessGroup as G\n"
        "' '.join(type(g).__name__ for g in (dist.group.WORLD, mesh['dp'].get_group(), mesh['tp'].get_group(), dist.new_group([0, 1])))"
    )
    values = run(cluster4, source).values
    assert values[0] == repr(" ".join(["HpcnbProcessGroup"] * 4))
    assert values[3].count("HpcnbProcessGroup") == 3  # not a member of the new group


def test_mesh_axes_reduce_over_their_ranks(cluster4):
    source = "import torch, torch.distributed as dist\nx = torch.tensor([float(rank)])\ndist.all_reduce(x, group=mesh['{}'].get_group())\nx.item()"
    assert run(cluster4, source.format("tp")).values == {0: "1.0", 1: "1.0", 2: "5.0", 3: "5.0"}
    assert run(cluster4, source.format("dp")).values == {0: "2.0", 1: "4.0", 2: "2.0", 3: "4.0"}


DDP = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
torch.manual_seed(0)
reference = nn.Sequential(nn.Linear(20, 10_000), nn.ReLU(), nn.Linear(10_000, 30), nn.ReLU(), nn.Linear(30, 3))
import copy
model = DistributedDataParallel(copy.deepcopy(reference), bucket_cap_mb=0.5)
x, y = torch.randn(32, 20), torch.randn(32, 3)
"""
STEP = """
nn.functional.mse_loss(model(x.chunk(world_size)[rank]), y.chunk(world_size)[rank]).backward()
nn.functional.mse_loss(reference(x), y).backward()
for mine, one in zip(model.parameters(), reference.parameters()):
    torch.testing.assert_close(mine.grad, one.grad, rtol=1e-5, atol=1e-6)  # float32, another order of summation
    mine.grad = one.grad = None
"""


def test_ddp_equals_one_rank_and_its_buckets_are_seen(cluster4):
    run(cluster4, DDP)
    result = run(cluster4, STEP)
    result = run(cluster4, STEP)  # DDP has its final buckets from the second step on
    rank = result.cell_timeline.ranks[0]
    reduces = [span for span in rank.spans if rank.strings[span["name"]] == "all_reduce"]
    assert len(reduces) >= 2
    assert {int(span["line"]) for span in reduces} == {2}  # the user's line, through autograd
    gradient_bytes = sum(int(span["num_bytes"]) for span in reduces)
    assert gradient_bytes == 4 * (21 * 10_000 + 10_001 * 30 + 31 * 3)
    assert all(span["end_ns"] >= span["start_ns"] > 0 for span in reduces)


def test_ddp_survives_a_rebuild_of_the_groups(cluster4):
    run(cluster4, DDP)
    run(cluster4, STEP)
    for _ in range(3):
        cluster4.recover()
    run(cluster4, STEP)
    run(cluster4, COLLECTIVES)


def test_rebuilding_often_leaks_nothing(cluster4):
    count = "import os, threading\nlen(os.listdir('/proc/self/fd')), threading.active_count()"

    def settled() -> dict[int, str]:
        # what was connected before goes in its own time, on a thread of its own
        deadline = time.monotonic() + 10
        last, now = None, run(cluster4, count).values
        while now != last and time.monotonic() < deadline:
            time.sleep(0.5)
            last, now = now, run(cluster4, count).values
        return now

    cluster4.recover()
    before = settled()
    for _ in range(20):
        cluster4.recover()
    assert settled() == before


def test_rebuilding_often_leaves_no_keys_in_the_store(cluster4):
    count = "from hpcnb.engine.process_group import HpcnbProcessGroup\nHpcnbProcessGroup.guard.store.num_keys()"
    run(cluster4, DDP)
    cluster4.recover()
    before = run(cluster4, count).values
    for _ in range(5):
        cluster4.recover()
    assert run(cluster4, count).values == before
    run(cluster4, STEP)


def test_fsdp_dtensor_and_functional_collectives_are_seen(cluster4):
    source = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor, Shard, Replicate
import torch.distributed._functional_collectives as functional
"""
    run(cluster4, source)
    fsdp = "m = nn.Linear(8, 8)\nfully_shard(m, mesh=mesh['dp'])\nm(torch.randn(4, 8)).sum().backward()"
    assert {"all_gather", "reduce_scatter"} <= set(names_of(run(cluster4, fsdp)))
    dtensor = (
        "d = distribute_tensor(torch.arange(8.).reshape(4, 2), mesh['tp'], [Shard(0)])\nd.full_tensor().sum().item()"
    )
    result = run(cluster4, dtensor)
    assert result.values[0] == "28.0"
    assert "all_gather" in names_of(result)
    result = run(cluster4, "functional.all_reduce(torch.ones(2), 'sum', dist.group.WORLD).tolist()")
    assert result.values[0] == "[4.0, 4.0]"
    assert names_of(result) == ["all_reduce"]


def test_groups_can_be_destroyed_and_made_again(cluster4):
    source = """
import torch, torch.distributed as dist
for _ in range(3):
    group = dist.new_group([0, 1, 2, 3])
    x = torch.ones(1)
    dist.all_reduce(x, group=group)
    dist.destroy_process_group(group)
x.item()
"""
    assert run(cluster4, source).values[2] == "4.0"


def test_nothing_listens_beyond_loopback(cluster4):
    pids = {row["pid"] for row in cluster4.status()}
    agent = cluster4._node.agent.process.pid
    processes = [psutil.Process(agent), *psutil.Process(agent).children(recursive=True)]
    assert pids <= {process.pid for process in processes}
    listening = [
        (process.pid, connection.laddr)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ]
    assert listening
    assert {address.ip for _, address in listening} <= {"127.0.0.1", "::1"}


def test_threads_per_rank(cluster4):
    assert (
        run(cluster4, "import os, torch\ntorch.get_num_threads(), os.environ['OMP_NUM_THREADS']").values[0]
        == "(1, '1')"
    )
