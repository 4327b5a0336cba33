"""What cells ran in, as a value: ranks, mesh, versions, launcher. Both script and batch job are written from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcnb.core.mesh import MeshSpec

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """The cluster that cells ran on.

    Attributes:
        mesh: Axis names and sizes; its product is the number of ranks.
        cluster_name: As the person named it.
        written: When the script is written, in words.
        versions: Of hpcnb, python and torch, as far as they are known.
        threads_per_rank: OpenMP and torch threads of a rank.
        layout: Number of ranks of each node.
        devices: Of each rank, ``cuda:0``; "" where it is not known.
        environment: Names of environment variables that the ranks were given.
        python: Interpreter of the ranks.
        launcher: Who started them.
        launcher_options: As they were given to it.
    """

    mesh: MeshSpec
    cluster_name: str = "default"
    written: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    threads_per_rank: int = 1
    layout: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    python: str = "python"
    launcher: str = "local"
    launcher_options: dict[str, Any] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.mesh.num_ranks
