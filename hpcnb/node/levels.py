"""The two sides of an agent, as each knows the other: what is above the ranks, and what is below the notebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hpcnb.core import messages as m
from hpcnb.node.orders import Order
from hpcnb.node.relay import CellMessage

__all__ = ["Above", "Below", "Side", "carry_out"]


class Side(Protocol):
    """One of the two, as the agent's loop knows it."""

    def start(self) -> None:
        """Begin; called once, before the first turn."""

    @property
    def has_input(self) -> bool:
        """Whether something has arrived that no descriptor tells of; ask before blocking on descriptors."""

    @property
    def due_s(self) -> float:
        """When a turn is needed though nothing arrives; infinite if it is not."""

    def turn(self, now_s: float) -> None:
        """Take what has arrived, and do what is due."""

    def finish(self, reason: str, *, is_whole: bool) -> None:
        """End everything that belongs to it.

        Args:
            reason: Why, in words.
            is_whole: The whole cluster ends, not only this node.
        """


class Above(Protocol):
    """Whom the ranks' side tells what ranks say and do."""

    def tell(self, message: m.Message) -> None:
        """What a notebook which connects later must hear too."""

    def say(self, message: m.Message) -> None:
        """What belongs to a cell: kept until a notebook has heard it."""

    def mention(self, message: m.Message) -> None:
        """What is true at this moment only."""

    def fail(self, reason: str, *, lines: list[str] | None = None, is_over: bool = False) -> None:
        """Ranks could not be started, or (``is_over``) they ended with what they were started from.

        Args:
            reason: Why, in words.
            lines: The last ones of a log; by default of the agent's own.
            is_over: Whether no rank is left, nor can be started.
        """


class Below(Protocol):
    """Whom the notebooks' side orders to do something with ranks."""

    def begin(self, message: CellMessage) -> None:
        """A cell begins on its ranks."""

    def obey(self, order: Order | m.StopAtStep) -> None:
        """Carry an order out."""

    def alarm(self, seconds: float) -> None:
        """Somewhere ranks wait, or one has failed: tell where these are, for so long."""

    def restart(self, message: m.RestartRanks) -> None:
        """Replace ranks."""

    def status(self, answer: Callable[[list[dict[str, Any]]], None]) -> None:
        """A row per rank, now or when it is there."""

    def log(self, rank: int, answer: Callable[[str], None]) -> None:
        """What a rank wrote outside of cells."""


def carry_out(below: Below, message: m.Message, answer: Callable[[int, Any], None]) -> bool:
    """Have an order of who is above carried out; whether it is one.

    Args:
        below: Who carries it out.
        message: The order.
        answer: Takes the number of a question, and the answer, now or when it is there.
    """
    match message:
        case m.Alarm():
            below.alarm(message.seconds)
        case m.RestartRanks():
            below.restart(message)
        case m.Ask(request, "status"):
            below.status(lambda rows: answer(request, rows))
        case m.Ask(request, "logs", rank):
            below.log(rank, lambda text: answer(request, text))
        case _ if isinstance(message, CellMessage):
            below.begin(message)
        case _ if isinstance(message, Order | m.StopAtStep):
            below.obey(message)
        case _:
            return False
    return True
