"""The exception tree. Both sides; no imports of ours.

::

    HpcnbError
    +-- OptionError            an argument that cannot be (no ranks, unknown launcher, negative time)
    +-- MagicError             a magic line that cannot be read (unknown verb, option, value)
    +-- SelectionError         --on does not name ranks of this cluster
    +-- MeshError              axes and sizes that cannot be, or do not fit the number of ranks
    +-- ExportError            cells that cannot be written as a script, or not to that file
    +-- ClusterStateError      asked of a cluster in the wrong state (not started, started twice, busy)
    +-- LaunchError            a cluster could not be started
    |   +-- VersionMismatch    notebook and rank run different versions
    |   +-- UnsupportedPlatform
    +-- LinkError              the connection to a node agent failed
    +-- CellFailed             a parallel cell raised on some ranks
    |   +-- CellTimeout        ... or ran longer than asked
    |   +-- CellInterrupted    ... or was interrupted
    +-- CollectiveError        on a rank: a communication operation that cannot be completed
    |   +-- CollectiveAborted  ... since a rank that takes part will not come; groups are built again after the cell
    |   +-- CollectiveMismatch ... since ranks called different operations
    +-- DebuggerQuit           breakpoint() was left with q: the cell ends on that rank
    +-- ReplicasDiffer         ranks that should hold equal numbers do not
    +-- TransferError          a value that cannot travel between notebook and ranks
    +-- TimelineError          spans that cannot be read or drawn

In IPython each renders as its message only: the frames would be ours, and the message says what to type.
"""

from __future__ import annotations

__all__ = [
    "CellFailed",
    "CellInterrupted",
    "CellTimeout",
    "ClusterStateError",
    "CollectiveAborted",
    "CollectiveError",
    "CollectiveMismatch",
    "DebuggerQuit",
    "ExportError",
    "HpcnbError",
    "LaunchError",
    "LinkError",
    "MagicError",
    "MeshError",
    "OptionError",
    "ReplicasDiffer",
    "SelectionError",
    "TimelineError",
    "TransferError",
    "UnsupportedPlatform",
    "VersionMismatch",
]


class HpcnbError(Exception):
    """Base of every error that hpcnb raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this; a UsageError subclass would print all frames (IPython #14024)
        return [f"{type(self).__name__}: {self}"]


class OptionError(HpcnbError, ValueError):
    """An argument that cannot be."""


class MagicError(HpcnbError):
    """A magic line that cannot be read."""


class SelectionError(HpcnbError, ValueError):
    """A rank selection that cannot be read or names ranks that are not there."""


class MeshError(HpcnbError, ValueError):
    """A mesh that cannot be, or does not fit the number of ranks."""


class ExportError(HpcnbError, ValueError):
    """Cells that cannot be written as a script, or not to that file."""


class ClusterStateError(HpcnbError, RuntimeError):
    """An operation that the cluster's present state does not allow."""


class LaunchError(HpcnbError, RuntimeError):
    """A cluster that could not be started; says which stage failed and the last lines of its log."""


class VersionMismatch(LaunchError):
    """Notebook and rank run different versions of hpcnb or Python."""


class UnsupportedPlatform(LaunchError):
    """This operating system lacks something that ranks need."""


class LinkError(HpcnbError, ConnectionError):
    """The connection to a node agent failed or was refused."""


class CellFailed(HpcnbError):
    """A parallel cell raised on at least one rank; the text holds one traceback per distinct error."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class CellTimeout(CellFailed):
    """A parallel cell ran longer than ``timeout_s``."""


class CellInterrupted(CellFailed):
    """A parallel cell was stopped by an interrupt."""


class CollectiveError(HpcnbError, RuntimeError):
    """A communication operation of a rank that cannot be completed; the rank and its names live on.

    Attributes:
        operation: What it was, ``all_reduce #17 (4.2 MB, line 6)``; "" if the rank was in none.
        waited_s: How long the rank had waited in it.
    """

    operation: str = ""
    waited_s: float = 0.0


class CollectiveAborted(CollectiveError):
    """The rank was released from an operation that others will not come to."""


class CollectiveMismatch(CollectiveError):
    """Ranks of a group called different operations, or the same with different sizes, types or roots."""


class DebuggerQuit(HpcnbError, RuntimeError):
    """A debugger was left without running on, so the cell ended on that rank. Raised on ranks."""


class ReplicasDiffer(HpcnbError, AssertionError):
    """Ranks that should hold equal numbers do not; names the first that differs. Raised on ranks."""


class TransferError(HpcnbError, TypeError):
    """A value that cannot be pickled, or that cannot be read where it arrived."""


class TimelineError(HpcnbError, ValueError):
    """Spans that cannot be read, or that lack what a table needs."""
