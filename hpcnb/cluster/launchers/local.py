"""``local``: a node agent on this machine, in a session of its own.

``Cluster`` runs the agent's command directly: importing ipyparallel for its launcher would delay a start by 0.3 s.
The same command is published as a launcher of ipyparallel, see ipyparallel_local.py.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from hpcnb.core.launch import AgentSpec, RunFolder, agent_environment
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.version import __version__

__all__ = [
    "AgentProcess",
    "agent_command",
    "launch",
    "new_keys",
    "new_spec",
    "owner_pid",
    "process_environment",
    "reap",
    "versions",
]


def agent_command(folder: RunFolder, python: str | None = None) -> list[str]:
    """The command that every launcher runs on a node."""
    return [python or sys.executable, "-m", "hpcnb.node", str(folder.path)]


@dataclass
class AgentProcess:
    """A node agent that was started as a child of this process."""

    process: subprocess.Popen[bytes]
    folder: RunFolder

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def ended(self) -> int | str | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def log_lines(self, count: int = 15) -> tuple[str, ...]:
        """The last lines of its log; nothing once the folder is gone."""
        return tuple(self.folder.log_lines(count))

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

    def let_go(self) -> None:
        """It goes on without this process, which has yet to take note of its end."""
        _LET_GO.append(self.process)


#: Agents that go on, children of this process.
_LET_GO: list[subprocess.Popen[bytes]] = []


def reap() -> None:
    """Take note of the end of agents that were let go."""
    _LET_GO[:] = [process for process in _LET_GO if process.poll() is None]


def new_spec(folder: RunFolder, mesh: MeshSpec, **fields: Any) -> AgentSpec:
    """A spec for all ranks of ``mesh`` on this machine, with keys of its own.

    Args:
        folder: Of the cluster.
        mesh: Axis names and sizes.
        fields: The other fields of AgentSpec.
    """
    server_public, server_secret = new_keys()
    client_public, client_secret = new_keys()
    return AgentSpec(
        world_size=mesh.num_ranks,
        first_rank=0,
        num_ranks=0 if fields.get("layout") else mesh.num_ranks,
        mesh=str(mesh),
        hpcnb_version=versions()[0],
        python_version=versions()[1],
        link_address=f"ipc://{folder.link_socket}",
        server_public=server_public,
        server_secret=server_secret,
        client_public=client_public,
        client_secret=client_secret,
        owner_pid=owner_pid(),
        started_s=time.time(),
        **fields,
    )


def new_keys() -> tuple[str, str]:
    """A pair of CURVE keys as Z85 text: public, secret."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def versions() -> tuple[str, str]:
    """Of hpcnb and Python here: notebook and ranks must have the same."""
    return __version__, ".".join(platform.python_version_tuple()[:2])


def owner_pid() -> int:
    """Who started this notebook kernel, usually the Jupyter server; 0 where nobody has said so, or it has ended."""
    said = os.environ.get("JPY_PARENT_PID", "")
    return int(said) if said.isdecimal() and Path(f"/proc/{said}").exists() else 0


def process_environment(spec: AgentSpec) -> dict[str, str]:
    """This process's environment with what ranks need, without what a notebook kernel sets for itself."""
    environment = {**os.environ, **agent_environment(spec)}
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "PYTHONSTARTUP"):
        environment.pop(name, None)
    return environment


def launch(spec: AgentSpec, folder: RunFolder, *, python: str | None = None) -> AgentProcess:
    """Start the agent; returns at once."""
    reap()
    with os.fdopen(os.open(folder.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        process = subprocess.Popen(
            agent_command(folder, python),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=process_environment(spec),
            # a Ctrl-C in a terminal and Jupyter's interrupt go to a process group: ours must not be in it
            start_new_session=True,
        )
    return AgentProcess(process, folder)
