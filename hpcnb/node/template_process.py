"""What ranks are forked from, as the agent of their node holds it."""

from __future__ import annotations

import mmap
import socket
from dataclasses import dataclass

__all__ = ["TemplateProcess"]


@dataclass(frozen=True)
class TemplateProcess:
    """The template and what it shares with the agent.

    Attributes:
        connection: Socket to the process.
        pid: Its number.
        rendezvous: Address of the store of the process groups, which it serves unless the head of the cluster does.
        board: Memory that it shares with its ranks.
    """

    connection: socket.socket
    pid: int
    rendezvous: tuple[str, int]
    board: mmap.mmap
