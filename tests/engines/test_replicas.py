"""Replicas on real ranks: who differs is named, and brought back, optimizer and random numbers included."""

from __future__ import annotations

import pytest

from hpcnb.core.errors import CellFailed, MeshError, OptionError

pytestmark = pytest.mark.engines

#: The same model, optimizer and data on all ranks, after one step of Adam.
BUILD = """import random, numpy as np, torch, torch.nn as nn
def build(lr=1e-3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return model, torch.optim.Adam(model.parameters(), lr=lr)
def step():
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
model, optimizer = build()
x = torch.randn(8, 3)
step()"""
ONE_ULP = """if rank == 2:
    with torch.no_grad():
        weight = model[0].weight.view(-1)
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))"""


def run(cluster, source, **options):
    result = cluster.run(source, **options)
    assert result.ok, result.failure_text()
    return result


def errors(cluster, source, **options):
    """``{rank: text}`` of the errors."""
    return {rank: str(error) for rank, error in cluster.run(source, **options).errors.items()}


@pytest.fixture
def settled4(cluster4):
    """No rank passes for a replacement, whatever the tests before have killed."""
    run(cluster4, "hpc._is_replacement = hpc._wants_rng = False")
    return cluster4


@pytest.fixture
def built4(settled4):
    run(settled4, BUILD)
    return settled4


# --- check ---------------------------------------------------------------------------------------------------


def test_equal_replicas(built4):
    values = run(built4, "hpc.check_same(model, optimizer, x)").values
    assert set(values.values()) == {"'36 tensors and values are the same along axis dp'"}
    assert repr(built4.check()) == (
        "ranks 0-3 agree: 35 tensors and values, 344 B, along axis dp\n"
        "(modules and optimizers only; name tensors and numbers to compare them too:  %hpc check step)"
    )
    assert built4.check("x", "model.0", axis="tp").ok
    assert built4.last_result.values == values  # a check is no cell of the person's


def test_one_last_bit_on_one_rank_is_found(built4):
    run(built4, ONE_ULP)
    told = errors(built4, "hpc.check_same(optimizer, model)")
    assert set(told) == {0, 1, 2, 3}
    assert len(set(told.values())) == 1
    assert told[0].startswith(
        "ReplicasDiffer: model.0.weight  float32 (4, 3): rank 0 and rank 2 differ; largest difference 2.98e-08"
    )
    checked = built4.check()
    assert not checked
    assert [str(row) for row in checked.different] == ["model.0.weight  float32 (4, 3): rank 0 and rank 2 differ"]
    # along tp rank 2 has other peers; the ranks of the other group hold the same
    told = errors(built4, "hpc.check_same(model, axis='tp')")
    assert set(told) == {2, 3}
    assert "rank 2 and rank 3 differ" in told[2]


def test_check_is_no_collective(cluster4):
    """Ranks that do not take part are not waited for: so it works where groups are broken."""
    run(cluster4, "import torch\nw = torch.ones(3) + (rank == 2)")
    assert "w  float32 (3,): rank 0 and rank 2 differ" in repr(cluster4.check("w", on="0,2"))
    assert "no two of these ranks should hold the same" in repr(cluster4.check("w", on="0,1"))


def test_the_largest_difference(cluster2):
    run(cluster2, "import torch\nnan = float('nan')")

    def difference(source):
        (told,) = set(errors(cluster2, f"w = {source}\nhpc.check_same(w)").values())
        return told.split("largest difference ")[1].split(". To bring")[0]

    assert difference("torch.arange(5.0) + torch.tensor([0, 0, 0.25, 0, 0]) * rank") == "0.25"
    assert difference("torch.zeros(3_000_000).index_fill(0, torch.tensor([2_500_000]), 7.0 * rank)") == "7"
    assert difference("torch.tensor([1 + 2j]) * (1 + rank)") == "2"
    assert difference("torch.tensor([True, rank == 0])") == "1"
    assert difference("torch.tensor([0.0]) * (1 - 2 * rank)").startswith("0: the numbers are equal, their bits are not")
    assert difference("torch.tensor([1.0, nan if rank else 2.0])") == "NaN: only some ranks hold a number there"
    assert difference("torch.tensor([nan, 1.0 + rank])") == "1"
    run(cluster2, "hpc.check_same(torch.tensor([nan]))")


def test_shapes_values_and_random_numbers(cluster2):
    run(cluster2, "import torch")
    assert "w: float32 (1,) on rank 0, float32 (2,) on rank 1" in errors(
        cluster2, "w = torch.ones(1 + rank)\nhpc.check_same(w)"
    ).get(0, "")
    assert "lr: 0.1 on rank 0, 0.2 on rank 1" in errors(cluster2, "hpc.check_same({'lr': 0.1 * (1 + rank)})").get(1, "")
    assert "rng.python  state: rank 0 and rank 1 differ" in errors(cluster2, "hpc.check_same(rng=True)").get(0, "")
    assert [row.path for row in cluster2.check("rank", rng=True).different] == [
        "rank", "rng.python", "rng.numpy", "rng.torch",
    ]  # fmt: skip


def test_names_on_some_ranks_only(cluster2):
    run(cluster2, "import torch.nn as nn\ntorch_seed = 0\nif rank == 1: extra = nn.Linear(1, 1)")
    assert "extra.bias: missing on rank 0, float32 (1,) on rank 1" in repr(cluster2.check())


def test_a_name_that_whole_groups_lack(built4):
    run(built4, "del model, optimizer", on="1,3")
    checked = built4.check("model")
    assert not checked
    assert repr(checked).splitlines()[0].startswith("ranks 0,2 agree: ")
    assert repr(checked).splitlines()[1:] == ["model is missing on ranks 1,3"]


def test_numbers_are_not_advised_to_be_brought(built4):
    told = errors(built4, "step_number = rank\nhpc.check_same(step_number)")[0]
    assert "hpc.resync(" not in told
    assert "hpc.resync does not bring them: it takes modules, optimizers and tensors" in told
    run(built4, ONE_ULP)
    assert "type  hpc.resync(model)  in a cell" in repr(built4.check("model"))


def test_bad_checks(built4):
    with pytest.raises(OptionError, match="no rank has anything to compare under the name 'modl'"):
        built4.check("modl")
    with pytest.raises(MeshError, match="no axis 'pp'; this mesh has dp, tp"):
        built4.check(axis="pp")
    run(built4, "odd = object()")
    with pytest.raises(CellFailed, match="odd is a object: what can be compared are modules"):
        built4.check("odd")
    told = errors(built4, "hpc.check_same(odd if rank == 3 else x)")
    assert set(told) == {0, 1, 2, 3}  # nobody waits for rank 3
    assert "what can be compared are modules" in told[0]
    assert "hpc.check_same() compares what it is given" in errors(built4, "hpc.check_same()")[0]
    assert "no axis 'pp'" in errors(built4, "hpc.check_same(x, axis='pp')")[0]


def test_tensors_on_a_mesh(cluster4):
    run(
        cluster4,
        "import torch\nfrom torch.distributed.tensor import Replicate, Shard, distribute_tensor\n"
        "rows = distribute_tensor(torch.arange(8.0).reshape(4, 2), mesh['tp'], [Shard(0)])\n"
        "pieces = distribute_tensor(torch.arange(8.0), mesh, [Shard(0), Shard(0)])\n"
        "copies = distribute_tensor(torch.arange(8.0), mesh, [Replicate(), Replicate()])",
    )
    run(cluster4, "hpc.check_same(rows, pieces, copies)")
    assert "nothing to compare" in run(cluster4, "hpc.check_same(pieces)").values[0]
    told = errors(cluster4, "if rank == 3: copies.to_local()[1] = 5\nhpc.check_same(rows, pieces, copies)")
    assert "copies  float32 (8,) of (8,) R R: rank 3 differs from ranks 0-2; largest difference 4" in told[0]
    told = errors(cluster4, "if rank == 3: rows.to_local()[0, 0] = 9\nhpc.check_same(rows)")
    assert "rows  float32 (2, 2) of (4, 2) S(0): rank 1 and rank 3 differ" in told[0]
    assert {row.path for row in cluster4.check("rows", "pieces", "copies").different} == {"rows", "copies"}


# --- resync --------------------------------------------------------------------------------------------------


def test_resync_brings_replicas_together_in_place(built4):
    run(built4, ONE_ULP + "\nif rank == 3: step()")
    assert not built4.check().ok
    values = run(
        built4,
        "before = [id(each) for each in (*model.parameters(), *model.buffers(), *[s['exp_avg'] for s in optimizer.state.values()])]\n"
        "words = hpc.resync(model, optimizer, rng=False)\n"
        "assert before == [id(each) for each in (*model.parameters(), *model.buffers(), *[s['exp_avg'] for s in optimizer.state.values()])]\n"
        "words",
    ).values
    assert values[0] == values[2] == "'19 tensors, 344 B, from rank 0 to rank 2'"
    assert values[1] == values[3] == "'19 tensors, 344 B, from rank 1 to rank 3'"
    assert built4.check().ok
    assert built4.check(axis="tp").ok


def test_a_replacement_gets_everything(built4):
    """Fresh model and optimizer, other random numbers, other options: the next step is the same as on its peers."""
    run(
        built4, "torch.manual_seed(5); np.random.seed(5); random.seed(5); step()\noptimizer.param_groups[0]['lr'] = 0.5"
    )
    run(
        built4,
        "torch.manual_seed(9); model, optimizer = build(lr=7.0)\nx = x.clone().zero_()\nhpc._is_replacement = hpc._wants_rng = True",
        on="0,3",
    )
    values = run(built4, "hpc.resync(model, optimizer, {'x': x})").values
    # the lowest rank of each group that is no replacement
    assert values[0] == "'20 tensors, 440 B, from rank 2 to rank 0; random number states to rank 0'"
    assert values[1] == "'20 tensors, 440 B, from rank 1 to rank 3; random number states to rank 3'"
    values = run(
        built4,
        "step()\nhpc.check_same(model, optimizer, x, rng=True)\n"
        "hpc._is_replacement = False; hpc._wants_rng, optimizer.param_groups[0]['lr'], float(optimizer.state[model[0].weight]['step'])",
    ).values
    assert set(values.values()) == {"(False, 0.5, 3.0)"}
    assert built4.check(axis="tp").ok  # ranks 1 and 2 held the same before


def test_a_rank_that_was_started_again_is_a_replacement():
    from hpcnb import Cluster

    with Cluster(2, threads_per_rank=1, idle_timeout_s=0) as cluster:
        run(cluster, BUILD)
        run(cluster, "step()")
        cluster.restart_rank(0)
        run(cluster, BUILD, on="0")
        assert run(cluster, "hpc._is_replacement").values == {0: "True", 1: "False"}
        values = run(
            cluster, "words = hpc.resync(model, optimizer)\nhpc.check_same(model, optimizer, rng=True)\nwords"
        ).values
        assert values[0] == "'19 tensors, 344 B, from rank 1 to rank 0; random number states to rank 0'"
        assert run(cluster, "hpc._wants_rng").values == {0: "False", 1: "False"}
        # what comes in a second cell comes from the same rank: the new one has nothing of its own to give
        run(cluster, "optimizer = torch.optim.Adam(model.parameters())", on="0")
        run(cluster, "hpc.resync(optimizer); assert optimizer.state")


def test_other_optimizers_wrappers_and_data_types(cluster2):
    source = """import torch, torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP
torch.manual_seed(rank)
wrapped = DDP(nn.Linear(2, 2))
with torch.no_grad(): wrapped.module.weight += rank
plain = nn.Linear(2, 2)
momentum = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
newton = torch.optim.LBFGS(plain.parameters())
schedule = torch.optim.lr_scheduler.StepLR(momentum, 2)
def closure():
    newton.zero_grad()
    loss = plain(torch.ones(2)).square().sum()
    loss.backward()
    return loss
if rank == 0:
    newton.step(closure); momentum.step(); schedule.step(); schedule.step()
flags, half = torch.tensor([rank == 0, True]), torch.ones(2, dtype=torch.bfloat16) * rank
wave, empty = torch.ones(2, dtype=torch.complex64) * rank, torch.empty(0)
hpc.resync(wrapped, [plain, momentum], newton, schedule, flags, half, wave, empty)
hpc.check_same(wrapped, plain, momentum, newton, schedule, flags, half, wave)
momentum.param_groups[0]['lr'], flags.tolist(), half.tolist()"""
    assert set(run(cluster2, source).values.values()) == {"(0.010000000000000002, [True, True], [0.0, 0.0])"}


def test_a_source_can_be_chosen(cluster2):
    run(cluster2, "import torch\nw = torch.ones(2) * rank\nhpc.resync(w, source=1)")
    assert run(cluster2, "w.tolist()").values == {0: "[1.0, 1.0]", 1: "[1.0, 1.0]"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hpc.resync()", "hpc.resync() brings what it is given, for example hpc.resync(model, optimizer)"),
        ("hpc.resync(w, source=7)", "source=7 is none of the ranks along axis dp: 0,1; leave it out, or name one"),
        ("hpc.resync('text')", "is a str; it brings modules, optimizers, tensors"),
        (
            "hpc.resync(nn.Linear(2, 2 + rank))",
            "Linear.weight is float32 (2, 2) on rank 0 and float32 (3, 2) on rank 1",
        ),
        ("hpc.resync(nn.Linear(2, 2, bias=rank == 0))", "rank 1 lacks Linear.bias, which rank 0 has; build the same"),
        ("hpc.resync({'a': w, **({'b': w} if rank else {})})", "rank 0 lacks dict.b, which rank 1 has"),
        ("hpc.resync(*[w] * (1 + rank))", "which rank 1 has; build the same modules"),
        (
            "hpc.resync(torch.optim.SGD([w] * 1 if rank else [w, v]))",
            "rank 1 lacks SGD.param_groups.0.params.1, which rank 0 has",
        ),
        ("hpc._is_replacement = True\nhpc.resync(w)", "ranks 0,1 along axis dp are all new, no rank has the state"),
        ("hpc.resync(w, axis='pp')", "no axis 'pp'; this mesh has dp"),
        (
            "from torch.distributed.fsdp import fully_shard\nm = nn.Linear(2, 2)\nfully_shard(m, mesh=mesh)\nhpc.resync(m)",
            "m.weight is a DTensor with S(0): no other rank holds this piece; load a checkpoint",
        ),
    ],
)
def test_what_cannot_be_brought_is_said_on_all_ranks_and_changes_nothing(cluster2, source, words):
    run(cluster2, "import torch, torch.nn as nn\nw = torch.ones(2) * rank\nv = torch.ones(2) * rank")
    told = errors(cluster2, source)
    assert set(told) == {0, 1}
    assert words in told[0]
    assert words in told[1]
    run(cluster2, "hpc._is_replacement = False")
    assert run(cluster2, "w.tolist()").values == {0: "[0.0, 0.0]", 1: "[1.0, 1.0]"}


def test_pieces_along_tp_have_replicas_along_dp(settled4):
    run(
        settled4,
        "import torch\nfrom torch.distributed.tensor import Shard, distribute_tensor\n"
        "rows = distribute_tensor(torch.arange(8.0).reshape(4, 2), mesh['tp'], [Shard(0)])\n"
        "if rank == 3: rows.to_local().zero_()\nhpc.resync(rows)\nhpc.check_same(rows)",
    )
    assert run(settled4, "rows.to_local().tolist()").values[3] == "[[4.0, 5.0], [6.0, 7.0]]"
