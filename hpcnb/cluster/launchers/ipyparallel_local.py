"""The local node agent as an engine launcher of ipyparallel: ``ipyparallel.Cluster(engines="hpcnb", n=4)``.

Engines are forked ranks with a process group, registered with that cluster's own controller. Published under the
entry-point group ``ipyparallel.engine_launchers``.
"""

from __future__ import annotations

from typing import Any

from ipyparallel.cluster.launcher import EngineLauncher, LocalProcessLauncher
from traitlets import Float, Unicode

from hpcnb.cluster import machine
from hpcnb.cluster.launchers import local
from hpcnb.core.launch import IDLE_TIMEOUT_S, AgentSpec, RunFolder
from hpcnb.core.mesh import MeshSpec

__all__ = ["LocalAgentLauncher"]


class LocalAgentLauncher(LocalProcessLauncher, EngineLauncher):
    """Starts one node agent, which forks n engines."""

    mesh = Unicode("", config=True, help="axis names and sizes, dp=2,tp=2; one axis dp by default")
    idle_timeout_s = Float(IDLE_TIMEOUT_S, config=True, help="the agent ends so long after the last notebook has gone")

    _spec: AgentSpec
    _folder: RunFolder

    def find_args(self) -> list[str]:
        """The command of the agent."""
        return local.agent_command(self._folder)

    def get_env(self) -> dict[str, str]:
        """Its environment, with what the cluster's configuration adds."""
        return {**local.process_environment(self._spec), **super().get_env()}

    def start(self, n: int) -> Any:
        """Start the agent for ``n`` ranks."""
        machine.check_platform()
        mesh = MeshSpec.for_world(n, self.mesh or None)
        self.n = n
        self._folder = RunFolder.create(self.cluster_id or "ipyparallel")
        self._spec = local.new_spec(
            self._folder, mesh, cluster_name=self.cluster_id or "ipyparallel",
            threads_per_rank=machine.threads_per_rank(n), idle_timeout_s=self.idle_timeout_s, environment={},
            controller_profile=self.profile_dir, controller_id=self.cluster_id,
        )  # fmt: skip
        self._spec.save(self._folder.spec)
        return super().start()
