"""Run the training notebook from start to end without a browser, and say how it went.

Writes the executed notebook and the figures in its outputs to build/demo/. The notebook's contract: some cell
prints one line `RESULT {json}` with test_accuracy, dataset, seconds and num_ranks.
Usage: python tools/run_demo.py [NOTEBOOK]
"""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "02_data_parallel.ipynb"
OUTPUT_FOLDER = ROOT / "build" / "demo"
CELL_TIMEOUT_S = 900  # the bar is 3 minutes on two cores; a busy machine may need several times that
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class DemoError(Exception):
    """The demo did not succeed; the text says why."""


@dataclass(frozen=True)
class Result:
    """What the notebook says about itself."""

    test_accuracy: float
    dataset: str
    seconds: float
    num_ranks: int


def execute(notebook: nbformat.NotebookNode, *, folder: Path) -> None:
    """Run all cells in place, one progress line per cell."""
    code_cells = [
        index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()
    ]
    started = time.monotonic()

    def announce(cell: nbformat.NotebookNode, cell_index: int) -> None:
        # nbclient calls this for every cell that it really runs.
        first_line = cell.source.strip().splitlines()[0][:70]
        position = code_cells.index(cell_index) + 1
        seconds = time.monotonic() - started
        print(f"  cell {position} of {len(code_cells)}  {seconds:5.0f} s  {first_line}", flush=True)

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",  # the kernel of the environment that runs this script
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=announce,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        text = COLOURS.sub("", str(error)).strip()
        raise DemoError(f"a cell of the notebook failed:\n\n{text}") from error
    except CellTimeoutError as error:
        raise DemoError(f"a cell ran longer than {CELL_TIMEOUT_S} s and was stopped: {error}") from error
    except DeadKernelError as error:
        raise DemoError("the notebook's kernel died; is there enough memory?") from error
    except RuntimeError as error:  # nbclient's word for a kernel that does not start
        raise DemoError(f"the notebook's kernel did not start: {error}") from error


def outputs_of(notebook: nbformat.NotebookNode) -> list[tuple[int, Any]]:
    """All outputs with the index of their cell."""
    return [
        (index, output)
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def read_result(notebook: nbformat.NotebookNode) -> Result:
    """The last RESULT line that the notebook printed."""
    found = [
        line.removeprefix("RESULT ")
        for _, output in outputs_of(notebook)
        if output.output_type == "stream" and output.name == "stdout"
        for line in output.text.splitlines()
        if line.startswith("RESULT ")
    ]
    if not found:
        raise DemoError("the notebook ran, but printed no line that starts with RESULT")
    try:
        fields = json.loads(found[-1])
        return Result(
            test_accuracy=float(fields["test_accuracy"]),
            dataset=str(fields["dataset"]),
            seconds=float(fields["seconds"]),
            num_ranks=int(fields["num_ranks"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DemoError(f"the notebook's RESULT line cannot be read: {found[-1]} ({error!r})") from error


def save_figures(notebook: nbformat.NotebookNode, *, folder: Path, stem: str) -> list[Path]:
    """Pictures in the outputs, as files: PNG of ranks, embedded in HTML or not, and the static SVG of plots."""
    paths = []
    for index, output in outputs_of(notebook):
        data = output.get("data", {})
        embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', data.get("text/html", ""))
        for image in [*([data["image/png"]] if "image/png" in data else []), *embedded]:
            paths.append(folder / f"{stem}-{len(paths) + 1:02d}-cell{index:02d}.png")
            paths[-1].write_bytes(base64.b64decode(image))
        if "image/svg+xml" in data:
            paths.append(folder / f"{stem}-{len(paths) + 1:02d}-cell{index:02d}.svg")
            paths[-1].write_text(data["image/svg+xml"], encoding="utf-8")
    return paths


def run(source: Path) -> None:
    """Execute, save, report."""
    if not source.exists():
        raise DemoError(f"there is no notebook {shown(source)}")
    notebook = nbformat.read(source, as_version=4)
    OUTPUT_FOLDER.mkdir(parents=True, exist_ok=True)
    for old in OUTPUT_FOLDER.glob(f"{source.stem}*"):
        old.unlink()
    executed = OUTPUT_FOLDER / source.name
    print(f"running {shown(source)}", flush=True)
    started = time.monotonic()
    try:
        execute(notebook, folder=source.parent)
    finally:  # also when a cell failed: the outputs up to there are what a person looks at
        nbformat.write(notebook, executed)
        figures = save_figures(notebook, folder=OUTPUT_FOLDER, stem=source.stem)
        print(f"executed notebook  {shown(executed)}")
    result = read_result(notebook)
    print(f"figures            {', '.join(shown(path) for path in figures) or 'none'}")
    print(f"data               {result.dataset}, {result.num_ranks} ranks")
    print(f"test accuracy      {result.test_accuracy:.1%}")
    print(f"time               training {result.seconds:.1f} s, all {time.monotonic() - started:.1f} s")


def shown(path: Path) -> str:
    """A path as a person in the repository's root would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main() -> int:
    """Exit status 0 only if the notebook ran and stated its result."""
    source = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else NOTEBOOK
    try:
        run(source)
    except DemoError as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
