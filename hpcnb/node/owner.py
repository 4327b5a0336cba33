"""The process whose end is the cluster's, once no notebook is connected: the Jupyter server that came last."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from hpcnb.node.door import Watching
from hpcnb.node.refusals import Refusals

__all__ = ["Owner"]

LOG = logging.getLogger(__name__)


class Owner:
    """Notices the end of that process.

    Args:
        selector: The agent's.
        refusals: Told of processes that cannot be watched.
        is_gone: Called with true when the owner has ended, with false when there is a new one.
    """

    def __init__(self, selector: Watching, refusals: Refusals, is_gone: Callable[[bool], None]) -> None:
        self._selector = selector
        self._refusals = refusals
        self._is_gone = is_gone
        self._pid = self._descriptor = -1

    def become(self, pid: int) -> None:
        """It is this process from now on; 0 for no change."""
        if pid in (0, self._pid):
            return
        try:
            descriptor = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            self._refusals.note("a notebook", "names a server that cannot be watched", f"process {pid}: {error}")
            return
        if self._descriptor >= 0:
            self._forget()
        self._pid, self._descriptor = pid, descriptor
        self._is_gone(False)
        self._selector.watch(descriptor, self._ended)

    def _ended(self) -> None:
        LOG.info("process %d, which the notebooks belong to, ended", self._pid)
        self._forget()
        self._is_gone(True)

    def _forget(self) -> None:
        self._selector.unwatch(self._descriptor)
        os.close(self._descriptor)
        self._pid = self._descriptor = -1
