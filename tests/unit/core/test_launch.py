"""The spec of an agent, and the private folder of a cluster."""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from pathlib import Path

import pytest

from hpcnb.core.launch import AgentSpec, RunFolder, agent_environment, runtime_root
from hpcnb.core.ranks import RankSet


@pytest.fixture
def spec():
    return AgentSpec(
        "default", 4, 0, 4, "dp=2,tp=2", 2, 8 * 3600.0, "0.1.0", "3.11", "ipc:///x", "public", "secret", "client",
        "client secret", {"A": "1", "OMP_NUM_THREADS": "7"},
    )  # fmt: skip


@pytest.fixture
def root(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # short: there are sockets in it
        monkeypatch.setenv("HPCNB_RUNTIME_DIR", base)
        yield Path(base) / f"hpcnb-{os.getuid()}"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_spec_comes_back_and_is_readable_by_its_owner_only(spec, tmp_path):
    path = tmp_path / "cluster.json"
    spec.save(path)
    assert AgentSpec.load(path) == spec
    assert mode(path) == 0o600
    with pytest.raises(FileExistsError):
        spec.save(path)  # nobody can have put a file there for us to write our keys into


def test_the_environment_of_ranks(spec):
    environment = agent_environment(spec)
    assert environment["MKL_NUM_THREADS"] == "2"
    assert environment["OMP_NUM_THREADS"] == "7"  # the user's word is the last
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "lo"
    assert environment["A"] == "1"


def test_a_run_folder_is_private(root):
    folder = RunFolder.create("my cluster/../..")
    assert folder.path.parent == root == runtime_root()
    assert folder.path.name.startswith("my_cluster______-")
    for path in (root, folder.path, folder.cells, folder.profile):
        assert mode(path) == 0o700
    assert RunFolder.create("x").path != RunFolder.create("x").path


def test_a_root_that_others_may_read_is_refused(root):
    root.mkdir()
    root.chmod(0o755)
    with pytest.raises(PermissionError) as caught:
        RunFolder.create("x")
    words = str(caught.value)
    assert f"{root} must belong to you with mode 0700" in words
    assert "mode 755" in words
    assert f"chmod 700 {root}" in words
    assert "HPCNB_RUNTIME_DIR" in words


def test_a_root_that_is_a_link_is_refused(root, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        RunFolder.create("x")


@pytest.mark.parametrize(("long", "name"), [("x" * 90, "default"), ("x" * 30, "é" * 24)])
def test_a_root_that_is_too_long_for_sockets_is_refused(root, monkeypatch, long, name):
    monkeypatch.setenv("HPCNB_RUNTIME_DIR", str(root.parent / long))
    with pytest.raises(
        ValueError, match="is too long for the sockets in it; set HPCNB_RUNTIME_DIR to a shorter folder"
    ):
        RunFolder.create(name)


def test_names_of_files(root):
    folder = RunFolder.create("default")
    names = [
        folder.spec, folder.agent_log, folder.agent_socket, folder.link_socket, folder.rank_log(3),
        folder.flood(2, 3), folder.connection_file("client"), folder.connection_file("engine"),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert all(folder.path in name.parents for name in names)  # removed with the folder


def test_a_connection_file_that_is_still_empty_is_none_yet(tmp_path):
    folder = RunFolder.create("name", root=tmp_path / "root")
    path = folder.connection_file("engine")
    assert not folder.of_controller()
    path.parent.mkdir(parents=True)
    path.touch()  # the controller makes it before it writes
    assert not folder.of_controller()
    path.write_text("{}")
    assert folder.of_controller() == b"{}"


def test_a_spec_of_another_size(spec, tmp_path):
    path = tmp_path / "cluster.json"
    spec.save(path)
    scaled = spec.scaled(6, "dp=6", [], groups_before_mesh=4)
    assert (scaled.world_size, scaled.own_ranks, scaled.is_head) == (6, RankSet.all(6), False)
    scaled.save_again(path)
    assert AgentSpec.load(path) == scaled
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_ranks_of_nodes_of_another_size(spec):
    head = dataclasses.replace(spec, layout=[2, 2], node=-1, num_ranks=0)
    assert head.own_ranks == RankSet()
    placement = [[0, 1, 4], [2, 3, 5]]
    scaled = head.scaled(6, "dp=6", placement, groups_before_mesh=4)
    assert scaled.is_head
    assert scaled.layout == [3, 3]
    assert scaled.ranks_of_nodes == [RankSet([0, 1, 4]), RankSet([2, 3, 5])]
    node = dataclasses.replace(head, node=1, first_rank=2, num_ranks=2)
    assert node.own_ranks == RankSet([2, 3])
    assert node.scaled(6, "dp=6", placement, groups_before_mesh=4).own_ranks == RankSet([2, 3, 5])
