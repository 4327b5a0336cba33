"""Random small programs in Python with what makes their lines hard to move: strings over several lines, odd blanks."""

from __future__ import annotations

import ast

from hypothesis import strategies as st

__all__ = ["programs"]

NAMES = st.sampled_from(["a", "b", "λ", "total_1"])
TEXT = st.text(alphabet=st.sampled_from("ab \t\n'\"\\{}#%!?é\f"), max_size=12)


def triple(text: str) -> str:
    """A string over several lines with whatever in it."""
    return '"""' + text.replace("\\", "\\\\").replace('"', '\\"') + '"""'


STRINGS = st.one_of(
    TEXT.map(repr),
    TEXT.map(triple),
    TEXT.map(lambda text: "f" + triple(text.replace("{", "{{").replace("}", "}}")[:-1] + "{a!r:>{b}}\n  {\n a}\n x")),
    TEXT.map(lambda text: f"b{triple(text.encode('ascii', 'ignore').decode())}"),
    st.just("'one \\\n  two'"),
)
EXPRESSIONS = st.recursive(
    st.one_of(NAMES, st.integers(0, 99).map(str), STRINGS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: f"({two[0]},\n{two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"[{two[0]} +\n# in between\n  {two[1]}]"),
        st.tuples(inner, inner).map(lambda two: f"{two[0]}, {two[1]}"),
        st.tuples(inner, inner).map(lambda two: f"{two[0]} or \\\n{two[1]}"),
        inner.map(lambda one: f"call(\n\t{one}\n)"),
    ),
    max_leaves=4,
)
SIMPLE = st.one_of(
    EXPRESSIONS,
    st.tuples(NAMES, EXPRESSIONS).map(lambda two: f"{two[0]} = {two[1]}"),
    st.tuples(EXPRESSIONS, NAMES).map(lambda two: f"{two[0]}; {two[1]} = 1  # {two[1]}"),
    st.just("# a comment\n\n   # another"),
    st.just("import os"),
    st.just("pass"),
)


def block(head: str, body: list[str], indent: str) -> str:
    """A compound statement; lines of strings are moved as any other, which makes another, equally good program."""
    return "\n".join([head, *(f"{indent}{line}" for statement in body for line in statement.split("\n"))])


STATEMENTS = st.recursive(
    SIMPLE,
    lambda inner: st.builds(
        block,
        st.sampled_from(["if a:", "for a in b:", "def f(a):", "class C:", "with a as b:", "async def g():"]),
        st.lists(inner, max_size=2).map(lambda body: [*body, "pass"]),
        st.sampled_from(["    ", " ", "\t", "  \t"]),
    ),
    max_leaves=4,
)


def is_python(source: str) -> bool:
    """Whether it is."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


programs = st.lists(STATEMENTS, max_size=4).map("\n".join).filter(is_python)
