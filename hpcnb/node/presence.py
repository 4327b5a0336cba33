"""Whether a cluster still belongs to somebody: when it ends by itself, and why. Pure: is told of time and people."""

from __future__ import annotations

__all__ = ["Presence"]

#: Nobody has ever connected: the launch was given up.
_UNCLAIMED_S = 120.0


class Presence:
    """Who is there for a cluster.

    Args:
        idle_timeout_s: It ends this long after its last notebook has gone; 0 ends it at once.
        now_s: Monotonic seconds.
        is_managed: Somebody else, ipyparallel's Cluster, ends it should no notebook ever come.
    """

    def __init__(self, idle_timeout_s: float, now_s: float, *, is_managed: bool) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._is_managed = is_managed
        self._alone_since_s: float | None = now_s
        #: Whether a notebook has ever been welcomed.
        self.claimed = False
        #: Whether the owner, a Jupyter server, has ended: then nobody can come back to a notebook of it.
        self.owner_gone = False

    def count(self, num_notebooks: int, now_s: float) -> None:
        """So many notebooks are connected now."""
        if num_notebooks:
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s

    def left_s(self, now_s: float) -> float | None:
        """Seconds until the cluster ends itself; None while a notebook is connected, or if it never does."""
        if self._alone_since_s is None or (self._is_managed and not self.claimed):
            return None
        if self.claimed and self.owner_gone:
            return 0.0
        limit_s = self._idle_timeout_s if self.claimed else _UNCLAIMED_S
        return max(0.0, self._alone_since_s + limit_s - now_s)

    def over(self, now_s: float) -> str:
        """Why the cluster ends now; "" if it does not."""
        left_s = self.left_s(now_s)
        if left_s is None or left_s > 0:
            return ""
        if self.claimed and self.owner_gone:
            return "the Jupyter server that its notebook belonged to ended, and no notebook is connected"
        limit_s = self._idle_timeout_s if self.claimed else _UNCLAIMED_S
        return f"no notebook has been connected for {limit_s:.0f} s"
