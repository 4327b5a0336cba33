"""What a notebook that connects later must know of ranks and nodes. Pure: is told messages, and tells them again."""

from __future__ import annotations

from hpcnb.core import messages as m

__all__ = ["Past"]


class Past:
    """Messages that are still true, in an order from which the state of the cluster follows."""

    def __init__(self) -> None:
        self._messages: list[m.Message] = []
        self._scaled: m.Scaled | None = None

    def add(self, message: m.Message) -> None:
        """This has been told to all who are connected."""
        if isinstance(message, m.Scaled):
            self._scaled = message
            self._messages = [each for each in self._messages if getattr(each, "rank", -1) < message.world_size]
            return
        if isinstance(message, m.RankExited) and self._is_removed(message.rank):
            return
        if isinstance(message, m.RankReady):  # how earlier processes of this rank fared is over
            self._messages = [each for each in self._messages if getattr(each, "rank", -1) != message.rank]
        self._messages.append(message)

    def _is_removed(self, rank: int) -> bool:
        return self._scaled is not None and rank >= self._scaled.world_size

    def all(self) -> list[m.Message]:
        """For a notebook that connects now: how many ranks there are, who is ready, and who has ended since."""
        scaled = [self._scaled] if self._scaled is not None else []
        return [*scaled, *sorted(self._messages, key=lambda each: isinstance(each, m.RankExited))]
