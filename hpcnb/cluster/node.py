"""One node as the notebook holds it: the agent's process, its folder and the link to it."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable
from typing import Any

from hpcnb.cluster.launchers import local
from hpcnb.cluster.link import Link
from hpcnb.core import messages as m
from hpcnb.core.errors import LinkError
from hpcnb.core.launch import AgentSpec, RunFolder

__all__ = ["Node"]

#: An agent that was told to end gets so long before it is killed.
_STOP_S = 6.0
#: An agent answers questions at once, whatever its ranks do.
_ANSWER_S = 10.0


class Node:
    """A launched node agent.

    Args:
        spec: What to launch.
        folder: Of the cluster; removed by :meth:`stop` if the agent has not done so.
        python: Interpreter of agent and ranks; by default the notebook's.
        on_message: Called on the link thread with each message that is no answer.
    """

    def __init__(
        self, spec: AgentSpec, folder: RunFolder, *, python: str | None, on_message: Callable[[m.Message], None]
    ) -> None:
        self.folder = folder
        self._on_message = on_message
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._farewell = ""
        self._requests = itertools.count(1)
        self.agent = local.launch(spec, folder, python=python)
        self.link = Link(spec, self._hear)
        self.link.send(m.Hello(m.PROTOCOL, spec.hpcnb_version, spec.python_version))

    def _hear(self, message: m.Message) -> None:
        if isinstance(message, m.Answer):
            if (waiting := self._answers.pop(message.request, None)) is not None:
                waiting.put(message.value)
        else:
            if isinstance(message, m.Farewell):
                self._farewell = message.reason
            self._on_message(message)

    def check(self) -> None:
        """Raise LinkError if the agent is gone."""
        if (status := self.agent.ended()) is not None:
            why = self._farewell or f"status {status}"
            msg = f"the node agent ended, and its ranks with it ({why}); type  %hpc stop  and then  %hpc start"
            raise LinkError(msg)

    def ask(self, question: str, argument: int = 0) -> Any:
        """The agent's answer, also while its ranks are busy.

        Raises:
            LinkError: It is gone, or does not answer.
        """
        self.check()
        request = next(self._requests)
        waiting = self._answers[request] = queue.SimpleQueue()
        self.link.send(m.Ask(request, question, argument))
        try:
            return waiting.get(timeout=_ANSWER_S)
        except queue.Empty:
            self._answers.pop(request, None)
            msg = f"the node agent did not answer within {_ANSWER_S:.0f} s; type  %hpc stop  to end the cluster"
            raise LinkError(msg) from None

    def stop(self, reason: str) -> None:
        """End agent, ranks and controller, and remove what they left."""
        try:
            if self.agent.ended() is None:
                self.link.send(m.Shutdown(reason))
                if not self.agent.wait(_STOP_S):
                    self.agent.kill()
        finally:
            self.link.close()
            self.folder.remove()  # gone already unless the agent was killed
