"""Blocked time is split at the moment the last rank comes to the same operation."""

from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.spans import Flag, Kind
from hpcnb.timing.exposed import exposed
from tests.data.ranks import MS, Rank, cell_of


def split(*ranks, done=1000.0):
    """Per rank, its records of communication as (wait_ms, transfer_ms), in the order of recording."""
    cell = cell_of([rank.cell(0, done, child=0) for rank in ranks], done=done)
    result = exposed(cell)
    return [
        [
            (wait / MS, transfer / MS)
            for wait, transfer in zip(
                result.wait_ns[result.of_rank(index)], result.transfer_ns[result.of_rank(index)], strict=True
            )
        ]
        for index in range(len(ranks))
    ]


def two():
    return Rank(0), Rank(1)


def test_until_the_last_rank_comes_it_is_wait_and_then_transfer():
    early, late = two()
    early.collective(10, 65)
    late.collective(60, 65)
    assert split(early, late) == [[(50, 5)], [(0, 5)]]


def test_work_that_is_issued_early_and_waited_for_later_counts_from_its_issue():
    early, late = two()
    early.collective(10, 65, wait=(40, 66), flags=Flag.ASYNC)
    late.collective(30, 65, wait=(50, 65), flags=Flag.ASYNC)
    # all had issued at 30, before anybody was blocked: only the network is waited for
    assert split(early, late) == [[(0, 26)], [(0, 15)]]


def test_a_rank_that_is_not_blocked_has_neither():
    early, late = two()
    early.collective(10, 65, wait=(70, 70), flags=Flag.ASYNC)
    late.collective(30, 65)
    assert split(early, late) == [[(0, 0)], [(0, 35)]]


def test_sequences_tell_operations_of_a_group_apart():
    early, late = two()
    for sequence, (first, second, end) in enumerate(((10, 20, 21), (30, 35, 36))):
        early.collective(first, end, sequence=sequence)
        late.collective(second, end, sequence=sequence)
    assert split(early, late) == [[(10, 1), (5, 1)], [(0, 1), (0, 1)]]


def test_groups_with_the_same_sequences_do_not_match():
    first, second = two()
    first.collective(10, 20, group="dp [0]")
    second.collective(15, 20, group="dp [1]")
    assert split(first, second) == [[(0, 10)], [(0, 5)]]


def test_the_name_of_a_group_matches_whatever_its_number_on_a_rank():
    early, late = two()
    late.ring.intern("something else first")
    early.collective(10, 65, group="tp")
    late.collective(60, 65, group="tp")
    assert split(early, late) == [[(50, 5)], [(0, 5)]]


def test_sequences_that_repeat_after_a_rebuild_match_in_order_of_occurrence():
    early, late = two()
    for start in (0, 100, 200):  # the groups were built again twice within the cell
        early.collective(start + 10, start + 65, sequence=1)
        late.collective(start + 60, start + 65, sequence=1)
    late.collective(300, 310, sequence=1)  # and once more, on this rank only
    assert split(early, late) == [[(50, 5)] * 3, [(0, 5)] * 3 + [(0, 10)]]


def test_a_collective_that_failed_was_all_wait_and_names_nobody():
    early, late = two()
    early.collective(10, 65, flags=Flag.FAILED)
    late.collective(60, 65, flags=Flag.FAILED)
    assert split(early, late) == [[(55, 0)], [(5, 0)]]
    early.collective(10, 65, flags=Flag.FAILED)
    assert exposed(cell_of([early.cell(0, 100, child=0)], done=100)).last.tolist() == [-1]


def test_a_send_matches_the_recv_of_its_peer():
    sender, receiver = two()
    sender.send(1, 10, 45, sequence=1)
    receiver.recv(0, 40, 45, sequence=1)
    sender.recv(1, 50, 62, sequence=1)
    receiver.send(0, 60, 62, sequence=1)
    assert split(sender, receiver) == [[(30, 5), (10, 2)], [(0, 5), (0, 2)]]


def test_messages_between_other_ranks_and_in_the_other_direction_do_not_match():
    ranks = [Rank(number) for number in range(3)]
    ranks[0].send(1, 10, 12, sequence=1)
    ranks[0].send(2, 20, 22, sequence=1)
    ranks[1].send(0, 30, 35, sequence=1)  # at the same time as rank 0 sends to it: not its recv
    ranks[2].recv(0, 90, 95, sequence=1)
    assert split(*ranks) == [[(0, 2), (2, 0)], [(0, 5)], [(0, 5)]]


def test_a_receiver_tells_its_senders_apart():
    ranks = [Rank(number) for number in range(3)]
    ranks[0].send(2, 10, 12, sequence=1)
    ranks[1].send(2, 90, 92, sequence=1)
    ranks[2].recv(0, 5, 12, sequence=1)
    ranks[2].recv(1, 12, 92, sequence=1)
    assert split(*ranks) == [[(0, 2)], [(0, 2)], [(5, 2), (78, 2)]]


def test_point_to_point_does_not_match_a_collective_of_the_group():
    first, second = two()
    first.collective(10, 20, group="all", sequence=1)
    second.recv(0, 15, 20, sequence=1)
    assert split(first, second) == [[(0, 10)], [(0, 5)]]


def test_a_recv_from_any_rank_or_from_one_outside_of_the_cell_waited_for_nobody():
    first, second = two()
    first.recv(-1, 10, 20, sequence=1)
    first.recv(7, 20, 30, sequence=1)
    second.send(0, 15, 20, sequence=1)
    assert split(first, second) == [[(0, 10), (0, 10)], [(0, 5)]]


def test_without_communication_there_is_nothing():
    assert split(Rank(0), Rank(5)) == [[], []]
    assert exposed(cell_of([], done=1)).first == (0,)


def test_of_several_that_came_last_the_lowest_rank_is_named():
    ranks = [Rank(number) for number in (2, 5, 9)]
    for rank, start in zip(ranks, (10, 30, 30), strict=True):
        rank.collective(start, 40)
    result = exposed(cell_of([rank.cell(0, 50, child=0) for rank in ranks], done=50))
    assert result.last.tolist() == [1, 1, 1]
    assert len(set(result.operation.tolist())) == 1


ISSUES = st.lists(
    st.tuples(
        st.integers(0, 2),  # rank
        st.sampled_from(["a", "b"]),
        st.integers(0, 2),  # sequence
        st.integers(0, 50),  # issued
        st.integers(0, 20),  # until blocked
        st.integers(0, 20),  # blocked
    ),
    max_size=30,
)


@given(ISSUES)
def test_any_collectives_split_as_the_definition_says(issues):
    ranks = [Rank(number) for number in range(3)]
    seen = {}
    expected = [[], [], []]
    occurrences = []
    for rank, group, sequence, start, later, blocked in issues:
        occurrence = seen[rank, group, sequence] = seen.get((rank, group, sequence), 0) + 1
        occurrences.append(((group, sequence, occurrence), start))
        wait = (start + later, start + later + blocked)
        ranks[rank].collective(start, wait[1], wait=wait, group=group, sequence=sequence)
    for (rank, _, _, start, later, blocked), (operation, _) in zip(issues, occurrences, strict=True):
        last = max(issued for other, issued in occurrences if other == operation)
        wait = min(max(last - (start + later), 0), blocked)
        expected[rank].append((wait, blocked - wait))
    assert split(*ranks) == expected


def test_records_of_other_kinds_are_left_out():
    rank = Rank(0)
    rank.write(Kind.USER, 0, 10, name="mine")
    rank.write(200, 10, 20)  # a kind of a later version
    rank.collective(20, 30)
    assert split(rank) == [[(0, 10)]]
