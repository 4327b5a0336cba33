"""IPython's syntax as Python; where it is found agrees with IPython, and Python is left alone."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from hpcnb.cluster.export.translate import Untranslatable, bound_names, to_python
from tests.unit.cluster.export.programs import is_python, programs

pytestmark = pytest.mark.filterwarnings("ignore")  # about odd literals in random programs


def nothing():
    return frozenset()


@given(programs)
def test_python_is_left_as_it_is(source):
    if not source.lstrip("\n").startswith((" ", "\t", "\f")):
        assert to_python(source, nothing) == source


@given(
    st.lists(st.one_of(programs, st.sampled_from(["!ls -l", "x = !date", "%time a", "a?", "!ls \\\n -l"])), max_size=5)
)
def test_magics_are_found_where_ipython_finds_them(parts):
    source = "\n".join(["pass", *parts])
    transformed = TransformerManager().transform_cell(source)
    if not is_python(transformed):
        return
    calls = [node.func.attr for node in ast.walk(ast.parse(transformed))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
             and ast.unparse(node.func.value) == "get_ipython()"]  # fmt: skip
    commands = ast.unparse(ast.parse(to_python(source, nothing))).count("subprocess.run(")
    assert commands == calls.count("system") + calls.count("getoutput")


@pytest.mark.parametrize(
    ("line", "python"),
    [
        ("!ls", "subprocess.run('ls', shell=True, check=False)"),
        ("  !ls", "subprocess.run('ls', shell=True, check=False)"),
        ("!echo {rank} is $name", "subprocess.run('echo {} is {}'.format(rank, name), shell=True, check=False)"),
        ("!echo {rank:03d}{name!r}", "subprocess.run('echo {:03d}{!r}'.format(rank, name), shell=True, check=False)"),
        ("!echo {rank + len(name)}", "subprocess.run('echo {}'.format(rank + len(name)), shell=True, check=False)"),
        ("!echo {rank} $HOME", "subprocess.run('echo {rank} $HOME', shell=True, check=False)"),
        ("!echo {unknown}", "subprocess.run('echo {unknown}', shell=True, check=False)"),
        ("!echo '$name' $$name {{x}}", "subprocess.run(\"echo '$name' $name {x}\", shell=True, check=False)"),
        ("!awk '{print $1}' f", "subprocess.run(\"awk '{print $1}' f\", shell=True, check=False)"),
        ("%time f(1)", "f(1)"),
        ("x = %time f(1)", "x = f(1)"),
        ("%time !ls", "subprocess.run('ls', shell=True, check=False)"),
        ("%time", "pass  # %time"),
        ("%matplotlib inline", "pass  # %matplotlib inline"),
        ("%load_ext autoreload", "pass  # %load_ext autoreload"),
        ("f?", "pass  # f?"),
        ("??f.g", "pass  # ??f.g"),
        ("%time?", "pass  # %time?"),
        ("%%time\nf(1)", "# %%time\nf(1)"),
        ("  a = 1\n  b", "a = 1\nb"),
        ("a = 1\r\nb", "a = 1\nb"),
        ("if a:\n    !ls \\\n      -l\nb",
         "if a:\n    subprocess.run('ls        -l', shell=True, check=False)\n\nb"),
        ('x = """\n!ls\n%time\n"""\n!ls', 'x = """\n!ls\n%time\n"""\nsubprocess.run(\'ls\', shell=True, check=False)'),
        ("y = (a\n%b)\n!ls", "y = (a\n%b)\nsubprocess.run('ls', shell=True, check=False)"),
    ],
)  # fmt: skip
def test_lines(line, python):
    assert to_python(line, lambda: frozenset({"rank", "name"})) == python


def test_output_of_a_command_is_a_list_of_lines():
    names = {}
    exec(to_python("import subprocess\nlines = !printf 'a\\nb\\n'; echo c >&2", nothing), names)
    assert names["lines"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("a\n%pip install x", 2, "%pip install x means nothing in a script"),
        ("%timeit f()", 1, "%timeit f\\(\\) means nothing"),
        ("%time -x f()", 1, "means nothing"),
        ("%%bash\nls", 1, "%%bash is no Python"),
        ("a\nls -l b", 2, "'ls -l b' is no Python: invalid syntax"),
        ("x = '\n!ls", 1, "is no Python"),
        ("x = 'a\0'", 1, "null"),
    ],
)
def test_what_no_script_can_have(source, line, words):
    with pytest.raises(Untranslatable, match=words) as caught:
        to_python(source, nothing)
    assert caught.value.line == line


def test_bound_names():
    source = "import a.b, c as d\nx: int = 1\ndef f(p):\n  q = p\nfor g in h: pass\ntry: pass\nexcept E as e: pass"
    assert bound_names(ast.parse(source)) == {"a", "d", "x", "f", "q", "g", "e"}
