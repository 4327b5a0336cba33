"""Every engine is a real ipyparallel engine: its client and views see the same names."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.engines


def test_client_and_cells_see_the_same_names(cluster2):
    cluster2.run("from_cell = rank + 1")
    client = cluster2.client
    assert client.ids == [0, 1]
    view = client[:]
    assert view["from_cell"] == [1, 2]
    view.push({"from_view": 5}, block=True)
    assert cluster2.run("from_view").values == {0: "5", 1: "5"}
    assert view.apply_sync(int, "7") == [7, 7]


def test_output_of_views_goes_to_views(cluster2):
    result = cluster2.client[:].execute("print('to the view', rank)", block=True)
    assert [text.strip() for text in result.stdout] == ["to the view 0", "to the view 1"]
    assert cluster2.run("1").outputs == {}


def test_engine_ids_are_ranks(cluster4):
    assert cluster4.client[:]["rank"] == [0, 1, 2, 3]


def test_the_heart_of_a_rank_that_was_replaced_is_not_told_of_twice_a_second(cluster2):
    cluster2.restart_rank(1)
    assert cluster2.client.ids == [0, 1]
    time.sleep(1.5)
    assert "heartbeat" not in cluster2.logs()


def test_the_launcher_works_in_a_cluster_of_ipyparallel(tmp_path):
    import ipyparallel

    cluster = ipyparallel.Cluster(
        engines="hpcnb",
        n=2,
        profile_dir=str(tmp_path),
        cluster_id="mine",
        log_level=40,
        send_engines_connection_env=False,
    )
    client = cluster.start_and_connect_sync()
    try:
        view = client[:]
        assert view["rank"] == [0, 1]
        view.execute("import torch, torch.distributed as dist\nx = torch.ones(1)\ndist.all_reduce(x)", block=True)
        assert view.apply_sync(float, "2") == [2.0, 2.0]
        assert [float(x) for x in view["x"]] == [2.0, 2.0]
    finally:
        client.close()
        cluster.stop_cluster_sync()
