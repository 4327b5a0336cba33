"""The rendezvous of the cluster's process groups: a TCPStore in a process of its own.

It has threads, so it cannot live in the template; the agent does without torch, so it cannot live there; a rank
may die, so it cannot live there either. It serves a listener that the agent bound: left to itself, TCPStore
listens on every interface, without asking anybody who they are.
"""

from __future__ import annotations

import datetime
import signal
import socket

import torch.distributed as dist

__all__ = ["serve"]


def serve(listener: socket.socket) -> None:
    """Serve on ``listener`` until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host, port = listener.getsockname()[:2]
    store = dist.TCPStore(
        host, port, None, is_master=True, timeout=datetime.timedelta(seconds=60), wait_for_workers=False,
        master_listen_fd=listener.detach(), use_libuv=True,
    )  # fmt: skip
    while store is not None:
        signal.pause()
