"""Who is not let in, and what is not believed: other users, wrong keys, odd frames, odd order."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import cloudpickle
import msgpack
import psutil
import pytest
import zmq

import hpcnb
from hpcnb import Cluster
from hpcnb.cluster.running import read_spec
from hpcnb.core import messages as m
from hpcnb.core.errors import LinkError
from hpcnb.core.ranks import RankSet
from hpcnb.core.version import __version__

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import fuzz

from tests.waiting import wait_until

pytestmark = pytest.mark.engines
NOBODY = 65534
PYTHON = ".".join(map(str, sys.version_info[:2]))
HELLO = m.Hello(m.PROTOCOL, __version__, PYTHON)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of its own, whose log is read, in a folder that is open to everybody as /tmp is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base, pytest.MonkeyPatch.context() as patch:
        Path(base).chmod(0o1777)
        patch.setenv("HPCNB_RUNTIME_DIR", base)
        with Cluster(1, name="trusted", idle_timeout_s=0) as cluster:
            yield cluster


class Peer:
    """A zmq peer of the agent, with the keys it is given."""

    def __init__(self, spec, keys="right"):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndtimeo = 1000
        if keys is not None:
            own = (spec.client_public.encode(), spec.client_secret.encode()) if keys == "right" else keys
            self.socket.curve_publickey, self.socket.curve_secretkey = own
            self.socket.curve_serverkey = spec.server_public.encode()
        self.socket.connect(spec.link_address)

    def say(self, *messages):
        for message in messages:
            with contextlib.suppress(zmq.Again):  # refused already: libzmq then has nobody to send to
                self.socket.send(message if isinstance(message, bytes) else m.encode(message))

    def hear(self, timeout_s=10.0):
        return m.decode(self.socket.recv()) if self.socket.poll(timeout_s * 1000) else None

    def hear_until(self, kind):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if isinstance(message := self.hear(1.0), kind):
                return message
        raise AssertionError(f"no {kind.__name__} came")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.context.term()


def refused(cluster):
    return cluster.describe()["num_refused"]


def log(cluster):
    return cluster.logs()


def bomb(path):
    """A pickle that leaves a trace where it is opened."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(path), "w"))

    return cloudpickle.dumps((Bomb(), (), {}))


def run_cell(cell, path):
    return m.RunCell(cell, RankSet([0]), f"open({str(path)!r}, 'w')", "x", 1, False, 9, 999, False)


@pytest.mark.parametrize("keys", ["none", "wrong"])
def test_who_has_no_key_runs_nothing_and_opens_no_pickle(cluster, tmp_path, keys):
    spec = read_spec(cluster._node.folder)
    before = refused(cluster)
    trace = tmp_path / "trace"
    for _ in range(20):
        with Peer(spec, None if keys == "none" else zmq.curve_keypair()) as peer:
            peer.say(HELLO, run_cell(1 << 20, trace), m.CallFunction(1 << 20, RankSet([0]), bomb(trace), 9, 99, "x"))
            assert peer.hear(0.02) is None
    wait_until(lambda: refused(cluster) > before)
    assert cluster.run("rank").ok
    assert not trace.exists()
    assert log(cluster).count("has not proved the cluster's key") <= 3  # once per kind, not once per frame


@pytest.mark.parametrize("first", [None, m.Hello(m.PROTOCOL, "9.9", "2.7"), m.Hello(1, __version__, PYTHON)])
def test_who_has_the_key_but_was_not_welcomed_runs_nothing(cluster, tmp_path, first):
    trace = tmp_path / "trace"
    before = refused(cluster)
    with Peer(read_spec(cluster._node.folder)) as peer:
        if first is not None:
            peer.say(first)
            assert isinstance(peer.hear(), m.Refused)
        frames = [
            run_cell(1 << 20, trace), m.CallFunction(1 << 20, RankSet([0]), bomb(trace), 9, 99, "x"),
            m.Shutdown("x"), m.Ask(1, "leave", 0), m.Interrupt(0, RankSet([0])),
        ]  # fmt: skip
        for _ in range(100):
            peer.say(*frames)
        wait_until(lambda: refused(cluster) >= before + 500)
        assert peer.hear(0.1) is None
    assert cluster.run("rank").ok
    assert not trace.exists()
    assert log(cluster).count("without a Hello that was welcomed") <= 4


def test_who_came_to_look_may_only_ask(cluster, tmp_path):
    trace = tmp_path / "trace"
    before = refused(cluster)
    with Peer(read_spec(cluster._node.folder)) as peer:
        peer.say(m.Hello(m.PROTOCOL, __version__, PYTHON, "look"))
        assert isinstance(peer.hear(), m.Welcome)
        peer.say(run_cell(1 << 20, trace), m.Shutdown("x"), m.Ask(1, "leave", 0), m.Ask(2, "cluster", 0))
        peer.hear_until(m.Answer)
        assert peer.hear().value["notebooks"] == 1
    assert refused(cluster) == before + 2
    assert cluster.run("rank").ok
    assert not trace.exists()


def test_frames_that_are_no_messages_are_counted_and_the_peer_is_still_served(cluster):
    before = refused(cluster)
    with Peer(read_spec(cluster._node.folder)) as peer:
        for owner in (-1, 1 << 22, 1 << 60):  # is not there, cannot be
            peer.say(m.Hello(m.PROTOCOL, __version__, PYTHON, "notebook", owner))
            peer.hear_until(m.Welcome)
        before = refused(cluster)
        for packed in (b"", b"\xc1", b"x" * 1000, m.encode(HELLO)[:-1], b"\x92\xa6Follow\xa1x"):
            peer.say(packed)
        peer.socket.send_multipart([m.encode(m.Shutdown("x"))] * 2)
        peer.say(m.Ask(7, "cluster", 0))
        assert peer.hear_until(m.Answer).value["num_refused"] == before + 6


def test_messages_of_a_wrong_shape_are_refused_once_and_end_nothing(cluster):
    """Types of fields are checked with all that they hold; what is merely odd is carried out."""
    before = refused(cluster)
    rank = msgpack.ExtType(1, RankSet([0]).to_bytes())
    odd = [
        msgpack.packb(["RestartRanks", rank, 1, groups, 2])
        for groups in (b"x", [b"x"], [["3", [b"x"]]], [["3", 1]], {"3": [0]})
    ]
    with Peer(read_spec(cluster._node.folder)) as peer:
        peer.say(HELLO)
        peer.hear_until(m.Welcome)
        for message in odd * 3:
            peer.say(message)
        # well-formed, and yet nothing that anybody says
        peer.say(*[m.RunCell((1 << 29) + n, RankSet([0]), "1", "x", -1, False, -5, -5, False) for n in range(3)])
        peer.say(m.Ask(7, "cluster", 0))
        assert peer.hear_until(m.Answer).value["num_refused"] >= before + 15
    wait_until(lambda: cluster.status()[0]["state"] == "idle")
    # once for this process and kind, perhaps in an earlier test
    assert log(cluster).count("no message of this protocol (") == 1
    assert "Traceback" not in log(cluster)
    assert cluster.alive == RankSet([0])


def test_who_waits_for_a_cell_that_was_refused_hears_of_it(cluster):
    with Peer(read_spec(cluster._node.folder)) as peer:
        peer.say(HELLO)
        number = peer.hear_until(m.Welcome).last_cell + 1
        rank = msgpack.ExtType(1, RankSet([0]).to_bytes())
        peer.say(msgpack.packb(["Interrupt", number, 7]), msgpack.packb(["Check", number, rank, ["x"], 1]))
        refused = peer.hear_until(m.CellRefused)
    assert refused.cell == number
    assert refused.reason == "the node agent refused what it was sent: Check.rng cannot be a int"
    assert cluster.run("rank").ok


#: On a rank, past the checks of who sends: frames that the agent refuses.
SLIP = """
import msgpack, os, struct
def say(packed):
    hpc._link.cells.sendall(struct.pack("<I", len(packed)) + packed)
cell = hpc._recorder.cell
slips = [msgpack.packb(each) for each in (
    ["RankProgress", cell, 1, "x", 3.0, 0, 0.0, False], ["RankDisplay", cell, {1: "x"}, {}, "", False],
    ["CellRefused", cell, "x"], ["Shutdown", "x"], ["Foo"], 7,
)] + [b"", b"\\xc1"]
"""


def test_slips_of_a_rank_are_refused_and_nobody_ends(cluster):
    pid, before = cluster.status()[0]["pid"], refused(cluster)
    source = SLIP + "for slip in slips * 3:\n    say(slip)\n    os.write(1, b'.')\nprint('said')\n'value'"
    result = cluster.run(source)
    assert result.values == {0: "'value'"}
    assert result.items[0].text.replace("\n", "") == "." * 24 + "said"
    assert cluster.status()[0]["pid"] == pid
    assert refused(cluster) == before + 24
    assert log(cluster).count("refused rank 0: no message of this protocol (") == 1


def test_a_slip_as_the_last_word_of_a_rank_ends_no_cluster(cluster):
    before = refused(cluster)
    result = cluster.run(SLIP + "[say(slip) for slip in slips]\nos.write(1, b'x')\nos.kill(os.getpid(), 9)")
    assert list(result.exits) == [0]
    assert refused(cluster) == before + 8
    cluster.restart_rank()
    assert cluster.run("rank").ok


def test_a_stream_that_cannot_be_read_on_ends_its_rank_and_nobody_else(cluster):
    result = cluster.run("hpc._link.cells.sendall(b'\\xff' * 100)\nimport time\ntime.sleep(60)")
    assert result.exits == {0: -9}
    assert log(cluster).count("what rank 0 sends cannot be told apart any more (frame of 4294967295 bytes") == 1
    cluster.restart_rank()
    assert cluster.run("rank").ok


def test_a_recorded_connection_cannot_be_played_again(cluster, tmp_path):
    """A proxy on a socket of its own keeps what a notebook with the key sent; the same bytes again do nothing."""
    spec = read_spec(cluster._node.folder)
    real = str(cluster._node.folder.link_socket)
    own = Path(tempfile.mkdtemp(dir="/tmp")) / "proxy"
    recorded = bytearray()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(own))
    listener.listen()

    def pump(source, sink, keep):
        while data := source.recv(65536):
            if keep:
                recorded.extend(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def proxy():
        front, _ = listener.accept()
        with front, socket.socket(socket.AF_UNIX) as back:
            back.connect(real)
            answer = threading.Thread(target=pump, args=(back, front, False))
            answer.start()
            pump(front, back, True)
            answer.join()

    thread = threading.Thread(target=proxy)
    thread.start()
    import dataclasses

    trace = tmp_path / "trace"
    with Peer(dataclasses.replace(spec, link_address=f"ipc://{own}")) as peer:
        peer.say(HELLO)
        number = peer.hear_until(m.Welcome).last_cell + 1
        peer.say(run_cell(number, trace))
        peer.hear_until(m.CellDone)
    thread.join(10)
    listener.close()
    shutil.rmtree(own.parent)
    assert trace.exists()  # the recording holds a cell that ran
    trace.unlink()
    for _ in range(20):
        fuzz.throw(real, bytes(recorded))
    assert cluster.run("rank").ok
    assert cluster.describe()["notebooks"] == 1
    assert not trace.exists()


def test_a_process_that_is_no_rank_cannot_pose_as_one(cluster):
    path = str(cluster._node.folder.agent_socket)
    before = refused(cluster)
    rank = cluster.status()[0]["pid"]
    for hello in (m.RankHello(0, os.getpid(), "cells"), m.RankHello(0, rank, "cells"), m.RankHello(0, rank, "control")):
        with socket.socket(socket.AF_UNIX) as connection, tempfile.TemporaryFile() as file:
            connection.connect(path)
            connection.settimeout(10)
            try:
                socket.send_fds(connection, [m.frame(hello)], [file.fileno()] * 3)
                assert connection.recv(10) == b""
            except ConnectionError:
                pass  # the same: it was hung up
    assert refused(cluster) == before + 3
    assert cluster.run("rank").ok


def test_thousands_of_odd_frames_leave_the_link_as_it_was(cluster):
    spec, folder = read_spec(cluster._node.folder), cluster._node.folder
    agent = psutil.Process(cluster._node.agent.pid)
    rng = random.Random(7)
    descriptors = agent.num_fds()
    for _ in range(1500):
        fuzz.throw(str(rng.choice([folder.link_socket, folder.agent_socket])), fuzz.raw(rng))
    for hello in (None, HELLO):
        with Peer(spec) as peer:
            if hello is not None:
                peer.say(hello)
            for _ in range(3000):
                packed = fuzz.message(rng)
                if not fuzz.is_obeyed(packed):
                    peer.say(packed)
            peer.say(HELLO, m.Ask(77, "cluster", 0))
            while peer.hear_until(m.Answer).request != 77:
                pass
    assert cluster.run("rank").values == {0: "0"}
    wait_until(lambda: agent.num_fds() <= descriptors)
    assert len(log(cluster).splitlines()) < 1000
    assert "Traceback" not in log(cluster)


STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
folder, root = sys.argv[1:]
tried = []
for path in (folder + "/cluster.json", folder, root):
    try:
        os.listdir(path) if path != folder + "/cluster.json" else open(path)
    except PermissionError:
        tried.append("closed")
for name in ("link.sock", "ranks.sock"):
    try:
        socket.socket(socket.AF_UNIX).connect(folder + "/" + name)
    except PermissionError:
        tried.append("closed")
print(*tried)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_reads_nothing_and_connects_to_nothing(cluster):
    folder = cluster._node.folder.path
    done = subprocess.run(
        [sys.executable, "-c", STRANGER.format(uid=NOBODY), str(folder), str(folder.parent)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["closed"] * 5, done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_attaches_to_nothing_and_is_refused_by_the_sockets_even_when_folders_are_open(cluster):
    """In a child of ours, since the interpreter's own folder may be closed to others."""
    folder = cluster._node.folder
    source = textwrap.dedent("""
        from hpcnb.cluster.attach import attach
        from hpcnb.cluster import running
        from hpcnb.core.errors import HpcnbError
        from hpcnb.core import launch
        import os, sys
        root = launch.runtime_root()
        os.setgroups([]); os.setgid({uid}); os.setuid({uid})
        words = []
        for where in (root, launch.runtime_root()):  # ours, and the stranger's own
            running.runtime_root = lambda: where
            try:
                attach()
            except (HpcnbError, PermissionError) as error:
                words.append(type(error).__name__)
        print(*words)
    """).format(uid=NOBODY)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["LinkError", "ClusterStateError"], done.stderr
    # a cluster's folder that was opened by mistake is not attached to by its owner either
    folder.path.chmod(0o755)
    try:
        cluster.detach()
        with pytest.raises(LinkError, match=r"must be a folder of mode 0700 of yours.*chmod 700"):
            hpcnb.attach("trusted")
    finally:
        folder.path.chmod(0o700)
