"""The ipyparallel side of a rank: its engine, with what a rank does differently from a plain one.

Between ipyparallel's requests the standard streams lead to the link; during them to ipyparallel, so that ``%%px``
and views show what they always showed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipyparallel.engine.app as ipp_engine
import zmq
from ipykernel.iostream import OutStream
from ipyparallel.engine.kernel import IPythonParallelKernel
from traitlets import Bool, Instance, Type

from hpcnb.core.board import Activity
from hpcnb.core.launch import RunFolder
from hpcnb.engine.boundary import Boundary

__all__ = ["Engine"]

#: zmq sends from a thread of its own, which ends with the process: what was sent has left after so long.
_SENT_S = 0.05
_HANDSHAKE_MS = 3000


class _PythonStream(OutStream):
    """ipykernel's stream without its watch on descriptors 1 and 2, which lead to the agent here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "watchfd": False})


class _Kernel(IPythonParallelKernel):
    """Runs requests of views with ipyparallel's streams."""

    streams: Any = None
    boundary: Boundary

    @contextlib.contextmanager
    def _own_streams(self) -> Iterator[None]:
        before = sys.stdout, sys.stderr
        if self.streams is not None:
            sys.stdout, sys.stderr = self.streams
        try:
            with self.boundary.doing(Activity.REQUEST):
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before

    def set_parent(self, *args: Any, **kwargs: Any) -> None:
        super().set_parent(*args, **kwargs)
        for stream in self.streams or ():  # ipykernel tells sys.stdout, which is the link's at this moment
            stream.set_parent(args[1])

    async def do_execute(self, *args: Any, **kwargs: Any) -> Any:
        with self._own_streams():
            return await super().do_execute(*args, **kwargs)

    def do_apply(self, *args: Any, **kwargs: Any) -> Any:
        with self._own_streams():
            return super().do_apply(*args, **kwargs)


class Engine(ipp_engine.IPEngine):
    """ipyparallel's engine, which tells when its shell is there."""

    out_stream_factory = Type(_PythonStream, allow_none=True)
    boundary = Instance(Boundary)
    is_replacement = Bool(False)
    folder = Instance(RunFolder)
    #: Called once, on the event loop, when the engine is registered; it may replace the standard streams.
    when_registered: Callable[[], None]

    async def register(self) -> None:
        # an encrypted connection whose handshake stalls, as seen on busy machines, is made anew after 30 s by default
        self.context.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)  # of sockets that are made from now on
        if self.is_replacement:
            # the controller still has the engine that died; on the same socket, so that it is heard first
            send = self.session.send

            def after_unregistering(stream: Any, kind: str, **kwargs: Any) -> Any:
                self.session.send = send
                send(stream, "unregistration_request", content={"id": self.id})
                return send(stream, kind, **kwargs)

            self.session.send = after_unregistering
        await super().register()

    def unregister(self) -> None:
        """Tell the controller that this engine ends; it would notice after some seconds."""
        self.session.send(self.registrar, "unregistration_request", content={"id": self.id})
        time.sleep(_SENT_S)

    async def complete_registration(self, *args: Any) -> None:
        ipp_engine.Kernel = _Kernel  # the class is no option of the engine
        _Kernel.boundary = self.boundary
        await super().complete_registration(*args)
        self.context.sockopts.pop(zmq.HANDSHAKE_IVL, None)  # the person's own sockets are as ever
        self.kernel.streams = sys.stdout, sys.stderr
        self.when_registered()
