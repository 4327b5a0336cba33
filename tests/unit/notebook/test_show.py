"""Tables of verbs as text."""

from __future__ import annotations

import time

import pytest

from hpcnb.cluster.attach import ClusterRow
from hpcnb.notebook.show import aligned, cluster_rows, duration


def test_clusters_as_a_table(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 10_000.0)
    rows = [
        ClusterRow("mine", "mine-1", "running", 4, "dp=4", "vm", 9_940.0, 2, "cell In[3] on ranks 0-3"),
        ClusterRow("left", "left-1", "running", 1, "dp=1", "vm", 2_800.0, 0, "", ("cell In[1]",), 7 * 3600.0),
        ClusterRow("gone", "gone-1", "removed", 2, "dp=2", problem="its agent had ended"),
    ]
    assert aligned(cluster_rows(rows)) == [
        "name  ranks  mesh  node  state                         started    notebooks  running cell             idle time left",
        "mine  4      dp=4  vm    running                       60 s ago   2          cell In[3] on ranks 0-3",
        "left  1      dp=1  vm    running                       2.0 h ago             1 ended unseen           7.0 h",
        "gone  2      dp=2        removed: its agent had ended",
    ]


def test_clusters_of_one_name_are_told_apart_by_what_attach_takes():
    rows = [ClusterRow("mine", f"mine-{number}", "running", 4) for number in (1, 2)] + [
        ClusterRow("other", "other-3", "running")
    ]
    assert [row[0] for row in cluster_rows(rows)[1:]] == ["mine (mine-1)", "mine (mine-2)", "other"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (28_800, "8.0 h"), (200_000, "2 days")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
