"""A kernel that is restarted keeps its cluster; one that is shut down ends it, also when it is stuck in a cell.

The kernel is told which of both it is in a shutdown request, which it hands to its method ``do_shutdown`` (part of
Jupyter's interface for kernels) on the thread of the control channel: that works while a cell runs. A kernel that is
killed without a request lets go of its cluster by ending.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["register", "unregister"]

_NAME = "do_shutdown"


def register(shell: InteractiveShell) -> None:
    """Listen to shutdown requests of the shell's kernel, if it is a kernel's."""
    kernel = getattr(shell, "kernel", None)
    if kernel is None or _NAME in vars(kernel):
        return
    theirs: Callable[[bool], Any] = getattr(kernel, _NAME)

    async def do_shutdown(restart: bool) -> Any:  # noqa: FBT001 - Jupyter's interface
        from hpcnb.cluster import leaving

        leaving.coming_back(is_it=restart)
        reply = theirs(restart)
        return await reply if inspect.isawaitable(reply) else reply

    setattr(kernel, _NAME, do_shutdown)


def unregister(shell: InteractiveShell) -> None:
    """Listen no more; clusters then end with the kernel, restarted or not."""
    kernel = getattr(shell, "kernel", None)
    if kernel is not None and _NAME in vars(kernel):
        delattr(kernel, _NAME)
