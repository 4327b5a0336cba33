"""What becomes of clusters when the process that holds them exits: they end, or are let go for its next life."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

__all__ = ["at_exit", "coming_back", "held"]


class Held(Protocol):
    """A cluster, as far as leaving it goes."""

    def leave(self) -> None:
        """Stop it, but let go of it if other notebooks are connected."""

    def detach(self) -> None:
        """Let go; it goes on."""

    def end_soon(self) -> None:
        """Tell it that this process will end for good; returns at once."""


_held: weakref.WeakSet[Held] = weakref.WeakSet()
_coming_back = False


def at_exit(cluster: Held) -> None:
    """When this process exits, the cluster ends too, unless the process will come back or others are connected."""
    if cluster not in _held:
        _held.add(cluster)
        atexit.register(_leave, weakref.ref(cluster), os.getpid())


def held() -> list[Held]:
    """Clusters that this process has started or attached to, also those that it has let go of again."""
    return list(_held)


def coming_back(*, is_it: bool) -> None:
    """This process is about to exit, and will be started again (a kernel restart) or not. From any thread."""
    global _coming_back  # noqa: PLW0603 - one process exits once
    _coming_back = is_it
    if not is_it:
        # at once: a kernel that is stuck in a cell is killed and never gets as far as its exit functions
        for cluster in held():
            cluster.end_soon()


def _leave(cluster: weakref.ref[Held], pid: int) -> None:
    alive = cluster()
    if alive is None or os.getpid() != pid:
        return
    if _coming_back:
        alive.detach()
    else:
        alive.leave()
