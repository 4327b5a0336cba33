"""After a failure: what a cluster is asked to do, and what is said about it. The cluster is a fake."""

from __future__ import annotations

import contextlib
import pickle

import pytest

from hpcnb.cluster import recovery
from hpcnb.cluster.inbox import Inbox, drive
from hpcnb.cluster.result import CellResult, RankError
from hpcnb.core import messages as m
from hpcnb.core.errors import CellFailed, ClusterStateError, LaunchError, OptionError
from hpcnb.core.ranks import RankSet

FAILED = RankError("RuntimeError", "store gone", "", 0, "", "Traceback", "k")


class FakeCluster:
    """Four ranks; remembers what they were asked."""

    world_size = 4

    def __init__(self, *, alive=(0, 1, 2, 3), busy=(), errors=None, notices=None, groups=None, names=None, ready=True):
        self.alive, self.busy = RankSet(alive), RankSet(busy)
        self.generation = 6
        self.asked, self.told = [], []
        self._errors, self._notices, self._groups, self._ready = errors or {}, notices or {}, groups or {}, ready
        self._names = names or {}
        self._rejoining = Inbox()
        self.inits = []

    def init_cells(self):
        return self.inits

    def next_generation(self):
        self.generation += 1
        return self.generation

    async def rebuild(self):
        return await recovery.rebuild(self, self.alive, RankSet.all(4) - self.alive)

    async def serve(self, make, ranks, *, label, timeout_s, needs=None):
        message = make(17, ranks)
        self.asked.append(message)
        result = CellResult(17, label, ranks, 4, notices=self._notices)
        if isinstance(message, m.ListGroups):
            result.pickles = {
                rank: pickle.dumps((*self._groups.get(rank, (0, [])), self._names.get(rank, []))) for rank in ranks
            }
        else:
            result.errors = self._errors
        return result

    def tell(self, message):
        self.told.append(message)
        for rank in message.ranks if self._ready else ():
            self._rejoining.put(m.RankReady(rank, 1, "n1", "cpu", {}))
            self.alive |= RankSet([rank])

    async def bring_back(self, ranks, *, timeout_s):
        """All are on a node that is here."""

    @contextlib.contextmanager
    def rejoining(self, ranks):
        yield self._rejoining


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    now_s = iter(range(10_000))
    monkeypatch.setattr(recovery.time, "perf_counter", lambda: next(now_s) / 4)


def test_groups_are_built_again():
    cluster = FakeCluster(notices={"DDP is ready again": RankSet([0, 1])})
    assert drive(recovery.mend(cluster)) == (
        True,
        [
            "process groups built again (generation 7, 0.25 s)",
            "all names on all ranks are intact",
            "ranks 0,1: DDP is ready again",
        ],
    )
    assert cluster.asked[1:] == [m.Rebuild(17, RankSet.all(4), 7, RankSet(), RankSet(), 0, [])]


@pytest.mark.parametrize(
    ("alive", "missing", "intact"),
    [((0, 1, 3), "rank 2 is missing", "ranks 0,1,3"), ((3,), "ranks 0-2 are missing", "rank 3")],
)
def test_dead_ranks_are_named(alive, missing, intact):
    cluster = FakeCluster(alive=alive)
    is_done, words = drive(recovery.mend(cluster))
    assert is_done
    assert words[0].startswith(f"process groups built again (generation 7, 0.25 s); {missing}: type  %hpc restart-rank")
    assert words[1] == f"all names on {intact} are intact"
    assert cluster.asked[1:] == [m.Rebuild(17, RankSet(alive), 7, RankSet.all(4) - RankSet(alive), RankSet(), 0, [])]


@pytest.mark.parametrize(
    ("busy", "words"), [((2,), "rank 2 has answered"), ((1, 2), "ranks 1,2 have answered")]
)  # fmt: skip
def test_busy_ranks_are_waited_for(busy, words):
    cluster = FakeCluster(busy=busy)
    assert drive(recovery.mend(cluster)) == (False, [f"process groups are built again when {words}"])
    assert cluster.asked == []


def test_a_dead_rank_is_not_busy():
    assert drive(recovery.mend(FakeCluster(alive=(0, 1), busy=(3,))))[0]


def test_without_ranks_nothing_is_built():
    assert drive(recovery.mend(FakeCluster(alive=()))) == (False, [])


def test_names_of_ranks_that_somebody_else_has_replaced_are_not_said_to_be_intact():
    assert recovery.built("by another notebook", RankSet.all(4), RankSet(), RankSet([2])) == [
        "process groups built again by another notebook",
        "rank 2 is a new process; all names on ranks 0,1,3 are intact",
    ]
    assert recovery.built("so", RankSet.all(2), RankSet(), RankSet.all(2))[1] == "ranks 0,1 are new processes"


def test_groups_that_cannot_be_built():
    is_done, (words,) = drive(recovery.mend(FakeCluster(errors={1: FAILED})))
    assert not is_done
    assert words.startswith(
        "process groups could not be built again; type  %hpc recover  to try once more\n"
        "rank 1 of 4 raised  RuntimeError: store gone"
    )
    with pytest.raises(CellFailed, match="store gone"):
        drive(recovery.rebuild(FakeCluster(errors={1: FAILED}), RankSet.all(4), RankSet()))


# --- ranks are replaced -----------------------------------------------------------------------------------------


def test_a_dead_rank_is_replaced():
    world = ("0", [0, 1, 2, 3])
    groups = {0: (12, [world, ("9", [0, 1])]), 1: (12, [world, ("9", [0, 1])]), 3: (11, [world, ("10", [2, 3])])}
    cluster = FakeCluster(alive=(0, 1, 3), groups=groups)
    restarted = drive(recovery.restart(cluster, RankSet([2])))
    assert (restarted.ranks, restarted.took_s, restarted.replayed, restarted.lost) == (RankSet([2]), 0.25, (), ())
    assert repr(restarted) == "rank 2 was replaced in 0.25 s; process groups and mesh are whole again"
    made = [["0", [0, 1, 2, 3]], ["9", [0, 1]], ["10", [2, 3]]]  # in the order they were made: by number
    assert cluster.told == [m.RestartRanks(RankSet([2]), 7, made, 12)]
    others = RankSet([0, 1, 3])
    assert cluster.asked[:2] == [m.ListGroups(17, others), m.Rebuild(17, others, 7, RankSet(), RankSet([2]), 12, [])]


def test_other_dead_ranks_stay_dead():
    cluster = FakeCluster(alive=(0, 1))
    drive(recovery.restart(cluster, RankSet([2])))
    assert cluster.asked[1] == m.Rebuild(17, RankSet([0, 1]), 7, RankSet([3]), RankSet([2]), 0, [])


def test_all_ranks_are_replaced():
    cluster = FakeCluster(alive=(1,))
    drive(recovery.restart(cluster, RankSet.all(4)))
    assert cluster.asked == []
    assert cluster.told == [m.RestartRanks(RankSet.all(4), 7, [], 0)]


INITS = [
    ("import torch", "cell 1", 2, RankSet.all(4)),
    ("x = 1", "cell 3", 2, RankSet([0, 1])),
    ("y", "cell 4", 1, RankSet([2])),
]


def test_init_cells_run_again_on_the_new_ranks_that_they_are_of():
    cluster = FakeCluster(alive=(0, 1, 3))
    cluster.inits = INITS
    restarted = drive(recovery.restart(cluster, RankSet([2])))
    ran = [message for message in cluster.asked if isinstance(message, m.RunCell)]
    assert [(each.source, each.label, each.first_line, each.ranks) for each in ran] == [
        (source, label, line, RankSet([2])) for source, label, line, of in INITS if 2 in of
    ]
    assert not any(each.is_init for each in ran)  # they are kept already
    assert (restarted.replayed, restarted.failed) == (("cell 1", "cell 4"), {})
    assert repr(restarted).endswith("\nrun again there: cell 1, cell 4")


def test_names_that_the_new_ranks_lack_are_told():
    names = {0: ["model", "x"], 1: ["x", "data"], 3: ["x"], 2: ["x"]}
    restarted = drive(recovery.restart(FakeCluster(alive=(0, 1, 3), names=names), RankSet([2])))
    assert restarted.lost == ("data", "model")
    assert "names that other ranks have and it lacks: data, model\ndefine them there (--on)" in repr(restarted)
    many = {0: [f"n{number:02}" for number in range(15)]}
    restarted = drive(recovery.restart(FakeCluster(alive=(0, 1), names=many), RankSet([2, 3])))
    assert repr(restarted).startswith("ranks 2,3 were replaced in ")
    assert "they lack: n00, n01, " in repr(restarted)
    assert "n11 and 3 more\n" in repr(restarted)


def test_a_busy_rank_can_be_replaced_itself():
    cluster = FakeCluster(busy=(2,))
    drive(recovery.restart(cluster, RankSet([2])))
    assert len(cluster.told) == 1


@pytest.mark.parametrize(
    ("cluster", "ranks", "kind", "words"),
    [
        (FakeCluster(), [4, 7], OptionError, r"^no ranks 4,7; the cluster has ranks 0-3$"),
        (
            FakeCluster(),
            [],
            OptionError,
            r"^no rank has ended; to replace one that lives name it:  %hpc restart-rank 2$",
        ),
        (
            FakeCluster(busy=[1]),
            [2],
            ClusterStateError,
            r"^rank 1 still runs a cell; wait for it, or type  %hpc interrupt$",
        ),
        (FakeCluster(busy=[0, 1]), [2], ClusterStateError, r"^ranks 0,1 still run a cell; wait for it"),
        (FakeCluster(errors={1: FAILED}), [2], CellFailed, "store gone"),
    ],
)
def test_what_cannot_be_replaced(cluster, ranks, kind, words):
    with pytest.raises(kind, match=words):
        drive(recovery.restart(cluster, RankSet(ranks)))


def test_a_new_rank_that_does_not_come(monkeypatch):
    monkeypatch.setattr(recovery, "_RESTART_S", -1.0)
    with pytest.raises(LaunchError, match="rank 2 not ready after"):
        drive(recovery.restart(FakeCluster(ready=False), RankSet([2])))
