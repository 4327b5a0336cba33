"""Odd frames: what a cluster does when a million of them arrive, from peers with and without its key.

Half are raw bytes on the sockets of link and ranks, each on a connection of its own; half come from a peer with the
key, welcomed or not: noise, messages with bytes changed, cut, or with values of other types. Beside them connection
files that are none are read, as attach does. Afterwards the same agent must serve the same names. There is no peer to
compare with: its column has the same cluster before.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import measure
import psutil
import zmq

import hpcnb
from hpcnb.cluster.running import find, read_spec
from hpcnb.core import messages as m
from hpcnb.core.errors import LinkError
from hpcnb.core.launch import RunFolder
from hpcnb.core.version import __version__

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))
import fuzz

NUM_FRAMES, NUM_QUICK = 1_000_000, 20_000
#: a peer with the key asks after so many frames whether it is still answered, so that none wait in memory
BATCH = 2_000
#: one connection file for so many frames
PER_FILE = 100


def throw_raw(folder: RunFolder, rng: random.Random, count: int) -> None:
    link, ranks = str(folder.link_socket), str(folder.agent_socket)
    for number in range(count):
        fuzz.throw(ranks if number % 5 == 0 else link, fuzz.raw(rng))


def say_odd(folder: RunFolder, rng: random.Random, count: int) -> None:
    spec = read_spec(folder)
    hello = m.encode(m.Hello(m.PROTOCOL, __version__, spec.python_version))
    with zmq.Context() as context:
        for start in range(0, count, BATCH):
            with context.socket(zmq.DEALER) as peer:
                peer.linger = 0
                peer.sndhwm = peer.rcvhwm = 0
                peer.curve_publickey, peer.curve_secretkey = spec.client_public.encode(), spec.client_secret.encode()
                peer.curve_serverkey = spec.server_public.encode()
                peer.connect(spec.link_address)
                welcomed = start // BATCH % 2 == 0
                if welcomed:
                    peer.send(hello)
                for _ in range(min(BATCH, count - start)):
                    packed = fuzz.message(rng)
                    if not fuzz.is_obeyed(packed):
                        peer.send(packed)
                peer.send(hello)
                peer.send(m.encode(m.Ask(777, "cluster", 0)))
                await_answer(peer)


def await_answer(peer: zmq.Socket) -> None:
    until_s = time.monotonic() + 30
    while peer.poll(max(0, until_s - time.monotonic()) * 1000):
        message = m.decode(peer.recv())
        if isinstance(message, m.Answer) and message.request == 777:
            return
    raise measure.WrongResult("the agent did not answer within 30 s")


def read_odd_files(folder: RunFolder, rng: random.Random, count: int) -> int:
    """How many were taken for a connection file that leads elsewhere or has other keys; the rest raise LinkError."""
    whole = folder.spec.read_bytes()
    taken = 0
    try:
        for _ in range(count):
            packed = bytearray(whole)
            for _ in range(rng.randrange(1, 5)):
                packed[rng.randrange(len(packed))] = rng.randrange(256)
            if rng.randrange(2):
                del packed[rng.randrange(len(packed)) :]
            folder.spec.write_bytes(bytes(packed))
            try:
                taken += read_spec(folder).link_address != f"ipc://{folder.link_socket}"
            except LinkError:
                pass
    finally:
        folder.spec.write_bytes(whole)
    return taken


def cells_ms(cluster: hpcnb.Cluster) -> list[float]:
    times = []
    for _ in range(30):
        began_s = time.perf_counter()
        values = cluster.run("kept").values
        times.append((time.perf_counter() - began_s) * 1e3)
        measure.expect(values == {0: "'kept'", 1: "'kept'"}, f"the ranks' name came back as {values}")
    return times


def main(options) -> None:
    count = options.frames or (NUM_QUICK if options.quick else NUM_FRAMES)
    rng = random.Random(options.seed)
    began_s = time.monotonic()
    with measure.Place(), hpcnb.Cluster(2, name="fuzzed") as cluster:
        cluster.run("kept = 'kept'").raise_for_errors()
        (found,) = find()
        folder, agent = found.folder, psutil.Process(found.pid)
        throw_raw(folder, rng, 500)  # what is made once is made now
        say_odd(folder, rng, 2 * BATCH)
        before_ms, before_mb, before_fds = cells_ms(cluster), agent.memory_info().rss / 2**20, agent.num_fds()
        steps = 10
        for _ in range(steps):
            throw_raw(folder, rng, count // 2 // steps)
            say_odd(folder, rng, count // 2 // steps)
        taken = read_odd_files(folder, rng, count // PER_FILE)
        measure.expect(agent.is_running() and cluster.running, "the agent ended")
        after_ms = cells_ms(cluster)
        measure.poll(lambda: agent.num_fds() <= before_fds, 10.0)
        after_mb, after_fds = agent.memory_info().rss / 2**20, agent.num_fds()
        log_lines = len(cluster.logs().splitlines())
        refused = cluster.describe()["num_refused"]
        agent_pid = cluster.describe()["pid"]
    measure.expect(agent_pid == agent.pid, "another agent answered")
    rows = [
        measure.Row("crashes", "", [0], at_most=0),
        measure.Row("refused (one frame may be no refusal, or several)", "", [refused]),
        measure.Row("cell after / before", "ms", after_ms, before_ms, ratio_at_most=1.5, peer_name="before"),
        measure.Row("memory of the agent (RSS) grew by", "MB", [after_mb - before_mb], at_most=16),
        measure.Row("descriptors of the agent grew by", "", [max(0, after_fds - before_fds)], at_most=0),
        measure.Row("lines in its log", "", [log_lines], at_most=2000),
        measure.Row("odd connection files that led elsewhere", "", [taken], at_most=0),
    ]
    measure.table(rows, peer="before")
    print(
        f"{count:,} frames, {count // PER_FILE:,} files, seed {options.seed}, took {time.monotonic() - began_s:.0f} s"
    )


if __name__ == "__main__":
    measure.run(
        main, limit_s=1800,
        frames={"type": int, "help": f"how many (default {NUM_FRAMES:,}, with --quick {NUM_QUICK:,})"},
        seed={"type": int, "default": 7, "help": "of the random bytes"},
    )  # fmt: skip
