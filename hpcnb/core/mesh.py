"""The mesh as a value: axis names and sizes, and where a rank lies in it. Both sides; knows no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hpcnb.core.errors import MeshError

__all__ = ["RESERVED_AXIS_NAMES", "MeshSpec"]

#: Words of the selection language that an axis may not be called.
RESERVED_AXIS_NAMES = frozenset({"all", "failed", "slowest", "host"})
_AXIS = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*(\d{1,9})\s*")


@dataclass(frozen=True)
class MeshSpec:
    """Named axes over ranks, row-major: the last axis varies fastest, as in ``torch.distributed.DeviceMesh``.

    Attributes:
        axes: Axis names, outermost first, for example ``("dp", "tp")``.
        sizes: Degree of each axis; the product is the number of ranks.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> MeshSpec:
        """Read ``dp=2,tp=2``.

        Raises:
            MeshError: Not a list of name=size, a name twice or reserved, a size below 1.
        """
        axes: list[str] = []
        sizes: list[int] = []
        for part in text.split(","):
            match = _AXIS.fullmatch(part)
            if match is None:
                msg = f"mesh {text!r}: cannot read {part.strip()!r}; write axis=size, for example dp=2,tp=2"
                raise MeshError(msg)
            axis, size = match[1], int(match[2])
            if axis in RESERVED_AXIS_NAMES:
                msg = (
                    f"mesh {text!r}: {axis!r} is a word of the rank selection; "
                    "call the axis something else, for example dp"
                )
                raise MeshError(msg)
            if axis in axes:
                msg = f"mesh {text!r}: axis {axis!r} is named twice"
                raise MeshError(msg)
            if size < 1:
                msg = f"mesh {text!r}: axis {axis!r} has size {size}; a size is at least 1"
                raise MeshError(msg)
            axes.append(axis)
            sizes.append(size)
        return cls(tuple(axes), tuple(sizes))

    @classmethod
    def for_world(cls, world_size: int, text: object = None) -> MeshSpec:
        """The mesh that was asked for, checked against the number of ranks; one axis ``dp`` when none was.

        Raises:
            MeshError: The sizes do not multiply to ``world_size``.
        """
        if text is None:
            return cls(("dp",), (world_size,))
        if not isinstance(text, str):
            msg = f"mesh {text!r} is a {type(text).__name__}; write axis=size as text, for example mesh='dp=2,tp=2'"
            raise MeshError(msg)
        mesh = cls.parse(text)
        if mesh.num_ranks != world_size:
            product = " x ".join(f"{axis}={size}" for axis, size in zip(mesh.axes, mesh.sizes, strict=True))
            rest = math.prod(mesh.sizes[1:])
            hint = f"try {mesh.num_ranks} ranks"
            if world_size % rest == 0:
                fitting = ",".join(
                    f"{axis}={size}"
                    for axis, size in zip(mesh.axes, (world_size // rest, *mesh.sizes[1:]), strict=True)
                )
                hint += f", or --mesh {fitting}"
            msg = f"mesh {product} needs {mesh.num_ranks} ranks, but the cluster has {world_size}; {hint}"
            raise MeshError(msg)
        return mesh

    def resized(self, num_ranks: int) -> MeshSpec:
        """The same axes over another number of ranks: the first one grows or shrinks.

        Raises:
            MeshError: The other axes do not divide that number.
        """
        rest = math.prod(self.sizes[1:])
        if num_ranks % rest == 0:
            return MeshSpec(self.axes, (num_ranks // rest, *self.sizes[1:]))
        below, example = num_ranks // rest * rest, MeshSpec(self.axes, (num_ranks, *[1] * (len(self.axes) - 1)))
        fitting = " and ".join(str(each) for each in (below, below + rest) if each)
        msg = (
            f"mesh {self} cannot have {num_ranks} ranks by growing or shrinking its first axis {self.axes[0]}; "
            f"{fitting} fit, or name all sizes:  %hpc scale {num_ranks} --mesh {example}"
        )
        raise MeshError(msg)

    @property
    def num_ranks(self) -> int:
        """Product of the sizes."""
        return math.prod(self.sizes)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Coordinate of ``rank`` on every axis."""
        coordinates: dict[str, int] = {}
        for axis, size in zip(reversed(self.axes), reversed(self.sizes), strict=True):
            rank, coordinates[axis] = divmod(rank, size)
        return {axis: coordinates[axis] for axis in self.axes}

    def size_of(self, axis: str) -> int:
        """Degree of ``axis``; MeshError if there is no such axis."""
        if axis not in self.axes:
            msg = f"no axis {axis!r}; this mesh has {', '.join(self.axes)}"
            raise MeshError(msg)
        return self.sizes[self.axes.index(axis)]

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in zip(self.axes, self.sizes, strict=True))
