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
_ONLY = "(modules and optimizers only; name tensors and numbers to compare them too:  %hpc check step)"


@dataclass(repr=False)
class CheckResult:
    """Whether ranks that should hold equal numbers do.

    Attributes:
        ranks: Ranks that were asked.
        axis: The axis along which replicas were compared; "" if all ranks were.
        rows: One per tensor or value and set of ranks that should agree.
        lacking: ``{name: ranks}`` where none of the ranks that should agree has a name that others have.
        were_named: Whether names were given; else all modules and optimizers were compared, and nothing else.
    """

    ranks: RankSet
    axis: str
    rows: list[replicas.Row] = field(default_factory=list)
    lacking: dict[str, RankSet] = field(default_factory=dict)
    were_named: bool = True

    @property
    def ok(self) -> bool:
        """Whether all that should be equal is, and everybody has it."""
        return not self.lacking and all(row.same for row in self.rows)

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
        lines = []
        if self.different:
            lines.append(f"{len({row.path for row in self.different})} of {what}, differ:")
            lines += [f"  {row}" for row in self.different[:_NUM_SHOWN]]
            if len(self.different) > _NUM_SHOWN:
                lines.append(f"  and {len(self.different) - _NUM_SHOWN} more")
        elif compared:
            lacking = RankSet(rank for ranks in self.lacking.values() for rank in ranks)
            lines.append(f"{(self.ranks - lacking or self.ranks).words()} agree: {what}")
        else:
            lines.append(f"nothing to compare {along}: no two of these ranks should hold the same")
        lines += [f"{name} is missing on {ranks.words()}" for name, ranks in self.lacking.items()]
        if self.different:
            lines.append(replicas.advice(self.different))
        if compared and not self.were_named:
            lines.append(_ONLY)
        return "\n".join(lines)


def _lacking(
    digests: dict[int, list[replicas.Digest]], rows: list[replicas.Row], names: Sequence[str]
) -> dict[str, RankSet]:
    """Ranks without a name that others have, where no row says so: nobody whom they should agree with has it."""

    def name_of(path: str) -> str:
        if names:
            return next((name for name in names if path == name or path.startswith((f"{name}.", f"{name}["))), "")
        return path.partition(".")[0]

    having: dict[str, RankSet] = {}
    for rank, held in digests.items():
        for name in {name_of(each.path) for each in held if not each.path.startswith("rng.")} - {""}:
            having[name] = having.get(name, RankSet()) | RankSet([rank])
    told: dict[str, RankSet] = {}
    for row in rows:
        if not row.same:
            told[name_of(row.path)] = told.get(name_of(row.path), RankSet()) | row.ranks
    lacking = {name: RankSet(digests) - ranks - told.get(name, RankSet()) for name, ranks in sorted(having.items())}
    return {name: ranks for name, ranks in lacking.items() if ranks}


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
    return CheckResult(RankSet(pickles), along or "", rows, _lacking(digests, rows, names), were_named=bool(names))
