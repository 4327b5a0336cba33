"""The rendezvous of the cluster's process groups: a TCPStore in a process of its own.

It has threads, so it cannot live in the template; the agent does without torch, so it cannot live there; a rank
may die, so it cannot live there either. It serves a listener that the agent bound: left to itself, TCPStore
listens on every interface, without asking anybody who they are.

Where all ranks are on one machine it is forked from the template, which has torch. The head of a cluster of many
nodes has no template: there it is a program, ``python -m hpcnb.node.store DESCRIPTOR``, and outlives any node.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import subprocess
import sys

__all__ = ["serve", "start"]


def serve(listener: socket.socket) -> None:
    """Serve on ``listener`` until killed."""
    import torch.distributed as dist

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host, port = listener.getsockname()[:2]
    store = dist.TCPStore(
        host, port, None, is_master=True, timeout=datetime.timedelta(seconds=60), wait_for_workers=False,
        master_listen_fd=listener.detach(), use_libuv=True,
    )  # fmt: skip
    while store is not None:
        signal.pause()


def start(listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start the program; it ends with this process."""
    with listener:
        return subprocess.Popen(
            [sys.executable, "-m", "hpcnb.node.store", str(listener.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()], start_new_session=True,
        )  # fmt: skip


if __name__ == "__main__":
    from hpcnb.node.template import die_with_parent

    die_with_parent()
    if os.getppid() == int(sys.argv[2]):  # else it has ended before it could be watched
        serve(socket.socket(fileno=int(sys.argv[1])))
