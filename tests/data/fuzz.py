"""Frames that no notebook and no rank would send, from a seed; for the tests and the benchmark of trust."""

from __future__ import annotations

import random
import socket
import struct

from hpcnb.core import messages as m
from hpcnb.core.ranks import RankSet

#: How a peer that speaks ZMTP 3 with CURVE begins, and the first bytes of its handshake.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
HELLO = b"\x04\xc8\x05HELLO\x01\x00"

#: Messages of which mutations are made; none of them ends a cluster.
SEEDS = [
    m.Hello(m.PROTOCOL, "0.1.0", "3.11"),
    m.RunCell(1 << 30, RankSet([0]), "1", "cell", 1, want_pickles=False, line_budget=10, byte_budget=10, is_init=False),
    m.CallFunction(1 << 30, RankSet([0]), b"cos\nsystem\n(S'true'\ntR.", 10, 10, "call"),
    m.Interrupt(3, RankSet([5])),
    m.Follow(3),
    m.Ask(1, "status", 0),
    m.RestartRanks(RankSet([5]), 1, [["3", [0, 1]]], 4),
    m.InputReply(1 << 30, 0, 1, "text", ""),
    m.Check(1 << 30, RankSet([0]), ["model"], rng=True),
    m.Rebuild(1 << 30, RankSet([0]), 1, RankSet(), RankSet(), 0, []),
    m.Welcome(1, "", "", "", 1, 0, 1, 0, 0, False),
    m.CellBegan(1, "x", RankSet([0]), 1, 1),
]


def raw(rng: random.Random) -> bytes:
    """Bytes for a stream socket: noise, half a greeting, a greeting and noise, lengths that promise much."""
    noise = rng.randbytes(rng.randrange(1, 200))
    kind = rng.randrange(6)
    if kind == 0:
        return noise
    if kind == 1:
        return GREETING[: rng.randrange(1, len(GREETING))]
    if kind == 2:
        return GREETING + noise
    if kind == 3:
        return GREETING + HELLO + noise
    if kind == 4:
        return GREETING + b"\x02" + struct.pack(">Q", rng.randrange(1 << 63)) + noise
    return struct.pack("<I", rng.randrange(1 << 32)) + m.encode(rng.choice(SEEDS))


def message(rng: random.Random) -> bytes:
    """A frame for a peer that has the key: noise, a message with bytes changed, or cut, or with odd values."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    packed = bytearray(m.encode(rng.choice(SEEDS)))
    if kind == 1:
        return bytes(packed[: rng.randrange(len(packed))])
    if kind == 2:
        for _ in range(rng.randrange(1, 4)):
            packed[rng.randrange(len(packed))] = rng.randrange(256)
        return bytes(packed)
    import msgpack

    seed = rng.choice(SEEDS)
    name, count = type(seed).__name__, rng.choice([rng.randrange(12), len(m.names_of(seed))])
    odd = [None, -1, 1 << 63, 1.5, "x" * rng.randrange(50), b"\x80\x04.", [], [[[]]], {}, {"a": 1}, True]
    return bytes(msgpack.packb([name, *rng.choices(odd, k=count)]))


def is_obeyed(packed: bytes) -> bool:
    """Whether a frame is, by chance, what a notebook may say: to end a cluster, run a cell, name its server."""
    try:
        found = m.decode(packed)
    except m.MessageError:
        return False
    return (
        isinstance(found, m.Shutdown | m.RunCell | m.CallFunction | m.Rebuild | m.Recording | m.RestartRanks | m.Check)
        or (isinstance(found, m.Ask) and found.question == "leave")
        or (isinstance(found, m.Hello) and found.owner_pid != 0)
    )


def throw(path: str, packed: bytes) -> None:
    """Connect to a local socket, send, and go without listening."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)  # waits while the queue of connections is full
            connection.settimeout(5.0)
            connection.sendall(packed)
        except (ConnectionError, TimeoutError):
            pass  # it has been hung up on before all was sent
