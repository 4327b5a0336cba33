"""Edits of Python source that keep what it means: indenting, showing the last value, wrapping what awaits.

Each edit is looked at as a tree before it is given back: an edit that would change the code is refused, never made.
"""

from __future__ import annotations

import ast
import inspect
import io
import symtable
import tokenize

__all__ = ["Unchangeable", "as_coroutine", "indented", "is_awaiting", "showing_last", "without_futures"]

_INDENT = "    "


class Unchangeable(Exception):
    """Source that cannot be edited without changing what it does."""


def _same(one: list[ast.stmt], other: list[ast.stmt]) -> bool:
    return [ast.dump(each) for each in one] == [ast.dump(each) for each in other]


def indented(source: str) -> str:
    """The source as the body of a statement; lines that begin inside of a string stay as they are.

    Raises:
        Unchangeable: Its blanks mean something that moves with them, as form feeds do.
    """
    body = ast.parse(source).body
    if not body:  # comments only
        source += "\npass"
        body = ast.parse(source).body
    try:
        inside = _rows_inside_strings(source)
    except (tokenize.TokenError, SyntaxError) as error:
        raise Unchangeable(str(error)) from error
    lines = source.split("\n")
    moved = "\n".join(
        line if not line.strip() or row in inside else _INDENT + line for row, line in enumerate(lines, start=1)
    )
    try:
        block = ast.parse(f"if 1:\n{moved}").body
    except SyntaxError as error:
        raise Unchangeable(str(error)) from error
    if len(block) != 1 or not isinstance(block[0], ast.If) or not _same(block[0].body, body):
        msg = "its indentation cannot be moved"
        raise Unchangeable(msg)
    return moved


def _rows_inside_strings(source: str) -> set[int]:
    """Numbers of the lines that begin inside of a string."""
    rows: set[int] = set()
    open_at: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        first = token.start[0]
        if kind.endswith("STRING_START"):  # f-strings are several tokens since Python 3.12
            open_at.append(first)
            continue
        if kind.endswith("STRING_END"):
            first = open_at.pop()
        elif kind != "STRING":
            continue
        rows.update(range(first + 1, token.end[0] + 1))
    return rows


def _cut(source: str, node: ast.stmt) -> tuple[str, str, str]:
    """What comes before a statement, its own text, and what comes after it."""
    lines = source.split("\n")
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    first, last = lines[node.lineno - 1].encode(), lines[node.end_lineno - 1].encode()  # columns are counted in bytes
    before = "\n".join([*lines[: node.lineno - 1], first[: node.col_offset].decode()])
    after = "\n".join([last[node.end_col_offset :].decode(), *lines[node.end_lineno :]])
    return before, source[len(before) : len(source) - len(after)], after


def showing_last(source: str, call: str) -> str:
    """The source with its last expression handed to ``call(``, as a notebook shows it; ``;`` after it mutes it.

    Args:
        source: Python.
        call: ``_show({})``, where the expression goes into the braces.
    """
    body = ast.parse(source).body
    if not body or not isinstance(last := body[-1], ast.Expr) or _says_nothing(last.value):
        return source
    before, text, after = _cut(source, last)
    if after.lstrip(" \t\f").startswith(";"):
        return source
    for words in (text, f"({text})"):  # a tuple without parentheses would become several arguments
        shown = before + call.format(words) + after
        edited = ast.parse(shown).body
        expression = edited[-1]
        assert isinstance(expression, ast.Expr)
        given = expression.value
        if (
            _same(edited[:-1], body[:-1])
            and isinstance(given, ast.Call)
            and given.args
            and ast.dump(given.args[0]) == ast.dump(last.value)
            and len(given.args) == 1
        ):
            return shown
    msg = "its last expression cannot be shown"
    raise Unchangeable(msg)


def _says_nothing(value: ast.expr) -> bool:
    """Whether nobody would look at the value: that of ``print()``, or of a command."""
    return isinstance(value, ast.Call) and (
        (isinstance(value.func, ast.Name) and value.func.id == "print")
        or (ast.unparse(value.func) == "subprocess.run" and ast.unparse(value).endswith("shell=True, check=False)"))
    )


def without_futures(source: str) -> tuple[str, list[str]]:
    """The source without its ``from __future__ import``, which must be at the top of a file, and what it imports."""
    names: list[str] = []
    nodes = [
        node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    for node in reversed(nodes):
        before, _, after = _cut(source, node)
        source = f"{before}pass{after}"
        names += [alias.name for alias in node.names]
    return source, names


def is_awaiting(source: str) -> bool:
    """Whether the source awaits at its top level."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(source, "<cell>", "exec", flags=flags, dont_inherit=True)
    return bool(code.co_flags & inspect.CO_COROUTINE)


def as_coroutine(source: str, name: str) -> str:
    """The source as an async function that gives values to the names of the module, as a cell with ``await`` does.

    Raises:
        Unchangeable: It does what no function can, ``from x import *`` for example.
    """
    body = indented(source)
    head = f"async def {name}():\n"
    try:
        (function,) = symtable.symtable(f"{head}{body}", "<cell>", "exec").get_children()
        names = sorted(each.get_name() for each in function.get_symbols() if each.is_local())
        wrapped = f"{head}{_INDENT}global {', '.join(names)}\n{body}" if names else f"{head}{body}"
        compile(wrapped, "<cell>", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise Unchangeable(str(error)) from error
    return wrapped
