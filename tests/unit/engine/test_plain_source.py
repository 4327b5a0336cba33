"""What is taken for plain Python is what IPython leaves as it is."""

from __future__ import annotations

import textwrap
from pathlib import Path

import nbformat
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell

from hpcnb.engine.plain_source import is_plain, recognize_plain_source

ROOT = Path(__file__).parents[3]
#: What transformations of IPython look for, and what surrounds it.
PIECES = [
    "x", " ", "  ", "\t", "\n", "\n", "\n\n", "=", "(", ")", "[", "]", ",", ";", "/", "%", "%%", "!", "!!", "?", "??", ">>> ",
    ">>>", "...", "...: ", "In [1]: ", "[ins] In [2]: ", "'", '"', '"""', "\\\n", "#", "pass", "if x:", "for", "def f():",
    "import os", "pwd", "ls", "cd", "exit", "print(1)", "time", "await y", "a.b", "\r\n", "\x0c", "\x1c", "\u2028", "$", "~", "@",
    "x = 1\n", "    y = 2\n", "lambda: 0", "é", "\0", "None", "timeit", "f'{x}'", "-*- coding", "/f x", ",f x", ";f x",
]  # fmt: skip


@pytest.fixture(scope="module")
def shell():
    before = InteractiveShell._instance
    shell = InteractiveShell()
    yield shell
    InteractiveShell._instance = before
    shell.history_manager.end_session()


def assert_same(shell, source):
    if is_plain(source):
        try:
            shell.transform_cell(source)
        except SyntaxError:  # which the compiler raises as well, and names the line of the cell
            with pytest.raises(SyntaxError):
                compile(source, "cell", "exec")
            return
        assert shell.transform_cell(source) == (source if source.endswith("\n") else source + "\n")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("pass")
@example("x = 1\n   \ny = 2")
@example("x = '''\n>>> 1\n'''\n")
@example("f(a\n,b)")
@example("import os\n\n")
@example("if x:\n        y = 2\n    z = 3\n")
def test_pieces(shell, source):
    assert_same(shell, source)


@given(st.text(max_size=40))
def test_any_text(shell, source):
    assert_same(shell, source)


def test_every_module_and_every_cell_of_ours(shell):
    cells = [path.read_text() for path in (ROOT / "hpcnb").rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells += [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for source in cells:
        assert_same(shell, source)


@pytest.mark.parametrize(
    "source", ["pass", "import torch", "x = 1\ny = 2\n", "for i in range(3):\n    print(i)", "a\nb"]
)
def test_what_is_plain(source):
    assert is_plain(source)


@pytest.mark.parametrize(
    "source", ["", "ls", "x = 1", "%time x\ny", "!ls\nx", "x?\ny", "  x\n  y", "x = 3 % 2\ny", ">>> x\ny"]
)
def test_what_may_not_be(source):
    assert not is_plain(source)


def test_what_a_person_registers_is_applied_and_taken_away_again(shell):
    recognize_plain_source(shell)
    source = textwrap.dedent("""\
        x = 1
        y = 2
        """)
    assert shell.transform_cell(source) == source

    def shout(lines):
        return [line.upper() for line in lines]

    for transforms in (shell.input_transformers_post, shell.input_transformers_cleanup):
        transforms.append(shout)
        assert shell.transform_cell(source) == source.upper()
        transforms.remove(shout)
        assert shell.transform_cell(source) == source
    assert shell.transform_cell("%time 1\n") == "get_ipython().run_line_magic('time', '1')\n"
