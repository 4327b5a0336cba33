"""Clusters of this user that run on this machine: their folders, whether they live, and what they say of themselves.

Reads folders that anybody may have made where several people work, so it looks at owners and modes before it
believes a word; nothing that is read here is executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zmq.utils import z85

from hpcnb.cluster.launchers import local
from hpcnb.core import alive
from hpcnb.core.errors import LinkError
from hpcnb.core.launch import AgentSpec, RunFolder, runtime_root
from hpcnb.core.mesh import MeshSpec

__all__ = ["Found", "RunningAgent", "find", "read_spec"]

#: A connection file is some 1 kB; with a large environment some 100 kB.
_MOST_BYTES = 16 << 20
#: A folder without an agent is that of a cluster about to start, for so long.
_STARTING_S = 120.0
#: JSON types of the fields of a spec, by their annotation.
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,),
    "dict[str, str]": (dict,), "list[int]": (list,), "dict[str, Any]": (dict,),
    "list[list[int]]": (list,),
}  # fmt: skip


@dataclass
class RunningAgent:
    """A node agent that is no child of this process.

    Attributes:
        pid: Its process id.
        folder: Of its cluster.

    Raises:
        ProcessLookupError: It has ended.
    """

    pid: int
    folder: RunFolder
    _pidfd: int = field(default=-1, repr=False)

    def __post_init__(self) -> None:
        self._pidfd = os.pidfd_open(self.pid)
        if alive.feel(self.folder).pid != self.pid:  # looked at once more: the number may be another process's by now
            self.let_go()
            msg = f"process {self.pid} is not the agent of {self.folder.path.name} any more"
            raise ProcessLookupError(msg)

    def ended(self) -> int | str | None:
        """The kernel tells its status to its parent only."""
        return "unknown" if self.wait(0.0) else None

    def log_lines(self, count: int = 15) -> tuple[str, ...]:
        """The last lines of its log; nothing once the folder is gone."""
        return tuple(self.folder.log_lines(count))

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        if self._pidfd < 0:
            return True
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        self.let_go()
        local.reap()  # it may be our child after all, started before a detach
        return True

    def signal(self, number: int) -> None:
        """Send it a signal, and to no other process that got its number later."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # it has just ended

    def kill(self) -> None:
        """End it at once: the kernel ends template and ranks with it."""
        self.signal(signal.SIGKILL)
        self.wait(10.0)

    def let_go(self) -> None:
        """It goes on without this process."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


@dataclass(frozen=True)
class Found:
    """A cluster's folder.

    Attributes:
        folder: Where it is.
        state: ``running``; ``starting``: there is no agent yet; ``dead``: its agent has ended without removing it.
        pid: Of the agent; 0 where there is none.
    """

    folder: RunFolder
    state: str
    pid: int = 0

    @property
    def key(self) -> str:
        """Name of the folder: tells clusters of the same name apart."""
        return self.folder.path.name


def find() -> list[Found]:
    """All folders of clusters of this user, in the order of their start.

    Raises:
        LinkError: The folder that holds them belongs to someone else, or is open to others.
    """
    root = runtime_root()
    try:
        _check_private(root, stat.S_ISDIR)
        paths = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []
    found = []
    for path in paths:
        try:
            began_s = path.stat().st_mtime
            found.append((began_s, _look(RunFolder(path))))
        except OSError:
            continue  # it has just been removed by its agent
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def _look(folder: RunFolder) -> Found:
    pulse = alive.feel(folder)
    if pulse.pid:
        return Found(folder, "running", pulse.pid)
    young = time.time() - folder.path.stat().st_ctime < _STARTING_S
    return Found(folder, "starting" if not pulse.began and young else "dead")


def read_spec(folder: RunFolder) -> AgentSpec:
    """The spec in a cluster's folder, checked: whose it is, who may read it, and what it says.

    Raises:
        LinkError: The folder or file is not this user's alone, or is no connection file.
    """
    _check_private(runtime_root(), stat.S_ISDIR)
    _check_private(folder.path, stat.S_ISDIR)
    try:
        descriptor = os.open(folder.spec, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        msg = f"{folder.spec} cannot be read: {error.strerror}"
        raise LinkError(msg) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_status(folder.spec, os.fstat(descriptor), stat.S_ISREG)
        packed = file.read(_MOST_BYTES + 1)
    try:
        return _spec_of(packed, folder)
    except (ValueError, TypeError, RecursionError) as error:
        msg = (
            f"{folder.spec} is no connection file of this version of hpcnb ({error}); "
            "to end the cluster type  %hpc stop --all"
        )
        raise LinkError(msg) from error


def _spec_of(packed: bytes, folder: RunFolder) -> AgentSpec:
    if len(packed) > _MOST_BYTES:
        msg = f"larger than {_MOST_BYTES:,} bytes"
        raise ValueError(msg)
    values = json.loads(packed)
    if not isinstance(values, dict):
        msg = f"a {type(values).__name__}, not an object"
        raise TypeError(msg)
    fields = {each.name: str(each.type) for each in dataclasses.fields(AgentSpec)}
    if odd := sorted(values.keys() ^ fields.keys()):
        msg = f"missing or unknown: {', '.join(map(str, odd))[:200]}"
        raise ValueError(msg)
    for name, value in values.items():
        kinds = _TYPES[fields[name]]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            msg = f"{name} is a {type(value).__name__}, not {fields[name]}"
            raise TypeError(msg)
    spec = AgentSpec(**values)
    if spec.is_local and spec.link_address != f"ipc://{folder.link_socket}":
        msg = f"its address {spec.link_address[:200]!r} is not in its folder"
        raise ValueError(msg)
    if MeshSpec.parse(spec.mesh).num_ranks != spec.world_size:
        msg = f"mesh {spec.mesh[:200]!r} has another number of ranks than {spec.world_size}"
        raise ValueError(msg)
    for key in (spec.server_public, spec.client_public, spec.client_secret):
        try:
            is_key = len(z85.decode(key.encode("ascii"))) == 32
        except (ValueError, KeyError, struct.error):  # a letter that is none of Z85's, five that are too large a number
            is_key = False
        if not is_key:
            msg = "a key is none"
            raise ValueError(msg)
    return spec


def _check_private(path: Path, is_kind: Callable[[int], bool]) -> None:
    try:
        status = path.lstat()
    except PermissionError as error:
        msg = f"{path} cannot be looked at: {error.strerror}; set HPCNB_RUNTIME_DIR to a folder of yours"
        raise LinkError(msg) from error
    _check_status(path, status, is_kind)


def _check_status(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not is_kind(status.st_mode) or status.st_uid != os.getuid() or mode & 0o077:
        wanted, command = ("a folder of mode 0700", 700) if is_kind is stat.S_ISDIR else ("a file of mode 0600", 600)
        kind = "a link" if stat.S_ISLNK(status.st_mode) else f"of owner {status.st_uid} and mode {mode:o}"
        msg = (
            f"{path} must be {wanted} of yours, since it leads to the keys of clusters, but is {kind}; "
            f"look who made it, then remove it or run  chmod {command} {path}"
        )
        raise LinkError(msg)
