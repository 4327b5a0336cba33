"""Cells -> the text of a script that runs under torchrun and under plain python. Pure.

The script needs torch, and hpcnb only where a cell uses ``hpc``. Cells stand in it as they were typed, one after the
other in one namespace. What a notebook gives each rank is at the top, see head.py.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from hpcnb.cluster.export import source as edits
from hpcnb.cluster.export.head import NAMES, Needs, head
from hpcnb.cluster.export.ran import RanCell, shortened
from hpcnb.cluster.export.setting import Setting
from hpcnb.cluster.export.translate import Untranslatable, bound_names, to_python
from hpcnb.core.errors import ExportError
from hpcnb.core.ranks import RankSet

__all__ = ["ranks_test", "script"]

_END = """
import torch.distributed

if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@dataclass(frozen=True)
class _Cell:
    """A cell as Python, with what its edits need to know."""

    ran: RanCell
    python: str
    tree: ast.Module
    futures: list[str]
    awaits: bool


def script(cells: Sequence[RanCell], setting: Setting, *, left_out: Sequence[str] = (), file: str = "train.py") -> str:
    """The text of the script.

    Args:
        cells: That were chosen, in order.
        setting: What they ran in.
        left_out: What ran and is not in the script, in words for its head.
        file: Name of the script, for its head.

    Raises:
        ExportError: A cell holds what no script can; nothing else of it is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the person's code, which they have seen when they ran it
        return _Script(cells, setting).text(left_out, file)


class _Script:
    def __init__(self, cells: Sequence[RanCell], setting: Setting) -> None:
        self._setting = setting
        self._ran = cells
        self._known: frozenset[str] | None = None
        self._cells = [self._read(cell) for cell in cells]
        self._trees = ast.Module([node for cell in self._cells for node in cell.tree.body], [])
        self._loaded = {
            node.id for node in ast.walk(self._trees) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        self._bound = bound_names(self._trees)
        self._show, self._loop = (_unused(name, self._bound) for name in ("_show", "_loop"))
        self._rank = _unused("_rank", self._bound) if "rank" in self._bound else "rank"

    def text(self, left_out: Sequence[str], file: str) -> str:
        """All of it; compiled once, so that what is written can be run."""
        blocks = [self._block(cell) for cell in self._cells]
        needs, names = self._needs("\n".join(blocks)), shortened([ran.name for ran in self._ran])
        parts = [head(self._setting, needs, names=names, left_out=left_out, file=file), *blocks, f"# {'-' * 70}{_END}"]
        text = "\n\n".join(parts)
        try:
            compile(text.encode(), file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 0
            ends = [("\n\n".join(parts[: 2 + number])).count("\n") + 1 for number in range(len(blocks))]
            name = next(
                (cell.ran.name for cell, end in zip(self._cells, ends, strict=True) if line <= end), "the script"
            )
            msg = f"{name} cannot be part of a script: {error}{self._advice(name)}"
            raise ExportError(msg) from error
        return text

    # --- cells ------------------------------------------------------------------------------------------

    def _read(self, ran: RanCell) -> _Cell:
        try:
            python, futures = edits.without_futures(to_python(ran.source, self._known_names))
            cell = _Cell(ran, python, ast.parse(python), futures, edits.is_awaiting(python))
        except (Untranslatable, SyntaxError) as error:
            line = (error.line if isinstance(error, Untranslatable) else error.lineno or 1) + ran.first_line - 1
            msg = f"{ran.name} line {line}: {error}{self._advice(ran.name)}"
            raise ExportError(msg) from error
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.Name) and node.id == "get_ipython":
                line = node.lineno + ran.first_line - 1
                msg = f"{ran.name} line {line}: get_ipython() is not there in a script{self._advice(ran.name)}"
                raise ExportError(msg)
        return cell

    def _known_names(self) -> frozenset[str]:
        """What commands may have in braces: names of all cells, as far as they are Python."""
        if self._known is None:
            self._known = frozenset((*NAMES, "hpc"))
            for ran in self._ran:
                try:
                    self._known |= bound_names(ast.parse(to_python(ran.source, frozenset)))
                except Untranslatable:
                    pass  # told when it is its turn
        return self._known

    def _advice(self, name: str) -> str:
        """What to type, with the numbers of the other cells."""
        is_typed = any(ran.is_typed for ran in self._ran)
        others = RankSet(
            ran.number for ran in self._ran if ran.is_typed == is_typed and ran.number >= 0 and ran.name != name
        )
        leave_out = f", or leave the cell out:  --cells {others}" if others else ""
        return f". Change the cell and run it again{leave_out}"

    def _block(self, cell: _Cell) -> str:
        """A cell with its title, under the test of its rank where it ran on some only."""
        ran, python = cell.ran, cell.python.strip("\n")
        is_everywhere = ran.on.strip() == "all"
        title = " ".join((ran.name if is_everywhere else f"{ran.name} --on {ran.on}").split())
        how = [f"# in the notebook it {ran.how}"] if ran.how else []
        lines = [f"# ---- {title} {'-' * max(4, 70 - len(title))}", *how]
        first = ran.ranks.first()
        try:
            python = edits.showing_last(python, f"{self._show}({{}}{f', rank={first}' if first else ''})")
            if cell.awaits:
                name = f"_cell_{max(ran.number, 0)}"
                lines += [edits.as_coroutine(python, name), "", ""]
                python = f"{self._loop}.run_until_complete({name}())"
            if not is_everywhere:
                lines.append(f"if {ranks_test(ran.ranks, self._rank)}:")
                python = edits.indented(python)
        except edits.Unchangeable as error:
            msg = f"{ran.name} cannot be part of a script: {error}{self._advice(ran.name)}"
            raise ExportError(msg) from error
        return "\n".join([*lines, python])

    # --- head -------------------------------------------------------------------------------------------

    def _needs(self, blocks: str) -> Needs:
        futures = {name for cell in self._cells for name in cell.futures}
        awaits = any(cell.awaits for cell in self._cells)
        return Needs(
            futures=sorted(futures),
            imports=[*(["asyncio"] if awaits else []), *(["subprocess"] if "subprocess.run(" in blocks else [])],
            rank=self._rank,
            show=self._show if f"{self._show}(" in blocks else "",
            loop=self._loop if awaits else "",
            has_hpc="hpc" in self._loaded,
            has_display="display" in self._loaded - self._bound,
            has_selection=any(ran.on.strip() != "all" for ran in self._ran),
        )


def ranks_test(ranks: RankSet, name: str = "rank") -> str:
    """Whether ``name`` is one of these ranks, as Python: ``rank in {0, 2}``."""
    runs = ranks.runs()
    if len(runs) == 1 and len(ranks) > 2:
        return f"{name} in range({runs[0][0]}, {runs[0][1] + 1})"
    if len(ranks) == 1:
        return f"{name} == {ranks.first()}"
    parts = [f"*range({first}, {last + 1})" if last > first + 1 else ", ".join(map(str, range(first, last + 1)))
             for first, last in runs]  # fmt: skip
    return f"{name} in {{{', '.join(parts)}}}"


def _unused(name: str, bound: frozenset[str]) -> str:
    while name in bound:
        name += "_"
    return name
