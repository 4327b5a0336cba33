"""The exception tree is the one that its module draws, and renders without frames."""

from __future__ import annotations

import inspect
import re

import pytest

from hpcnb.core import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_the_tree_is_as_drawn():
    drawn, path = {}, []
    for line in re.findall(r"^ {4}(.*)$", errors.__doc__, flags=re.MULTILINE):
        depth, name = len(re.match(r"[|+ -]*", line)[0]) // 4, re.search(r"\w+", line)[0]
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else "Exception"
    assert drawn == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}
    assert [name for name, value in vars(errors).items() if inspect.isclass(value)] == list(drawn)
    assert sorted(errors.__all__) == errors.__all__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_renders_as_its_message(cls):
    rendered = cls("what was asked; what is; what to type")._render_traceback_()
    assert rendered[-1].endswith("what was asked; what is; what to type")
    assert len(rendered) == 1


def test_a_failed_cell_renders_as_its_text():
    assert errors.CellTimeout("a\nb")._render_traceback_() == ["a", "b"]


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [("SelectionError", ValueError), ("MeshError", ValueError), ("LinkError", ConnectionError),
     ("TransferError", TypeError), ("LaunchError", RuntimeError), ("ClusterStateError", RuntimeError)],
)  # fmt: skip
def test_errors_are_also_what_python_would_raise(cls, builtin):
    assert issubclass(getattr(errors, cls), builtin)
