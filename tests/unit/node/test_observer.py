"""Where ranks are, read from a real board in memory; ranks are no processes."""

from __future__ import annotations

import os

import pytest

from hpcnb.core.board import (
    ANYBODY,
    NUM_CHANNELS,
    NUM_SLOTS,
    Activity,
    ActivityState,
    Board,
    ChannelWriter,
    message_key,
    new_board,
    stamp,
)
from hpcnb.core.launch import RunFolder
from hpcnb.core.messages import RankReady
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RankState, RingReader, RingWriter
from hpcnb.node import observer as observer_module
from hpcnb.node.observer import Observer, is_stopped, words_of
from hpcnb.node.rank_process import RankProcess

CELL = 5
NOW_NS = 100_000_000_000
GROUP, LINK = 11, 22  # channels: of collectives, of messages


class Node:
    """Three ranks, numbered from 4, as their agent sees them."""

    def __init__(self, folder):
        self.board = Board(new_board(3), RankSet(range(4, 4 + 3)))
        self.processes, self.rings, self.channels = {}, {}, {}
        for rank in (4, 5, 6):
            process = RankProcess(rank, folder, self.board.ring(rank))
            self.rings[rank] = RingWriter(self.board.ring(rank), NUM_SLOTS)
            process._ring = RingReader(self.board.ring(rank))
            self.channels[rank] = ChannelWriter(self.board.channels(rank))
            process.pid, process.ready, process.cell = os.getpid(), RankReady(rank, 1, "n1", "cpu", {}), CELL
            self.processes[rank] = process
        self.observer = Observer(self.board, self.processes)
        self.observer.group_made(GROUP, RankSet([4, 5, 6]))

    def issue(self, rank, key, number, *, signature=1, words="all_reduce(float32[8])", line=6):
        """The rank issues this operation; offset of its channel."""
        writer, at = self.channels[rank], self.at(rank, key)
        if at < 0:
            at = writer.open(key)
        writer.publish(at, stamp(0, number), (signature, line, 0, self.rings[rank].intern(words)))
        return at

    def at(self, rank, key):
        return observer_module.ChannelReader(self.board.channels(rank)).find(key)

    def wait(self, rank, number, *, key=GROUP, name="all_reduce", age_s=3.0, peer=-1, at=None, line=6):
        """... and waits in it."""
        ring = self.rings[rank]
        at = self.at(rank, key) if at is None else at
        since_ns = NOW_NS - round(age_s * 1e9)
        ring.enter_communication(
            ring.intern(name), ring.intern("dp"), number, line, 0, 4_200_000, since_ns, at, stamp(0, number), peer
        )

    def say(self, rank, activity, cell=CELL):
        self.board.tell_activity(rank, ActivityState(activity, False, False, cell, 0, 0))


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr(observer_module.time, "perf_counter_ns", lambda: NOW_NS)
    return Node(RunFolder(tmp_path))


def test_nobody_waits(node):
    assert node.observer.longest_wait_s() == 0.0
    assert node.observer.facts() == dict.fromkeys((4, 5, 6), RankFacts(Activity.CELL, CELL))


def test_a_rank_that_waits_and_what_others_have_issued_there(node):
    node.issue(4, GROUP, 16)
    node.issue(4, GROUP, 17)
    node.wait(4, 17)
    node.issue(5, LINK, 3)  # nobody waits in this channel
    node.issue(5, GROUP, 17, signature=2, words="barrier()", line=0)
    node.say(4, Activity.CELL)
    facts = node.observer.facts()
    mine = {stamp(0, 17): (1, "all_reduce(float32[8]) (line 6)")}
    assert facts[4] == RankFacts(
        Activity.CELL,
        CELL,
        inside=Inside("all_reduce #17 (4.2 MB, line 6)", GROUP, stamp(0, 17), RankSet([4, 5, 6]), 3.0),
        issues={GROUP: Issues(stamp(0, 17), mine)},
    )
    assert facts[5].issues == {GROUP: Issues(stamp(0, 17), {stamp(0, 17): (2, "barrier()")})}
    assert facts[6].issues == {}
    assert node.observer.longest_wait_s() == 3.0


def test_a_message_concerns_its_two_ends(node):
    at = node.issue(4, LINK, 2)
    node.wait(4, 9, key=LINK, name="send", peer=6)
    node.rings[4].enter_communication(1, 0, 9, 0, 0, 32, NOW_NS, at, stamp(0, 2), 6)
    inside = node.observer.facts()[4].inside
    assert (inside.key, inside.stamp, inside.members, inside.age_s) == (LINK, stamp(0, 2), RankSet([4, 6]), 0.0)


def receive_from_anybody(node, rank=4, *, tag=0, generation=0, age_s=3.0):
    ring, at = node.rings[rank], node.at(rank, GROUP)
    at = node.channels[rank].open(GROUP) if at < 0 else at
    ring.enter_communication(
        ring.intern("recv from any rank"),
        0,
        2,
        6,
        0,
        4,
        NOW_NS - round(age_s * 1e9),
        at,
        stamp(generation, tag),
        ANYBODY,
    )


def send(node, sender, number, *, receiver=4, tag=0, generation=0):
    """The sender issues a message, or the receiver its receipt: both publish in the same channel."""
    writer, key = node.channels[sender], message_key(GROUP, 5, receiver, tag)
    at = node.at(sender, key)
    writer.publish(writer.open(key) if at < 0 else at, stamp(generation, number), (1, 6, 0, 0))


def test_a_receive_from_anybody_concerns_the_whole_group(node):
    receive_from_anybody(node)
    facts = node.observer.facts()
    words = "recv from any rank #2 (4 B, line 6)"
    assert facts[4].inside == Inside(words, 0, 2, RankSet([4, 5, 6]), 3.0, is_any=True)
    assert facts[5].issues == {}
    assert node.observer.longest_wait_s() == 3.0


def test_a_receive_from_anybody_is_over_when_a_message_is_there(node):
    receive_from_anybody(node)
    send(node, 5, 1, tag=7)
    assert node.observer.facts()[4].inside is not None  # with another tag
    send(node, 5, 1)
    assert node.observer.facts()[4].inside is None
    send(node, 4, 1)  # received
    receive_from_anybody(node)
    assert node.observer.facts()[4].inside is not None
    send(node, 5, 2)
    assert node.observer.facts()[4].inside is None


def test_messages_of_an_earlier_generation_do_not_arrive(node):
    send(node, 5, 9)
    receive_from_anybody(node, generation=1)
    assert node.observer.facts()[4].inside is not None
    send(node, 5, 1, generation=1)
    assert node.observer.facts()[4].inside is None


@pytest.mark.parametrize("members", [RankSet(), RankSet([4, 5, 9])])
def test_a_receive_from_anybody_whose_senders_cannot_be_seen_from_here_is_not_looked_into(node, members):
    node.observer.group_made(GROUP, members)
    receive_from_anybody(node)
    assert node.observer.facts()[4].inside is None


def test_ranks_that_wait_at_different_places_of_a_channel(node):
    for rank, number in ((4, 17), (5, 18)):
        for each in (17, 18)[: number - 16]:
            node.issue(rank, GROUP, each, words=f"all_reduce({each})")
        node.wait(rank, number, age_s=number)
    facts = node.observer.facts()
    assert set(facts[4].issues[GROUP].last) == {stamp(0, 17)}
    assert set(facts[5].issues[GROUP].last) == {stamp(0, 17), stamp(0, 18)}
    assert node.observer.longest_wait_s() == 18.0


def test_what_a_rank_has_given_up_is_missing_there(node):
    at = node.issue(4, GROUP, 1)
    node.issue(4, GROUP, 2)
    node.channels[4].give_up(at, stamp(0, 2))
    at = node.issue(5, GROUP, 1)
    node.issue(5, GROUP, 2)
    node.wait(5, 2, at=at)
    issues = node.observer.facts()[4].issues[GROUP]
    assert (issues.newest, issues.last) == (stamp(0, 1), {})


def test_what_is_too_old_to_be_looked_up_is_left_out(node):
    node.issue(4, GROUP, 1)
    node.wait(4, 1)
    for number in range(1, 80):
        node.issue(5, GROUP, number)
    assert node.observer.facts()[5].issues == {GROUP: Issues(stamp(0, 79), {})}


def test_words_that_are_not_yet_in_the_table_are_left_out(node):
    node.issue(4, GROUP, 1)
    node.wait(4, 1)
    writer = node.channels[5]
    writer.publish(writer.open(GROUP), stamp(0, 1), (1, 6, 0, 999))
    assert node.observer.facts()[5].issues == {GROUP: Issues(stamp(0, 1), {})}


def test_a_wait_in_a_channel_that_is_not_watched_is_not_looked_into(node):
    node.wait(4, 17, at=-1)
    assert node.observer.facts()[4].inside is None
    assert node.observer.longest_wait_s() == 3.0


def test_a_group_that_nobody_told_of_has_no_members(node):
    node.issue(4, LINK, 1)
    node.wait(4, 1, key=LINK)
    assert node.observer.facts()[4].inside.members == RankSet()


def test_a_rank_without_room_for_channels_says_so(node):
    for key in range(1, NUM_CHANNELS + 1):
        node.channels[5].open(key)
    assert [facts.is_unwatched for facts in node.observer.facts().values()] == [False, True, False]


@pytest.mark.parametrize(
    ("cell", "activity", "told"),
    [
        (CELL, Activity.CELL, Activity.CELL),
        (CELL, Activity.DEBUGGER, Activity.DEBUGGER),
        (CELL, Activity.REQUEST, Activity.REQUEST),
        (CELL, Activity.IDLE, Activity.CELL),  # the cell is on its way to the rank
        (0, Activity.IDLE, Activity.IDLE),
        (0, Activity.REQUEST, Activity.REQUEST),
    ],
)
def test_activities(node, cell, activity, told):
    node.processes[4].cell = cell
    node.say(4, activity, cell)
    facts = node.observer.facts()[4]
    assert (facts.activity, facts.cell) == (told, cell)


def test_ranks_that_are_dead_or_not_ready_are_left_out(node):
    node.issue(4, GROUP, 1)
    node.wait(4, 1)
    node.processes[4].status = -9
    node.processes[5].ready = None
    assert set(node.observer.facts()) == {6}
    assert node.observer.longest_wait_s() == 0.0


def test_a_wait_outside_of_cells_is_none_of_ours(node):
    node.issue(4, GROUP, 1)
    node.wait(4, 1)
    node.processes[4].cell = 0
    assert node.observer.facts()[4].inside is None
    assert node.observer.longest_wait_s() == 0.0


# --- stopped processes ------------------------------------------------------------------------------------------


@pytest.fixture
def stat(tmp_path, monkeypatch):
    """/proc/PID/stat of every process."""
    file = tmp_path / "stat"
    monkeypatch.setattr(observer_module, "read_proc", lambda *_: file.read_bytes() if file.exists() else b"")
    return file


@pytest.mark.parametrize(
    ("text", "stopped"),
    [
        ("17 (python) T 1 17 17", True),
        ("17 (python) S 1 17 17", False),
        ("17 (python) t 1 17 17", False),  # a debugger holds it
        ("17 (odd) T (name) R 1 17", False),
        (None, False),  # it has just ended
    ],
)
def test_who_is_stopped(stat, text, stopped):
    if text is not None:
        stat.write_text(text)
    assert is_stopped(17) == stopped


def test_stopped_ranks_are_told(node, stat):
    stat.write_text("17 (python) T 1")
    assert node.observer.any_stopped()
    assert all(facts.is_stopped for facts in node.observer.facts().values())
    for process in node.processes.values():
        process.cell = 0
    assert not node.observer.any_stopped()  # nobody waits for it


def test_this_process_is_not_stopped():
    assert not is_stopped(os.getpid())


@pytest.mark.parametrize(("line", "words"), [(6, "recv #2 (32 B, line 6)"), (0, "recv #2 (32 B)")])
def test_words(line, words):
    assert words_of(RankState(True, "recv", "dp", 2, line, "cell 3", 32, 0, -1, 0, 1)) == words
