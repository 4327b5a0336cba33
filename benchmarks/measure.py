"""What the benchmarks share: arguments, interleaved repetition, one table, and a place that is cleaned up.

Knows nothing of what is measured. A bar that is not met is printed and is no failure, as machines differ; a
wrong result raises :class:`WrongResult`, and the benchmark ends with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class WrongResult(Exception):
    """What ran gave another result than it must."""


def expect(condition: object, words: str) -> None:
    if not condition:
        raise WrongResult(words)


# --- arguments and repetition -------------------------------------------------------------------------------


def run(main: Callable[[argparse.Namespace], None], *, limit_s: int = 300, **flags: Mapping[str, object]) -> None:
    """Read the command line, say what machine this is, and run ``main`` for at most ``limit_s`` seconds.

    Args:
        main: The benchmark; gets ``runs`` (at least 5, unless asked otherwise), ``quick`` and the flags.
        limit_s: A benchmark that hangs ends with its clean-up done.
        flags: More options: name -> keyword arguments of ``add_argument``.
    """
    module = sys.modules["__main__"]
    parser = argparse.ArgumentParser(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, help="measurements of each side (5 or more; --quick: 1 or more)")
    parser.add_argument("--quick", action="store_true", help="few runs: shows that it works, measures little")
    for name, keywords in flags.items():
        parser.add_argument(f"--{name}", **keywords)
    options = parser.parse_args()
    if options.runs is not None and options.runs < 1:
        parser.error(f"--runs {options.runs}: at least 1 measurement is needed, and 5 for a median that means anything")

    def too_long(*_: object) -> None:
        raise TimeoutError(f"the benchmark did not end within {limit_s} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that clean-up runs
    signal.alarm(limit_s)
    print(f"{(module.__doc__ or '').splitlines()[0]}\n{machine()}", flush=True)
    try:
        main(options)
    except WrongResult as error:
        sys.exit(f"WRONG RESULT: {error}")
    finally:
        signal.alarm(0)


def machine() -> str:
    """What the numbers depend on, in one line."""
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "ipyparallel", "ipykernel", "hpcnb")]
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    return " · ".join([f"{cores} cores", f"load {load:.2f}", f"Python {platform.python_version()}", *versions])


def interleave(
    sides: Mapping[str, Callable[[], float]], num_rounds: int, *, block: int = 1, settle_s: float = 0.0
) -> dict[str, list[float]]:
    """Measure every side once per round, starting with another side each time: drift hits all alike.

    Args:
        sides: Name -> what measures once.
        num_rounds: How often.
        block: Measurements of a side in a row, in each round.
        settle_s: Pause before each block: what the side before still does must not count for this one.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(num_rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(settle_s)
            values[name] += [sides[name]() for _ in range(block)]
    return values


def poll(ready: Callable[[], object], timeout_s: float, *, every_s: float = 0.01) -> float | None:
    """Seconds until ``ready()`` is true; None if it never was."""
    began_s = time.perf_counter()
    while not ready():
        if time.perf_counter() - began_s > timeout_s:
            return None
        time.sleep(every_s)
    return time.perf_counter() - began_s


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: Words.
        unit: Of the values.
        ours: Measurements of hpcnb.
        peer: Measurements of the peer in the same run; may be empty.
        at_most: Bar on ours.
        ratio_at_most: Bar on the ratio.
        worst: The bar is on the largest of ours, not on the median.
        paired: The ratio is the median of the ratios of neighbours, which drift touches least.
        peer_name: Where the peer is not the one of the header.
    """

    what: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    at_most: float | None = None
    ratio_at_most: float | None = None
    worst: bool = False
    paired: bool = False
    peer_name: str = ""

    @property
    def ratio(self) -> float | None:
        if not (self.ours and self.peer):
            return None
        if self.paired:
            return statistics.median(pair_ratios(self.ours, self.peer))
        return statistics.median(self.ours) / statistics.median(self.peer)

    def bar(self) -> tuple[str, str]:
        """The bar in words, and whether it is met."""
        words, met = [], True
        if self.at_most is not None:
            words.append(f"{'max ' if self.worst else ''}<= {self.at_most:g} {self.unit}")
            reached = (max if self.worst else statistics.median)(self.ours) if self.ours else float("inf")
            met &= reached <= self.at_most
        if self.ratio_at_most is not None:
            words.append(f"ratio <= {self.ratio_at_most:g}")
            met &= self.ratio is not None and self.ratio <= self.ratio_at_most
        return ", ".join(words), ("met" if met else "NOT MET") if words else ""

    def cells(self) -> list[str]:
        digits = 3 if self.paired else 2
        ratio = "" if self.ratio is None else f"{self.ratio:.{digits}f}"
        peer = _spread(self.peer, self.unit) + (f" {self.peer_name}" if self.peer_name else "")
        return [self.what, _spread(self.ours, self.unit), peer, ratio, *self.bar()]


def pair_ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, peer, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from order statistics (normal approximation of the binomial)."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    low = max(0, int(len(values) / 2 - half))
    return ordered[low], ordered[len(values) - 1 - low]


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    middle, low, high = statistics.median(values), min(values), max(values)
    times = f" x{len(values)}"
    if len(values) == 1:
        return f"{middle:.4g} {unit}{times}"
    return f"{middle:.3g} {unit} ({low:.3g}-{high:.3g}){times}"


def table(rows: Sequence[Row], *, peer: str) -> None:
    """Print the rows: median (min-max) xN of both sides, ratio of ours to the peer, bar, and whether it is met."""
    lines = [["", "hpcnb", peer, "ratio", "bar", ""], *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


# --- a place of our own -------------------------------------------------------------------------------------


@dataclass
class Place:
    """A private folder, and a mark in the environment by which every process started with it is found again.

    A context manager; at its end it kills by process id what is left with the mark, and removes the folder.

    Attributes:
        folder: Short, as sockets are made in it.
        environment: For child processes: the mark, and where hpcnb, IPython, Jupyter and tempfile write.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp")))
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._mark = f"HPCNB_BENCHMARK={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        places = {
            "HPCNB_RUNTIME_DIR": "run",
            "TMPDIR": "tmp",
            "IPYTHONDIR": "ipython",
            "JUPYTER_RUNTIME_DIR": "jupyter",
        }
        for folder in places.values():
            (self.folder / folder).mkdir(mode=0o700)
        self.environment = {
            **os.environ,
            **{variable: str(self.folder / folder) for variable, folder in places.items()},
            name: value,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }

    def processes(self) -> set[int]:
        """Living processes with the mark, this one not among them."""
        found = set()
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # it has just ended, or is someone else's
                    if self._mark.encode() in Path(entry.path, "environ").read_bytes().split(b"\0"):
                        found.add(int(entry.name))
        return found

    def kill(self) -> int:
        """Kill what is left; returns how many processes that were."""
        killed: set[int] = set()
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= left
            time.sleep(0.05)
        return len(killed)

    def __enter__(self) -> Self:
        os.environ.update(self.environment)  # for clusters that this process starts
        return self

    def __exit__(self, *_: object) -> None:
        poll(lambda: not self.processes(), 5.0, every_s=0.1)
        if number := self.kill():
            print(f"note: {number} processes were left and have been killed", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)


def pss_mb(pid: int) -> float:
    """Proportional set size: shared pages divided by who shares them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise WrongResult(f"/proc/{pid}/smaps_rollup has no Pss line")
