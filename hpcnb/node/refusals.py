"""What the agent refuses, in its log: once for each peer and kind, and later how often; never a line per frame."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

__all__ = ["Refusals"]

#: How often something was refused is written down again after so long.
_PERIOD_S = 60.0
#: So many pairs of peer and kind are told apart; later ones are "others".
_MOST_KINDS = 200
_OTHERS = ("other peers", "refused")


class Refusals:
    """Counts what was refused.

    Args:
        log: Where to write.
        clock: Monotonic seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()
        self._told: Counter[tuple[str, str]] = Counter()
        self._due_s = float("inf")

    @property
    def total(self) -> int:
        """How often something was refused."""
        return self._counts.total()

    def note(self, peer: str, kind: str, words: str) -> bool:
        """Something was refused; true if it is the first of its peer and kind.

        Args:
            peer: Who, for example ``process 17``.
            kind: What for; the same for all that a person need not tell apart.
            words: More about this one; cut and escaped, since a peer may have written it.
        """
        key = (peer, kind)
        if key not in self._counts and len(self._counts) >= _MOST_KINDS:
            key = _OTHERS
        self._counts[key] += 1
        is_first = key not in self._told
        if is_first:
            self._told[key] = 1
            self._log.warning("refused %s: %s (%s)", *key, ascii(words[:200])[1:-1])
        self._due_s = min(self._due_s, self._clock() + _PERIOD_S)
        return is_first

    def failed(self, peer: str, message: object, error: Exception) -> str:
        """A bug of ours, met while ``error`` is handled by a message that nobody sends; returns what it was, in words.

        One message must not end everybody's cluster, so whoever met it goes on.
        """
        kind = f"its {type(message).__name__} could not be carried out"
        if self.note(peer, kind, repr(error)):
            self._log.exception("%s: %s", peer, kind)
        return kind

    def tick(self) -> None:
        """Say how often, where there were more and it is time."""
        if self._clock() >= self._due_s:
            self.flush()

    def flush(self) -> None:
        """Say how often, where there were more."""
        self._due_s = float("inf")
        for key, count in self._counts.items():
            if count > self._told[key]:
                self._told[key] = count
                self._log.warning("refused %s: %s, %d times so far", *key, count)
