"""What IPython understands in a cell and Python does not, written as Python: ``!command``, ``%time``, ``name?``.

Python source is left as it is, to the last blank. Knows IPython's syntax and nothing of IPython.
"""

from __future__ import annotations

import ast
import builtins
import re
import string
import tokenize
from collections.abc import Callable

__all__ = ["Untranslatable", "bound_names", "to_python"]

_SHELL = re.compile(r"(?P<indent>\s*)(?P<target>[^\W\d][^#'\"=!%()]*=\s*)?(?P<twice>!{1,2})(?P<command>.*)", re.DOTALL)
_MAGIC = re.compile(r"(?P<indent>\s*)(?P<target>[^\W\d][^#'\"=!%()]*=\s*)?%(?P<name>\w+)(?P<rest>.*)", re.DOTALL)
_HELP = re.compile(r"\s*(\?{1,2}\s*[\w.*]+|%{0,2}[\w.*\[\]'\"]+\s*\?{1,2})\s*")
#: They change how a notebook shows things, or what it loads again: nothing that a script does.
_WITHOUT_EFFECT = {"matplotlib", "autoreload", "config", "precision", "xmode"}
#: ``$name`` in a command, outside of single quotes (IPython.utils.text.DollarFormatter).
_DOLLAR = re.compile(r"\$(\$?[\w.]+)(?=([^']*'[^']*')*[^']*$)")


class Untranslatable(Exception):
    """A line that no script can have.

    Args:
        line: Its number in the source, from 1.
        why: In words.
    """

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def to_python(source: str, bound: Callable[[], frozenset[str]]) -> str:
    """A cell as Python.

    Args:
        source: As IPython takes it.
        bound: Returns the names that ``{name}`` and ``$name`` in a command may mean.

    Raises:
        Untranslatable: A magic that means nothing in a script, or what neither Python nor this module knows.
    """
    source = _dedented(re.sub(r"\r\n?", "\n", source))
    if _problem(source) is None:
        return source
    lines = source.split("\n")
    written: list[str] = []
    at = next((number for number, line in enumerate(lines) if line.strip()), 0)
    written += lines[:at]
    if lines[at].startswith("%%"):
        name, _, rest = lines[at][2:].partition(" ")
        if name != "time" or rest.strip():
            raise Untranslatable(at + 1, f"{lines[at].strip()} is no Python")
        written.append("# %%time")
        at += 1
    while at < len(lines):
        end = _end_of_magic(lines, at) if _is_ours(lines[at]) else _end_of_statement(lines, at)
        if _is_ours(lines[at]):
            written.append(_translated(" ".join(line.removesuffix("\\") for line in lines[at:end]), at + 1, bound))
            written += [""] * (end - at - 1)  # so that later lines keep their number
        else:
            written += lines[at:end]
        at = end
    python = "\n".join(written)
    if (problem := _problem(python)) is not None:
        line = min(problem.lineno or 1, len(lines))
        raise Untranslatable(line, f"{lines[line - 1].strip()!r} is no Python: {problem.msg}")
    return python


def bound_names(tree: ast.AST) -> frozenset[str]:
    """Names that code gives a value anywhere, also in functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
    return frozenset(names)


def _problem(source: str) -> SyntaxError | None:
    try:
        ast.parse(source)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, or nested too deep
        return SyntaxError(str(error))
    return None


def _dedented(source: str) -> str:
    """Without the blanks that all of the cell is indented by, as IPython takes it."""
    lines = source.split("\n")
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join(line.removeprefix(indent) for line in lines) if indent else source


def _is_ours(line: str) -> bool:
    return any(pattern.fullmatch(line) for pattern in (_SHELL, _MAGIC, _HELP))


def _end_of_magic(lines: list[str], first: int) -> int:
    end = first + 1
    while end < len(lines) and lines[end - 1].endswith("\\"):
        end += 1
    return end


def _end_of_statement(lines: list[str], first: int) -> int:
    """The line after the statement that begins here: what looks like a magic inside of it is none."""
    if not lines[first].strip() or lines[first].lstrip().startswith("#"):
        return first + 1
    rest = iter(f"{line}\n" for line in lines[first:])
    try:
        for token in tokenize.generate_tokens(lambda: next(rest, "")):
            if token.type == tokenize.NEWLINE:
                return first + token.end[0]
    except (tokenize.TokenError, SyntaxError):
        pass  # it is no Python either, which is told when all of the cell is looked at
    return len(lines)


def _translated(line: str, number: int, bound: Callable[[], frozenset[str]]) -> str:
    if (shell := _SHELL.fullmatch(line)) is not None:
        command = _command(shell["command"].strip(), bound())
        if shell["target"] is None and shell["twice"] == "!":
            return f"{shell['indent']}subprocess.run({command}, shell=True, check=False)"
        pipes = "stdout=subprocess.PIPE, stderr=subprocess.STDOUT"
        return (
            f"{shell['indent']}{shell['target'] or ''}subprocess.run("
            f"{command}, shell=True, check=False, text=True, {pipes}).stdout.splitlines()"
        )
    magic = _MAGIC.fullmatch(line)
    if magic is None or _HELP.fullmatch(line):
        return f"{line[: len(line) - len(line.lstrip())]}pass  # {line.strip()}"
    indent, target, name, rest = magic["indent"], magic["target"] or "", magic["name"], magic["rest"].strip()
    if name == "time" and not rest.startswith("-"):
        if not target and (rest.startswith(("!", "%")) or not rest):
            return _translated(indent + rest, number, bound) if rest else f"{indent}pass  # %time"
        return f"{indent}{target}{rest}"
    if not target and (name in _WITHOUT_EFFECT or (name, rest) == ("load_ext", "autoreload")):
        return f"{indent}pass  # {line.strip()}"
    raise Untranslatable(number, f"{line.strip()} means nothing in a script")


def _command(text: str, bound: frozenset[str]) -> str:
    """A command with ``{name}`` and ``$name`` filled in, as a Python expression; unknown names are the shell's."""
    known = bound | set(dir(builtins))
    pieces: list[str] = []
    values: list[str] = []
    try:
        for literal, expression, spec, conversion in string.Formatter().parse(text):
            at = 0
            for match in _DOLLAR.finditer(literal):
                name = match[1]
                if not name.startswith("$") and name.partition(".")[0] not in known:
                    return repr(text)  # IPython leaves a command alone if one of its names is unknown
                pieces.append(_escaped(literal[at : match.start()]))
                at = match.end()
                if name.startswith("$"):
                    pieces.append(_escaped(name))
                else:
                    pieces.append("{}")
                    values.append(name)
            pieces.append(_escaped(literal[at:]))
            if expression is None:
                continue
            tree = ast.parse(expression.strip(), mode="eval")
            if not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} <= known | bound_names(tree):
                return repr(text)
            pieces.append("{" + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}")
            values.append(f"({expression.strip()})" if "," in expression else expression.strip())
    except (ValueError, SyntaxError):
        return repr(text)  # braces of the shell, as in awk '{print $1}'
    if not values:
        return repr("".join(pieces).format())
    return f"{''.join(pieces)!r}.format({', '.join(values)})"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
