"""The store of process groups over torch's in-memory one: it waits, and a wait can be given up."""

from __future__ import annotations

import datetime

import pytest
import torch.distributed as dist

from hpcnb.core.errors import CollectiveAborted
from hpcnb.engine import group_store
from hpcnb.engine.group_store import GroupStore

NOW = datetime.timedelta(0)


@pytest.fixture
def inner():
    return dist.HashStore()


@pytest.fixture
def pauses(monkeypatch):
    """Pauses between two looks; time passes with them and nothing sleeps."""
    slept = []
    monkeypatch.setattr(group_store.time, "sleep", slept.append)
    monkeypatch.setattr(group_store.time, "monotonic", lambda: sum(slept))
    return slept


def store_over(inner, check=lambda: None, timeout_s=5.0):
    return GroupStore(inner, datetime.timedelta(seconds=timeout_s), check)


def test_it_is_a_store(inner):
    store = store_over(inner)
    store.set("key", "value")
    assert store.get("key") == inner.get("key") == b"value"
    assert store.add("count", 2) == 2
    assert store.add("count", 3) == 5
    store.multi_set(["a", "b"], ["1", "2"])
    assert store.multi_get(["b", "a"]) == [b"2", b"1"]
    store.wait(["a", "b"])
    assert store.check(["a", "key"])
    assert not store.check(["a", "missing"])
    store.append("a", "9")
    assert store.get("a") == b"19"
    assert store.compare_set("a", "19", "20") == b"20"
    assert store.compare_set("a", "19", "21") == b"20"
    num_keys = store.num_keys()
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert store.num_keys() == num_keys - 1
    assert store.has_extended_api()


def test_what_it_was_asked_to_set_is_remembered(inner):
    store, keys = store_over(inner), []
    store.set("before", "1")
    with store.remembering(keys):
        dist.PrefixStore("group", store).set("a", "1")
        store.multi_set(["b", "c"], ["1", "2"])
        store.get("a" if store.check(["a"]) else "before")
    store.set("after", "1")
    assert keys == ["group/a", "b", "c"]


def test_torch_reaches_it_from_its_own_code(inner, pauses):
    whole = store_over(inner)  # kept, as the guard does: torch does not keep the Python object
    store = dist.PrefixStore("group", whole)
    store.set("key", "value")
    assert inner.get("group/key") == b"value"
    assert store.get("key") == b"value"
    assert store.add("count", 1) == 1
    assert store.check(["key"])
    assert not store.check(["missing"])
    with pytest.raises(RuntimeError, match="nobody set 'group/missing' within 5 s"):
        store.get("missing")


def test_it_waits_until_somebody_sets_the_key(inner, pauses):
    def check():
        if len(pauses) == 10:
            inner.set("late", "value")

    assert store_over(inner, check).get("late") == b"value"
    assert pauses[:2] == [0.0002, pytest.approx(0.0003)]
    assert pauses == sorted(pauses)
    assert max(pauses) <= 0.005


def test_pauses_stay_short(inner, pauses):
    with pytest.raises(dist.DistStoreError):
        store_over(inner).get("missing")
    assert max(pauses) == 0.005


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (lambda store: store.get("k"), r"^nobody set 'k' within 5 s$"),
        (lambda store: store.multi_get(["k", "l"]), r"^nobody set 'k' within 5 s$"),
        (lambda store: store.wait(["k"]), r"^nobody set 'k' within 5 s$"),
        (lambda store: store.wait(["k"], datetime.timedelta(seconds=9)), r"^nobody set 'k' within 9 s$"),
    ],
)
def test_a_key_that_nobody_sets(inner, pauses, wait, words):
    with pytest.raises(dist.DistStoreError, match=words):
        wait(store_over(inner))


def test_the_timeout_can_be_changed(inner, pauses):
    store = store_over(inner)
    assert store.timeout == datetime.timedelta(seconds=5)
    store.set_timeout(datetime.timedelta(seconds=2))
    assert store.timeout == datetime.timedelta(seconds=2)
    with pytest.raises(dist.DistStoreError, match="within 2 s"):
        store.get("k")


@pytest.mark.parametrize("error", [KeyboardInterrupt, CollectiveAborted("the cell was interrupted")])
def test_a_wait_can_be_given_up(inner, pauses, error):
    def check():
        if len(pauses) == 3:
            raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        store_over(inner, check).get("k")
    assert len(pauses) == 3


def test_who_does_not_have_to_wait_is_not_asked(inner):
    def check():
        raise AssertionError

    inner.set("k", "v")
    store = store_over(inner, check)
    assert store.get("k") == b"v"
    store.wait(["k"], NOW)
