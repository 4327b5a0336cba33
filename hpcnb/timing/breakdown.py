"""Where each rank's wall time went: categories that add up to it exactly. Notebook side, pure.

Every record carries the time that nested records account for, so a rank's exclusive times and its blocked
times tile its part of the cell. Before and after it are dispatch and idle; what no record explains is in
``other``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from hpcnb.core.spans import CATEGORY_NAMES, Category, Kind
from hpcnb.timing.exposed import Exposed, exposed
from hpcnb.timing.timeline import CellTimeline, RankCell, Spans, Timeline

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Account", "accounts", "breakdown", "rows", "sums", "totals"]

Floats = npt.NDArray[np.float64]
_Ns = TypeVar("_Ns", int, npt.NDArray[np.int64])

_NUM_CATEGORIES = len(CATEGORY_NAMES)
_IS_ALWAYS = tuple(
    category
    in (
        Category.COMPUTATION,
        Category.COMMUNICATION_WAIT,
        Category.COMMUNICATION_TRANSFER,
        Category.IDLE,
        Category.DISPATCH,
    )
    for category in Category
)
#: Category of a record's exclusive time by its kind; USER has its own, communication and unknown kinds none.
_CATEGORY_OF_KIND = np.full(256, _NUM_CATEGORIES)
_CATEGORY_OF_KIND[[Kind.CELL, Kind.STEP, Kind.DATA]] = (
    Category.COMPUTATION,
    Category.COMPUTATION,
    Category.DATA,
)


@dataclass(frozen=True, eq=False)
class Account:
    """One rank's wall time in one cell.

    Attributes:
        rank: Global rank.
        steps: Ascending; -1 is outside any step.
        duration_ns: (num_steps, num_categories), >= 0; adds up to the cell's wall time.
        overlapped_ns: (num_steps,): communication that the main thread did not wait for; not in the sum.
    """

    rank: int
    steps: npt.NDArray[np.int64]
    duration_ns: Floats
    overlapped_ns: Floats


_accounts: WeakKeyDictionary[CellTimeline, tuple[Account, ...]] = WeakKeyDictionary()
_totals: WeakKeyDictionary[CellTimeline, dict[int, dict[str, float]]] = WeakKeyDictionary()


def accounts(cell: CellTimeline) -> tuple[Account, ...]:
    """The account of every rank of the cell; kept as long as the cell is."""
    known = _accounts.get(cell)
    if known is None:
        communication = exposed(cell)
        known = tuple(
            _account(cell, rank, communication, communication.of_rank(index)) for index, rank in enumerate(cell.ranks)
        )
        _accounts[cell] = known
    return known


def totals(cell: CellTimeline) -> dict[int, dict[str, float]]:
    """Milliseconds per category of each rank of the cell.

    Returns:
        rank -> category -> duration_ms, categories in the order of ``Category``. Those of zero length are
        left out, but computation, communication_wait, communication_transfer, idle and dispatch never are.
        The values of a rank add up to ``cell.wall_ms``.
    """
    known = _totals.get(cell)
    if known is None:
        known = _plain_totals(cell)
        if known is None:
            known = {account.rank: _named(account.duration_ns.sum(axis=0).tolist()) for account in accounts(cell)}
        _totals[cell] = known  # a strip asks four times
    return known


def sums(timeline: Timeline) -> dict[int, dict[str, float]]:
    """Milliseconds per rank, ascending, and category: :func:`totals` of all cells together."""
    sums_ms: dict[int, dict[str, float]] = {}
    for cell in timeline.cells:
        for rank, durations_ms in totals(cell).items():
            sum_ms = sums_ms.setdefault(rank, {})
            for name, duration_ms in durations_ms.items():
                sum_ms[name] = sum_ms.get(name, 0.0) + duration_ms
    return dict(sorted(sums_ms.items()))


def rows(timeline: Timeline) -> dict[str, npt.NDArray[Any]]:
    """The columns of :func:`breakdown`, as arrays."""
    columns: dict[str, list[npt.NDArray[Any]]] = {
        name: [] for name in ("rank", "step", "category", "duration_ms", "overlapped_ms", "cell")
    }
    names = np.array(CATEGORY_NAMES, dtype=object)
    for cell in timeline.cells:
        for account in accounts(cell):
            shown = account.duration_ns > 0
            shown[:, Category.COMMUNICATION_TRANSFER] |= account.overlapped_ns > 0
            step, category = np.nonzero(shown)
            on_transfer = category == Category.COMMUNICATION_TRANSFER
            columns["rank"].append(np.full(len(step), account.rank))
            columns["step"].append(account.steps[step])
            columns["category"].append(names[category])
            columns["duration_ms"].append(account.duration_ns[step, category] / 1e6)
            columns["overlapped_ms"].append(np.where(on_transfer, account.overlapped_ns[step], 0.0) / 1e6)
            columns["cell"].append(np.full(len(step), cell.cell))
    types = (np.int64, np.int64, object, np.float64, np.float64, np.int64)
    return {
        name: np.concatenate(parts) if parts else np.zeros(0, dtype)
        for (name, parts), dtype in zip(columns.items(), types, strict=True)
    }


def breakdown(timeline: Timeline) -> pd.DataFrame:
    """Where the time went, one row per cell, rank, step and category that took any.

    Returns:
        Columns ``rank`` (int), ``step`` (int, -1 outside any), ``category`` (str: computation, forward,
        backward, optimizer, data, communication_wait, communication_transfer, idle, dispatch, other),
        ``duration_ms`` (float; those of a rank in a cell add up to the cell's wall time), ``overlapped_ms``
        (float, communication beside which the rank went on; on rows of communication_transfer only and never
        part of the sum), ``cell`` (int). Both communication categories are exposed: the rank was blocked.
    """
    import pandas as pd

    return pd.DataFrame(rows(timeline))


def _plain_totals(cell: CellTimeline) -> dict[int, dict[str, float]] | None:
    """Totals of ranks whose only record is the cell itself, else None: what empty cells of many ranks cost matters."""
    records = [rank.spans for rank in cell.ranks if len(rank.spans)]
    if not cell.ranks or max(map(len, records), default=0) > 1:
        return None
    start_ns, end_ns = np.array([cell.extent(rank) for rank in cell.ranks]).T
    inside_ns = np.zeros(len(cell.ranks), np.int64)
    if records:
        spans = np.concatenate(records)
        if (spans["kind"] != Kind.CELL).any():
            return None
        inside_ns[[len(rank.spans) > 0 for rank in cell.ranks]] = (
            spans["end_ns"] - spans["start_ns"] - spans["child_ns"]
        )
        inside_ns = inside_ns.clip(0, end_ns - start_ns)
    table = np.zeros((len(cell.ranks), _NUM_CATEGORIES))
    table[:, Category.COMPUTATION] = inside_ns
    table[:, Category.OTHER] = end_ns - start_ns - inside_ns
    table[:, Category.IDLE], table[:, Category.DISPATCH] = _edges(cell, start_ns, end_ns)
    return {rank.rank: _named(row) for rank, row in zip(cell.ranks, table.tolist(), strict=True)}


def _edges(cell: CellTimeline, start_ns: _Ns, end_ns: _Ns) -> tuple[_Ns, _Ns]:
    """Idle until the last rank has ended, and dispatch before the rank's part and after the last one's."""
    return cell.last_ns - end_ns, (start_ns - cell.submitted_ns) + max(0, cell.done_ns - cell.last_ns)


def _named(durations_ns: list[float]) -> dict[str, float]:
    return {
        name: duration_ns / 1e6
        for name, is_always, duration_ns in zip(CATEGORY_NAMES, _IS_ALWAYS, durations_ns, strict=True)
        if is_always or duration_ns > 0
    }


def _account(cell: CellTimeline, rank: RankCell, communication: Exposed, entries: slice) -> Account:
    spans = rank.spans
    steps, step = _steps(spans)
    kind = spans["kind"]
    category = _CATEGORY_OF_KIND[kind]
    user = kind == Kind.USER
    category[user] = np.minimum(spans["category"][user], Category.OTHER)
    exclusive_ns = np.maximum(spans["end_ns"] - spans["start_ns"] - spans["child_ns"], 0)
    width = _NUM_CATEGORIES + 1  # the last column takes what has no category, and is dropped
    table = np.bincount(step * width + category, exclusive_ns, minlength=len(steps) * width)
    duration_ns: Floats = table.astype(np.float64).reshape(len(steps), width)[:, :_NUM_CATEGORIES].copy()
    record = communication.record[entries]
    for blocked_category, blocked_ns in (
        (Category.COMMUNICATION_WAIT, communication.wait_ns[entries]),
        (Category.COMMUNICATION_TRANSFER, communication.transfer_ns[entries]),
    ):
        duration_ns[:, blocked_category] += np.bincount(step[record], blocked_ns, minlength=len(steps))
    _settle(duration_ns, cell, rank)
    overlapped_ns = _overlapped(spans[record], step[record], len(steps), cell.extent(rank))
    return Account(rank.rank, steps, duration_ns, overlapped_ns)


def _steps(spans: Spans) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The steps that occur, -1 always first; and the position among them of each record's step."""
    own = np.where(spans["kind"] == Kind.CELL, -1, np.maximum(spans["step"], -1)).astype(np.int64)
    steps, position = np.unique(np.concatenate([[-1], own]), return_inverse=True)
    return steps, position[1:]


def _overlapped(spans: Spans, step: npt.NDArray[np.int64], num_steps: int, extent_ns: tuple[int, int]) -> Floats:
    """Per step: length(union(issue to completion) - union(blocked)), both of this rank and inside its part.

    What several operations share counts for the step of the one that was issued last.
    """
    if not len(spans):
        return np.zeros(num_steps)
    bounds = [np.clip(spans[field], *extent_ns) for field in ("start_ns", "end_ns")]
    bounds += [spans["wait_start_ns"], spans["wait_end_ns"]]
    at = np.concatenate(bounds)
    # timsort: each of the four is in order, or nearly so
    order = np.argsort(at, kind="stable")
    in_flight = np.cumsum(np.repeat(np.array([1, -1, 0, 0], np.int32), len(spans))[order])
    blocked = np.cumsum(np.repeat(np.array([0, 0, 1, -1], np.int32), len(spans))[order])
    lasts_ns = np.diff(at[order], append=at[order[-1]])
    beside_ns = np.where((in_flight > 0) & (blocked == 0), lasts_ns, 0)
    issued = np.maximum.accumulate(np.where(order < len(spans), np.arange(len(order)), 0))
    overlapped_ns = np.bincount(step[order[issued] % len(spans)], beside_ns, minlength=num_steps)
    return overlapped_ns.astype(np.float64)


def _settle(duration_ns: Floats, cell: CellTimeline, rank: RankCell) -> None:
    """Add idle, dispatch and other, so that the rank's categories add up to the cell's wall time."""
    start_ns, end_ns = cell.extent(rank)
    missing_ns = end_ns - start_ns - float(duration_ns.sum())
    if missing_ns < 0:
        # more was recorded than the rank's part of the cell lasted: damaged records. Computation gives first,
        # as it is what no instrument measured; then the others, the longest first
        by_category = duration_ns.sum(axis=0)
        order = [0, *(1 + np.argsort(-by_category[1:]))]
        for category in order:
            given_ns = min(-missing_ns, by_category[category])
            if given_ns > 0:
                duration_ns[:, category] *= (by_category[category] - given_ns) / by_category[category]
                missing_ns += given_ns
        missing_ns = 0.0
    duration_ns[0, Category.OTHER] += missing_ns
    idle_ns, dispatch_ns = _edges(cell, start_ns, end_ns)
    duration_ns[0, Category.IDLE] += idle_ns
    duration_ns[0, Category.DISPATCH] += dispatch_ns
