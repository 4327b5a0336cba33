"""Writes script and batch job: both or neither, whole or not at all, and never over a file unasked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcnb.cluster.export.batch import batch_job
from hpcnb.cluster.export.ran import RanCells, choose, shortened
from hpcnb.cluster.export.script import script
from hpcnb.cluster.export.setting import Setting
from hpcnb.core.errors import ExportError, OptionError

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        script: Its path.
        batch_job: Path of the batch job; None if none was asked for.
        cells: Names of the cells in the script, in order: ``In[3]``.
        left_out: What ran on the ranks and is not in the script, each with why.
        num_ranks: World size of the notebook.
    """

    script: Path
    batch_job: Path | None
    cells: tuple[str, ...]
    left_out: tuple[str, ...]
    num_ranks: int

    def __repr__(self) -> str:
        number = f"{len(self.cells)} cell{'s' if len(self.cells) > 1 else ''}"
        lines = [f"{self.script}: {shortened(self.cells)} ({number})"]
        name = shlex.quote(str(self.script))
        lines += [f"    torchrun --nproc-per-node {self.num_ranks} {name}", f"    python {name}"]
        lines += [f"    sbatch {shlex.quote(str(self.batch_job))}"] if self.batch_job is not None else []
        lines += [f"not in it: {each}" for each in self.left_out]
        return "\n".join(lines)


def export(
    file: str | Path, ran: RanCells, setting: Setting, *, cells: str | Sequence[int] | None = None,
    sbatch: bool = False, force: bool = False,
) -> Exported:  # fmt: skip
    """Write cells that were run as a script; see ``Cluster.export``."""
    path = _checked(file)
    batch_path = path.with_suffix(".sbatch") if sbatch else None
    choice = choose(ran.cells, cells)
    left_out = [*choice.left_out, *ran.others]
    if ran.num_dropped:
        left_out.append(f"the first {ran.num_dropped} cells, which are not kept any more")
    if ran.has_earlier:
        left_out.append("cells that ran before this notebook attached to the cluster")
    texts = {path: script(choice.cells, setting, left_out=left_out, file=str(path))}
    if batch_path is not None:
        texts[batch_path] = batch_job(setting, script=str(path), job=str(batch_path))
    if not force and (there := [str(each) for each in texts if os.path.lexists(each)]):
        exist = "exist" if len(there) > 1 else "exists"
        msg = f"{' and '.join(there)} {exist} already; choose another name, or overwrite:  --force (force=True)"
        raise ExportError(msg)
    _write(texts)
    names = tuple(cell.name for cell in choice.cells)
    return Exported(path, batch_path, names, tuple(left_out), setting.world_size)


def _checked(file: object) -> Path:
    """The path; of a file that ends in .py, in a folder that is there."""
    if not isinstance(file, (str, os.PathLike)):
        msg = f"export() takes the name of a file, not a {type(file).__name__}; for example cluster.export('train.py')"
        raise OptionError(msg)
    path = Path(file)
    if path.is_dir():
        msg = f"{file} is a folder; name a file in it, for example {path / 'train.py'}"
        raise ExportError(msg)
    if path.suffix != ".py" or not str(path).isprintable():
        msg = f"{str(file)!r}: a script is a file that ends in .py, for example train.py"
        raise ExportError(msg)
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent} to write {path.name} to; make it first, or choose another"
        raise ExportError(msg)
    return path


def _write(texts: dict[Path, str]) -> None:
    """Write all under other names first, then give them theirs."""
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            target = Path(os.path.realpath(path))  # a link stays a link
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            with temporary.open("x", encoding="utf-8", newline="\n") as opened:
                written[temporary] = target
                opened.write(text)
        for temporary, target in written.items():
            temporary.replace(target)
    except (OSError, UnicodeEncodeError) as error:
        msg = f"{' and '.join(map(str, texts))} cannot be written: {error}"
        raise ExportError(msg) from error
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)
