"""``local``: a node agent on this machine, in a session of its own.

``Cluster`` runs the agent's command directly: importing ipyparallel for its launcher would delay a start by 0.3 s.
The same command is published as a launcher of ipyparallel, see ipyparallel_local.py.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import zmq

from hpcnb.core.launch import AgentSpec, RunFolder, agent_environment
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.version import __version__

__all__ = ["AgentProcess", "agent_command", "launch", "new_spec", "process_environment"]


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


def new_spec(folder: RunFolder, mesh: MeshSpec, **fields: Any) -> AgentSpec:
    """A spec for all ranks of ``mesh`` on this machine, with keys of its own.

    Args:
        folder: Of the cluster.
        mesh: Axis names and sizes.
        fields: The other fields of AgentSpec.
    """
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    return AgentSpec(
        world_size=mesh.num_ranks,
        first_rank=0,
        num_ranks=mesh.num_ranks,
        mesh=str(mesh),
        hpcnb_version=__version__,
        python_version=".".join(platform.python_version_tuple()[:2]),
        link_address=f"ipc://{folder.link_socket}",
        server_public=server_public.decode(),
        server_secret=server_secret.decode(),
        client_public=client_public.decode(),
        client_secret=client_secret.decode(),
        **fields,
    )


def process_environment(spec: AgentSpec) -> dict[str, str]:
    """This process's environment with what ranks need, without what a notebook kernel sets for itself."""
    environment = {**os.environ, **agent_environment(spec)}
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "PYTHONSTARTUP"):
        environment.pop(name, None)
    return environment


def launch(spec: AgentSpec, folder: RunFolder, *, python: str | None = None) -> AgentProcess:
    """Start the agent; returns at once."""
    with folder.agent_log.open("ab") as log:
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
