"""``--client NAME``: what a person calls a client in the notebook becomes the object. Knows no library of clients."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from hpcnb.core.errors import MagicError

__all__ = ["resolved"]

_ADDRESS = re.compile(r"\w+://\S+|[^\s:]+:\d+")


def resolved(options: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a launcher, with the object in the place of a client's name; an address stays as it is.

    Args:
        options: As they were written.
        names: Of the notebook.

    Raises:
        MagicError: The notebook has no such name.
    """
    name = options.get("client")
    if name is None or _ADDRESS.fullmatch(name):
        return dict(options)
    if name not in names:
        close = difflib.get_close_matches(name, [each for each in names if not each.startswith("_")], n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        msg = (
            f"%hpc start --client {name}: this notebook has no name {name!r}{meant}; make a client first, for example  "
            f"{name if name.isidentifier() else 'client'} = distributed.Client('tcp://n1:8786'),  or give the address "
            "itself:  --client tcp://n1:8786"
        )
        raise MagicError(msg)
    return {**options, "client": names[name]}
