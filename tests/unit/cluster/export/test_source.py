"""Edits of source change where code stands and never what it does."""

from __future__ import annotations

import ast
import asyncio
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.cluster.export import source as edits
from tests.unit.cluster.export.programs import programs

pytestmark = pytest.mark.filterwarnings("ignore")  # about odd literals in random programs


def dumped(statements):
    return [ast.dump(each) for each in statements]


@given(programs)
def test_indented_code_is_the_same_code(source):
    body = ast.parse(source).body or [ast.Pass()]
    (block,) = ast.parse(f"if True:\n{edits.indented(source)}").body
    assert dumped(block.body) == dumped(body)


@given(programs, st.sampled_from(["_show({})", "_show({}, rank=2)"]))
def test_the_last_value_is_handed_on_and_nothing_else_changes(source, call):
    before, after = ast.parse(source).body, ast.parse(edits.showing_last(source, call)).body
    assert dumped(after[:-1]) == dumped(before[:-1])
    if dumped(after) != dumped(before):
        assert after[-1].value.func.id == "_show"
        assert dumped(after[-1].value.args) == dumped([before[-1].value])
        assert isinstance(before[-1], ast.Expr)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a\nb", "a\n_show(b)"),
        ("a, *b", "_show((a, *b))"),
        ("(a,\n b)", "_show((a,\n b))"),
        ("(a := 5)", "_show((a := 5))"),
        ("'é'; b  # why", "'é'; _show(b)  # why"),
        ("(x for x in y)", "_show((x for x in y))"),
        ("a;", "a;"),
        ("a ; # muted", "a ; # muted"),
        ("a = 1", "a = 1"),
        ("print(a)", "print(a)"),
        ("if a:\n    b", "if a:\n    b"),
        ("", ""),
        ("# nothing", "# nothing"),
    ],
)
def test_what_is_shown(source, shown):
    assert edits.showing_last(source, "_show({})") == shown


def test_lines_of_strings_stay_where_they_are():
    source = 'x = """a\n  b\n"""\nif x:\n\ty = (1,\n2)\n\n# end'
    assert edits.indented(source) == '    x = """a\n  b\n"""\n    if x:\n    \ty = (1,\n    2)\n\n    # end'


def test_comments_alone_are_a_body():
    assert edits.indented("# nothing to do") == "    # nothing to do\n    pass"


def test_what_cannot_be_moved_is_refused():
    with pytest.raises(edits.Unchangeable):
        edits.indented("if a:\n  b\n\f  c")  # the form feed sets its column back to 0


def test_future_imports_are_taken_out():
    source = "from __future__ import annotations; a = 1\nfrom __future__ import (\n    generator_stop,\n)\nb"
    assert edits.without_futures(source) == ("pass; a = 1\npass\nb", ["generator_stop", "annotations"])
    assert edits.without_futures("a\n") == ("a\n", [])


AWAITING = '''\
import asyncio as aio
from os import path
text = """
  kept
"""
values = [each for each in range(3)]
async with aio.Lock() as lock:
    for index in values:
        await aio.sleep(0)
def twice(x):
    inner = x * 2
    return inner
class Kept:
    attribute = 1
if (walrus := index) and not lock:
    del values
'''


def test_names_of_a_cell_that_awaits_are_names_of_the_module():
    assert edits.is_awaiting(AWAITING)
    names = {}
    exec(compile(edits.as_coroutine(AWAITING, "_cell"), "<cell>", "exec"), names)
    asyncio.run(names["_cell"]())
    assert names["text"] == "\n  kept\n"
    assert (names["index"], names["walrus"], names["twice"](2)) == (2, 2, 4)
    assert {"aio", "path", "Kept", "lock"} <= names.keys()
    assert not {"values", "inner", "each", "attribute", "x"} & names.keys()


@pytest.mark.parametrize("source", ["from os import *\nawait x", "x: int = await y"])
def test_what_no_function_can_do_is_refused(source):
    with pytest.raises(edits.Unchangeable):
        edits.as_coroutine(source, "_cell")


@given(programs)
def test_programs_without_await_are_told_from_those_with(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "<cell>", "exec", dont_inherit=True)
        except SyntaxError:  # "a" is global in a class, for example
            return
        assert not edits.is_awaiting(source)
        assert edits.is_awaiting(f"{source}\nawait a")
