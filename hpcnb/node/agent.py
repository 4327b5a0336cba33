"""The node agent: one thread, one selector, from the launch to the last process of its node.

It does not import torch and never waits for a rank. Its two sides are the front, which notebooks talk to, and the
host, which holds the ranks of the node.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable

from hpcnb.core import alive
from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.node import controller
from hpcnb.node.front import Front
from hpcnb.node.host import RankHost, TemplateProcess
from hpcnb.node.refusals import Refusals

__all__ = ["Agent"]

LOG = logging.getLogger(__name__)
#: The controller gets so long to end before it is killed.
_GRACE_S = 1.0
#: Its connection file is looked for so often.
_STARTING_S = 0.02
#: The agent looks around so often when nothing happens.
_IDLE_S = 1.0


class Agent:
    """The agent of one node.

    Args:
        spec: What was launched.
        folder: Of the cluster.
        template: What ranks are forked from.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        template: TemplateProcess,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._clock = clock
        self._lock = alive.hold(folder)  # after the template was forked: no child has it
        self._selector = selectors.DefaultSelector()
        self._refusals = Refusals(LOG, clock)
        self._front = Front(spec, folder, selector=self, refusals=self._refusals, end=self._end, clock=clock)
        self._host = RankHost(
            spec, folder, template, above=self._front, selector=self, refusals=self._refusals, clock=clock
        )
        self._front.below = self._host
        self._ending: str | None = None
        self._controller: subprocess.Popen[bytes] | None = None
        self._controller_started_ns = 0
        self._parent = os.pidfd_open(os.getppid())

    def run(self) -> None:
        """Serve until the cluster ends, then leave nothing behind."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in a terminal is for the notebook
        signal.signal(signal.SIGTERM, lambda *_: self._end("the agent was told to end (SIGTERM)"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if not self._spec.controller_profile:
                self._controller_started_ns = time.perf_counter_ns()
                self._controller = controller.start(self._folder)
            self.watch(self._parent, self._parent_gone)
            self._front.start()
            self._host.start()
            while self._ending is None:
                self._turn()
        except Exception:
            LOG.exception("the agent failed")
            self._ending = "the agent failed; see its log"
        finally:
            self._finish()

    def _turn(self) -> None:
        timeout_s = 0.0 if self._front.has_input else self._timeout_s()
        for key, _ in self._selector.select(timeout_s):
            key.data()
        now_s = self._clock()
        self._front.turn(now_s)
        self._host.tick(now_s)
        self._refusals.tick()
        self._check_controller()

    def _timeout_s(self) -> float:
        now_s = self._clock()
        idle_s = _STARTING_S if self._controller_started_ns else _IDLE_S
        return max(0.0, min(now_s + idle_s, self._host.due_s) - now_s)

    def watch(self, descriptor: int, call: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        """See Watching."""
        self.unwatch(descriptor)  # one that was closed by itself leaves its number behind
        self._selector.register(descriptor, events, call)

    def unwatch(self, descriptor: int) -> None:
        """See Watching."""
        try:
            self._selector.unregister(descriptor)
        except (KeyError, ValueError):
            pass  # never watched, already closed, or -1

    def _end(self, reason: str) -> None:
        if self._ending is None:
            self._ending = reason

    def _parent_gone(self) -> None:
        self.unwatch(self._parent)
        if not self._front.is_claimed:
            self._end("who launched the cluster ended, and no notebook is connected")

    def _check_controller(self) -> None:
        if self._controller is None or not self._controller_started_ns:
            return
        if self._folder.connection_file("engine").exists():
            self._front.tell(m.Stage("controller", self._controller_started_ns, time.perf_counter_ns()))
            self._controller_started_ns = 0
        elif self._controller.poll() is not None:
            self._controller_started_ns = 0
            self._front.fail(f"the ipyparallel controller ended with status {self._controller.returncode}")

    def _finish(self) -> None:
        """End everything, in reverse, and say so."""
        reason = self._ending or ""
        LOG.info("ending: %s", reason)
        self._refusals.flush()
        self._host.finish(reason)
        controller.stop(self._controller, _GRACE_S)
        self._folder.remove()
        self._front.close(reason)
