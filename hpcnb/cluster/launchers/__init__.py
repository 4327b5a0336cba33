"""One file per launcher. ``local`` runs the agent itself; the others start agents on nodes, which join a head here."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from hpcnb.cluster.launchers.nodes import NodeLauncher
from hpcnb.core.errors import OptionError

__all__ = ["LAUNCHERS", "make"]

#: By the word a person types: module and class; empty for this machine.
LAUNCHERS = {
    "local": ("", ""),
    "ssh": ("hpcnb.cluster.launchers.ssh", "SshLauncher"),
    "mpi": ("hpcnb.cluster.launchers.mpi", "MpiLauncher"),
    "slurm": ("hpcnb.cluster.launchers.slurm", "SlurmLauncher"),
    "pbs": ("hpcnb.cluster.launchers.pbs", "PbsLauncher"),
    "sge": ("hpcnb.cluster.launchers.sge", "SgeLauncher"),
    "lsf": ("hpcnb.cluster.launchers.lsf", "LsfLauncher"),
    "htcondor": ("hpcnb.cluster.launchers.htcondor", "HtcondorLauncher"),
    "dask": ("hpcnb.cluster.launchers.dask", "DaskLauncher"),
    "existing": ("hpcnb.cluster.launchers.existing", "ExistingLauncher"),
}


def make(name: str, num_ranks: int | None, options: dict[str, Any]) -> NodeLauncher | None:
    """The launcher of many nodes that is meant; None for this machine.

    Raises:
        OptionError: There is no such launcher, or it has no such option.
    """
    if name not in LAUNCHERS:
        msg = f"no launcher {name!r}; there are {', '.join(LAUNCHERS)}"
        raise OptionError(msg)
    module, kind = LAUNCHERS[name]
    launcher = getattr(importlib.import_module(module), kind) if module else None
    known = list(inspect.signature(launcher).parameters)[1:] if launcher is not None else []
    if odd := [option for option in options if option not in known]:
        close = difflib.get_close_matches(odd[0], known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        has = f"it has {', '.join(known)}" if known else "it has none"
        msg = f"launcher {name!r} has no option {odd[0]!r}{meant}; {has}"
        raise OptionError(msg)
    made: NodeLauncher | None = launcher(num_ranks, **options) if launcher is not None else None
    return made
