"""Finding clusters: whose folders and files are believed, and what is said about those that are not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.cluster.attach import stop_all
from hpcnb.cluster.launchers import local
from hpcnb.cluster.running import RunningAgent, find, read_spec
from hpcnb.core import alive
from hpcnb.core.errors import LinkError
from hpcnb.core.launch import RunFolder
from hpcnb.core.mesh import MeshSpec


@pytest.fixture
def folder(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        monkeypatch.setenv("HPCNB_RUNTIME_DIR", base)
        folder = RunFolder.create("mine")
        new_spec(folder).save(folder.spec)
        yield folder


def new_spec(folder):
    return local.new_spec(
        folder, MeshSpec.parse("dp=2"), cluster_name="mine", threads_per_rank=1, idle_timeout_s=1.0, environment={}
    )


def rewrite(folder, **changes):
    values = json.loads(folder.spec.read_text())
    values.update(changes)
    folder.spec.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def test_a_spec_comes_back(folder):
    assert read_spec(folder).mesh == "dp=2"
    assert dataclasses.asdict(read_spec(folder)) == json.loads(folder.spec.read_text())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: folder.spec.chmod(0o644), r"cluster.json must be a file of mode 0600 of yours.*mode 644.*chmod 600"),
        (lambda folder: folder.path.chmod(0o750), r"must be a folder of mode 0700 of yours.*mode 750.*chmod 700"),
        (lambda folder: folder.path.parent.chmod(0o755), r"must be a folder of mode 0700 of yours.*mode 755"),
        (lambda folder: folder.spec.unlink(), r"cluster.json cannot be read: No such file"),
        (lambda folder: (folder.spec.rename(folder.path / "x"), folder.spec.symlink_to(folder.path / "x")), r"cannot be read: Too many levels of symbolic links"),
        (lambda folder: (folder.spec.unlink(), os.mkfifo(folder.spec, 0o600)), r"must be a file"),
        (lambda folder: folder.spec.write_text(""), r"is no connection file of this version of hpcnb \(Expecting value"),
        (lambda folder: folder.spec.write_bytes(b"\xff\xfe\x00"), r"is no connection file"),
        (lambda folder: folder.spec.write_text("[" * 100_000), r"is no connection file"),
        (lambda folder: folder.spec.write_text("[1]"), r"a list, not an object"),
        (lambda folder: rewrite(folder, mesh=...), r"missing or unknown: mesh"),
        (lambda folder: rewrite(folder, more=1), r"missing or unknown: more"),
        (lambda folder: rewrite(folder, world_size="2"), r"world_size is a str, not int"),
        (lambda folder: rewrite(folder, world_size=True), r"world_size is a bool, not int"),
        (lambda folder: rewrite(folder, world_size=3), r"mesh 'dp=2' has another number of ranks than 3"),
        (lambda folder: rewrite(folder, mesh="__import__('os')"), r"cannot read"),
        (lambda folder: rewrite(folder, link_address="tcp://6.6.6.6:1"), r"its address 'tcp://6.6.6.6:1' is not in its folder"),
        (lambda folder: rewrite(folder, client_secret="short"), r"a key is none"),
        (lambda folder: rewrite(folder, client_secret=" " * 40), r"a key is none"),
        (lambda folder: rewrite(folder, client_secret="#" * 40), r"a key is none"),
        (lambda folder: rewrite(folder, server_public="ä" * 40), r"is no connection file"),
    ],
)  # fmt: skip
def test_files_that_are_not_believed(folder, break_it, words):
    break_it(folder)
    with pytest.raises(LinkError, match=words):
        read_spec(folder)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_file_is_refused_with_one_error(packed):
    with tempfile.TemporaryDirectory(dir="/tmp") as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPCNB_RUNTIME_DIR", base)
        folder = RunFolder.create("mine")
        new_spec(folder).save(folder.spec)
        folder.spec.write_bytes(packed)
        with pytest.raises(LinkError, match="is no connection file"):
            read_spec(folder)


@given(st.data())
def test_a_file_with_bytes_changed_is_believed_or_refused(data):
    with tempfile.TemporaryDirectory(dir="/tmp") as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPCNB_RUNTIME_DIR", base)
        folder = RunFolder.create("mine")
        new_spec(folder).save(folder.spec)
        packed = bytearray(folder.spec.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            packed[data.draw(st.integers(0, 10_000)) % len(packed)] = data.draw(st.integers(0, 255))
        folder.spec.write_bytes(packed)
        try:
            assert read_spec(folder).link_address == f"ipc://{folder.link_socket}"
        except LinkError as error:
            assert "is no connection file" in str(error)  # noqa: PT017 - any other exception fails the test


def test_life_is_told_by_the_lock(folder):
    assert [each.state for each in find()] == ["starting"]
    assert alive.feel(folder) == alive.Pulse(began=False)
    held = alive.hold(folder)
    assert alive.feel(folder) == alive.Pulse(began=True, pid=os.getpid())
    (found,) = find()
    assert (found.state, found.pid, found.key) == ("running", os.getpid(), folder.path.name)
    os.close(held)
    assert alive.feel(folder) == alive.Pulse(began=True)
    assert [each.state for each in find()] == ["dead"]


def test_an_old_folder_that_never_had_an_agent_is_dead(folder, monkeypatch):
    now_s = folder.path.stat().st_ctime
    monkeypatch.setattr("time.time", lambda: now_s + 121)
    assert [each.state for each in find()] == ["dead"]


def test_the_root_is_checked(folder):
    folder.path.parent.chmod(0o777)
    with pytest.raises(LinkError, match=r"must be a folder of mode 0700 of yours, .*mode 777; look who made it"):
        find()
    folder.path.parent.chmod(0o700)
    folder.path.parent.rename(f"{folder.path.parent}-x")
    assert find() == []
    Path(folder.path.parent).symlink_to(f"{folder.path.parent}-x")
    with pytest.raises(LinkError, match="but is a link"):
        find()


@pytest.fixture
def agent_process(folder):
    """A process that holds the folder's lock, as agents do."""
    source = (
        "import sys, time; from pathlib import Path; from hpcnb.core import alive, launch; "
        "alive.hold(launch.RunFolder(Path(sys.argv[1]))); print(flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-c", source, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_an_agent_that_is_no_child_is_waited_for_and_killed(folder, agent_process):
    agent = RunningAgent(agent_process.pid, folder)
    assert agent.ended() is None
    assert not agent.wait(0.0)
    agent.kill()
    assert agent.wait(0.0)
    assert agent.ended() == "unknown"
    assert agent.log_lines() == ()
    agent_process.wait()
    agent.signal(9)  # does nothing any more
    with pytest.raises(ProcessLookupError):
        RunningAgent(agent_process.pid, folder)


def test_a_process_that_got_the_number_of_an_agent_is_not_signalled(folder, agent_process, monkeypatch):
    """The agent ends, and its number is another's, between a look at the lock and taking hold of the process."""
    stranger = subprocess.Popen(["sleep", "1000"])
    open_it = os.pidfd_open

    def reused(pid):
        agent_process.kill()
        agent_process.wait()
        assert pid == agent_process.pid
        return open_it(stranger.pid)

    try:
        num_open = len(list(Path("/proc/self/fd").iterdir()))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", reused)
            rows = stop_all()
        assert [(row.state, row.name) for row in rows] == [("removed", "mine")]
        assert stranger.poll() is None
        assert len(list(Path("/proc/self/fd").iterdir())) == num_open
    finally:
        stranger.kill()
        stranger.wait()
