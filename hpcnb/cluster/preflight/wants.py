"""What a node should have."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Wants"]


@dataclass(frozen=True)
class Wants:
    """What a node should have.

    Attributes:
        python: Version of the notebook's Python, ``3.11``.
        hpcnb: Version of the notebook's hpcnb.
        packages: The notebook's versions by distribution.
        num_ranks: Of this node.
        world_size: Of the cluster.
        address: Of the notebook's machine, as nodes are told it.
        ports: That the kernel gives to listeners there, ``32768-60999``; the head takes any of them.
        is_here: The node is the notebook's machine.
    """

    python: str
    hpcnb: str
    packages: dict[str, str] = field(default_factory=dict)
    num_ranks: int = 1
    world_size: int = 1
    address: str = ""
    ports: str = "32768-60999"
    is_here: bool = False

    def typed(self, where: str, command: str) -> str:
        """Where a command is to be typed, and the command."""
        return f"in a terminal here:  {command}" if self.is_here else f"on {where}:  {command}"
