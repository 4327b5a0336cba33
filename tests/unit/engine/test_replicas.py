"""What is hashed of an object, and when two hashes are equal; no process group."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from hpcnb.core.errors import OptionError
from hpcnb.engine import replicas


def hashes(held, *, rng=False):
    return {each.path: each.digest for each in replicas.digests({"x": held}, rng=rng)}


def same(one, other):
    return hashes(one) == hashes(other)


def test_every_bit_counts():
    one = torch.tensor([1.0, 2.0])
    assert same(one, one.clone())
    assert not same(one, torch.nextafter(one, torch.tensor(9.0)))
    assert not same(torch.tensor(0.0), torch.tensor(-0.0))
    assert same(torch.tensor(float("nan")), torch.tensor(float("nan")))
    assert not same(one, one.double())
    assert not same(one, one[None])
    assert not same(torch.zeros(2, dtype=torch.int32), torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float16, torch.int8, torch.complex64])
def test_every_data_type(dtype):
    values = torch.tensor([0, 1, 1]).to(dtype)
    assert same(values, values.clone())
    assert not same(values, torch.tensor([1, 1, 0]).to(dtype))


def test_layout_does_not_count():
    square = torch.arange(9.0).reshape(3, 3)
    assert same(square.t(), square.t().contiguous())
    assert same(torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]))
    assert same(square.to_sparse(), square)
    assert same(torch.ones(2, requires_grad=True), torch.ones(2))
    (empty,) = replicas.digests({"x": torch.empty(0, 3)}, rng=False)
    assert (empty.words, empty.num_bytes) == ("float32 (0, 3)", 0)


def test_tensors_without_data_are_compared_by_their_shape():
    (digest,) = replicas.digests({"x": torch.empty(2, device="meta")}, rng=False)
    assert digest.words == "float32 (2,) without data"


def test_modules_have_parameters_and_all_buffers():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("step", torch.zeros(1), persistent=False)
    assert list(hashes(module)) == [
        "x.0.weight", "x.0.bias", "x.1.weight", "x.1.bias", "x.step", "x.1.running_mean", "x.1.running_var",
        "x.1.num_batches_tracked",
    ]  # fmt: skip


def test_wrappers_do_not_count():
    module = nn.Linear(2, 2)
    assert same(module, nn.DataParallel(module))
    assert same(module, nn.DataParallel(nn.DataParallel(module)))


def test_optimizers_have_their_state_and_their_options():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.ones(2)).backward()
    optimizer.step()
    found = hashes(optimizer)
    assert {"x.state.0.exp_avg", "x.state.0.step", "x.param_groups.0.lr"} <= found.keys()
    optimizer.param_groups[0]["lr"] = 0.2
    changed = hashes(optimizer)
    assert [path for path in found if found[path] != changed[path]] == ["x.param_groups.0.lr"]


def test_containers_arrays_and_plain_values():
    assert list(hashes({"a": [torch.ones(1), 2], ("b", 1): np.ones(2)})) == ["x.a.0", "x.a.1", "x[('b', 1)]"]
    assert same({"a": float("nan")}, {"a": float("nan")})
    assert not same([1], [1.0])
    assert not same(np.ones(2), np.ones(2, dtype=np.float32))


def test_what_resync_takes_is_known():
    module = nn.Linear(1, 1)
    held = {
        "model": module, "optimizer": torch.optim.SGD(module.parameters()), "x": [torch.ones(1)], "step": 3,
        "state": {"x": torch.ones(1), "step": 3}, "array": np.ones(1),
    }  # fmt: skip
    found = {each.path.split(".")[0]: each.brought_as for each in replicas.digests(held, rng=False)}
    assert found == {"model": "model", "optimizer": "optimizer", "x": "x", "step": "", "state": "", "array": ""}


def test_what_cannot_be_compared_is_named():
    with pytest.raises(OptionError, match=r"x\.a is a object: what can be compared are modules, optimizers"):
        hashes({"a": object()})


def test_random_number_generators():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = hashes([], rng=True)
    assert list(before) == ["rng.python", "rng.numpy", "rng.torch"]
    draws = {"rng.python": random.random, "rng.numpy": np.random.rand, "rng.torch": lambda: torch.rand(1)}
    for path, draw in draws.items():
        draw()
        after = hashes([], rng=True)
        assert [each for each in after if after[each] != before[each]] == [path]
        before = after


def test_names_of_the_namespace():
    model = nn.Linear(1, 1)
    names = {
        "model": model,
        "wrapped": nn.DataParallel(model),
        "optimizer": torch.optim.SGD(model.parameters()),
        "x": torch.ones(1),
        "_hidden": nn.Linear(1, 1),
    }

    def paths(*wanted):
        return {each.path.split(".")[0] for each in replicas.named_digests(names, list(wanted), rng=False)}

    assert paths() == {"model", "optimizer"}  # the wrapper holds the same module
    assert paths("x", "wrapped", "nowhere") == {"x", "wrapped"}
    assert [each.path for each in replicas.named_digests(names, ["model.weight"], rng=False)] == ["model.weight"]


def test_objects_are_called_by_their_names():
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert replicas.labels((model, 5), {"_": model, "model": model, "five": 5}) == ["model", "int1"]
    assert replicas.labels((other,), {"model": model}) == ["Linear"]
