"""One cell while it runs: gathers what agents send, feeds the watch, and becomes a CellResult."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, perf_counter_ns
from typing import Any, Protocol

from hpcnb.cluster.result import CellResult, RankError, RankExit, RawSpans, RichOutput
from hpcnb.cluster.roster import still_run
from hpcnb.core import messages as m
from hpcnb.core import watch
from hpcnb.core.grouping import Grouper, Item
from hpcnb.core.rank_facts import RankFacts
from hpcnb.core.ranks import RankSet

__all__ = ["Bar", "CellRequest", "CellRun", "CellView"]


class CellView(Protocol):
    """Shows a cell while it runs; called on the thread that waits for the cell."""

    def update(self, run: CellRun) -> None:
        """Something has changed, or 50 ms have passed."""

    def finish(self, run: CellRun, result: CellResult) -> None:
        """The cell is over."""


@dataclass(frozen=True)
class CellRequest:
    """A cell to run.

    Attributes:
        source: The cell, as IPython takes it.
        on: Rank selection.
        timeout_s: Interrupt the cell when it runs longer.
        label: What tracebacks call the cell; by default its number in the cluster.
        first_line: Number of the first line of source in what the person typed.
        want_pickles: Bring the objects of the last expression too, see ``CellResult.objects``.
        is_init: Run it again on a rank that takes the place of another.
    """

    source: str
    on: str = "all"
    timeout_s: float | None = None
    label: str | None = None
    first_line: int = 1
    want_pickles: bool = False
    is_init: bool = False


@dataclass
class Bar:
    """One ``hpc.progress`` of the ranks: ``{rank: (position, elapsed_s)}``."""

    description: str
    total: int
    positions: dict[int, tuple[int, float]] = field(default_factory=dict)
    finished: bool = False


class CellRun:
    """A cell that has been submitted.

    Args:
        cell: Number of the cell.
        label: What tracebacks call it.
        ranks: Ranks it runs on.
        world_size: Ranks of the cluster.
        grace_s: Ranks that wait in vain for so long are released.
        began_ns: When its node began it; 0 for a cell that this notebook submits.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cell: int,
        label: str,
        ranks: RankSet,
        world_size: int,
        *,
        grace_s: float = watch.GRACE_S,
        began_ns: int = 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.result = CellResult(cell, label, ranks, world_size)
        self.watch = watch.Watch(ranks, cell, ranks, grace_s)
        self._clock = clock
        self.wants_stacks = RankSet()
        self._issued: dict[int, tuple[RankSet, dict[int, int]]] = {}
        self.bars: dict[tuple[int, str, int], Bar] = {}
        #: Output that floods and is held back: (ranks, number of lines so far, newest line).
        self.held: list[tuple[RankSet, int, str]] = []
        self.submitted_ns = began_ns
        self._is_told = bool(began_ns)  # and may be long over: the node says when it ended
        self.changed = False
        self._times: dict[int, tuple[int, int]] = {}
        self._grouper = Grouper(ranks)
        self._cleared = RankSet()
        self._numbers: dict[str, int] = {}
        self._display_ids: dict[str, int] = {}
        self._spoken: dict[int, list[str]] = {rank: [] for rank in ranks}

    def items(self) -> list[Item]:
        """The merged output so far."""
        return self._grouper.layout()

    def feed(self, message: m.Message) -> list[watch.Action]:  # noqa: C901, PLR0911, PLR0912 - one branch per message
        """Take one message of an agent; returns what the watch wants done."""
        if isinstance(message, m.RankExited):
            exited = _exit_of(message)
            if message.rank in self.watch.running:
                self._ended(message.rank, exited)
            return self.tell(watch.Exited(message.rank, self._clock(), str(exited)))
        if getattr(message, "cell", None) != self.result.cell:
            return []  # of an earlier cell that some ranks still run
        match message:
            case m.Output():
                for ranks, entries in message.entries:
                    for kind, text in entries:
                        self.say(ranks, kind, text)
            case m.Display():
                self._show(message)
            case m.Clear():
                self._cleared |= message.ranks
                if not message.wait:
                    self._clear(message.ranks)
            case m.Held():
                self.held = [(ranks, num_lines, newest) for ranks, num_lines, newest in message.entries]
                self.changed = True
            case m.Progress():
                self._move(message)
            case m.RankStates():
                facts = {rank: RankFacts.unpack(packed) for rank, packed in message.ranks.items()}
                report = self.watch.report
                actions = self.tell(watch.Looked(self._clock(), facts))
                self.changed |= report != self.watch.report
                return actions
            case m.BoundaryAsked():
                return self.tell(watch.BoundaryFound(message.found, self._clock()))
            case m.Seen():
                return self._locate(message)
            case m.Explained():
                self._explain(message.words)
            case m.Notice():
                self.result.notices[message.words] = message.ranks
            case m.Replies():
                return self._take(message.replies)
            case m.CellDone():
                return self._done(message)
        return []

    def _move(self, message: m.Progress) -> None:
        key = (message.bar, message.description, message.total)
        bar = self.bars.setdefault(key, Bar(message.description, message.total))
        for earlier in [number for number, each in self.bars.items() if each.finished and each is not bar]:
            if earlier[1:] == key[1:] and earlier[0] < message.bar:
                del self.bars[earlier]  # an inner loop: its next round takes the place of the one before
        bar.positions.update({rank: (position, elapsed) for rank, (position, elapsed) in message.positions.items()})
        bar.finished = message.finished
        self.changed = True

    def tell(self, event: watch.Event) -> list[watch.Action]:
        """Feed the watch; what it has to say is kept for the result."""
        self.watch, actions = watch.advance(self.watch, event)
        self.result.interrupted = self.watch.interrupted and not self.watch.timed_out
        for action in actions:
            if isinstance(action, watch.Say):
                self._explain(action.words)
        return actions

    def _explain(self, words: str) -> None:
        if words not in self.result.explanations:
            self.result.explanations.append(words)
            self.changed = True

    def _locate(self, message: m.Seen) -> list[watch.Action]:
        """Where a rank's Python code is: the innermost line of a cell, else of anything."""
        frames = [frame for frame in message.frames if frame[0].startswith("<cell ")] or message.frames
        if message.rank in self.wants_stacks:
            self.result.stacks[message.rank] = "\n".join(
                f"      {file.strip('<>')}, line {line}, in {function}  {text}".rstrip()
                for file, line, function, text in message.frames
            )
        words = ""
        if frames:
            _, line, _, text = frames[-1]
            words = f"is at line {line}" + (f":  {text}" if text else "")
        return self.tell(watch.Located(message.rank, self._clock(), words, message.moved_bytes))

    def _clear(self, ranks: RankSet) -> None:
        """Forget what ranks said that have cleared their output and now say something else."""
        if cleared := self._cleared & ranks:
            self._cleared -= cleared
            self._grouper.clear(cleared)
            self.changed = True

    def say(self, ranks: RankSet, kind: str, text: str) -> None:
        """These ranks said something next."""
        self._clear(ranks)
        self._grouper.add(ranks, kind, text)
        for rank in ranks:
            self._spoken[rank].append(f"... {text} ...\n" if kind == "cut" else text)
        self.changed = True

    def _show(self, message: m.Display) -> None:
        self._clear(message.ranks)
        self.changed = True
        bundle = message.bundle
        kind = "value" if message.metadata.pop("hpcnb_value", False) else "display"
        if message.display_id and message.update:
            number = self._display_ids.get(f"{message.ranks} {message.display_id}")
            if number is not None:
                ranks = self.result.displays[number].ranks
                self.result.displays[number] = RichOutput(ranks, bundle, message.metadata)
                return
        # equal pictures of several ranks are one item: the grouper compares their numbers; pictures that a rank
        # may still update have numbers of their own
        key = repr((kind, sorted(bundle.items()), message.display_id and str(message.ranks)))
        number = self._numbers.setdefault(key, len(self.result.displays))
        if number == len(self.result.displays):
            self.result.displays.append(RichOutput(message.ranks, bundle, message.metadata))
        else:
            earlier = self.result.displays[number]
            self.result.displays[number] = RichOutput(earlier.ranks | message.ranks, bundle, message.metadata)
        if message.display_id:
            self._display_ids[f"{message.ranks} {message.display_id}"] = number
        self._grouper.add(message.ranks, kind, str(number))

    def _take(self, replies: list[Any]) -> list[watch.Action]:
        how_many: dict[tuple[str, str], list[int]] = {}
        for reply in sorted((m.CellReply(*fields) for fields in replies), key=lambda reply: reply.rank):
            self._times[reply.rank] = (reply.start_ns, reply.end_ns)
            self._reply(reply)
            error = self.result.errors.get(reply.rank)
            how = "" if error is None else f"raised {error.ename}"
            mismatch = "" if error is None or error.ename != "CollectiveMismatch" else error.evalue
            how_many.setdefault((how, mismatch), []).append(reply.rank)
        actions: list[watch.Action] = []
        for how_all, ranks in how_many.items():
            actions += self.tell(watch.Replied(RankSet(ranks), self._clock(), *how_all))
        self.changed = True
        return actions

    def _ended(self, rank: int, exited: RankExit) -> None:
        self.result.exits[rank], self.result.exit_details[rank] = exited.status, exited

    def heard_before(self, ended: m.RankExited) -> None:
        """How a rank ended, which was told before this notebook followed the cell."""
        exited = self.result.exit_details.get(ended.rank)
        if exited is not None and exited.status is None:
            self._ended(ended.rank, _exit_of(ended))

    def _done(self, message: m.CellDone) -> list[watch.Action]:
        actions = self._take(message.replies)
        for rank in self.watch.running:  # before the cell reached them, or before this notebook followed it
            self._ended(rank, RankExit(None))
            actions += self.tell(watch.Exited(rank, self._clock(), str(RankExit(None))))
        self.result.spans = RawSpans(
            self.submitted_ns,
            message.done_ns if self._is_told else perf_counter_ns(),
            self._times,
            message.spans,
            message.strings,
            message.spans_lost,
            message.offsets_ns,
        )
        return actions

    def news(self) -> list[str]:
        """While some ranks run on: who has failed, since that may be why; and who waits for whom."""
        if not self.watch.running:
            return []
        others = self.result.released_nobody
        lines = [line for line in self.result.failure_heads() if line]
        lines += [f"rank {rank} {exited}" for rank, exited in self.result.exit_details.items()]
        lines += [each if each in others else f"ranks were released: {each}" for each in self.result.explanations]
        if lines:
            lines.append(still_run(self.watch.running))
        return [*lines, *self.watch.report]

    def _reply(self, reply: m.CellReply) -> None:
        result, rank = self.result, reply.rank
        if reply.has_value:
            result.values[rank] = reply.value
            if not reply.value_shown:
                self._grouper.add(RankSet([rank]), "value", f"repr {reply.value}")
        if reply.value_pickle:
            result.pickles[rank] = reply.value_pickle
        if reply.value_problem:
            result.problems[rank] = reply.value_problem
        if reply.error is not None:
            result.errors[rank] = RankError(**reply.error)
        result.is_broken |= reply.is_broken
        for key, count, members in reply.issued:
            self._issued.setdefault(key, (members, {}))[1][rank] = count
        for notice in reply.notices:
            result.notices[notice] = result.notices.get(notice, RankSet()) | RankSet([rank])

    def _is_uneven(self) -> bool:
        """Whether ranks of a group have issued different numbers of collectives in this cell."""
        answered = self.result.ranks - self.watch.running - self.watch.exited
        return any(
            len({counts.get(rank, 0) for rank in members & answered}) > 1 for members, counts in self._issued.values()
        )

    def finish(self, *, flood_file: Callable[[int], str]) -> CellResult:
        """The result; call when the watch has ended the cell.

        Args:
            flood_file: File with the whole output of a rank, where it was cut.
        """
        self._grouper.finish()
        self.result.items = self._grouper.layout()
        self.result.outputs = {rank: "".join(texts) for rank, texts in self._spoken.items() if texts}
        self.result.busy = self.watch.running
        self.result.is_broken |= bool(self.watch.exited or self.watch.released)
        # ranks that were interrupted somewhere, or have issued different numbers of operations, would not meet any more
        self.result.is_uneven = self.watch.is_signalled or self._is_uneven()
        self.result.killed = self.watch.killed
        self.result.busy_states = {rank: words for rank, words in self.watch.places if rank in self.watch.running}
        for item in self.result.items:
            if item.kind == "cut":
                self.result.floods.update({rank: flood_file(rank) for rank in item.ranks})
        return self.result


def _exit_of(message: m.RankExited) -> RankExit:
    return RankExit(
        message.status, message.last_lines, message.was_in, message.last_operation, message.memory_mb,
        message.was_out_of_memory, message.how,
    )  # fmt: skip
