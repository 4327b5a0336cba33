"""One node as the notebook holds it: the agent's process, its folder and the link to it."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

from hpcnb.cluster.launchers import local
from hpcnb.cluster.link import Link
from hpcnb.core import messages as m
from hpcnb.core.errors import LinkError
from hpcnb.core.launch import AgentSpec, RunFolder

__all__ = ["Agent", "Node"]

#: An agent that was told to end gets so long before it is killed.
_STOP_S = 6.0
#: An agent answers questions at once, whatever its ranks do.
_ANSWER_S = 10.0
#: Meanwhile it is looked at so often.
_LOOK_S = 0.2


class Agent(Protocol):
    """The agent's process, whoever started it."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def ended(self) -> int | str | None:
        """How it ended, in a number or a word; None while it runs."""

    def log_lines(self, count: int = 15) -> tuple[str, ...]:
        """The last lines of its log; nothing once the folder is gone."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""

    def kill(self) -> None:
        """End it at once: the kernel ends template and ranks with it."""

    def let_go(self) -> None:
        """It goes on without this process."""


class Node:
    """A node agent that runs, and a link to it.

    Args:
        spec: Of the agent.
        folder: Of the cluster; removed by :meth:`stop` if the agent has not done so.
        agent: Its process.
        on_message: Called on the link thread with each message that is no answer.
        role: What this process is to the agent, see :class:`hpcnb.core.messages.Hello`.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        agent: Agent,
        *,
        on_message: Callable[[m.Message], None],
        role: str = "notebook",
    ) -> None:
        self.spec = spec
        self.folder = folder
        self._on_message = on_message
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._farewell = ""
        self._requests = itertools.count(1)
        self.agent = agent
        self.link = Link(spec, self._hear)
        version, python = local.versions()
        self.link.send(m.Hello(m.PROTOCOL, version, python, role, local.owner_pid() if role == "notebook" else 0))

    @classmethod
    def launch(
        cls, spec: AgentSpec, folder: RunFolder, *, python: str | None, on_message: Callable[[m.Message], None]
    ) -> Node:
        """Start the agent, with the notebook's interpreter unless another is given."""
        return cls(spec, folder, local.launch(spec, folder, python=python), on_message=on_message)

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

    def ask(self, question: str, argument: int = 0, *, timeout_s: float = _ANSWER_S) -> Any:
        """The agent's answer, also while its ranks are busy.

        Raises:
            LinkError: It is gone, or does not answer.
        """
        self.check()
        request = next(self._requests)
        waiting = self._answers[request] = queue.SimpleQueue()
        self.link.send(m.Ask(request, question, argument))
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                return waiting.get(timeout=_LOOK_S)
            except queue.Empty:
                self.check()  # it may end instead of answering
        self._answers.pop(request, None)
        msg = f"the node agent did not answer within {timeout_s:.0f} s; type  %hpc stop  to end the cluster"
        raise LinkError(msg)

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

    def leave(self, reason: str) -> bool:
        """End the node unless other notebooks are connected; returns whether it ended."""
        try:
            others = self.ask("leave")
        except LinkError:
            others = 0
        if others:
            self.let_go()
        else:
            self.stop(reason)
        return not others

    def let_go(self) -> None:
        """Close the link; the node goes on."""
        self.link.close()
        self.agent.let_go()
