"""A question that several nodes are asked at once. Pure: is told of answers and of time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Question"]

#: Agents answer at once, whatever their ranks do; who waits for the answer waits longer.
_PATIENCE_S = 3.0
_numbers = itertools.count(1)


class Question:
    """Collects answers.

    Args:
        nodes: That are asked.
        whole: Called once with the answers by node: when all are there, or as many as came in time.
        now_s: Monotonic seconds.
    """

    def __init__(self, nodes: Iterable[int], whole: Callable[[dict[int, Any]], None], now_s: float) -> None:
        self.number = next(_numbers)
        self.due_s = now_s + _PATIENCE_S  #: when :meth:`give_up` is due
        self._waiting = set(nodes)
        self._whole = whole
        self._answers: dict[int, Any] = {}

    def hear(self, node: int, value: Any) -> bool:
        """A node answers, or is lost (None); whether the question is answered now."""
        if node in self._waiting:
            self._waiting.discard(node)
            if value is not None:
                self._answers[node] = value
        if self._waiting:
            return False
        self._whole(self._answers)
        return True

    def give_up(self) -> None:
        """Who has not answered by now is not waited for."""
        self._whole(self._answers)
