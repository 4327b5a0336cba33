"""Run every notebook of notebooks/ and save it with its outputs: ``make notebooks``."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

#: A committed notebook with its outputs is at most so large.
MAX_BYTES = 300_000


def rebuild(path: Path) -> None:
    """Run one notebook in place; cells that are meant to fail carry the tag ``raises-exception``."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: a difference in every rebuild
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"{path} is larger than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "notebooks"
    for notebook_path in [Path(name) for name in sys.argv[1:]] or sorted(folder.glob("*.ipynb")):
        rebuild(notebook_path)
