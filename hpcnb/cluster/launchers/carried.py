"""What launchers have in common whose agents are carried by processes that run on the nodes already.

Dask's workers and ipyparallel's engines are asked to call the functions of ``hpcnb.node.carrier``. Such a call blocks,
and so it is made on a thread of its own: the notebook looks at what came of it.
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, problem_of, spread
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.launch import Ticket
from hpcnb.core.named import Named
from hpcnb.core.version import __version__

__all__ = ["CarriedLauncher", "spread_over"]

#: An agent that joins is looked at so often.
_LOOK_S = 0.3
#: Carriers that are told to end an agent answer within so long, or not at all.
_END_S = 3.0
#: A function of ours is not there; Dask brings such an error within the text of another.
_NOT_FOUND = re.compile(r"(ModuleNotFound|Import|Attribute)Error\b.*hpcnb")


_START, _LOOK, _END = (Named(f"hpcnb.node.carrier:{name}") for name in ("start", "look", "end"))


class CarriedLauncher(NodeLauncher, ABC):
    """Starts agents through carriers.

    Attributes:
        carrier: What a carrier is, in words.
    """

    carrier: str

    def __init__(self) -> None:
        self._errands: list[_Errand] = []

    @abstractmethod
    def find(self, node: int) -> str:
        """The carrier for a node. Blocks; on a thread of its own.

        Raises:
            LaunchError: There is none.
        """

    @abstractmethod
    def call(self, carrier: str, function: Named, *args: Any) -> Any:
        """Call a function there; raises what it raises. Blocks; on a thread of its own."""

    @abstractmethod
    def release(self) -> None:
        """Nothing is asked of carriers for now."""

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """See NodeLauncher."""
        for node in nodes:
            errand = _Errand(self, ticket.to_text(), node)
            self._errands.append(errand)
            errand.start()

    def look(self) -> Problem | None:
        """See NodeLauncher."""
        return next((errand.problem for errand in self._errands if errand.problem is not None), None)

    def words(self) -> str:
        """See NodeLauncher."""
        asked = [errand.carrier for errand in self._errands if errand.carrier and not errand.is_started]
        return f"{self.carrier} {', '.join(asked)} has yet to answer" if asked else ""

    def started(self) -> None:
        """See NodeLauncher: carriers go on, and with them the agents."""
        self._finish(has_joined=True)

    def cancel(self) -> None:
        """See NodeLauncher."""
        self._finish(has_joined=False)

    def _finish(self, *, has_joined: bool) -> None:
        if not self._errands:
            return
        errands, self._errands = self._errands, []
        for errand in errands:
            errand.finish(has_joined=has_joined)
        until_s = time.monotonic() + _END_S
        for errand in errands:
            errand.join(max(0.0, until_s - time.monotonic()))
        self.release()


class _Errand(threading.Thread):
    """One agent on its way; ``problem`` says why it will not come."""

    def __init__(self, launcher: CarriedLauncher, ticket: str, node: int) -> None:
        super().__init__(name=f"hpcnb-launch-{node}", daemon=True)
        self.problem: Problem | None = None
        self.carrier = ""
        self.is_started = False
        self._launcher = launcher
        self._ticket = ticket
        self._node = node
        self._is_over = threading.Event()
        self._has_joined = False

    def finish(self, *, has_joined: bool) -> None:
        """It has joined, or is given up."""
        self._has_joined = has_joined
        self._is_over.set()

    def run(self) -> None:
        """Start the agent, and look at it until it has joined or has ended."""
        kind = self._launcher.carrier
        try:
            self.problem = self._carry()
        except Exception as error:  # noqa: BLE001 - whatever a library raises whose connection ended
            said = f"{type(error).__name__}: {error}"
            if _NOT_FOUND.search(said):
                self.problem = Problem(
                    f"{kind} {self.carrier} cannot import the hpcnb of this notebook ({error}); install it where that "
                    f"{kind} runs:  pip install hpcnb=={__version__}"
                )
            elif isinstance(error, LaunchError):
                self.problem = Problem(str(error))
            else:
                self.problem = Problem(f"{kind} {self.carrier} could not be asked to start ranks: {said}")

    def _carry(self) -> Problem | None:
        self.carrier = self._launcher.find(self._node)
        begun = self._launcher.call(self.carrier, _START, self._ticket, self._node, self._launcher.carrier)
        self.is_started = True
        host, python, key = begun["host"], begun["python"], begun["key"]
        if begun["problem"]:
            return problem_of(host, python, [begun["problem"]])
        while not self._is_over.wait(_LOOK_S):
            status, lines = self._launcher.call(self.carrier, _LOOK, key)
            if status is not None:
                return problem_of(host, python, lines or [f"its agent ended with status {status}"])
        if not self._has_joined:
            self._launcher.call(self.carrier, _END, key)
        return None


def spread_over(num_carriers: Sequence[int], num_ranks: int | None, ranks_per_node: int | None) -> list[int]:
    """Number of ranks of each host that has carriers; hosts at the end may go without.

    Args:
        num_carriers: Of each host, how many carriers it has: by default so many ranks.
        num_ranks: Of all hosts; without it all hosts are used.
        ranks_per_node: The same on every host.

    Raises:
        OptionError: The numbers contradict each other, or there are too few hosts.
    """
    if ranks_per_node is not None:
        if ranks_per_node < 1:
            msg = f"a node has at least 1 rank, not {ranks_per_node}"
            raise OptionError(msg)
        num_nodes = len(num_carriers) if num_ranks is None else -(-num_ranks // ranks_per_node)
        if num_nodes > len(num_carriers):
            msg = (
                f"{num_ranks} ranks, {ranks_per_node} on each node, take {num_nodes} hosts, and there are "
                f"{len(num_carriers)}"
            )
            raise OptionError(msg)
        return spread(num_ranks, num_nodes, ranks_per_node)
    if num_ranks in (None, sum(num_carriers)):
        return list(num_carriers)
    assert num_ranks is not None
    return spread(num_ranks, max(1, min(num_ranks, len(num_carriers))), None)
