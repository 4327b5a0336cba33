"""The future of an operation under way, as a cell takes it: its wait is seen by the recorder, and can be given up.

The backend's own future waits in C++, where nothing is seen and nothing ends it. What DDP takes in a backward pass is
the backend's: it is waited for in C++ anyway (see engine/recorder.py, Backward).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from hpcnb.engine.guard import raise_instead
from hpcnb.engine.pauses import pauses_s

if TYPE_CHECKING:
    from hpcnb.engine.guard import Guard
    from hpcnb.engine.recorder import Operation, Recorder

__all__ = ["WatchedFuture"]


class WatchedFuture(torch.futures.Future[Any]):
    """A future that is over when ``theirs`` is.

    Args:
        theirs: Of the backend, or what follows from it; on the CPU.
        operation: What it is.
        recorder: Of this rank.
        guard: Of this rank.
    """

    def __init__(self, theirs: Any, operation: Operation, recorder: Recorder, guard: Guard) -> None:
        super().__init__()
        self._operation = operation
        self._recorder = recorder
        self._guard = guard
        self._generation = guard.generation
        theirs.add_done_callback(self._take)

    def _take(self, theirs: Any) -> None:
        try:
            value = theirs.value()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self.set_exception(error)
        else:
            self.set_result(value)

    def wait(self) -> Any:
        """The value, when it is there.

        Raises:
            CollectiveAborted: This rank was released, or a connection is lost.
        """
        if not self.done():
            self._await_end()
        with self._explaining(0, in_wait=False):
            return super().wait()

    def then(self, callback: Callable[[Any], Any]) -> WatchedFuture:
        """The future of what ``callback`` returns."""
        return WatchedFuture(super().then(callback), self._operation, self._recorder, self._guard)

    def _await_end(self) -> None:
        recorder, operation = self._recorder, self._operation
        began_ns = recorder.begin_wait(operation)
        is_over = False
        try:
            with self._explaining(began_ns, in_wait=True):
                pauses = pauses_s()
                while not self.done():
                    if self._is_old():
                        raise self._guard.outdated(self._recorder.words(self._operation))
                    self._guard.check()
                    time.sleep(next(pauses))
            is_over = True
        finally:
            recorder.end_wait(operation, began_ns, failed=not is_over)

    def _is_old(self) -> bool:
        """Whether groups have been built again since: its connections are gone."""
        return self._generation != self._guard.generation

    @contextlib.contextmanager
    def _explaining(self, began_ns: int, *, in_wait: bool) -> Iterator[None]:
        """What the body raises, in the words of a person."""
        recorder = self._recorder
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - raised again
            waited_s = recorder.seconds_since(began_ns) if began_ns else 0.0
            explained = self._guard.explained(
                error, recorder.words(self._operation), waited_s, in_wait=in_wait, generation=self._generation
            )
            raise_instead(error, explained)
