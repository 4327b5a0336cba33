"""One check, and the report of all: each in one plain line, and what mends it in the line below."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hpcnb.core.units import count, duration

__all__ = ["HERE", "Check", "Report", "lines_of"]

#: Where a check is of the machine that the notebook runs on.
HERE = "this machine"
#: A line of what is well names at most so many nodes one by one.
_MOST_NAMED = 4
_ORDER = {"fail": 0, "warn": 1, "ok": 2}


@dataclass(frozen=True)
class Check:
    """What was looked at, and what came of it.

    Attributes:
        name: What was looked at, in a word: ``clock``.
        where: The node, or :data:`HERE`.
        level: ``fail`` keeps ranks from starting or from reaching each other, ``warn`` may.
        words: What is, in one line.
        fix: What to type or change; "" where all is well.
    """

    name: str
    where: str
    level: Literal["ok", "warn", "fail"]
    words: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """What ``hpcnb.doctor`` has found; true if nothing fails.

    Attributes:
        title: What would be started.
        checks: One by one.
        took_s: How long looking took, in seconds.
    """

    title: str
    checks: tuple[Check, ...]
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing fails; warnings do not count."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """Those that keep ranks from starting, or from reaching each other."""
        return tuple(check for check in self.checks if check.level == "fail")

    @property
    def warned(self) -> tuple[Check, ...]:
        """Those that may."""
        return tuple(check for check in self.checks if check.level == "warn")

    def __bool__(self) -> bool:
        return self.ok

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Level, name, words and fix; what fails comes first, and nodes of which the same is true share a row."""
        return _merged(sorted(self.checks, key=lambda check: _ORDER[check.level]))

    def summary(self) -> str:
        """In one line."""
        num_failed, num_warned = len(self.failed), len(self.warned)
        said = [f"{num_failed} of {count(len(self.checks), 'check')} fail{'s' if num_failed == 1 else ''}"]
        said = said if num_failed else [f"{count(len(self.checks), 'check')}, none fails"]
        said += [count(num_warned, "warning")] if num_warned else []
        return f"{self.title}: {', '.join(said)} ({duration(self.took_s * 1000)})"

    def __repr__(self) -> str:
        return "\n".join([self.summary(), *_aligned(self.rows())])


def lines_of(checks: Iterable[Check]) -> list[str]:
    """Checks that failed as lines of an error."""
    return [
        line
        for _, name, words, fix in _merged(checks)
        for line in [f"{name}: {words}", *([f"    fix: {fix}"] if fix else [])]
    ]


def _merged(checks: Iterable[Check]) -> list[tuple[str, str, str, str]]:
    """What is well in one row per check, what is not in one row per text; nodes are named once."""
    together: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    fixes: dict[tuple[str, str, str, str], str] = {}
    for check in checks:
        fix = check.fix.replace(f"on {check.where}:", "on each:")
        key = (str(check.level), check.name, "" if check.level == "ok" else check.words, fix)
        nodes = together.setdefault(key, {}).setdefault(check.words, [])
        nodes += [check.where] if check.where not in nodes else []
        fixes[key] = check.fix if nodes == [check.where] else fix
    return [(level, name, _said(together[key]), fixes[key]) for key in together for level, name, _, _ in [key]]


def _said(by_words: dict[str, list[str]]) -> str:
    parts = [f"{_named(nodes)}: {words}" for words, nodes in by_words.items()]
    more = len(parts) - _MOST_NAMED
    return "; ".join(parts[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else []))


def _named(nodes: list[str]) -> str:
    more = len(nodes) - _MOST_NAMED
    return ", ".join(nodes) if more <= 1 else f"{', '.join(nodes[:_MOST_NAMED])} and {more} more"


def _aligned(rows: list[tuple[str, str, str, str]]) -> list[str]:
    width = max((len(name) for _, name, _, _ in rows), default=0)
    lines = []
    for level, name, words, fix in rows:
        lines.append(f"{'FAIL' if level == 'fail' else level:<4}  {name:<{width}}  {words}")
        lines += [f"{'':<4}  {'':<{width}}  fix: {fix}"] if fix else []
    return lines
