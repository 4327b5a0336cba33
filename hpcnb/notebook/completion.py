"""Tab completion of ``%hpc`` and ``%%hpc_parallel`` lines: verbs, options, axis names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcnb.notebook import arguments

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["candidates", "register", "unregister"]


def candidates(line: str, axes: tuple[str, ...] = ("dp",)) -> list[str]:
    """What may come next in ``line``, which ends at the cursor.

    Args:
        line: ``%hpc ...`` or ``%%hpc_parallel ...``.
        axes: Axis names of the running cluster.
    """
    magic, *words = line.split()
    started = words.pop() if words and not line[-1].isspace() else ""
    if magic.lstrip("%") == "hpc_parallel":
        if words and words[-1] == "--on":
            known = ["all", "failed", "slowest", "host=", *(f"{axis}=" for axis in axes)]
        else:
            known = arguments.cell_flags()
    elif not words:
        known = list(arguments.VERBS)
    else:
        known = arguments.verb_words(words[0])
    return [word for word in known if word.startswith(started)]


def _complete(_shell: InteractiveShell, event: Any) -> list[str]:
    from hpcnb.cluster.cluster import current

    cluster = current()
    return candidates(event.line, cluster.mesh.axes if cluster is not None else ("dp",))


def register(shell: InteractiveShell) -> None:
    """Hook into the shell's completer."""
    for magic in ("%hpc", "%%hpc_parallel"):
        shell.set_hook("complete_command", _complete, str_key=magic)


def unregister(shell: InteractiveShell) -> None:
    """Take the hook out."""
    for magic in ("%hpc", "%%hpc_parallel"):
        shell.strdispatchers["complete_command"].strs.pop(magic, None)
