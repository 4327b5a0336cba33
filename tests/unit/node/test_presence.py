"""When a cluster ends itself."""

from __future__ import annotations

import pytest

from hpcnb.node.presence import Presence


@pytest.fixture
def presence():
    presence = Presence(100.0, 0.0, is_managed=False)
    presence.claimed = True
    return presence


def test_it_ends_so_long_after_its_last_notebook(presence):
    presence.count(1, 5.0)
    assert presence.left_s(1e6) is None
    presence.count(0, 10.0)
    presence.count(0, 60.0)
    assert presence.left_s(60.0) == 50.0
    assert presence.over(109.9) == ""
    assert presence.over(110.0) == "no notebook has been connected for 100 s"
    presence.count(1, 110.0)
    assert presence.over(1e6) == ""


def test_without_its_server_it_ends_with_its_last_notebook(presence):
    presence.count(1, 5.0)
    presence.owner_gone = True
    assert presence.over(50.0) == ""
    presence.count(0, 51.0)
    assert presence.over(51.0).startswith("the Jupyter server that its notebook belonged to ended")


def test_a_launch_that_nobody_claims_is_given_up():
    presence = Presence(100.0, 0.0, is_managed=False)
    presence.owner_gone = True  # its launcher's own end is what counts before
    assert presence.over(119.0) == ""
    assert presence.over(120.0) == "no notebook has been connected for 120 s"
    assert Presence(100.0, 0.0, is_managed=True).over(1e6) == ""


def test_zero_is_at_once():
    presence = Presence(0.0, 0.0, is_managed=False)
    presence.claimed = True
    presence.count(1, 1.0)
    presence.count(0, 2.0)
    assert presence.over(2.0)
