"""Looks at the machine that it runs on, for the checks before a launch, and prints what it found as lines of JSON.

Nodes are sent it as source (``python -c``), so it runs where hpcnb or its dependencies are missing: standard library
only, and no syntax or annotation that Python 3.6 does not have, so that an old interpreter can be named as such. It
judges nothing; the notebook side does (``cluster/preflight``).

Two lines, each after a mark: first what is seen on the node alone, then whether it reaches this cluster's other
machines, for which it meets them at the notebook's machine (``cluster/reception.py``).
"""

import base64
import fcntl
import json
import os
import platform
import re
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

MARK = "HPCNB-LOOK "
_SIOCGIFADDR = 0x8915
#: The quickest of so many questions tells the difference of clocks.
_NUM_QUESTIONS = 5
#: Others are waited for so long at the meeting.
_MEET_S = 12.0
_NVIDIA_SMI_S = 5.0


def main(asked: "dict[str, Any]") -> None:
    """Look, and say it.

    Args:
        asked: ``wanted`` (modules by name of their distribution), ``environment`` (of ranks), ``cluster`` (its name),
            ``kind`` (of its folder), ``logs`` (files), ``head`` (``host:port`` of the meeting; "" for none), ``token``,
            ``reach_s`` (for each connection).
    """
    os.environ.update(asked["environment"])
    me = f"{socket.gethostname()}:{os.getpid()}"
    address, why = _own_address(asked["head"])
    infiniband = Path("/sys/class/infiniband")
    facts = {
        "host": socket.gethostname(), "python": platform.python_version(), "executable": sys.executable,
        "packages": {name: _version(module, name) for name, module in asked["wanted"].items()},
        "limits": {name: _limit(name) for name in ("NOFILE", "NPROC", "MEMLOCK", "STACK")},
        "cores": len(os.sched_getaffinity(0)), "gpus": _num_gpus(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "has_infiniband": infiniband.is_dir() and any(infiniband.iterdir()),
        "own_name": _resolve(socket.gethostname()), "address": address, "no_address": why,
        "interfaces": _interfaces(),
        "asked_interfaces": {name: os.environ[name] for name in _INTERFACE_NAMES if os.environ.get(name)},
        "logs": {path: _tail(path) for path in asked["logs"]},
    }  # fmt: skip
    facts["hpcnb"], facts["hpcnb_problem"] = _hpcnb()
    facts["memory_free"], facts["memory_total"] = _memory()
    facts["shm_free"], facts["shm_total"] = _room("/dev/shm")  # noqa: S108 - its size is looked at
    facts["folder"], facts["folder_problem"], facts["socket_path_length"] = _folder(asked)
    _say(me, "facts", facts)
    if asked["head"]:
        _say(me, "reach", _meet(asked, address))


def _say(me: str, kind: str, what: "dict[str, Any]") -> None:
    os.write(1, (MARK + json.dumps({"id": me, kind: what}) + "\n").encode())  # in one piece: others may write, too


# --- what is installed ------------------------------------------------------------------------------------------


def _hpcnb() -> "tuple[str, str]":
    try:
        from hpcnb.core.version import __version__
    except (ImportError, SyntaxError, AttributeError, OSError) as error:
        return "", f"{type(error).__name__}: {error}"
    return __version__, ""


def _version(module: str, name: str) -> str:
    """Of an installed distribution, without importing it; "" if it cannot be imported, "?" if nobody knows."""
    import importlib.util

    try:
        if importlib.util.find_spec(module) is None:
            return ""
        from importlib import metadata

        return metadata.version(name)
    except (ImportError, ValueError):
        return "?"


# --- what there is ----------------------------------------------------------------------------------------------


def _memory() -> "tuple[int, int]":
    """Bytes that are free and that there are, as far as the control group lets this process have them."""
    with Path("/proc/meminfo").open() as file:
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    free, total = found.get("MemAvailable", found["MemFree"]), found["MemTotal"]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most_bytes, now_bytes = int(Path(limit).read_text()), int(Path(used).read_text())
        except (OSError, ValueError):
            continue  # another version of control groups, or no limit
        free, total = min(free, max(0, most_bytes - now_bytes)), min(total, most_bytes)
    return free, total


def _room(path: str) -> "tuple[int, int]":
    try:
        room = os.statvfs(path)
    except OSError:
        return -1, -1
    return room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize


def _limit(name: str) -> "list[int]":
    return list(resource.getrlimit(getattr(resource, "RLIMIT_" + name)))  # -1 is no limit


def _num_gpus() -> int:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_NVIDIA_SMI_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith(b"GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def _folder(asked: "dict[str, Any]") -> "tuple[str, str, int]":
    """Where the folder of a cluster would lie, why it cannot, and how long the path of a socket in it is."""
    base = Path(os.environ.get("HPCNB_RUNTIME_DIR") or os.environ.get("XDG_RUNTIME_DIR") or _temporary())
    root = base / "-".join(filter(None, ["hpcnb", str(os.getuid()), asked["kind"]]))
    name = (asked["cluster"] + ("-00" if asked["kind"] else ""))[:24]
    length = len(os.fsencode(str(root / (name + "-01234567") / "ranks.sock")))
    try:
        if root.is_dir():
            status = root.lstat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                why = f"it belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}"
                return str(root), why, length
        there = next(folder for folder in (root, *root.parents) if folder.is_dir())
        with tempfile.NamedTemporaryFile(dir=str(there)) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return str(root), error.strerror or str(error), length
    return str(root), "", length


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "/tmp"  # noqa: S108 - where tempfile would be; that it cannot be written to is found next


def _tail(path: str) -> "list[str]":
    try:
        return Path(path).read_text(errors="replace").splitlines()[-15:]
    except OSError:
        return []


# --- names and networks -----------------------------------------------------------------------------------------

_INTERFACE_NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def _resolve(name: str) -> str:
    """Addresses of a name; "" if it has none."""
    try:
        return ", ".join(sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET)}))
    except (OSError, UnicodeError):
        return ""


def _own_address(head: str) -> "tuple[str, str]":
    """The address that this machine has on its way to the head, or why there is no way."""
    if not head:
        return "", ""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((head.rpartition(":")[0], 9))  # sends nothing
            return str(probe.getsockname()[0]), ""
    except OSError as error:
        return "", error.strerror or str(error)


def _interfaces() -> "dict[str, str]":
    """IPv4 addresses by interface."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
            except OSError:
                continue  # it has no IPv4 address
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _listening_address(address: str) -> str:
    """Where gloo of this node will listen: at the interface that the environment names, else on the way to the head."""
    asked = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    return _interfaces().get(asked, address)


def _meet(asked: "dict[str, Any]", address: str) -> "dict[str, Any]":
    """Whether the head is reached, how far its clock is from ours, and which other nodes are reached."""
    host, _, port = asked["head"].rpartition(":")
    reach_s = asked["reach_s"]
    try:
        link = socket.create_connection((host, int(port)), timeout=reach_s)
    except OSError as error:
        return {"problem": _words(error)}
    with link, socket.socket() as listener:
        listener.bind((_listening_address(address), 0))
        listener.listen(128)
        link.settimeout(_MEET_S)
        lines = link.makefile("rw", newline="\n")
        hello = {"token": asked["token"], "host": socket.gethostname(), "port": listener.getsockname()[1],
                 "address": listener.getsockname()[0]}  # fmt: skip
        try:
            clock_s, bound_s = _difference(lines, asked["token"])
            _tell(lines, hello)
            peers = json.loads(lines.readline() or "{}")
            reached = _reach_all(peers, reach_s)
            _tell(lines, {"done": True})
            lines.readline()  # others may not have tried our port yet
        except (OSError, ValueError, KeyError) as error:
            return {"problem": f"it answers, but not as the notebook's machine ({error})"}
        return {"problem": "", "clock_s": clock_s, "clock_bound_s": bound_s, "peers": reached}


def _tell(lines: Any, what: "dict[str, Any]") -> None:
    lines.write(json.dumps(what) + "\n")
    lines.flush()


def _difference(lines: Any, token: str) -> "tuple[float, float]":
    """Seconds by which our clock is ahead of the head's, and how far that may be off."""
    best = (float("inf"), 0.0)
    for _ in range(_NUM_QUESTIONS):
        asked_s = time.time()
        _tell(lines, {"token": token, "wants": "time"})
        there_s = float(json.loads(lines.readline())["time_s"])
        answered_s = time.time()
        best = min(best, ((answered_s - asked_s) / 2, (answered_s + asked_s) / 2 - there_s))
    return best[1], best[0]


def _reach_all(peers: "dict[str, str]", reach_s: float) -> "dict[str, str]":
    """Why each is not reached, "" for those that are."""
    reached = {}

    def reach(name: str, at: str) -> None:
        host, _, port = at.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=reach_s).close()
            why = ""
        except OSError as error:
            why = _words(error)
        reached[name] = f"{why} at {host}" if why else ""

    threads = [threading.Thread(target=reach, args=item, daemon=True) for item in peers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reached


def _words(error: OSError) -> str:
    if isinstance(error, socket.timeout):
        return "no answer"
    return error.strerror or str(error)


if __name__ == "__main__":
    main(json.loads(base64.b64decode(re.sub(r"\s", "", sys.argv[1]))))
