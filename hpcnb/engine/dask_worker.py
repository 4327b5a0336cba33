"""A rank as a worker of Dask: a thread with an event loop of its own, so that tasks run beside cells.

The functions are called on the rank's main thread, by name. Which scheduler, and its keys, come from the notebook.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import threading
from typing import Any

import distributed

from hpcnb.engine.ipp import Engine

__all__ = ["start", "stop"]

#: A worker that has not found its scheduler by then has failed.
_START_S = 30.0
_STOP_S = 5.0


class _Worker(distributed.Worker):
    """A worker without the web server that it starts also where no dashboard is wanted: nobody is asked who he is."""

    def start_http_server(self, *args: object, **kwargs: object) -> None:
        pass


class _Serving(threading.Thread):
    """Serves a scheduler until it or this rank has enough."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(name="hpcnb-dask", daemon=True)
        self.scheduler = options["scheduler_ip"]
        self._options = options
        self._began: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: _Worker | None = None

    def began(self) -> None:
        """Wait until it serves; raises what went wrong."""
        if (problem := self._began.get(timeout=_START_S)) is not None:
            raise problem

    def end(self) -> None:
        """Leave the scheduler."""
        if self._loop is not None and self._worker is not None and self.is_alive():
            asyncio.run_coroutine_threadsafe(self._worker.close(executor_wait=False), self._loop)
        self.join(_STOP_S)

    def run(self) -> None:
        """Serve."""
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for; later there is nobody to tell
            self._began.put(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with _Worker(**self._options) as self._worker:
            self._began.put(None)
            await self._worker.finished()


_serving: _Serving | None = None


def start(scheduler: str, keys: dict[str, str], num_threads: int) -> None:
    """Become a worker of this scheduler, if the rank is none yet.

    Args:
        scheduler: Its address.
        keys: ``tls_...`` options of ``distributed.Security``, as text.
        num_threads: So many tasks run at once.
    """
    global _serving  # noqa: PLW0603 - a rank is one worker at most
    if _serving is not None and _serving.is_alive():
        if _serving.scheduler == scheduler:
            return
        stop()
    logging.getLogger("distributed").setLevel(logging.WARNING)  # its news would be shown with whichever cell runs
    engine = Engine.instance()
    folder = engine.folder.path / f"dask-{engine.id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    _serving = _Serving(
        {
            "scheduler_ip": scheduler,
            "name": engine.id,
            "nthreads": num_threads,
            "host": _own_address(scheduler),
            "local_directory": str(folder),
            "security": distributed.Security(require_encryption=True, **keys),
            "memory_limit": 0,  # a rank's memory is mostly not Dask's: its worker must not pause or spill for it
            "dashboard": False,
        }
    )
    _serving.start()
    try:
        _serving.began()
    except BaseException:
        stop()
        raise


def stop() -> None:
    """Be no worker any more; tasks that run are left alone."""
    global _serving
    serving, _serving = _serving, None
    if serving is not None:
        serving.end()


def _own_address(scheduler: str) -> str:
    """Of this machine on the way to the scheduler: the only one that is listened on."""
    host, _, port = scheduler.partition("://")[2].rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        address: str = probe.getsockname()[0]
    return address
