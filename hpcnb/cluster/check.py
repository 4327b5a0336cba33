"""What a comparison of replicas came to: a value that prints well. Knows rows, not how ranks are asked."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpcnb.core import replicas
from hpcnb.core.errors import OptionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

__all__ = ["CheckResult", "compared"]

#: Rows of tensors that differ that are printed.
_NUM_SHOWN = 12


@dataclass(repr=False)
class CheckResult:
    """Whether ranks that should hold equal numbers do.

    Attributes:
        ranks: Ranks that were asked.
        axis: The axis along which replicas were compared; "" if all ranks were.
        rows: One per tensor or value and set of ranks that should agree.
    """

    ranks: RankSet
    axis: str
    rows: list[replicas.Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all that should be equal is."""
        return all(row.same for row in self.rows)

    @property
    def different(self) -> list[replicas.Row]:
        """Rows whose ranks do not agree."""
        return [row for row in self.rows if not row.same]

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        compared = {row.path: row.num_bytes for row in self.rows if len(row.ranks) > 1}
        size = replicas.size_words(sum(compared.values()))
        along = f"along axis {self.axis}" if self.axis else "over all ranks"
        what = f"{len(compared)} tensor{'s' if len(compared) != 1 else ''} and values, {size}, {along}"
        if not compared:
            return f"nothing to compare {along}: no two of these ranks should hold the same"
        if self.ok:
            return f"{self.ranks.words()} agree: {what}"
        lines = [f"{len({row.path for row in self.different})} of {what}, differ:"]
        lines += [f"  {row}" for row in self.different[:_NUM_SHOWN]]
        if len(self.different) > _NUM_SHOWN:
            lines.append(f"  and {len(self.different) - _NUM_SHOWN} more")
        lines.append("to bring them from one rank to the others:  hpc.resync(...)  in a cell")
        return "\n".join(lines)


def compared(pickles: dict[int, bytes], mesh: MeshSpec, names: Sequence[str], axis: str | None) -> CheckResult:
    """Compare what ranks have sent.

    Args:
        pickles: ``{rank: pickled list of Digest}``.
        mesh: Of the cluster.
        names: What was asked for; none for all modules and optimizers.
        axis: What was asked for.

    Raises:
        OptionError: A name that no rank has, or nothing to compare.
    """
    # from our own ranks, over the authenticated link
    digests = {rank: pickle.loads(packed) for rank, packed in pickles.items()}  # noqa: S301
    found = {each.path for held in digests.values() for each in held}
    for name in names:
        if not any(path == name or path.startswith((f"{name}.", f"{name}[")) for path in found):
            msg = f"no rank has anything to compare under the name {name!r}; names are those of %%hpc_parallel cells"
            raise OptionError(msg)
    if not found:
        msg = "no rank has a module or optimizer; name what to compare, for example  %hpc check weights"
        raise OptionError(msg)
    along = replicas.default_axis(mesh, axis)
    rows = replicas.compare(digests, replicas.groups_along(mesh, along), shards_beyond=axis is None)
    return CheckResult(RankSet(pickles), along or "", rows)
