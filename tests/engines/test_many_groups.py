"""More process groups, and more tags, than the board has room for."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.engines

SETUP = "import torch, torch.distributed as dist"


def run(cluster, source):
    result = cluster.run(source, timeout_s=60)
    assert result.ok, result.failure_text()
    return result


def test_a_mismatch_is_named_after_three_hundred_groups(cluster2):
    run(cluster2, SETUP)
    source = """
for _ in range(300):
    group = dist.new_group()
    dist.all_reduce(torch.ones(1), group=group)
    dist.destroy_process_group(group)
"""
    assert run(cluster2, source).notices == {}
    result = cluster2.run("group = dist.new_group()\ndist.all_reduce(torch.ones(7 + rank), group=group)", timeout_s=20)
    assert not result.exits, result.failure_text()
    assert "CollectiveMismatch" in result.failure_text()
    run(cluster2, "dist.all_reduce(torch.ones(1)); dist.destroy_process_group(group)")


def test_more_tags_than_there_is_room_for_are_told_once_and_forgotten_with_the_connections(cluster2):
    run(cluster2, SETUP)
    source = """
x = torch.ones(1)
for tag in range(300):
    dist.send(x, 1, tag=tag) if rank == 0 else dist.recv(x, 0, tag=tag)
"""
    assert "than hpcnb compares (256)" in str(run(cluster2, source).notices)
    assert run(cluster2, source).notices == {}
    cluster2.recover()
    mismatch = "x = torch.ones(1 + rank)\ndist.send(x, 1, tag=299) if rank == 0 else dist.recv(x, 0, tag=299)"
    result = cluster2.run(mismatch, timeout_s=20)
    assert not result.exits, result.failure_text()
    assert "CollectiveMismatch" in result.failure_text()
    run(cluster2, "dist.all_reduce(torch.ones(1))")
