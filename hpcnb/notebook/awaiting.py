"""In a notebook kernel a parallel cell is awaited, so that the kernel answers its widgets while ranks compute.

A magic runs synchronously and would block the kernel's event loop until the ranks are done. So the transformed
source of a cell that begins with ``%%hpc_parallel`` gets an ``await`` in front: IPython then runs it as a cell with
top-level await, and the kernel goes on dispatching comm messages (ipykernel 7.4 and later; JupyterLab also sends
them to a subshell of their own). In a terminal, inside another magic, or with ``%autoawait off``, nothing is
changed and the magic blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["cell_id", "register", "unregister"]

_MAGIC = "%%hpc_parallel"
_CALL = "get_ipython().run_cell_magic('hpc_parallel',"
_AWAITED = "await get_ipython().run_cell_magic('hpc_parallel_awaited',"


def cell_id(shell: InteractiveShell) -> str:
    """What the front-end calls the cell that runs, however often it is edited; "" if it does not say."""
    if not hasattr(shell, "kernel"):
        return ""
    parent = getattr(shell, "kernel").get_parent("shell")  # noqa: B009 - a trait of ipykernel's shell only
    return str((parent.get("metadata") or {}).get("cellId") or "")


class _Awaiting:
    """The source transformer of one shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell

    def __call__(self, lines: list[str]) -> list[str]:
        has_body = not "".join(lines).rstrip().endswith(", '')")  # IPython's own words about an empty one are good
        if lines and lines[0].startswith(_CALL) and has_body and self._is_whole_cell():
            return [lines[0].replace(_CALL, _AWAITED, 1), *lines[1:]]
        return lines

    def _is_whole_cell(self) -> bool:
        """Whether the cell that the front-end sent is this one, and not another that contains it."""
        if not self._shell.autoawait:
            return False
        parent = getattr(self._shell, "kernel").get_parent("shell")  # noqa: B009 - a trait of ipykernel's shell only
        code = (parent.get("content") or {}).get("code", "")
        return isinstance(code, str) and code.lstrip().startswith(_MAGIC)


def register(shell: InteractiveShell) -> None:
    """Transform parallel cells of this shell from now on, if it is a kernel's."""
    unregister(shell)
    if hasattr(shell, "kernel"):
        shell.input_transformers_post.append(_Awaiting(shell))


def unregister(shell: InteractiveShell) -> None:
    """Transform them no more."""
    transformers: list[Callable[[list[str]], list[str]]] = shell.input_transformers_post
    transformers[:] = [each for each in transformers if not isinstance(each, _Awaiting)]
