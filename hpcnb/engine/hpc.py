"""``hpc``, the object that every cell finds: spans, progress, collectives of ours, and where this rank is."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.distributed as dist

from hpcnb.core.errors import OptionError
from hpcnb.core.messages import RankProgress
from hpcnb.core.spans import Kind
from hpcnb.engine import replicas
from hpcnb.engine import resync as resyncing

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from hpcnb.core.messages import Message
    from hpcnb.engine.boundary import Boundary
    from hpcnb.engine.recorder import OpenSpan, Recorder

__all__ = ["Hpc"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
#: A rank reports its position this often.
_REPORT_S = 0.1
#: What a message can hold.
_MOST_TURNS = 1 << 63


class _Link(Protocol):
    """Takes what is said of progress."""

    def send(self, message: Message) -> None: ...


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
        link: _Link,
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
        #: Whether this process took the place of a rank that died: it lacks what cells have computed, until resync.
        self._is_replacement = False  # the process took the place of another; for good, since state may come bit by bit
        self._wants_rng = False

    def __repr__(self) -> str:
        offers = "span, progress, barrier, check_same, resync"
        return f"<hpc: rank {self.rank} of {self.world_size} on {self.device}; {offers}>"

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

        Raises:
            OptionError: A description that is no text, or a total that is no whole number.
        """
        given: object = description
        if not isinstance(given, str):
            msg = (
                f"hpc.progress takes the words before the bar as text, not {given!r:.80} ({type(given).__name__}); "
                "a number of elements is  total=..."
            )
            raise OptionError(msg)
        if total is None:
            total = len(iterable) if isinstance(iterable, Sized) else -1
        return self._turns(iter(iterable), description, _whole(total))

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

    def check_same(self, *objects: object, axis: str | None = None, rng: bool = False) -> str:
        """Check that ranks hold the same numbers, bit by bit.

        Hashes travel, not tensors; NaNs with equal bits are equal. Tensors on a mesh (DTensor) are compared along
        the axes where they are replicated.

        Args:
            objects: Modules (parameters and buffers), optimizers, tensors, arrays, dicts and lists of those.
            axis: Mesh axis along which ranks should agree; by default ``dp`` if the mesh has it, else all ranks.
            rng: Compare also the states of the random number generators of python, numpy and torch.

        Returns:
            What was compared, in words.

        Ranks: collective over axis ``axis``; over all ranks if none is given.
        Blocks: until the slowest rank has hashed its tensors.

        Raises:
            ReplicasDiffer: On all ranks of the collective; names the first that differs, with ranks and the largest
                absolute difference.
            MeshError: The mesh has no such axis.
            OptionError: An object that cannot be compared, or nothing to compare.
        """
        if not objects and not rng:
            msg = "hpc.check_same() compares what it is given, for example hpc.check_same(model, optimizer)"
            raise OptionError(msg)
        return replicas.check_same(objects, _names_of_caller(), self.mesh, axis=axis, rng=rng)

    def resync(self, *objects: object, axis: str | None = None, source: int | None = None, rng: bool = True) -> str:
        """Bring parameters, buffers, optimizer state and random number states from one rank to its peers.

        Tensors are written in place and stay the objects they are; gradients are not brought. An optimizer that has
        no state yet gets it.

        Args:
            objects: Modules (also in DistributedDataParallel), optimizers, schedulers, tensors, dicts and lists of
                those: the same on all ranks.
            axis: Mesh axis of the group; by default ``dp`` if the mesh has it, else all ranks.
            source: Rank that is copied; by default the lowest of the group that is no replacement.
            rng: Bring the generator states of python, numpy and torch to ranks whose process is new.

        Returns:
            What was brought, in words: number of tensors, bytes, from which rank.

        Ranks: collective over axis ``axis``, with the same objects in the same order.
        Blocks: until all of it has arrived everywhere.

        Raises:
            OptionError: Nothing to bring, no rank to take it from, pieces of a sharded tensor, or other names or
                shapes on some rank; on all ranks of the group, before anything has been changed.
            MeshError: The mesh has no such axis.
        """
        if not objects:
            msg = "hpc.resync() brings what it is given, for example hpc.resync(model, optimizer)"
            raise OptionError(msg)
        brought = resyncing.resync(
            objects, _names_of_caller(), self.mesh, axis=axis, source=source, rng=rng,
            is_replacement=self._is_replacement, wants_rng=self._wants_rng,
        )  # fmt: skip
        self._wants_rng = False
        return brought


def _whole(total: Any) -> int:
    """A number of elements; -1 if unknown, as any below 0."""
    for whole in (operator.index, _of_float):
        try:
            number = whole(total)
        except (TypeError, ValueError, ArithmeticError, RuntimeError):  # the last: a tensor of several elements
            continue
        if number < _MOST_TURNS:
            return max(number, -1)
    msg = f"hpc.progress takes total= as a whole number of elements, not {total!r:.80} ({type(total).__name__})"
    raise OptionError(msg)


def _of_float(total: Any) -> int:
    """What arithmetic, numpy or torch made a float of."""
    if isinstance(total, (str, bytes)) or not float(total).is_integer():
        raise ValueError(total)
    return int(total)


def _names_of_caller() -> dict[str, object]:
    """Names in the code that called a method of ours: what a person calls the objects."""
    frame = sys._getframe(2)
    return {**frame.f_globals, **frame.f_locals}
