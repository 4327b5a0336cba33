"""A function that crosses the border by its name: what is sent is no code, and need not be importable here."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

__all__ = ["Named"]


class Named:
    """A function by its name alone: where it is unpickled it is the function that has this name there.

    Args:
        name: ``package.module:function``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = name.rpartition(":")[2]

    def __call__(self, *args: Any) -> Any:
        """Call it here, for libraries that take nothing else."""
        return pkgutil.resolve_name(self.name)(*args)

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return pkgutil.resolve_name, (self.name,)
