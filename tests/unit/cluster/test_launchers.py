"""Launchers of many nodes: how ranks are spread, and what a node that did not start is said to lack."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.cluster import launchers
from hpcnb.cluster.launchers.nodes import problem_of, spread
from hpcnb.core.errors import OptionError
from hpcnb.core.launch import Ticket


@given(st.integers(1, 40), st.integers(1, 40))
def test_ranks_are_spread_as_even_as_can_be(num_nodes, more):
    layout = spread(num_nodes + more, num_nodes, None)
    assert sum(layout) == num_nodes + more
    assert max(layout) - min(layout) <= 1
    assert layout == sorted(layout, reverse=True)
    assert spread(None, num_nodes, more) == [more] * num_nodes
    assert spread(num_nodes * more, num_nodes, more) == [more] * num_nodes


def test_without_numbers_each_node_has_one_rank():
    assert spread(None, 3, None) == [1, 1, 1]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["VERSION the notebook runs 1, node n1 runs 2"], "the notebook runs 1, node n1 runs 2"),
        (
            ["UNREACHABLE 10.0.0.1:5 from n1: no answer: a firewall, or another network"],
            "node n1 cannot reach this machine at 10.0.0.1:5 (no answer: a firewall, or another network); open that way",
        ),
        (
            ["/p: Error while finding module ... No module named 'hpcnb'"],
            "node n1 has no hpcnb for /p; install it there:",
        ),
        (
            ["Traceback", "ModuleNotFoundError: No module named 'zmq'"],
            "node n1: /p lacks a module: ModuleNotFoundError",
        ),
        (["sh: 1: exec: /p: not found"], "node n1 has no interpreter /p; choose one that is there: python=..."),
        (["bash: cd: /data: No such file or directory"], "node n1 did not start: bash: cd: /data: No such file"),
        ([], "node n1 did not start: it said nothing"),
    ],
)
def test_what_a_node_lacks(said, reason):
    problem = problem_of("n1", "/p", said)
    assert problem.reason.startswith(reason)
    assert problem.version_mismatch == (bool(said) and said[0].startswith("VERSION"))


def test_only_known_launchers_and_options():
    assert launchers.make("local", 4, {}) is None
    with pytest.raises(OptionError, match="no launcher 'slum'; there are local, ssh, mpi, slurm"):
        launchers.make("slum", 4, {})
    with pytest.raises(OptionError, match="launcher 'local' has no option 'hosts'; it has none"):
        launchers.make("local", 4, {"hosts": "n1"})


# --- tickets --------------------------------------------------------------------------------------------------

TICKET = Ticket("a name ü", "10.0.0.1:5000", "p" * 40, "n" * 40, "s" * 40)


def test_a_ticket_is_one_plain_word():
    text = TICKET.to_text()
    assert text.replace("-", "").replace("_", "").isalnum()
    assert Ticket.of_text(f"{text}\n") == TICKET


@pytest.mark.parametrize(
    "text",
    ["", "hello", TICKET.to_text()[:-8], base64.urlsafe_b64encode(json.dumps([1, 2, 3, 4, 5]).encode()).decode(), "é"],
)
def test_what_is_no_ticket(text):
    with pytest.raises(ValueError, match="this is no ticket of a cluster"):
        Ticket.of_text(text)
