"""Launchers whose agents are carried: how ranks are spread over carriers, and what is said when one does not start."""

from __future__ import annotations

import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.cluster.launchers import carried
from hpcnb.cluster.launchers.carried import CarriedLauncher, spread_over
from hpcnb.cluster.launchers.dask import Worker, by_host, chosen
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.launch import Ticket
from hpcnb.core.named import Named
from tests.waiting import wait_until

TICKET = Ticket("name", "10.0.0.1:5000", "p" * 40, "n" * 40, "s" * 40)


# --- how ranks are spread -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 8), min_size=1, max_size=8))
def test_by_default_every_carrier_has_a_rank(num_carriers):
    assert spread_over(num_carriers, None, None) == num_carriers
    assert spread_over(num_carriers, sum(num_carriers), None) == num_carriers


@given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(1, 60))
def test_any_number_of_ranks_is_spread_over_as_many_hosts_as_it_fills(num_carriers, num_ranks):
    layout = spread_over(num_carriers, num_ranks, None)
    assert sum(layout) == num_ranks
    assert len(layout) == min(num_ranks, len(num_carriers))
    assert min(layout) >= 1


@pytest.mark.parametrize(
    ("num_ranks", "ranks_per_node", "layout"), [(None, 2, [2, 2, 2]), (4, 2, [2, 2]), (2, 2, [2]), (3, 1, [1, 1, 1])]
)
def test_ranks_per_node(num_ranks, ranks_per_node, layout):
    assert spread_over([1, 1, 4], num_ranks, ranks_per_node) == layout


@pytest.mark.parametrize(
    ("num_ranks", "ranks_per_node", "words"),
    [
        (8, 2, "8 ranks, 2 on each node, take 4 hosts, and there are 3"),
        (5, 2, "3 nodes with 2 ranks each are 6 ranks, not 5"),
        (3, 0, "a node has at least 1 rank, not 0"),
        (0, None, "0 ranks? cannot be spread over 1 nodes"),
    ],
)
def test_numbers_that_contradict_each_other(num_ranks, ranks_per_node, words):
    with pytest.raises(OptionError, match=words):
        spread_over([1, 1, 4], num_ranks, ranks_per_node)


def workers(*places):
    return [Worker(name, f"tcp://{host}:{5000 + number}", host) for number, (name, host) in enumerate(places)]


def test_workers_are_grouped_by_host_in_the_order_of_their_names():
    known = workers(("w10", "b"), ("w2", "a"), ("w1", "b"), ("w9", "c"))
    hosts = by_host(known)
    assert list(hosts) == ["b", "a", "c"]
    assert [each.name for each in hosts["b"]] == ["w1", "w10"]


def test_workers_are_chosen_by_name_or_address():
    known = workers(("0", "a"), ("1", "b"), ("2", "b"))
    assert chosen(known, []) == known
    assert chosen(known, ["2", known[0].address]) == [known[0], known[2]]
    with pytest.raises(OptionError, match="the Dask cluster has no worker 'x'; it has 0, 1, 2"):
        chosen(known, ["x"])


# --- names instead of functions -------------------------------------------------------------------------------


def test_what_is_named_is_found_where_it_arrives():
    assert pickle.loads(pickle.dumps(Named("os.path:join"))) is __import__("os").path.join
    assert Named("os.path:join")("a", "b") == "a/b"
    assert b"no_such" in pickle.dumps(Named("no_such.module:f"))  # it need not be importable here


# --- errands --------------------------------------------------------------------------------------------------


class Fake(CarriedLauncher):
    """Carriers that answer with what a test says, in turn."""

    def __init__(self, *answers, found="tcp://a:1"):
        super().__init__()
        self.carrier = "Dask worker"
        self.answers = list(answers)
        self.found = found
        self.called = []
        self.num_released = 0

    def find(self, node):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def call(self, carrier, function, *args):
        self.called.append(function.__name__)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def release(self):
        self.num_released += 1


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(carried, "_LOOK_S", 0.01)


BEGUN = {"key": "7-1", "problem": "", "host": "n1", "python": "/p"}


@pytest.mark.parametrize(
    ("launcher", "reason"),
    [
        (Fake(BEGUN, (None, []), (1, ["VERSION it runs 2"])), "it runs 2"),
        (Fake(BEGUN, (1, [])), "node n1 did not start: its agent ended with status 1"),
        (Fake({**BEGUN, "problem": "/p: No such file"}), "node n1 has no interpreter /p"),
        (Fake(BEGUN, found=LaunchError("no Dask worker runs on host a")), "no Dask worker runs on host a"),
        (
            Fake(ModuleNotFoundError("No module named 'hpcnb'")),
            "Dask worker tcp://a:1 cannot import the hpcnb of this notebook",
        ),
        (Fake(Exception("AttributeError(\"module 'hpcnb.node' has no ...\")")), "Dask worker tcp://a:1 cannot import"),
        (Fake(OSError("gone")), "Dask worker tcp://a:1 could not be asked to start ranks: OSError: gone"),
    ],
)
def test_why_a_node_does_not_start(launcher, reason):
    launcher.launch(TICKET, [0])
    wait_until(lambda: launcher.look() is not None)
    assert launcher.look().reason.startswith(reason)
    launcher.cancel()
    assert launcher.num_released == 1
    launcher.cancel()  # nothing is left to be cancelled


def test_what_has_joined_is_left_alone_and_what_is_given_up_is_ended():
    for finish, called in (("started", False), ("cancel", True)):
        launcher = Fake(BEGUN, (None, []))
        launcher.launch(TICKET, [0])
        wait_until(lambda launcher=launcher: launcher.called.count("look") > 1)
        assert launcher.look() is None
        getattr(launcher, finish)()
        assert ("end" in launcher.called) == called
        assert launcher.num_released == 1


def test_a_carrier_that_has_yet_to_answer_is_named():
    answers = threading.Event()

    def begun():
        answers.wait(10)
        return BEGUN

    launcher = Fake(begun, (None, []))
    launcher.launch(TICKET, [0])
    wait_until(lambda: launcher.words() == "Dask worker tcp://a:1 has yet to answer")
    answers.set()
    wait_until(lambda: launcher.words() == "")
    launcher.started()
