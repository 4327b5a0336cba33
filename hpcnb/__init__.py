"""hpcnb: run notebook cells on every rank of a cluster, and see where the time went.

::

    hpcnb/
    +-- core/       both sides: messages, spans, rank sets, the mesh, decisions; standard library and msgpack
    +-- notebook/   notebook side: magics, output view, panel; the only place that knows IPython and widgets
    +-- cluster/    notebook side: Cluster, the link, launchers; no IPython, no torch
    +-- timing/     notebook side: spans -> tables, pure
    +-- plots/      notebook side: tables -> HoloViews; computes nothing
    +-- node/       on each node: the agent that forks ranks, relays cells and output, reads telemetry
    +-- engine/     in each rank: cell, process group, recorder, the `hpc` object

Two programs share this package, the notebook side and the rank side; they meet only in core. Names below are
imported when they are first used, so that ``import hpcnb`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpcnb.core.version import __version__ as __version__

__all__ = [
    "CellFailed",
    "CellResult",
    "Cluster",
    "CollectiveAborted",
    "CollectiveError",
    "CollectiveMismatch",
    "HpcnbError",
    "Timeline",
    "attach",
    "clusters",
    "current",
    "doctor",
    "load_ipython_extension",
    "panel",
    "stop_all",
    "unload_ipython_extension",
]

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from hpcnb.cluster.attach import attach, clusters, stop_all
    from hpcnb.cluster.cluster import Cluster, current
    from hpcnb.cluster.doctor import doctor
    from hpcnb.cluster.result import CellResult
    from hpcnb.core.errors import CellFailed, CollectiveAborted, CollectiveError, CollectiveMismatch, HpcnbError
    from hpcnb.notebook.panel import panel
    from hpcnb.timing.timeline import Timeline

_WHERE = {
    "Cluster": "hpcnb.cluster.cluster",
    "attach": "hpcnb.cluster.attach",
    "clusters": "hpcnb.cluster.attach",
    "stop_all": "hpcnb.cluster.attach",
    "current": "hpcnb.cluster.cluster",
    "doctor": "hpcnb.cluster.doctor",
    "CellResult": "hpcnb.cluster.result",
    "CellFailed": "hpcnb.core.errors",
    "CollectiveAborted": "hpcnb.core.errors",
    "CollectiveError": "hpcnb.core.errors",
    "CollectiveMismatch": "hpcnb.core.errors",
    "HpcnbError": "hpcnb.core.errors",
    "Timeline": "hpcnb.timing.timeline",
    "panel": "hpcnb.notebook.panel",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext hpcnb``: register %hpc and %%hpc_parallel."""
    from hpcnb.notebook import magics

    magics.register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """``%unload_ext hpcnb``: remove the magics; a running cluster goes on until it is stopped."""
    from hpcnb.notebook import magics

    magics.unregister(shell)
