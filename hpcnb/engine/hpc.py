"""``hpc``, the object that every cell finds: spans, progress, barrier, and where this rank is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sized
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from hpcnb.core.messages import RankProgress
from hpcnb.core.spans import Kind

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from hpcnb.engine.boundary import Boundary
    from hpcnb.engine.link import RankLink
    from hpcnb.engine.recorder import OpenSpan, Recorder

__all__ = ["Hpc"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
#: A rank reports its position this often.
_REPORT_S = 0.1


class _Span:
    """A named interval: context manager and decorator."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name
        self._open: list[OpenSpan | None] = []

    def __enter__(self) -> None:
        self._open.append(self._recorder.begin(Kind.USER, self._name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recorder.end(self._open.pop())

    def __call__(self, function: _F) -> _F:
        @functools.wraps(function)
        def spanned(*args: Any, **kwargs: Any) -> Any:
            with _Span(self._recorder, self._name):
                return function(*args, **kwargs)

        return spanned  # type: ignore[return-value]


class Hpc:
    """What hpcnb offers inside a cell.

    Attributes:
        rank: Global rank, 0 ... world_size - 1.
        world_size: Number of ranks.
        local_rank: Rank on this node.
        device: This rank's device.
        mesh: ``torch.distributed`` mesh with the axis names of ``--mesh``.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        local_rank: int,
        device: torch.device,
        mesh: DeviceMesh,
        recorder: Recorder,
        link: RankLink,
        boundary: Boundary,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device
        self.mesh = mesh
        self._recorder = recorder
        self._link = link
        self._boundary = boundary
        self._bars_of_cell = 0
        self._num_bars = 0

    def __repr__(self) -> str:
        return f"<hpc: rank {self.rank} of {self.world_size} on {self.device}; span, progress, barrier>"

    def span(self, name: str) -> _Span:
        """A named interval in the timeline: ``with hpc.span("load"): ...`` or ``@hpc.span("load")``.

        The names ``forward``, ``backward``, ``optimizer`` and ``data`` are categories of the breakdown; time under
        any other name counts as the category around it.
        """
        return _Span(self._recorder, name)

    def progress(self, iterable: Iterable[_T], description: str = "", *, total: int | None = None) -> Iterator[_T]:
        """Iterate with one bar for all ranks, which names the slowest.

        Time spent in the iterable counts as ``data``, and every turn of the innermost loop is a step of the
        breakdown. Between two turns Ctrl-C stops all ranks alike.

        Args:
            iterable: Anything; with ``len`` the bar has an end.
            description: Before the bar.
            total: Number of elements where ``len`` does not tell.
        """
        if total is None:
            total = len(iterable) if isinstance(iterable, Sized) else -1
        return self._turns(iter(iterable), description, total)

    def _turns(self, iterator: Iterator[_T], description: str, total: int) -> Iterator[_T]:
        recorder = self._recorder
        cell = recorder.cell
        if cell != self._bars_of_cell:  # bars are numbered per cell, so that the same bar has one number everywhere
            self._bars_of_cell, self._num_bars = cell, 0
        self._num_bars += 1
        bar, position, started_s, reported_s = self._num_bars, 0, perf_counter(), perf_counter()
        depth = recorder.begin_loop()

        def report(*, finished: bool) -> None:
            self._link.send(RankProgress(cell, bar, description, total, position, perf_counter() - started_s, finished))

        report(finished=False)
        step: OpenSpan | None = None
        self._boundary.enter_loop()
        try:
            while True:
                self._boundary.reach()
                recorder.next_step(depth)
                step = recorder.begin(Kind.STEP, description)
                waiting = recorder.begin(Kind.DATA, description)
                try:
                    element = next(iterator)
                except StopIteration:
                    return
                finally:
                    recorder.end(waiting)
                yield element
                position += 1
                recorder.end(step)
                if perf_counter() - reported_s > _REPORT_S:
                    reported_s = perf_counter()
                    report(finished=False)
        finally:
            self._boundary.leave_loop()
            recorder.end(step)
            recorder.end_loop()
            report(finished=True)

    def barrier(self) -> None:
        """Wait until every rank is here.

        Ranks: collective over all ranks.
        Blocks: until the slowest rank arrives.
        """
        dist.barrier()
