"""Ranks as workers of Dask: the scheduler in this process, its client, and what ranks need to find it.

Everything passes through TLS with keys that are made here and live in memory: Dask runs what it is sent, and asks
nobody who they are otherwise, also on loopback. The keys travel over the link. No web server is started.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.named import Named
from hpcnb.core.ranks import RankSet

__all__ = ["START", "DaskOnRanks"]

START = Named("hpcnb.engine.dask_worker:start")
_CLOSE_S = 5.0
_KEYS = ("tls_ca_file", "tls_worker_key", "tls_worker_cert")


class DaskOnRanks:
    """A scheduler without workers yet, and a client of it.

    Args:
        address: IP address of this machine that ranks reach; "" where they are all on it.
        num_threads: Of each worker.

    Raises:
        LaunchError: It cannot listen there.
        OptionError: There is no such number of threads.
    """

    def __init__(self, address: str, num_threads: int) -> None:
        if num_threads < 1:
            msg = f"a worker has at least 1 thread, not {num_threads!r}"
            raise OptionError(msg)
        import distributed

        self._num_threads = num_threads
        self._security = distributed.Security.temporary()
        options = {
            "host": address or "127.0.0.1", "port": 0, "protocol": "tls://", "security": self._security,
            "dashboard": False,
        }  # fmt: skip
        try:
            self._cluster = distributed.SpecCluster(
                workers={}, scheduler={"cls": _scheduler_class(), "options": options}, security=self._security,
                silence_logs=logging.WARNING, name="hpcnb",
            )  # fmt: skip
        except (OSError, RuntimeError) as error:
            msg = f"a Dask scheduler cannot listen on {options['host']}: {error}"
            raise LaunchError(msg) from error
        self.client = distributed.Client(self._cluster)

    @property
    def is_open(self) -> bool:
        """Whether it can be used: whoever has the client may have closed it, or the scheduler with it."""
        return bool(self.client.status == "running" and self._cluster.status.name == "running")

    @property
    def ticket(self) -> tuple[str, dict[str, str], int]:
        """What a rank needs to become a worker."""
        keys: dict[str, Any] = {name: getattr(self._security, name) for name in _KEYS}
        return self._cluster.scheduler_address, keys, self._num_threads

    def lacking(self, ranks: RankSet, num_threads: int) -> RankSet:
        """Those of these ranks that are no workers.

        Raises:
            OptionError: The others have another number of threads.
        """
        if num_threads != self._num_threads:
            have = f"{self._num_threads} thread{'s' if self._num_threads > 1 else ''}"
            msg = f"ranks are Dask workers with {have} already; to change that first call  cluster.stop_dask()"
            raise OptionError(msg)
        scheduler: Any = self._cluster.scheduler
        known = list(scheduler.workers.values())  # a copy: the scheduler's thread changes it
        return ranks - RankSet(int(each.name) for each in known)

    def close(self) -> None:
        """Close client and scheduler; workers end when they lose it."""
        with contextlib.suppress(TimeoutError):
            self.client.close(timeout=_CLOSE_S)
        with contextlib.suppress(TimeoutError):
            self._cluster.close(timeout=_CLOSE_S)


def _scheduler_class() -> type[Any]:
    from distributed import Scheduler

    class Plain(Scheduler):
        """Without the web server that is started also where no dashboard is wanted."""

        def start_http_server(self, *args: object, **kwargs: object) -> None:
            pass

    return Plain
