"""Questions that several nodes are asked at once. Pure: is told of answers and of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Question", "Questions"]

#: Agents answer at once, whatever their ranks do; who waits for the answer waits longer.
_PATIENCE_S = 3.0


class Question:
    """Collects answers.

    Args:
        nodes: That are asked.
        whole: Called once with the answers by node: when all are there, or as many as came in time.
        due_s: When it is given up.
    """

    def __init__(self, nodes: Iterable[int], whole: Callable[[dict[int, Any]], None], due_s: float) -> None:
        self.due_s = due_s
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


class Questions:
    """Those that are open."""

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}
        self._num_asked = 0

    @property
    def due_s(self) -> float:
        """When :meth:`tick` has something to do; infinite if nothing is open."""
        return min((each.due_s for each in self._open.values()), default=float("inf"))

    def ask(self, nodes: Iterable[int], whole: Callable[[dict[int, Any]], None], now_s: float) -> int:
        """Number of a new question to these nodes; without nodes it is answered at once."""
        nodes = list(nodes)
        question = Question(nodes, whole, now_s + _PATIENCE_S)
        self._num_asked += 1
        if nodes:
            self._open[self._num_asked] = question
        else:
            question.give_up()
        return self._num_asked

    def hear(self, number: int, node: int, value: Any) -> None:
        """A node answers."""
        if (question := self._open.get(number)) is not None and question.hear(node, value):
            del self._open[number]

    def lost(self, node: int) -> None:
        """A node will not answer."""
        for number in list(self._open):
            self.hear(number, node, None)

    def tick(self, now_s: float) -> None:
        """Give up what is due."""
        for number in [number for number, each in self._open.items() if now_s >= each.due_s]:
            self._open.pop(number).give_up()
