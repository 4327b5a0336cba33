"""A cluster of several nodes that is given another number of ranks: they are spread, and keep their numbers."""

from __future__ import annotations

import pytest

import hpcnb
from hpcnb import Cluster
from hpcnb.core.errors import OptionError
from tests.cluster.hosts import Hosts, why_not
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are virtual hosts"),
]

SUM = """import os, socket, torch, torch.distributed as dist
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
(socket.gethostname(), local_rank, int(os.environ['LOCAL_WORLD_SIZE']), int(total))"""


def run(cluster, source, **options):
    result = cluster.run(source, **options)
    assert result.ok, result.failure_text()
    return result.values


def test_two_nodes_grow_and_shrink():
    with Hosts(2) as hosts:
        cluster = Cluster(
            2, launcher="ssh", hosts="n1,n2", ssh_config=str(hosts.ssh_config), threads_per_rank=1, idle_timeout_s=0,
            start_timeout_s=60, silence_s=3.0, name="elastic",
        )  # fmt: skip
        with cluster:
            run(cluster, "kept = rank")
            with pytest.raises(OptionError, match=r"cannot start more nodes yet \(hosts='n3'\)"):
                cluster.scale(4, hosts="n3")
            grown = cluster.scale(6)
            assert grown.lost == ("kept",)
            assert run(cluster, SUM) == {
                0: "('n1', 0, 3, 21)", 1: "('n2', 0, 3, 21)", 2: "('n1', 1, 3, 21)", 3: "('n1', 2, 3, 21)",
                4: "('n2', 1, 3, 21)", 5: "('n2', 2, 3, 21)",
            }  # fmt: skip
            assert [row["rank"] for row in sorted(cluster.status(), key=lambda row: row["rank"])] == list(range(6))
            assert set(cluster.run("1", on="host=n1").values) == {0, 2, 3}
            result = cluster.run("if rank != 5:\n    dist.barrier()")
            assert set(result.errors) == {0, 1, 2, 3, 4}
            cluster.restart_rank(4)
            assert run(cluster, SUM)[4] == "('n2', 1, 3, 21)"
            attached = run_elsewhere("cluster.world_size, cluster.run('rank + world_size').values[5]")
            assert attached == "(6, '11')"
            assert cluster.scale(1).removed == hpcnb.core.ranks.RankSet(range(1, 6))
            assert run(cluster, SUM) == {0: "('n1', 0, 1, 1)"}
            cluster.scale(3)
            assert run(cluster, SUM) == {0: "('n1', 0, 2, 6)", 1: "('n1', 1, 2, 6)", 2: "('n2', 0, 1, 6)"}
            assert run(cluster, "kept", on="0") == {0: "0"}
            hosts.off("n2")
            wait_until(lambda: len(cluster.alive) == 2, 15)
            hosts.on("n2")
            assert cluster.scale(4).new == hpcnb.core.ranks.RankSet([2, 3])
            assert run(cluster, SUM) == {
                0: "('n1', 0, 2, 10)", 1: "('n1', 1, 2, 10)", 2: "('n2', 0, 2, 10)", 3: "('n2', 1, 2, 10)",
            }  # fmt: skip
            assert run(cluster, "kept", on="0") == {0: "0"}


def run_elsewhere(expression):
    """What another notebook that attaches finds."""
    import subprocess
    import sys

    source = f"import hpcnb\ncluster = hpcnb.attach('elastic')\nprint(({expression}))\ncluster.detach()"
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
