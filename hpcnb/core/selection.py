"""The language of ``--on``: which ranks run a cell. Both sides; pure.

::

    union        = intersection ("," intersection)*
    intersection = term ("&" term)*
    term         = "~" term | "(" union ")" | NUMBER | NUMBER "-" NUMBER
                 | AXIS "=" values | "host" "=" NAME | "failed" | "slowest" | "all"
    values       = NUMBER | NUMBER "-" NUMBER

so ``0-3,7``, ``~2``, ``dp=0&tp=1``, ``host=n1``, ``failed``. Not binds closest, then ``&``, then ``,``.
The name of a host may be anything without ``,&~()=`` and blanks, also ``10.0.0.1`` or ``3f2a91c0``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hpcnb.core.errors import SelectionError
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet

__all__ = ["SelectionContext", "select"]

_TOKEN = re.compile(
    r"\s*(?:host\s*=\s*(?P<host>[^\s,&~()=]+)"
    r"|(?P<number>\d{1,9}(?!\d))"
    r"|(?P<name>[A-Za-z_][\w.:]*(?:-[\w.:]+)*)"
    r"|(?P<symbol>[,&~()=-]))"
)
#: Parentheses and nots may be nested so deep; the parser calls itself for each.
_MAX_DEPTH = 50


@dataclass(frozen=True)
class SelectionContext:
    """What names in a selection refer to.

    Attributes:
        mesh: Axis names and sizes.
        hosts: Host name of each rank, by rank.
        failed: Ranks whose last cell raised, or that are not alive.
        slowest: Ranks that the others waited for in the last cell; empty when nothing was measured.
    """

    mesh: MeshSpec
    hosts: tuple[str, ...] = ()
    failed: RankSet = field(default_factory=RankSet)
    slowest: RankSet = field(default_factory=RankSet)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.mesh.num_ranks


def select(text: str, context: SelectionContext) -> RankSet:
    """The ranks that ``text`` names.

    Raises:
        SelectionError: Cannot be read, names a rank, axis, coordinate or host that is not there, or is empty.
    """
    ranks = _Parser(text, context).parse()
    if not ranks and text.strip() == "failed":
        msg = "--on failed: no rank failed in the last cell"
        raise SelectionError(msg)
    if not ranks and text.strip() == "slowest":
        msg = "--on slowest: nobody was waited for in the last cell"
        raise SelectionError(msg)
    if not ranks:
        msg = f"--on {text}: names no rank; the cluster has ranks 0-{context.world_size - 1}"
        raise SelectionError(msg)
    return ranks


class _Parser:
    def __init__(self, text: str, context: SelectionContext) -> None:
        self.text = text
        self.context = context
        self.tokens = self._tokens()
        self.position = 0
        self.depth = 0

    def _tokens(self) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        position, text = 0, self.text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"cannot read {text[position:].strip()!r}")
            tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            position = match.end()
        return tokens

    def _error(self, what: str) -> SelectionError:
        axis = self.context.mesh.axes[0]
        return SelectionError(
            f"--on {self.text}: {what}; write for example 0-3,7 or ~2 or {axis}=0 or host=NAME or failed or all"
        )

    def _take(self, symbol: str) -> bool:
        if self.position < len(self.tokens) and self.tokens[self.position] == ("symbol", symbol):
            self.position += 1
            return True
        return False

    def parse(self) -> RankSet:
        if not self.tokens:
            raise self._error("is empty")
        ranks = self._union()
        if self.position < len(self.tokens):
            raise self._error(f"did not expect {self.tokens[self.position][1]!r}")
        return ranks

    def _union(self) -> RankSet:
        ranks = self._intersection()
        while self._take(","):
            ranks |= self._intersection()
        return ranks

    def _intersection(self) -> RankSet:
        ranks = self._term()
        while self._take("&"):
            ranks &= self._term()
        return ranks

    def _term(self) -> RankSet:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._error(f"is nested more than {_MAX_DEPTH} deep")
        if self._take("~"):
            ranks = RankSet.all(self.context.world_size) - self._term()
        elif self._take("("):
            ranks = self._union()
            if not self._take(")"):
                raise self._error("misses a ')'")
        else:
            ranks = self._plain()
        self.depth -= 1
        return ranks

    def _plain(self) -> RankSet:
        if self.position >= len(self.tokens):
            raise self._error("ends too early")
        kind, word = self.tokens[self.position]
        size = self.context.world_size
        if kind == "number":
            return self._range(size, "rank", f"the cluster has ranks 0-{size - 1}")
        self.position += 1
        if kind == "host":
            return self._host(word)
        if kind == "name":
            return self._name(word)
        raise self._error(f"did not expect {word!r}")

    def _number(self) -> int:
        if self.position < len(self.tokens) and self.tokens[self.position][0] == "number":
            self.position += 1
            return int(self.tokens[self.position - 1][1])
        found = self.tokens[self.position][1] if self.position < len(self.tokens) else "nothing"
        raise self._error(f"expected a number, found {found!r}")

    def _range(self, limit: int, what: str, there: str) -> RankSet:
        first = last = self._number()
        if self._take("-"):
            last = self._number()
        if last < first:
            raise self._error(f"{first}-{last} runs backwards, write {last}-{first}")
        if last >= limit:
            msg = f"--on {self.text}: no {what} {last}; {there}"
            raise SelectionError(msg)
        return RankSet(range(first, last + 1))

    def _name(self, word: str) -> RankSet:
        context = self.context
        if not self._take("="):
            if word == "all":
                return RankSet.all(context.world_size)
            if word == "failed":
                return context.failed
            if word == "slowest":
                return context.slowest
            axes = [f"{axis}=..." for axis in context.mesh.axes]
            known = ", ".join(["all", "failed", "slowest", *axes, "host=..."])
            msg = f"--on {self.text}: no selection {word!r}; there are rank numbers and {known}"
            raise SelectionError(msg)
        if word == "host":
            raise self._error("expected a host name after host=")
        if word not in context.mesh.axes:
            msg = f"--on {self.text}: no axis {word!r}; this cluster's mesh is {context.mesh}"
            raise SelectionError(msg)
        size = context.mesh.size_of(word)
        wanted = self._range(size, "coordinate", f"axis {word} has coordinates 0-{size - 1}")
        return RankSet(rank for rank in range(context.world_size) if context.mesh.coordinates(rank)[word] in wanted)

    def _host(self, name: str) -> RankSet:
        ranks = RankSet(rank for rank, host in enumerate(self.context.hosts) if host == name)
        if not ranks:
            hosts = ", ".join(dict.fromkeys(self.context.hosts)) or "none"
            msg = f"--on {self.text}: no rank on host {name!r}; the cluster's hosts are {hosts}"
            raise SelectionError(msg)
        return ranks
