"""Output of many ranks as one text: every line once, with exactly the ranks that said it. Both sides; pure.

Lines of a rank are a path in a tree (ranks that have said the same so far share a node), so the cost of a
line does not grow with the number of ranks that say it. :meth:`Grouper.layout` merges the distinct paths into
one list of items. The result depends on what each rank said and in which order, never on timing:

* the order of every rank's own lines is kept;
* equal lines are one item wherever the orders of the ranks allow it;
* among lines that could come next, the one that comes earliest in its rank's output does, then the lowest
  rank;
* values of last expressions follow all output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcnb.core.ranks import RankSet

__all__ = ["Grouper", "Item"]

_DIGITS = re.compile(r"[0-9.,:]+|[\u2580-\u259f#=>\u2500-\u257f-]+|[ ]+|[?]+")
_CURSOR = re.compile(r"\x1b\[[0-9;?]*[A-HJKSTfhl]")


@dataclass(frozen=True)
class Item:
    """One line (or picture) of the merged output.

    Attributes:
        ranks: Exactly the ranks that said it.
        kind: ``stdout``, ``stderr``, ``cut``, ``display`` or ``value``.
        text: The line without its newline; for ``display`` the number of the bundle.
        complete: False for a line that has not ended yet.
        slowest: For a bar that rewrites itself and differs between ranks: the rank whose bar is shown.
    """

    ranks: RankSet
    kind: str
    text: str
    complete: bool = True
    slowest: int = -1


class _Node:
    """A line in the tree. Light, since a flood makes thousands: dicts only where there is something to hold."""

    __slots__ = ("children", "key", "parent", "variants")

    def __init__(self, parent: _Node | None, key: tuple[str, str]) -> None:
        self.parent = parent
        self.key = key
        self.children: dict[tuple[str, str], _Node] | None = None
        #: bars that rewrite themselves: texts that share the key -> bitmap of ranks; None for plain lines
        self.variants: dict[str, int] | None = None


@dataclass
class _Cursor:
    """Where some ranks are: the last complete line, and the line that each stream is in."""

    node: _Node
    partial: dict[str, str]

    def key(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        return id(self.node), tuple(sorted(self.partial.items()))


_Cursors = dict[tuple[int, tuple[tuple[str, str], ...]], tuple[_Cursor, int]]
#: What some ranks said: every line with how often they had said it, its node, and the bitmap of these ranks.
_Path = tuple[list[tuple[tuple[str, str], int]], list[_Node], int]


class Grouper:
    """Takes output of ranks in any chunks, and lays it out.

    Args:
        ranks: Ranks that may say something.
    """

    def __init__(self, ranks: RankSet) -> None:
        self._root = _Node(None, ("", ""))
        self._cursors: list[tuple[_Cursor, int]] = [(_Cursor(self._root, {}), ranks.bits)]

    def add(self, ranks: RankSet, kind: str, text: str) -> None:
        """These ranks said ``text`` next: a chunk of a stream, or one whole item of any other kind."""
        moved: _Cursors = {}
        for cursor, bits in self._cursors:
            touched = bits & ranks.bits
            if bits & ~touched:
                self._put(moved, cursor, bits & ~touched)
            if touched:
                self._put(moved, self._advance(cursor, kind, text, touched), touched)
        self._cursors = list(moved.values())

    def clear(self, ranks: RankSet) -> None:
        """Forget what these ranks have said."""
        moved: _Cursors = {}
        for cursor, bits in self._cursors:
            if bits & ~ranks.bits:
                self._put(moved, cursor, bits & ~ranks.bits)
            if bits & ranks.bits:
                self._put(moved, _Cursor(self._root, {}), bits & ranks.bits)
        self._cursors = list(moved.values())

    def finish(self) -> None:
        """No more output: lines that have not ended are complete now."""
        moved: _Cursors = {}
        for cursor, bits in self._cursors:
            node = cursor.node
            for kind, partial in sorted(cursor.partial.items(), reverse=True):  # stdout before stderr
                if _visible(partial)[0]:
                    node = self._line(node, kind, partial, bits)
            self._put(moved, _Cursor(node, {}), bits)
        self._cursors = list(moved.values())

    @staticmethod
    def _put(cursors: _Cursors, cursor: _Cursor, bits: int) -> None:
        key = cursor.key()
        cursors[key] = (cursor, bits | cursors[key][1]) if key in cursors else (cursor, bits)

    def _advance(self, cursor: _Cursor, kind: str, text: str, bits: int) -> _Cursor:
        if kind not in ("stdout", "stderr"):
            node = cursor.node
            partial = dict(cursor.partial)
            for stream in ("stdout", "stderr"):  # a picture in the middle of a line ends the line
                line = partial.pop(stream, "")
                if _visible(line)[0]:
                    node = self._line(node, stream, line, bits)
            return _Cursor(self._child(node, (kind, text), text, bits), partial)
        *lines, rest = (cursor.partial.get(kind, "") + text).replace("\r\n", "\n").split("\n")
        node = cursor.node
        for line in lines:
            node = self._line(node, kind, line, bits)
        if "\r" in rest.rstrip("\r"):
            rest = rest[rest.rstrip("\r").rindex("\r") :]
        partial = {**cursor.partial, kind: rest}
        return _Cursor(node, {stream: line for stream, line in partial.items() if line})

    def _line(self, node: _Node, kind: str, line: str, bits: int) -> _Node:
        shown, rewritten = _visible(line)
        return self._child(node, (kind, _bar_key(shown) if rewritten else shown), shown, bits)

    @staticmethod
    def _child(node: _Node, key: tuple[str, str], text: str, bits: int) -> _Node:
        if node.children is None:
            node.children = {}
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = _Node(node, key)
        if text != key[1]:
            if child.variants is None:
                child.variants = {}
            child.variants[text] = child.variants.get(text, 0) | bits
        return child

    # --- merging the paths ----------------------------------------------------------------------------------

    def layout(self) -> list[Item]:
        """The merged output so far."""
        paths: list[_Path] = []
        merged: dict[int, tuple[_Node, int]] = {}
        for cursor, bits in self._cursors:
            node, so_far = merged.get(id(cursor.node), (cursor.node, 0))
            merged[id(cursor.node)] = (node, so_far | bits)
        for node, bits in sorted(merged.values(), key=lambda each: each[1] & -each[1]):
            nodes: list[_Node] = []
            step: _Node | None = node
            while step is not None and step.parent is not None:
                nodes.append(step)
                step = step.parent
            nodes.reverse()
            seen: dict[tuple[str, str], int] = {}
            keys = []
            for each in nodes:  # the k-th time that this rank says this line
                seen[each.key] = seen.get(each.key, 0) + 1
                keys.append((each.key, seen[each.key]))
            paths.append((keys, nodes, bits))
        items = self._merge(paths)
        values = [item for item in items if item.kind == "value"]  # what a rank says last, below what all say
        values.sort(key=lambda item: item.ranks.first())
        return [*(item for item in items if item.kind != "value"), *self._partials(), *values]

    @staticmethod
    def _merge(paths: list[_Path]) -> list[Item]:
        if len(paths) == 1:  # the usual case: all ranks said the same
            _, nodes, bits = paths[0]
            return [_item(node.key[0], [node], bits) for node in nodes]
        holders: dict[tuple[tuple[str, str], int], int] = {}
        for index, (keys, _, _) in enumerate(paths):
            for key in keys:
                holders[key] = holders.get(key, 0) | 1 << index
        at = [0] * len(paths)
        heads: dict[tuple[tuple[str, str], int], int] = {}  # key -> bitmap of paths that have it next
        for index, (keys, _, _) in enumerate(paths):
            if keys:
                heads[keys[0]] = heads.get(keys[0], 0) | 1 << index
        items: list[Item] = []
        while heads:
            # complete keys first (all paths that hold them have them next), earliest line, then lowest rank
            key = min(
                heads,
                key=lambda key: (
                    heads[key] != holders[key],
                    min(at[index] for index in RankSet.of_bits(heads[key])),
                    heads[key] & -heads[key],
                ),
            )
            holding = heads.pop(key)
            holders[key] &= ~holding
            bits, nodes = 0, []
            for index in RankSet.of_bits(holding):
                keys, path, ranks = paths[index]
                bits |= ranks
                nodes.append(path[at[index]])
                at[index] += 1
                if at[index] < len(keys):
                    following = keys[at[index]]
                    heads[following] = heads.get(following, 0) | 1 << index
            items.append(_item(key[0][0], nodes, bits))
        return items

    def _partials(self) -> list[Item]:
        groups: dict[tuple[str, str], dict[str, int]] = {}
        for cursor, bits in self._cursors:
            for kind, line in cursor.partial.items():
                shown, rewritten = _visible(line)
                if shown:
                    variants = groups.setdefault((kind, _bar_key(shown) if rewritten else shown), {})
                    variants[shown] = variants.get(shown, 0) | bits
        items = []
        for (kind, _), variants in groups.items():
            text, slowest = _slowest_variant(variants)
            ranks = RankSet.of_bits(sum(variants.values()))  # a rank has one of them
            items.append(Item(ranks, kind, text, complete=False, slowest=slowest))
        return sorted(items, key=lambda item: (item.ranks.first(), item.kind != "stdout"))


def _lowest(bits: int) -> int:
    return bits & -bits


def _visible(line: str) -> tuple[str, bool]:
    """What a terminal would show of the line, and whether it rewrote itself."""
    body = line.rstrip("\r")
    at = body.rfind("\r")
    return _CURSOR.sub("", body[at + 1 :]), at >= 0


def _bar_key(text: str) -> str:
    """The bar without what changes from rank to rank and from moment to moment."""
    return "\r" + _DIGITS.sub("~", text)


def _fraction(text: str) -> float:
    """How far a bar is, as far as its text tells: ``45%`` or ``45/100``."""
    if match := re.search(r"(\d+(?:\.\d+)?)\s*%", text):
        return float(match[1]) / 100
    if match := re.search(r"(\d+)\s*/\s*(\d+)", text):
        return int(match[1]) / max(1, int(match[2]))
    return 0.0


def _rate(text: str) -> float:
    """How fast a bar moves, as far as its text tells: ``49.2it/s`` or ``3.1s/it``."""
    if match := re.search(r"(\d+(?:\.\d+)?)\s*(?:it|step\w*|batch\w*|B|kB|MB)?/s\b", text):
        return float(match[1])
    if match := re.search(r"(\d+(?:\.\d+)?)\s*s/\w+", text):
        return 1 / max(1e-9, float(match[1]))
    return 0.0


def _slowest_variant(variants: dict[str, int]) -> tuple[str, int]:
    if len(variants) == 1:
        return next(iter(variants)), -1
    text = min(variants, key=lambda text: (_fraction(text), _rate(text), _lowest(variants[text])))
    return text, RankSet.of_bits(variants[text]).first()


def _item(kind: str, nodes: list[_Node], bits: int) -> Item:
    variants: dict[str, int] = {}
    for node in nodes:
        if node.variants is None:
            return Item(RankSet.of_bits(bits), kind, node.key[1])  # all nodes have one key
        for text, ranks in node.variants.items():
            if ranks & bits:
                variants[text] = variants.get(text, 0) | (ranks & bits)
    text, slowest = _slowest_variant(variants)
    return Item(RankSet.of_bits(bits), kind, text, slowest=slowest)
