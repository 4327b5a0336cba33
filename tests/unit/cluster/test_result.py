"""What a cell came to, in words: one paragraph per distinct failure, with its ranks."""

from __future__ import annotations

import pickle

import pytest

from hpcnb.cluster.result import CellResult, RankError, RankExit
from hpcnb.core.errors import CellFailed, CellInterrupted, CellTimeout, TransferError
from hpcnb.core.ranks import RankSet


def error(ename="ValueError", evalue="bad shard", *, key=None, **changes):
    fields = {
        "cell": "cell 3", "line": 2, "code": "step(batch)", "traceback": f"Traceback of {ename}", **changes,
    }  # fmt: skip
    return RankError(ename, evalue, key=key or f"{ename} {evalue}", **fields)


def result(**changes):
    return CellResult(3, "cell 3", RankSet.all(4), 4, **changes)


def exits(details):
    return {"exits": {rank: each.status for rank, each in details.items()}, "exit_details": details}


def test_equal_errors_are_told_once_with_their_ranks():
    text = result(errors={rank: error() for rank in (3, 0, 1)}).failure_text()
    assert text == (
        "ranks 0,1,3 of 4 raised  ValueError: bad shard\n      line 2:  step(batch)\n\nTraceback of ValueError"
    )


def test_different_errors_are_told_lowest_rank_first():
    errors = {3: error(evalue="x"), 2: error(evalue="y"), 1: error(evalue="x"), 0: error("KeyError", "'k'")}
    paragraphs = [line for line in result(errors=errors).failure_text().split("\n") if " raised " in line]
    assert paragraphs == [
        "rank 0 of 4 raised  KeyError: 'k'",
        "ranks 1,3 of 4 raised  ValueError: x",
        "rank 2 of 4 raised  ValueError: y",
    ]


def test_errors_with_one_key_are_the_same_though_their_addresses_differ():
    errors = {rank: error(evalue=f"<object at {address}>", key="same") for rank, address in enumerate(("0xa", "0xb"))}
    text = result(errors=errors).failure_text()
    assert text.count("raised") == 1
    assert text.startswith("ranks 0,1 of 4 raised  ValueError: <object at 0xa>")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "      line 2:  step(batch)"),
        ({"cell": "cell 1"}, "      cell 1, line 2:  step(batch)"),
        ({"line": 0, "cell": ""}, "rank 0 of 4 raised  ValueError: bad shard\n\nTraceback"),
        ({"traceback": ""}, "rank 0 of 4 raised  ValueError: bad shard\n      line 2:  step(batch)"),
        ({"evalue": ""}, "rank 0 of 4 raised  ValueError\n"),
    ],
)
def test_where_it_was(changes, words):
    assert words in result(errors={0: error(**changes)}).failure_text()


def test_an_interrupt_needs_no_traceback():
    text = result(errors={rank: error("KeyboardInterrupt", "") for rank in range(4)}, interrupted=True).failure_text()
    assert text == "ranks 0-3 of 4 raised  KeyboardInterrupt\n      line 2:  step(batch)"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-9, "rank 2 of 4 was ended by SIGKILL; its names are lost"),
        (-11, "rank 2 of 4 was ended by SIGSEGV; its names are lost"),
        (-99, "rank 2 of 4 was ended by signal 99; its names are lost"),
        (3, "rank 2 of 4 ended its process with status 3; its names are lost"),
        (0, "rank 2 of 4 ended its process with status 0; its names are lost"),
    ],
)
def test_deaths(status, words):
    ended = result(**exits({2: RankExit(status, ["double free", "core dumped"])}))
    assert ended.failure_text() == f"{words}\n      double free\n      core dumped"
    assert not ended.ok


def test_ranks_that_do_not_answer():
    one = result(busy=RankSet([1]), busy_states={1: "in all_reduce #3 of dp (4,096 B, line 6)"}, interrupted=True)
    assert one.failure_text().split("\n") == [
        "rank 1 did not answer the interrupt and still runs cell 3",
        "    rank 1: in all_reduce #3 of dp (4,096 B, line 6)",
        "type  %hpc interrupt  to try again, or  %hpc restart-rank 1  (names there are lost)",
    ]
    many = result(busy=RankSet([1, 2])).failure_text()
    assert many.startswith("ranks 1,2 did not answer the interrupt and still run cell 3\n")


def test_everything_at_once():
    text = result(
        errors={0: error()}, **exits({3: RankExit(-9), 2: RankExit(1)}), busy=RankSet([1]), timeout_s=2.5
    ).failure_text()  # fmt: skip
    beginnings = [paragraph.split("\n")[0] for paragraph in text.split("\n\n")]
    assert beginnings == [
        "the cell ran longer than its timeout of 2.5 s and was interrupted",
        "rank 0 of 4 raised  ValueError: bad shard",
        "Traceback of ValueError",
        "rank 2 of 4 ended its process with status 1; its names are lost",
        "rank 3 of 4 was ended by SIGKILL; its names are lost",
        "rank 1 did not answer the interrupt and still runs cell 3",
    ]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"errors": {0: error()}}, CellFailed, "rank 0 of 4 raised"),
        (exits({0: RankExit(-9)}), CellFailed, "SIGKILL"),
        ({"busy": RankSet([0])}, CellFailed, "did not answer"),
        ({"interrupted": True}, CellInterrupted, "cell 3 was interrupted"),
        ({"interrupted": True, "errors": {0: error("KeyboardInterrupt", "")}}, CellInterrupted, "KeyboardInterrupt"),
        ({"timeout_s": 60.0}, CellTimeout, "longer than its timeout of 60 s"),
        ({"timeout_s": 60.0, "errors": {0: error("KeyboardInterrupt", "")}}, CellTimeout, "KeyboardInterrupt"),
    ],
)
def test_what_is_raised(changes, kind, words):
    with pytest.raises(CellFailed, match=words) as caught:
        result(**changes).raise_for_errors()
    assert type(caught.value) is kind


def test_a_cell_that_is_fine():
    fine = result()
    fine.raise_for_errors()
    assert fine.ok
    assert fine.failure_text() == ""
    assert fine.cell_timeline is None


def test_objects_come_back():
    pickles = {0: pickle.dumps([1, 2]), 2: pickle.dumps("x")}
    assert result(pickles=pickles).objects() == {0: [1, 2], 2: "x"}


def test_values_that_cannot_be_pickled_are_told_with_their_ranks():
    problems = {0: "cannot pickle 'generator' object", 1: "cannot pickle 'generator' object", 3: "a lock"}
    with pytest.raises(TransferError) as caught:
        result(problems=problems).objects()
    words = str(caught.value)
    assert "stays on the ranks: ranks 0,1: cannot pickle 'generator' object; rank 3: a lock. " in words
    assert "End the cell with something that pickles" in words


def test_a_value_that_cannot_be_read_here_names_its_rank():
    with pytest.raises(
        TransferError, match="the value of rank 1 cannot be read in the notebook: ModuleNotFoundError: "
    ):
        result(pickles={1: b"cno_such_module\nX\n."}).objects()
