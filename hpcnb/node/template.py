"""The template: a process with torch imported and no thread, that the ranks of a node are forked from.

It imports once, forks on request, reaps, and says who ended how. It stays free of threads, sockets and
accelerators for its whole life, so that a rank can be forked from it at any time. It talks to the agent over one
pair of sockets, in lines of JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from hpcnb.core.launch import AgentSpec, RunFolder

__all__ = ["die_with_parent", "run_template"]

_PR_SET_PDEATHSIG = 1
#: The program of a rank, by name: node knows nothing else of it.
_ENGINE = "hpcnb.engine.main"


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def run_template(
    to_agent: socket.socket, listener: socket.socket | None, spec: AgentSpec, folder: RunFolder, board: mmap.mmap
) -> None:
    """Be the template until the agent closes the socket. Called in a freshly forked process; does not return.

    Args:
        to_agent: Requests come in, news go out.
        listener: Bound by the agent, served by the store process that is forked from here; None where there is none.
        spec: Of the agent.
        folder: Of the cluster.
        board: Shared by the agent and all ranks.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started_ns = time.perf_counter_ns()
    try:
        engine = importlib.import_module(_ENGINE)
    except BaseException as error:
        _tell(to_agent, failed=f"{type(error).__name__}: {error}")
        raise
    imported_ns = time.perf_counter_ns()
    engine.prepare_template()
    _tell(to_agent, imported=[started_ns, imported_ns])
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    received = b""
    while True:
        ready, _, _ = select.select([to_agent.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(to_agent)
        if to_agent.fileno() in ready:
            chunk = to_agent.recv(65536)
            if not chunk:
                os._exit(0)
            *lines, received = (received + chunk).split(b"\n")
            for line in lines:
                _obey(json.loads(line), to_agent, listener, (wake_read, wake_write), (spec, folder, board))


def _tell(to_agent: socket.socket, **message: Any) -> None:
    to_agent.sendall(json.dumps(message).encode() + b"\n")


def _reap(to_agent: socket.socket) -> None:
    while True:
        try:
            # looked at before it is reaped: as long as it is there, its number names its group and no other
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        pid = ended.si_pid
        try:
            os.killpg(pid, signal.SIGKILL)  # what its cells have started ends with it
        except ProcessLookupError:
            pass  # it has left nothing
        _, status = os.waitpid(pid, 0)
        _tell(to_agent, exited=pid, status=os.waitstatus_to_exitcode(status))


def _obey(
    request: dict[str, Any],
    to_agent: socket.socket,
    listener: socket.socket | None,
    wake: tuple[int, int],
    cluster: tuple[AgentSpec, RunFolder, mmap.mmap],
) -> None:
    pid = os.fork()
    if pid:
        _tell(to_agent, forked=pid, role=request["role"])
        return
    # from here on a child, which must never return into the template's loop
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        to_agent.close()
        for descriptor in wake:
            os.close(descriptor)
        if request["role"] == "store" and listener is not None:
            from hpcnb.node import store

            store.serve(listener)
        else:
            if listener is not None:
                listener.close()
            engine = importlib.import_module(_ENGINE)
            engine.run_rank(engine.RankSeat(**request["seat"]), *cluster)
    except BaseException:  # noqa: BLE001 - the process ends here, with its reason in the log
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(1)
