"""The public names: those that are promised, each found where it is said to be, and said in the guide or the design."""

from __future__ import annotations

from pathlib import Path

import pytest

import hpcnb

NAMES = [
    "CellFailed", "CellResult", "Cluster", "CollectiveAborted", "CollectiveError", "CollectiveMismatch", "HpcnbError",
    "Timeline", "attach", "clusters", "current", "doctor",
    "load_ipython_extension", "panel", "stop_all", "unload_ipython_extension",
]  # fmt: skip


def test_the_names_are_those_that_are_promised():
    assert hpcnb.__all__ == NAMES
    assert dir(hpcnb) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_had(name):
    found = getattr(hpcnb, name)
    assert found.__name__ == name
    assert found.__doc__


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_extension")])
def test_each_is_written_of(name):
    root = Path(hpcnb.__file__).parents[1]
    texts = [(root / "docs" / page).read_text() for page in ("user-guide.md", "design.md")]
    assert any(name in text for text in texts)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'hpcnb' has no attribute 'nothing'"):
        _ = hpcnb.nothing
