"""The node agent: one thread, one selector, from the launch to the last process of its node.

It does not import torch and never waits for a rank. It has sides: above the front, which notebooks talk to, or the
link to who is above; below the host, which holds the ranks of the node, or branches, which are the agents of other
nodes, or both.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable

import zmq

from hpcnb.core import alive
from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.node import controller
from hpcnb.node.front import Front
from hpcnb.node.head import Head
from hpcnb.node.host import RankHost
from hpcnb.node.inner import Inner
from hpcnb.node.levels import Above, Side
from hpcnb.node.refusals import Refusals
from hpcnb.node.template_process import TemplateProcess
from hpcnb.node.uplink import Uplink

__all__ = ["Agent"]

LOG = logging.getLogger(__name__)
#: The controller gets so long to end before it is killed.
_GRACE_S = 1.0
#: Its connection file is looked for so often.
_STARTING_S = 0.02
#: Where batch systems say which job this is.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
#: The agent looks around so often when nothing happens.
_IDLE_S = 1.0


class Agent:
    """The agent of one node.

    Args:
        spec: What was launched.
        folder: Of the cluster.
        template: What ranks are forked from; None for the head of a cluster of many nodes, which has none.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        spec: AgentSpec,
        folder: RunFolder,
        template: TemplateProcess | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._clock = clock
        self._lock = alive.hold(folder)  # after the template was forked: no child has it
        self._selector = selectors.DefaultSelector()
        self._refusals = Refusals(LOG, clock)
        self._ending: str | None = None
        self._is_whole = not spec.is_node
        self._controller: subprocess.Popen[bytes] | None = None
        self._controller_started_ns = 0
        self._front: Front | None = None
        # who launched a node has done its part when the node has joined, unless it carries it
        is_watched = not spec.is_node or spec.carrier_pid != 0
        self._parent = os.pidfd_open(os.getppid()) if is_watched else -1
        self._sides = self._of_node(template) if spec.is_node else self._of_notebooks(template)

    def _of_notebooks(self, template: TemplateProcess | None) -> list[Side]:
        """The agent that notebooks talk to: of a single node, or the head of many."""
        spec, folder, refusals, clock = self._spec, self._folder, self._refusals, self._clock
        self._front = front = Front(spec, folder, selector=self, refusals=refusals, end=self._end, clock=clock)
        below: Head | RankHost
        if template is None:
            below = Head(spec, folder, above=front, selector=self, refusals=refusals, clock=clock)
        else:
            below = self._host(template, front)
        front.below = below
        return [front, below]

    def _of_node(self, template: TemplateProcess | None) -> list[Side]:
        """The agent of a node that a head is above, and perhaps other nodes below."""
        spec = self._spec
        assert template is not None, "a node has ranks"
        uplink = Uplink(spec, self._folder, selector=self, end=self._end, clock=self._clock)
        if not spec.is_relay:
            uplink.below = host = self._host(template, uplink)
            return [uplink, host]
        keys = tuple(key.decode() for key in zmq.curve_keypair())
        inner = Inner(
            spec, uplink.own_address(), (keys[0], keys[1]), above=uplink, selector=self, refusals=self._refusals,
            clock=self._clock,
        )  # fmt: skip
        uplink.below = uplink.relay = inner
        inner.host = host = self._host(template, inner.own)
        return [uplink, inner, host]

    def _host(self, template: TemplateProcess, above: Above) -> RankHost:
        return RankHost(
            self._spec, self._folder, template, above=above, selector=self, refusals=self._refusals, clock=self._clock
        )

    def run(self) -> None:
        """Serve until the cluster ends, then leave nothing behind."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in a terminal is for the notebook
        signal.signal(signal.SIGTERM, lambda *_: self._end(_terminated()))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            if self._front is not None and not self._spec.controller_profile:
                self._controller_started_ns = time.perf_counter_ns()
                self._controller = controller.start(self._folder, self._spec.address)
            if self._parent >= 0:
                self.watch(self._parent, self._parent_gone)
            for side in self._sides:
                side.start()
            if self._spec.carrier_pid not in (0, os.getppid()):  # it ended before it could be watched
                self._parent_gone()
            while self._ending is None:
                self._turn()
        except Exception:
            LOG.exception("the agent failed")
            self._ending = "the agent failed; see its log"
        finally:
            self._finish()

    def _turn(self) -> None:
        timeout_s = 0.0 if any(side.has_input for side in self._sides) else self._timeout_s()
        for key, _ in self._selector.select(timeout_s):
            if self._ending is None:  # who ends this process may have ended ranks too: not what failed first
                key.data()
        now_s = self._clock()
        for side in self._sides:
            side.turn(now_s)
        self._refusals.tick()
        self._check_controller()

    def _timeout_s(self) -> float:
        now_s = self._clock()
        idle_s = _STARTING_S if self._controller_started_ns else _IDLE_S
        return max(0.0, min(now_s + idle_s, *(side.due_s for side in self._sides)) - now_s)

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

    def _end(self, reason: str, *, is_whole: bool = False) -> None:
        if self._ending is None:
            self._ending = reason
            self._is_whole = is_whole or not self._spec.is_node

    def _parent_gone(self) -> None:
        self.unwatch(self._parent)
        if self._spec.carrier_pid:
            self._end(f"the {self._spec.carrier} that carried it ended")
        elif self._front is not None and not self._front.is_claimed:
            self._end("who launched the cluster ended, and no notebook is connected")

    def _check_controller(self) -> None:
        if self._controller is None or not self._controller_started_ns or self._front is None:
            return
        if self._folder.of_controller():
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
        above, *below = self._sides
        if isinstance(above, Uplink) and not self._is_whole:  # others wait for the ranks of this node
            above.tell(m.Farewell(reason))
        for side in reversed(below):
            side.finish(reason, is_whole=self._is_whole)
        controller.stop(self._controller, _GRACE_S)
        self._folder.remove()
        above.finish(reason, is_whole=self._is_whole)


def _terminated() -> str:
    """Why an agent ends that gets SIGTERM."""
    job = next((f"job {os.environ[name]}" for name in _JOBS if name in os.environ), "")
    why = f": {job} was cancelled, or its time is up" if job else ""
    return f"it was told to end (SIGTERM){why}"
