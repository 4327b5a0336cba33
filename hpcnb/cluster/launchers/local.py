"""``local``: a node agent on this machine, in a session of its own.

Published as an ipyparallel engine launcher (``ipp.Cluster(engines="hpcnb")`` finds it too); :class:`Cluster` uses
the same command without importing ipyparallel first, which would cost a start 0.3 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from hpcnb.core.launch import AgentSpec, RunFolder, agent_environment

__all__ = ["AgentProcess", "agent_command", "launch"]


def agent_command(folder: RunFolder, python: str | None = None) -> list[str]:
    """The command that every launcher runs on a node."""
    return [python or sys.executable, "-m", "hpcnb.node", str(folder.path)]


@dataclass
class AgentProcess:
    """A node agent that was started as a child of this process."""

    process: subprocess.Popen[bytes]
    folder: RunFolder

    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def log_lines(self, count: int = 15) -> tuple[str, ...]:
        """The last lines of its log; nothing once the folder is gone."""
        try:
            return tuple(self.folder.agent_log.read_text(errors="replace").splitlines()[-count:])
        except FileNotFoundError:
            return ()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it at once: the kernel ends template and ranks with it."""
        self.process.kill()
        self.process.wait()


def launch(spec: AgentSpec, folder: RunFolder, *, python: str | None = None) -> AgentProcess:
    """Start the agent; returns at once."""
    environment = {**os.environ, **agent_environment(spec)}
    # what a notebook kernel sets for itself would mislead ranks
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "PYTHONSTARTUP"):
        environment.pop(name, None)
    with folder.agent_log.open("ab") as log:
        process = subprocess.Popen(
            agent_command(folder, python),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            # a Ctrl-C in a terminal and Jupyter's interrupt go to a process group: ours must not be in it
            start_new_session=True,
        )
    return AgentProcess(process, folder)
