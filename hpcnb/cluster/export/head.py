"""The top of a script: what it is, and what a notebook gives every rank, for torchrun and plain python alike. Pure."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from hpcnb.cluster.export.setting import Setting
from hpcnb.core.mesh import MeshSpec

__all__ = ["NAMES", "Needs", "head"]

#: What every cell finds, apart from ``hpc``.
NAMES = ("rank", "world_size", "local_rank", "device", "mesh")
_WIDTH = 110

_SET_UP = '''\
def _set_up():
    """Process group, device and mesh, as every rank of the notebook had them."""
    import math
    import os
    import sys

    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    store = None
    if "RANK" not in os.environ:  # without torchrun there is one rank, which meets nobody
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        store = dist.HashStore()
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    axes, sizes = {axes}, {sizes}
    if math.prod(sizes) != world_size:
        sys.exit(f"mesh {{axes}} = {{sizes}} does not fit {{world_size}} ranks; it was {mesh} on {num_ranks} ranks")
    if rank == 0 and world_size != {num_ranks}:
        words = ",".join(f"{{axis}}={{size}}" for axis, size in zip(axes, sizes))
        print(f"world size {{world_size}}, mesh {{words}}; the notebook had {num_ranks}, {mesh}", file=sys.stderr)
{selections}
    torch.set_num_threads({threads})  # as in the notebook: sums may depend on it in their last bits
    torch.seed()  # random numbers differ from rank to rank until a cell seeds them, as in the notebook
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        device = torch.device(kind, local_rank % torch.accelerator.device_count())
        torch.accelerator.set_device_index(device.index)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return rank, world_size, local_rank, device, init_device_mesh(device.type, sizes, mesh_dim_names=axes)


rank, world_size, local_rank, device, mesh = _set_up()
'''

_SELECTIONS = """\
        print("cells of some ranks (--on) run on the ranks that have the same number", file=sys.stderr)
"""

_SHOW = '''

def {show}(value, rank=0):
    """Print the value of a cell's last expression on one rank; the notebook showed it as Out[...]."""
    import os

    if value is not None and int(os.environ["RANK"]) == rank:
        print(repr(value), flush=True)
'''

_HPC = """
# hpc.progress, hpc.span and the like
from hpcnb.engine.script import hpc_of_script

hpc = hpc_of_script(rank, world_size, local_rank, device, mesh)
"""


@dataclass(frozen=True)
class Needs:
    """What the cells of a script need at its top.

    Attributes:
        futures: Names of ``from __future__ import``.
        imports: Modules that translated lines use.
        rank: What the script calls the rank where it decides who runs a cell; ``rank`` unless a cell rebinds that.
        show: What it calls the function that shows last values; "" if no cell needs it.
        loop: The same for the event loop of cells that await.
        has_hpc: A cell uses ``hpc``.
        has_display: A cell uses IPython's ``display``.
        has_selection: A cell runs on some ranks only.
    """

    futures: Sequence[str] = ()
    imports: Sequence[str] = ()
    rank: str = "rank"
    show: str = ""
    loop: str = ""
    has_hpc: bool = False
    has_display: bool = False
    has_selection: bool = False


def head(setting: Setting, needs: Needs, *, names: str, left_out: Sequence[str], file: str) -> str:
    """The text above the first cell.

    Args:
        setting: What the cells ran in.
        needs: Of the cells.
        names: Of the cells: ``In[2]-In[4]``.
        left_out: What ran and is not in the script, in words.
        file: Name of the script.
    """
    mesh = setting.mesh
    parts = [_comment(_title(setting, names, left_out, file)), ""]
    parts += [f"from __future__ import {', '.join(needs.futures)}", ""] if needs.futures else []
    imports = [f"import {name}" for name in needs.imports]
    imports += ["from IPython.display import display"] if needs.has_display else []
    parts += [*imports, "\n"] if imports else [""]
    text = "\n".join(parts) + _SET_UP.format(
        axes=_axes(mesh), sizes=_sizes(mesh), mesh=mesh, num_ranks=mesh.num_ranks, threads=setting.threads_per_rank,
        selections=_SELECTIONS if needs.has_selection else "",
    )  # fmt: skip
    text += f"{needs.rank} = rank  # which a cell gives another value\n" if needs.rank != "rank" else ""
    text += f"{needs.loop} = asyncio.new_event_loop()  # one for all cells that await\n" if needs.loop else ""
    text += _HPC if needs.has_hpc else ""
    return text + (_SHOW.format(show=needs.show) if needs.show else "")


def _title(setting: Setting, names: str, left_out: Sequence[str], file: str) -> list[str]:
    versions = setting.versions
    made_by = " ".join(["hpcnb", versions["hpcnb"]]) if "hpcnb" in versions else "hpcnb"
    on = ", ".join(f"{name.capitalize() if name == 'python' else name} {versions[name]}"
                   for name in ("python", "torch") if name in versions)  # fmt: skip
    ones = ",".join(f"{axis}=1" for axis in setting.mesh.axes)
    ranks = f"{setting.world_size} rank{'s' if setting.world_size > 1 else ''}"
    lines = [
        f"Parallel cells of a notebook, written by {made_by}{f', {setting.written}' if setting.written else ''}.",
        f"{names} on cluster {setting.cluster_name!r}: " + ", ".join(filter(None, [ranks, f"mesh {setting.mesh}", on])),
    ]
    if left_out:
        lines.append(f"Not in it: {'; '.join(left_out)}")
    if setting.environment:
        lines.append(f"The ranks had environment variables that are to be set first: {', '.join(setting.environment)}")
    run = f"torchrun --nproc-per-node {setting.world_size} {shlex.quote(file)}"
    return [
        *lines,
        "",
        f"    {run}    # as in the notebook",
        f"    {f'python {shlex.quote(file)}':<{len(run)}}    # one rank, mesh {ones}",
    ]


def _sizes(mesh: MeshSpec) -> str:
    """Sizes of the axes for as many ranks as there are, as Python: the first axis takes what the others leave."""
    rest = mesh.num_ranks // mesh.sizes[0]
    first = "world_size" if rest == 1 else f"world_size // {rest}"
    sizes = f"({', '.join([first, *map(str, mesh.sizes[1:])])}{',' if len(mesh.sizes) == 1 else ''})"
    return sizes if rest == 1 else f"{(1,) * len(mesh.sizes)} if world_size == 1 else {sizes}"


def _axes(mesh: MeshSpec) -> str:
    return "(" + " ".join(f'"{axis}",' for axis in mesh.axes).removesuffix("," if len(mesh.axes) > 1 else "") + ")"


def _comment(lines: Sequence[str]) -> str:
    wrapped = [
        part for line in lines for part in (textwrap.wrap(line, _WIDTH) if not line.startswith(" ") else [line]) or [""]
    ]
    return "\n".join(f"# {line}".rstrip() for line in wrapped)
