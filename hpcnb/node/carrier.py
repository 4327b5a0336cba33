"""Carrying a node's agent: what a process that runs on the node already (a Dask worker, an engine) is asked to do.

Its functions are called there by name. They start the agent as a subprocess, tell what it said while it joins, and end
it if it is given up. The agent watches this process and ends with it; nothing here need do so. None of them raises:
Dask writes the arguments of a function that failed into its log, and the ticket is one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from typing import IO, Any

__all__ = ["end", "look", "start"]

#: What an agent said that ended while nobody asked is kept for so long.
_KEEP_S = 60.0
#: An agent that is given up gets so long to end.
_END_S = 2.0


@dataclass
class _Carried:
    """An agent that this process carries."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]
    is_told: threading.Event = field(default_factory=threading.Event)


#: By key; several clusters may have an agent here.
_CARRIED: dict[str, _Carried] = {}
_numbers = itertools.count(1)


def start(ticket: str, node: int, carrier: str) -> dict[str, Any]:
    """Start an agent; returns at once.

    Args:
        ticket: As text; it goes to the agent through a pipe.
        node: Number of the node.
        carrier: What this process is, in words.

    Returns:
        ``key`` for the other functions, ``problem``, "" if there is none, ``host`` and ``python``.
    """
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the agent has ended
    words = [sys.executable, "-m", "hpcnb.node.join", "--stay", "--node", str(node)]
    words += ["--carrier", str(os.getpid()), "--carrier-name", carrier]
    facts = {"key": "", "problem": "", "host": os.uname().nodename, "python": sys.executable}
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True, env=_environment()
        )
    except OSError as error:
        said.close()
        return {**facts, "problem": str(error)}
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why
        process.stdin.write(ticket.encode() + b"\n")
        process.stdin.close()
    key = f"{os.getpid()}-{next(_numbers)}"
    _CARRIED[key] = carried = _Carried(process, said)
    threading.Thread(target=_reap, args=(key, carried), name=f"hpcnb-carrier-{key}", daemon=True).start()
    return {**facts, "key": key}


def _environment() -> dict[str, str]:
    """Of this process, without what tells an engine which controller it belongs to, or a kernel which server."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("IPP_") and name not in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "PYTHONSTARTUP")
    }


def _reap(key: str, carried: _Carried) -> None:
    """Take note of the agent's end, so that no zombie is left of it."""
    carried.process.wait()
    carried.is_told.wait(_KEEP_S)
    _CARRIED.pop(key, None)
    carried.said.close()


def look(key: str) -> tuple[int | None, list[str]]:
    """Exit status of an agent, None while it runs, and what it said before it had a log; asked until there is one."""
    if (carried := _CARRIED.get(key)) is None:
        return -1, ["nothing is known of it any more"]
    status = carried.process.poll()
    size = os.fstat(carried.said.fileno()).st_size
    lines = os.pread(carried.said.fileno(), size, 0).decode(errors="replace").splitlines()
    if status is not None:
        carried.is_told.set()
    return status, [line for line in lines if line.strip()]


def end(key: str) -> None:
    """End an agent that is not wanted any more."""
    if (carried := _CARRIED.get(key)) is None:
        return
    carried.is_told.set()
    carried.process.terminate()
    try:
        carried.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        carried.process.kill()
