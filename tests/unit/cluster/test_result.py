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


def test_a_cell_that_caught_its_interrupt_is_fine():
    assert result(interrupted=True).caught_interrupt
    assert not result(interrupted=True, errors={0: error("KeyboardInterrupt", "")}).caught_interrupt
    assert not result(interrupted=True, timeout_s=1.0).caught_interrupt
    assert not result().caught_interrupt


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


def test_ranks_that_were_lost_with_their_node_are_told_together():
    how = "was lost: node n2 has not answered for 8 s"
    exits = {rank: RankExit(-9, how=how) for rank in (2, 3)} | {
        1: RankExit(-9, how="was lost: the agent of node n1 ended")
    }
    text = result(exits=dict.fromkeys(exits, -9), exit_details=exits).failure_text()
    assert text.split("\n\n") == [
        "rank 1 of 4 was lost: the agent of node n1 ended; its names are lost",
        "ranks 2,3 of 4 were lost: node n2 has not answered for 8 s; their names are lost",
    ]


# --- ranks that were released ---------------------------------------------------------------------------------

REASON = "rank 2 raised ValueError"
WAITED = "all_reduce #17 (4.2 MB, line 6)"
UNDEFINED = "tensors that all_reduce (line 6) was writing hold undefined values there"


def released(reason=REASON, operation=WAITED, waited_s=1.0, ename="CollectiveAborted"):
    evalue = f"{operation} cannot be completed: {reason}" if operation else reason
    return error(ename, evalue, operation=operation, waited_s=waited_s)


def test_who_raised_is_told_first_and_who_waited_for_it_in_one_line():
    text = result(
        errors={2: error(), **{rank: released(waited_s=1.0 + rank / 10) for rank in (0, 1, 3)}}, explanations=[REASON]
    ).failure_text()
    assert text.split("\n\n") == [
        "rank 2 of 4 raised  ValueError: bad shard\n      line 2:  step(batch)",
        "Traceback of ValueError",
        f"ranks 0,1,3 were in  {WAITED}  for 1.3 s and were released: {REASON}\n{UNDEFINED}",
    ]


def test_an_interrupt_of_a_wait_leaves_its_tensors_half_written():
    pressed = {rank: error("KeyboardInterrupt", "", operation=WAITED) for rank in (0, 1)}
    assert result(errors=pressed).failure_text().split("\n\n")[-1] == UNDEFINED
    elsewhere = {0: error("KeyboardInterrupt", "")}
    assert "undefined" not in result(errors=elsewhere).failure_text()
    with_released = result(errors={**pressed, 2: released()}).failure_text()
    assert with_released.count(UNDEFINED) == 1


def test_ranks_that_waited_in_different_operations_are_told_apart():
    errors = {0: released(), 1: released(operation="recv #2 (32 B, line 7)", waited_s=2.0), 3: released(waited_s=1.5)}
    assert result(errors=errors, explanations=[REASON]).failure_text().split("\n") == [
        f"{REASON}, so ranks that waited were released:",
        f"ranks 0,3 were in  {WAITED}  for 1.5 s and were released",
        "rank 1 was in  recv #2 (32 B, line 7)  for 2.0 s and was released",
        "tensors that all_reduce (line 6) and recv (line 7) were writing hold undefined values there",
    ]


def test_who_called_while_groups_were_broken_is_not_said_to_have_been_in_it():
    errors = {rank: released("a wait was given up", "all_reduce(float32[2], sum)", 0.0) for rank in (0, 2)}
    why = "process groups cannot be used while rank 1 still runs cell In[4]"
    assert (
        result(errors=errors, explanations=[why]).failure_text()
        == f"ranks 0,2 could not call  all_reduce(float32[2], sum): {why}"
    )


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("broadcast #2 (4 B)", "that broadcast was writing"),
        ("recv from any rank #2 (4 B, line 3)", "that recv (line 3) was writing"),
        ("barrier #1 (0 B, line 3)", ""),
        ("send #1 (4 B, line 3)", ""),
        ("all_reduce(float32[2], sum)", ""),  # refused, not begun
    ],
)
def test_tensors_that_were_being_written_are_told(operation, words):
    text = result(errors={0: released(operation=operation)}).failure_text()
    assert words in text
    assert ("undefined" in text) == bool(words)


def test_several_reasons_stay_together():
    continued = "rank 1 had been stopped from outside (SIGSTOP) and was continued"
    text = result(errors={0: released()}, explanations=[REASON, continued, "rank 3 raised KeyError"]).failure_text()
    assert text.split("\n") == [
        f"rank 0 was in  {WAITED}  for 1.0 s and was released: {REASON}; rank 3 raised KeyError",
        continued,
        UNDEFINED,
    ]


def test_a_rank_that_was_in_no_operation_has_its_own_words():
    # it was not released from anything: it called when groups had been broken, in a line of its own
    ended = result(errors={0: released("groups are broken", ""), 1: released("groups are broken", "")})
    assert not any(each.is_released for each in ended.errors.values())
    assert ended.failure_text() == (
        "ranks 0,1 of 4 raised  CollectiveAborted: groups are broken\n      line 2:  step(batch)\n\n"
        "Traceback of CollectiveAborted"
    )


@pytest.mark.parametrize(
    ("ename", "operation", "is_released"),
    [
        ("CollectiveAborted", WAITED, True),
        ("CollectiveAborted", "", False),
        ("CollectiveMismatch", "", True),
        ("CollectiveMismatch", WAITED, True),
        ("ValueError", WAITED, False),
    ],
)
def test_which_errors_are_of_ranks_that_were_released(ename, operation, is_released):
    assert released(operation=operation, ename=ename).is_released == is_released


def test_released_ranks_are_no_failures_of_their_own():
    ended = result(errors={0: released(), 2: error()})
    assert [rank for rank, each in ended.errors.items() if each.is_released] == [0]
    assert ended.failure_heads() == ["rank 2 of 4 raised  ValueError: bad shard\n      line 2:  step(batch)"]
    assert not ended.ok


MISMATCH = "as operation 7 of ranks 0,1, rank 0 called all_reduce() (line 6) and rank 1 called barrier() (line 7)"


@pytest.mark.parametrize("explanations", [[], [MISMATCH]])
def test_a_mismatch_is_told_once(explanations):
    errors = {rank: error("CollectiveMismatch", MISMATCH) for rank in (0, 1)}
    text = result(errors=errors, explanations=explanations).failure_text()
    assert text == f"{MISMATCH}\nranks 0,1 of 4 raised CollectiveMismatch"


def test_what_else_was_done_about_a_cell_is_told():
    words = "rank 1 had been stopped from outside (SIGSTOP) and was continued"
    text = result(errors={0: error()}, explanations=[words]).failure_text()
    assert text.split("\n\n")[-1] == words


# --- ranks that ended -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exited", "words"),
    [
        (RankExit(-9, was_in=WAITED), f"was ended by SIGKILL while it waited in {WAITED}; its names are lost"),
        (RankExit(-9, last_operation=WAITED), f"was ended by SIGKILL after {WAITED}; its names are lost"),
        (
            RankExit(-9, was_in=WAITED, last_operation="barrier #1"),
            f"was ended by SIGKILL while it waited in {WAITED}; its names are lost",
        ),
        (
            RankExit(-9, ["last"], memory_mb=12_345.6, was_out_of_memory=True),
            "was killed: out of memory (12,346 MB resident when last seen); its names are lost\n      last",
        ),
        (
            RankExit(1, was_in=WAITED),
            f"ended its process with status 1 while it waited in {WAITED}; its names are lost",
        ),
    ],
)
def test_where_and_why_a_rank_ended(exited, words):
    assert result(**exits({2: exited})).failure_text() == f"rank 2 of 4 {words}"


def test_a_lost_connection_is_explained_by_the_rank_that_ended():
    lost = {
        0: released("the connection to another rank is lost"),
        1: released("the connection to another rank is lost"),
    }
    assert "and were released: the connection to another rank is lost" in result(errors=lost).failure_text()
    text = result(errors=lost, **exits({2: RankExit(-9)})).failure_text()
    assert text.split("\n\n") == [
        "rank 2 of 4 was ended by SIGKILL; its names are lost",
        f"ranks 0,1 were in  {WAITED}  for 1.0 s and were released: rank 2 had ended\n{UNDEFINED}",
    ]
    text = result(errors=lost, **exits({2: RankExit(-9), 3: RankExit(-9)})).failure_text()
    assert "and were released: ranks 2,3 had ended" in text


def test_a_rank_that_was_ended_since_it_did_not_answer():
    text = result(**exits({2: RankExit(-9, ["last"], WAITED)}), killed=RankSet([2]), interrupted=True).failure_text()
    assert text == "rank 2 of 4 did not answer the second Ctrl-C and was ended; its names are lost"


def test_stacks_are_told_once_for_all_ranks_that_were_at_the_same_place():
    stacks = {
        2: "      cell 3, line 5, in f  x()",
        0: "      cell 3, line 6, in g",
        1: "      cell 3, line 5, in f  x()",
    }
    text = result(busy=RankSet([0]), stacks=stacks).failure_text()
    assert text.split("\n\n")[0].split("\n") == [
        "rank 0 at the second Ctrl-C:",
        "      cell 3, line 6, in g",
        "ranks 1,2 at the second Ctrl-C:",
        "      cell 3, line 5, in f  x()",
    ]


def test_what_was_done_for_the_next_cell_comes_last():
    lines = ["process groups built again (generation 2, 0.10 s)", "all names on all ranks are intact"]
    text = result(errors={0: released()}, explanations=[REASON], recovery=lines).failure_text()
    assert text.split("\n\n")[-1] == "\n".join(lines)


def test_an_interrupted_cell_says_so_beside_what_was_done_after_it():
    text = result(interrupted=True, recovery=["process groups built again"]).failure_text()
    assert text == "cell 3 was interrupted\n\nprocess groups built again"
