"""What a node tells again when who was between it and the head is lost."""

from __future__ import annotations

from hpcnb.core import messages as m
from hpcnb.node import kept


def told(store, message):
    store.told(message, m.encode(message))


def test_of_each_rank_the_last_state_and_then_answers():
    store = kept.Kept()
    answer = m.CellDone(4, [], {}, {}, {}, 9)
    told(store, answer)
    told(store, m.RankReady(1, 10, "n1", "cpu", {}))
    exited = m.RankExited(1, 10, -9, [], False, "", "", 0.0, False)
    told(store, exited)
    told(store, m.Output(4, []))
    assert [m.decode(packed) for packed in store.told_again()] == [exited, answer]


def test_answers_are_bounded(monkeypatch):
    monkeypatch.setattr(kept, "_NUM_ANSWERS", 3)
    store = kept.Kept()
    for cell in range(9):
        store.begins(cell)
        told(store, m.CellDone(cell, [], {}, {}, {}, 0))
    assert [m.decode(packed).cell for packed in store.told_again()] == [6, 7, 8]
    assert list(store.cells) == list(range(9))


def test_one_large_answer_is_kept(monkeypatch):
    monkeypatch.setattr(kept, "_NUM_BYTES", 10)
    store = kept.Kept()
    told(store, m.CellDone(1, [], {0: b"x" * 100}, {}, {}, 0))
    assert len(store.told_again()) == 1
