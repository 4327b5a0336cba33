"""What a cell came to, rank by rank: a value that the notebook shows and programs read."""

from __future__ import annotations

import functools
import pickle
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpcnb.core.errors import CellFailed, CellInterrupted, CellTimeout, TransferError
from hpcnb.core.exits import exit_words
from hpcnb.core.grouping import Item
from hpcnb.core.ranks import RankSet

if TYPE_CHECKING:
    import pandas as pd

    from hpcnb.timing.timeline import CellTimeline, Timeline

#: Between the operation and the reason in the text of a CollectiveAborted.
_CANNOT = " cannot be completed: "
#: How words end that tell of ranks that had been stopped (watch.py): no reason to release anybody.
_CONTINUED = " continued"
#: ``all_reduce #17 (4.2 MB, line 6)``; without a number it was refused, and has touched nothing.
_WAITED = re.compile(r"(?P<name>\w+).* #\d+ \(.*?(?:line (?P<line>\d+))?\)$")
_WRITES_NOTHING = ("barrier", "monitored_barrier", "send", "new_group")

__all__ = ["CellResult", "RankError", "RankExit", "RawSpans", "RichOutput"]


@dataclass(frozen=True)
class RankError:
    """An exception of one rank.

    Attributes:
        ename: Class name.
        evalue: Message.
        cell: Label of the cell whose code raised; "" if none did.
        line: Line in that cell; 0 if unknown.
        code: That line's text.
        traceback: Text, without frames of hpcnb and IPython.
        key: Equal for errors that a person would call the same.
        operation: Of a rank that was released, or interrupted in a wait: what it waited in,
            ``all_reduce #17 (4.2 MB, line 6)``.
        waited_s: For how long.
    """

    ename: str
    evalue: str
    cell: str
    line: int
    code: str
    traceback: str
    key: str
    operation: str = ""
    waited_s: float = 0.0

    @property
    def is_released(self) -> bool:
        """Whether this is no failure of its own: the rank waited for others that did not come."""
        return self.ename == "CollectiveMismatch" or (self.ename == "CollectiveAborted" and bool(self.operation))

    def __str__(self) -> str:
        return f"{self.ename}: {self.evalue}" if self.evalue else self.ename


@dataclass(frozen=True)
class RankExit:
    """How a rank's process ended during a cell.

    Attributes:
        status: As in ``Popen.returncode``: negative is the signal; None if nobody saw it.
        last_lines: What it said last.
        was_in: The operation it waited in; "" if none.
        last_operation: The last one of the cell that was over; "" if none.
        memory_mb: Its last known resident size; 0 if unknown.
        was_out_of_memory: The kernel killed it for want of memory.
        how: In words, where the status does not tell.
    """

    status: int | None
    last_lines: list[str] = field(default_factory=list)
    was_in: str = ""
    last_operation: str = ""
    memory_mb: float = 0.0
    was_out_of_memory: bool = False
    how: str = ""

    def __str__(self) -> str:
        return exit_words(self.status, memory_mb=self.memory_mb, was_out_of_memory=self.was_out_of_memory, how=self.how)


@dataclass(frozen=True)
class RichOutput:
    """A MIME bundle that some ranks displayed."""

    ranks: RankSet
    bundle: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class RawSpans:
    """Span records of a cell as they came from the ranks, read only when somebody asks."""

    submitted_ns: int
    done_ns: int
    times: dict[int, tuple[int, int]]
    records: dict[int, bytes]
    strings: dict[int, dict[int, str]]
    lost: dict[int, int]
    offsets_ns: dict[int, int] = field(default_factory=dict)


@dataclass(repr=False)
class CellResult:
    """How a cell ended on every rank it ran on.

    Attributes:
        cell: Number of the cell in this cluster.
        label: What tracebacks call it.
        ranks: Ranks it ran on.
        world_size: Ranks of the cluster.
        values: ``{rank: repr of the last expression}``; ranks without a value are missing.
        outputs: ``{rank: what it printed}``, stdout and stderr in order, floods cut.
        errors: ``{rank: RankError}``.
        items: The merged output, grouped by the exact set of ranks.
        displays: Rich outputs; items of kind ``display`` and ``value`` refer to them by index.
        exits: ``{rank: status}`` of ranks that ended during the cell; a negative status is a signal, None
            is one that nobody saw.
        exit_details: ``{rank: RankExit}``: how they ended, and in what.
        busy: Ranks that had not answered when the prompt came back.
        busy_states: ``{rank: where it is, in words}`` of those.
        interrupted: Whether the cell was interrupted.
        timeout_s: The timeout that ended the cell; None if none did.
        notices: ``{words: ranks}`` that the person should read.
        floods: ``{rank: file with its whole output}`` where the output was cut.
        explanations: Why ranks were released, and what else was done about the cell, in words.
        recovery: What was done after the cell so that the next one works, in words.
        stacks: ``{rank: what its Python code did}`` where a second Ctrl-C asked for it.
        is_broken: Process groups must be built again.
        is_uneven: Ranks may have issued different numbers of operations: groups are built again without many words.
        killed: Ranks that did not answer a second Ctrl-C and were ended.
        spans: Where the time went, as it came from the ranks: see ``timeline``; None until the cell has ended.
        pickles: ``{rank: pickled value of the last expression}`` where values were asked for: see :meth:`objects`.
        problems: ``{rank: why that value stays there}``.
    """

    cell: int
    label: str
    ranks: RankSet
    world_size: int
    values: dict[int, str] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)
    errors: dict[int, RankError] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    displays: list[RichOutput] = field(default_factory=list)
    exits: dict[int, int | None] = field(default_factory=dict)
    exit_details: dict[int, RankExit] = field(default_factory=dict)
    busy: RankSet = field(default_factory=RankSet)
    busy_states: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False
    timeout_s: float | None = None
    notices: dict[str, RankSet] = field(default_factory=dict)
    floods: dict[int, str] = field(default_factory=dict)
    explanations: list[str] = field(default_factory=list)
    recovery: list[str] = field(default_factory=list)
    stacks: dict[int, str] = field(default_factory=dict)
    is_broken: bool = False
    is_uneven: bool = False
    killed: RankSet = field(default_factory=RankSet)
    spans: RawSpans | None = None
    pickles: dict[int, bytes] = field(default_factory=dict, repr=False)
    problems: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        how = "ok" if self.ok else "failed"
        lines = [f"<CellResult of {self.label} on {self.ranks.words()}: {how}>"]
        for item in self.items:
            text = item.text.removeprefix("repr ")
            if item.kind == "display" or (item.kind == "value" and text == item.text):
                text = str(self.displays[int(item.text)].bundle.get("text/plain", "(rich output)"))
            lines.append(f"{'Out' if item.kind == 'value' else ''}[{item.ranks}] {text}")
        if not self.ok:
            lines.append(self.failure_text())
        return "\n".join(lines)

    @property
    def ok(self) -> bool:
        """Whether every rank finished without an error."""
        return not (self.errors or self.exits or self.busy)

    def objects(self, *, partial: bool = False) -> dict[int, Any]:
        """``{rank: value of the last expression}``, as objects; only where they were asked for.

        Args:
            partial: Leave out ranks whose value cannot be pickled.

        Raises:
            TransferError: A rank's value cannot be pickled, or not be read here.
        """
        if self.problems and not partial:
            grouped: dict[str, list[int]] = {}
            for rank, problem in self.problems.items():
                grouped.setdefault(problem, []).append(rank)
            words = "; ".join(f"{RankSet(ranks).words()}: {problem}" for problem, ranks in grouped.items())
            msg = (
                f"the value of the last expression stays on the ranks: {words}. "
                "End the cell with something that pickles, for example numbers, tensors or a dict of them"
            )
            raise TransferError(msg)
        objects: dict[int, Any] = {}
        for rank, packed in self.pickles.items():
            try:
                objects[rank] = pickle.loads(packed)  # noqa: S301 - from our own rank, over the authenticated link
            except Exception as error:
                msg = f"the value of rank {rank} cannot be read in the notebook: {type(error).__name__}: {error}"
                raise TransferError(msg) from error
        return objects

    @functools.cached_property
    def cell_timeline(self) -> CellTimeline | None:
        """Spans of this cell; None if no rank answered."""
        if self.spans is None or not self.spans.times:
            return None
        from hpcnb.timing.timeline import CellTimeline, RankCell

        return CellTimeline(
            self.cell,
            self.label,
            self.spans.submitted_ns,
            self.spans.done_ns,
            tuple(
                RankCell.from_bytes(
                    rank, *times, self.spans.records.get(rank, b""), self.spans.strings.get(rank, {}),
                    self.spans.lost.get(rank, 0),
                ).shifted(-self.spans.offsets_ns.get(rank, 0))
                for rank, times in sorted(self.spans.times.items())
            ),
        )  # fmt: skip

    @property
    def timeline(self) -> Timeline:
        """Spans of this cell as a timeline."""
        from hpcnb.timing.timeline import Timeline

        return Timeline(() if self.cell_timeline is None else (self.cell_timeline,))

    @property
    def breakdown(self) -> pd.DataFrame:
        """Where the time went: rank, step, category, duration_ms, overlapped_ms."""
        return self.timeline.breakdown()

    @property
    def caught_interrupt(self) -> bool:
        """Whether it was interrupted and went on to its end: for a person, as in IPython, such a cell is fine."""
        return self.ok and self.interrupted and self.timeout_s is None

    def raise_for_errors(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            CellFailed: Ranks raised or died; the text has one traceback per distinct error.
            CellInterrupted: The cell was interrupted; also one that caught that, see :attr:`caught_interrupt`.
            CellTimeout: The cell ran longer than its timeout.
        """
        if self.ok and not self.interrupted and self.timeout_s is None:
            return
        kind = CellTimeout if self.timeout_s is not None else CellInterrupted if self.interrupted else CellFailed
        raise kind(self.failure_text())

    def failure_text(self) -> str:
        """What went wrong, in words: one paragraph per distinct failure, with its ranks."""
        parts: list[str] = []
        if self.timeout_s is not None:
            parts.append(f"the cell ran longer than its timeout of {self.timeout_s:g} s and was interrupted")
        parts += [self._error_text(ranks, error) for ranks, error in self._distinct_errors()]
        parts += [self._lost_text(how, ranks) for how, ranks in self._lost_together().items()]
        parts += [self._exit_text(rank) for rank in sorted(self.exits) if not self.exit_details[rank].how]
        if released := self._released_text():
            parts.append("\n".join(released))
        elif undefined := self._undefined_text():
            parts += undefined
        if self.stacks:
            parts.append("\n".join(self._stacks_text()))
        if self.busy:
            runs = "runs" if len(self.busy) == 1 else "run"
            lines = [f"{self.busy.words()} did not answer the interrupt and still {runs} {self.label}"]
            lines += [f"    rank {rank}: {state}" for rank, state in sorted(self.busy_states.items())]
            lines.append(
                f"type  %hpc interrupt  to try again, or  %hpc restart-rank {self.busy}  (names there are lost)"
            )
            parts.append("\n".join(lines))
        if self.interrupted and not parts:
            parts.append(f"{self.label} was interrupted")
        if self.recovery:
            parts.append("\n".join(self.recovery))
        return "\n\n".join(parts)

    def failure_heads(self) -> list[str]:
        """Who raised what, and in which line: without tracebacks."""
        return [self._error_head(ranks, error) for ranks, error in self._distinct_errors()]

    @property
    def released_nobody(self) -> list[str]:
        """Explanations that are no reason why ranks were released."""
        return [words for words in self.explanations if words.endswith(_CONTINUED)]

    def _distinct_errors(self) -> list[tuple[RankSet, RankError]]:
        groups: dict[str, list[int]] = {}
        for rank, error in sorted(self.errors.items()):
            if not error.is_released:  # what others did to it is told in one line
                groups.setdefault(error.key, []).append(rank)
        return [(RankSet(ranks), self.errors[ranks[0]]) for ranks in sorted(groups.values())]

    def _error_head(self, ranks: RankSet, error: RankError) -> str:
        head = f"{ranks.words()} of {self.world_size} raised  {error}"
        if not error.line:
            return head
        where = "line" if error.cell == self.label else f"{error.cell}, line"
        return f"{head}\n      {where} {error.line}:  {error.code}"

    def _error_text(self, ranks: RankSet, error: RankError) -> str:
        head = self._error_head(ranks, error)
        if error.traceback and error.ename != "KeyboardInterrupt":
            return f"{head}\n\n{error.traceback}"
        return head

    def _stacks_text(self) -> list[str]:
        groups: dict[str, list[int]] = {}
        for rank, stack in sorted(self.stacks.items()):
            groups.setdefault(stack, []).append(rank)
        return [f"{RankSet(ranks).words()} at the second Ctrl-C:\n{stack}" for stack, ranks in groups.items()]

    def _lost_together(self) -> dict[str, RankSet]:
        """Ranks that were lost with their node, by how."""
        together: dict[str, RankSet] = {}
        for rank in sorted(self.exits):
            if how := self.exit_details[rank].how:
                together[how] = together.get(how, RankSet()) | RankSet([rank])
        return together

    def _lost_text(self, how: str, ranks: RankSet) -> str:
        if len(ranks) == 1:
            return f"{ranks.words()} of {self.world_size} {how}; its names are lost"
        return f"{ranks.words()} of {self.world_size} {how.replace('was ', 'were ', 1)}; their names are lost"

    def _exit_text(self, rank: int) -> str:
        exited = self.exit_details[rank]
        if rank in self.killed:
            return (
                f"rank {rank} of {self.world_size} did not answer the second Ctrl-C and was ended; its names are lost"
            )
        where = f" after {exited.last_operation}" if exited.last_operation else ""
        where = f" while it waited in {exited.was_in}" if exited.was_in else where
        lines = [f"rank {rank} of {self.world_size} {exited}{where}; its names are lost"]
        lines += [f"      {line}" for line in exited.last_lines]
        return "\n".join(lines)

    def _released_text(self) -> list[str]:
        """Ranks that were released, grouped by what they waited in, and why."""
        released = {rank: error for rank, error in sorted(self.errors.items()) if error.is_released}
        differing = RankSet(rank for rank, error in released.items() if error.ename == "CollectiveMismatch")
        lines = []
        if differing:
            lines += [] if self.explanations else [released[differing.first()].evalue]
            lines.append(f"{differing.words()} of {self.world_size} raised CollectiveMismatch")
        groups: dict[str, list[int]] = {}
        for rank, error in released.items():
            if rank not in differing:
                groups.setdefault(error.operation, []).append(rank)
        for operation, ranks in groups.items():
            longest_s = max(released[rank].waited_s for rank in ranks)
            verb = "was" if len(ranks) == 1 else "were"
            if " #" not in operation:  # groups had been broken before: there is no number
                lines.append(f"{RankSet(ranks).words()} could not call  {operation}")
                continue
            lines.append(f"{RankSet(ranks).words()} {verb} in  {operation}  for {longest_s:.1f} s and {verb} released")
        undefined = self._undefined_text()
        if differing or not groups:
            return [*self.explanations, *lines, *undefined]
        rest = self.released_nobody
        why = [words for words in self.explanations if words not in rest]
        if not why and self.exits:  # which explains a lost connection
            why = [f"{RankSet(self.exits).words()} had ended"]
        why = why or [reason for reason in [released[min(released)].evalue.partition(_CANNOT)[2]] if reason]
        if len(groups) == 1:
            return [": ".join([lines[0], *filter(None, ["; ".join(why)])]), *rest, *undefined]
        head = [f"{'; '.join(why)}, so ranks that waited were released:"] if why else []
        return [*rest, *head, *lines, *undefined]

    def _undefined_text(self) -> list[str]:
        """What an operation was writing when it was given up is half done; which tensors that are, the person knows."""
        given_up = [error for _, error in sorted(self.errors.items()) if error.operation]
        half_done = [match for error in given_up if (match := _WAITED.match(error.operation)) is not None]
        where = {f"{match['name']}{f' (line {line})' if (line := match['line']) else ''}": None for match in half_done
                 if match["name"] not in _WRITES_NOTHING}  # fmt: skip
        if not where:
            return []
        names, verb = list(where), "was" if len(where) == 1 else "were"
        if all(error.ename == "CollectiveMismatch" for error in given_up):
            names, verb = ["the operation"], "was"  # whose lines have just been told
        words = (
            " and ".join(names) if len(names) < 4 else f"{', '.join(names[:3])} and {len(names) - 3} more operations"
        )
        return [f"tensors that {words} {verb} writing hold undefined values there"]
