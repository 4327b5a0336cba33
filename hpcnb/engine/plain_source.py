"""Cells that are plain Python are told from those with magics at a glance.

IPython tokenizes every cell several times in Python to find magics, which takes longer than all else of a small cell
(0.1 ms; on 64 ranks of two cores a third of the time) and milliseconds for a long one, on every rank. A cell without
any character or line that a transformation could begin with comes out as it was.
"""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["is_plain", "recognize_plain_source"]

#: What some transformation of IPython.core.inputtransformer2 may begin with: characters of magics, of shell commands,
#: of help, and of lines that ``^`` does not know; indentation of the whole; lines of spaces; quoting; prompts.
_MAYBE = re.compile(
    r"[%!?\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|\A\s|^[ \t]+$|^[ \t]*(?:[,;/]|>>>|\.\.\.|(?:\[\w+\] )?In \[)",
    re.MULTILINE,
)
_FIRST_WORD = re.compile(r"[a-z]+\b")


def is_plain(source: str) -> bool:
    """Whether IPython's own transformations leave this cell as it is.

    A single line is also looked up among magics and macros, where no keyword is.
    """
    if not source or _MAYBE.search(source):
        return False
    if "\n" in source[:-1]:
        return True
    first = _FIRST_WORD.match(source)
    return first is not None and keyword.iskeyword(first[0])


def recognize_plain_source(shell: InteractiveShell) -> None:
    """From now on such cells are not transformed; all are once somebody has registered a transformation of their own.

    Args:
        shell: Its ``transform_cell`` is wrapped once.
    """
    transform, manager, prefilter = shell.transform_cell, shell.input_transformer_manager, shell.prefilter_manager
    assert prefilter is not None, "only a shell that is made has none yet"

    def registered() -> tuple[list[object], ...]:
        return (
            manager.cleanup_transforms, manager.line_transforms, manager.token_transformers,
            shell.input_transformers_post, prefilter.checkers, prefilter.transformers,
        )  # fmt: skip

    usual = tuple(list(each) for each in registered())

    def transform_cell(raw_cell: str) -> str:
        if is_plain(raw_cell) and registered() == usual:
            return raw_cell if raw_cell.endswith("\n") else raw_cell + "\n"
        return str(transform(raw_cell))

    shell.transform_cell = transform_cell  # type: ignore[method-assign]
