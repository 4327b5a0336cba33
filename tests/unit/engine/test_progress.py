"""Arguments of hpc.progress: a slip is an error in the cell, in words; what means a whole number is one."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hpcnb.core import messages as m
from hpcnb.core.errors import OptionError
from hpcnb.engine.hpc import Hpc


class FakeRecorder:
    """Records nothing."""

    cell = 3

    def begin_loop(self):
        return 0

    def begin(self, *_):
        return nullcontext()

    def next_step(self, *_):
        pass

    end = next_step
    end_loop = end


@pytest.fixture
def sent():
    return []


@pytest.fixture
def hpc(sent):
    link = SimpleNamespace(send=lambda message: sent.append(m.decode(m.encode(message))))
    boundary = SimpleNamespace(enter_loop=lambda: None, leave_loop=lambda: None, reach=lambda: None)
    return Hpc(0, 1, 0, "cpu", None, FakeRecorder(), link, boundary)


@pytest.mark.parametrize(
    ("total", "number"),
    [
        (None, 2), (3, 3), (3.0, 3), (True, 1), (np.int64(3), 3), (np.float32(3), 3), (torch.tensor(3), 3),
        (torch.tensor(3.0), 3), (-1, -1), (-5.0, -1), ((1 << 63) - 1, (1 << 63) - 1),
    ],
)  # fmt: skip
def test_a_total_may_be_any_whole_number(hpc, sent, total, number):
    assert list(hpc.progress("ab", "train", total=total)) == ["a", "b"]
    assert [(each.description, each.total, each.position) for each in sent] == [
        ("train", number, 0),
        ("train", number, 2),
    ]


@pytest.mark.parametrize(
    "total",
    [3.5, float("nan"), float("inf"), "3", b"3", 1 << 63, 10**400, 1j, [3], torch.ones(2), torch.ones(2).long()],
)
def test_a_total_that_is_no_whole_number_is_refused_at_once(hpc, sent, total):
    with pytest.raises(OptionError, match=r"hpc\.progress takes total= as a whole number of elements, not "):
        hpc.progress("ab", total=total)
    assert sent == []


@pytest.mark.parametrize(("description", "words"), [(None, "None (NoneType)"), (10, "10 (int)")])
def test_a_description_is_text(hpc, sent, description, words):
    with pytest.raises(OptionError) as error:
        hpc.progress("ab", description)
    assert str(error.value) == (
        f"hpc.progress takes the words before the bar as text, not {words}; a number of elements is  total=..."
    )
    assert sent == []
