"""What ``hpcnb/node/look.py`` says of a machine, read from its lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Facts", "Reach", "read"]

#: Begins what the look at a node says; others (banners, set-up scripts) may write before and between.
_MARK = "HPCNB-LOOK "


@dataclass(frozen=True)
class Reach:
    """What a node reaches.

    Attributes:
        problem: Why it does not reach the notebook's machine; "" if it does.
        clock_s: Seconds by which its clock is ahead of the notebook's machine.
        clock_bound_s: How far that may be off.
        peers: By node that it should reach, why it does not; "" if it does.
    """

    problem: str = ""
    clock_s: float = 0.0
    clock_bound_s: float = 0.0
    peers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is seen on a node.

    Attributes:
        host: Its own name.
        python: Version.
        executable: Path of the interpreter.
        hpcnb: Version; "" if it cannot be imported.
        hpcnb_problem: Why not.
        packages: Version by distribution; "" if it is missing, "?" if nobody knows.
        limits: Soft and hard by name, ``NOFILE``; -1 is none.
        cores: Processors that may be used.
        gpus: Listed by the driver.
        visible_gpus: CUDA_VISIBLE_DEVICES; None if it is not set.
        has_infiniband: Whether there is a network of that kind.
        own_name: Addresses of its own name; "" if it has none.
        address: Its address on the way to the notebook's machine.
        no_address: Why it has none.
        interfaces: Address by name.
        asked_interfaces: What GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME say there.
        memory_free: Bytes.
        memory_total: Bytes.
        shm_free: Bytes in /dev/shm; -1 if there is none.
        shm_total: Its size in bytes.
        folder: Where folders of clusters lie.
        folder_problem: Why they cannot.
        socket_path_length: In characters.
        logs: Last lines of files that were asked for.
        reach: What it reaches; None where that was not tried or not said.
    """

    host: str
    python: str = ""
    executable: str = "python"
    hpcnb: str = ""
    hpcnb_problem: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    limits: dict[str, list[int]] = field(default_factory=dict)
    cores: int = 1
    gpus: int = 0
    visible_gpus: str | None = None
    has_infiniband: bool = False
    own_name: str = ""
    address: str = ""
    no_address: str = ""
    interfaces: dict[str, str] = field(default_factory=dict)
    asked_interfaces: dict[str, str] = field(default_factory=dict)
    memory_free: int = 0
    memory_total: int = 0
    shm_free: int = -1
    shm_total: int = -1
    folder: str = ""
    folder_problem: str = ""
    socket_path_length: int = 0
    logs: dict[str, list[str]] = field(default_factory=dict)
    reach: Reach | None = None


def read(lines: Sequence[str]) -> dict[str, Facts]:
    """Facts by node and process, from all that was said; lines that are not ours are left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        _, marked, text = line.partition(_MARK)
        if not marked:
            continue
        try:
            said = json.loads(text)
        except ValueError:
            continue  # it is still being written
        found.setdefault(said["id"], {}).update(said)
    return {me: _facts(said) for me, said in found.items() if "facts" in said}


def _facts(said: dict[str, Any]) -> Facts:
    reach = Reach(**_known(Reach, said["reach"])) if "reach" in said else None
    return Facts(**_known(Facts, said["facts"]), reach=reach)


def _known(kind: type[Facts | Reach], said: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in said.items() if name in names}
