"""How cell code is named and numbered: the same on every rank, and as the person sees it in the editor."""

from __future__ import annotations

import ast
import linecache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["CellSource", "ends_with_semicolon"]


class _LineNumbers(ast.NodeTransformer):
    """Numbers the lines of a cell as the person sees them, with the magic above it."""

    offset = 0

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.increment_lineno(node, self.offset) if self.offset else node


class CellSource:
    """Names and numbers what a shell compiles while a cell runs.

    ipykernel names cells by a hash and the process id, which differ from rank to rank, and IPython numbers from the
    first line that is not empty, below the magic.

    Args:
        shell: The engine's shell; its compiler is wrapped once.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._file = ""
        self._lines = _LineNumbers()
        shell.ast_transformers.append(self._lines)
        compiler = shell.compile
        name, cache = compiler.get_code_name, compiler.cache

        def get_code_name(raw: str, transformed: str, number: int) -> str:
            return self._file or str(name(raw, transformed, number))

        def cache_lines(*args: Any, **kwargs: Any) -> str:
            file = str(cache(*args, **kwargs))
            if self._file and self._lines.offset:  # lines before the source, so that tracebacks quote the right one
                size, modified, lines, full_name = linecache.cache[file]  # type: ignore[misc]
                linecache.cache[file] = (size, modified, ["\n"] * self._lines.offset + lines, full_name)
            return file

        compiler.get_code_name = get_code_name  # type: ignore[method-assign,assignment]
        compiler.cache = cache_lines  # type: ignore[method-assign]

    def begin(self, label: str, source: str, first_line: int) -> None:
        """What is compiled from now on is this cell."""
        num_empty = next((number for number, line in enumerate(source.splitlines()) if line.strip()), 0)
        self._file = f"<{label}>"
        self._lines.offset = first_line - 1 + num_empty

    def end(self) -> None:
        """What is compiled from now on is no cell of ours."""
        self._file = ""
        self._lines.offset = 0

    def correct(self, error: SyntaxError) -> None:
        """Number the lines of a syntax error, which never became a tree, like all others."""
        if error.filename == self._file and error.lineno is not None:
            error.lineno += self._lines.offset
            error.text = linecache.getline(self._file, error.lineno) or error.text
            if error.end_lineno is not None:
                error.end_lineno += self._lines.offset


def ends_with_semicolon(source: str) -> bool:
    """Whether the last expression is followed by ``;``, which asks for no display."""
    if not source.rstrip().split("#")[0].rstrip().endswith(";") and ";" not in source.rsplit("\n", 1)[-1]:
        return False
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return source.rstrip().endswith(";")
    if not isinstance(last, ast.Expr) or last.end_lineno is None:
        return False
    rest = source.splitlines()[last.end_lineno - 1].encode()[last.end_col_offset or 0 :].decode()
    return rest.strip().startswith(";")
