"""Where values and rich output of a cell go: to the notebook, over the link.

What code shows is looked at before it is sent: a MIME bundle that no front-end could show is the error of that code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from traitlets import Any as AnyTrait

from hpcnb.core.errors import TransferError

__all__ = ["LastValue", "LinkDisplay", "check_bundle"]

_PLAIN = (str, int, float, type(None), bytes)


def check_bundle(data: object, metadata: object) -> None:
    """Whether this can be shown: texts by MIME type, or what JSON holds.

    Raises:
        TransferError: It cannot; the text says what to return instead.
    """
    for name, bundle in (("a MIME bundle", data), ("metadata of a MIME bundle", metadata)):
        if not isinstance(bundle, dict):
            msg = f"{name} is a dict, for example {{'text/plain': 'words'}}, not a {type(bundle).__name__}"
            raise TransferError(msg)
        for key, value in bundle.items():
            if not isinstance(key, str):
                msg = f"keys of {name} are text, for example 'text/plain', not {key!r:.80} ({type(key).__name__})"
                raise TransferError(msg)
            if bundle is data and key.startswith("text/") and not isinstance(value, str):
                msg = f"{key!r} in {name} is text, not {value!r:.80} ({type(value).__name__})"
                raise TransferError(msg)
            try:
                odd = _odd(value)
            except RecursionError:
                odd = "itself, or is nested too deep"
            if odd:
                msg = f"{key!r} in {name} holds {odd}, which JSON cannot"
                raise TransferError(msg)


def _odd(value: object) -> str:
    """What JSON cannot hold in this, in words; "" if it can hold all."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, (str, int, float, type(None))):
                return f"the key {key!r:.80} ({type(key).__name__})"
        inner: Iterable[object] = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    else:
        return "" if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
    for each in inner:
        if not isinstance(each, _PLAIN) and (odd := _odd(each)):
            return odd
    return ""


class LastValue(DisplayHook):
    """Catches the value of the last expression instead of printing it."""

    bundle: Any = AnyTrait(None, allow_none=True)
    value: Any = AnyTrait(None, allow_none=True)
    muted: Any = AnyTrait(False)

    def __call__(self, result: object = None) -> None:
        self.value = result  # also of a muted expression: --out wants it
        super().__call__(result)

    def quiet(self) -> bool:
        return bool(self.muted)

    def start_displayhook(self) -> None:
        pass

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        check_bundle(format_dict, md_dict or {})
        self.bundle = (format_dict, md_dict or {})

    def fill_exec_result(self, result: object) -> None:
        pass

    def finish_displayhook(self) -> None:
        pass


class LinkDisplay(DisplayPublisher):
    """Sends rich output to the notebook."""

    send: Any = AnyTrait()
    clear: Any = AnyTrait()

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,  # noqa: ARG002 - IPython's signature
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: object,
    ) -> None:
        metadata = metadata or {}
        check_bundle(data, metadata)
        self.send(data, metadata, str((transient or {}).get("display_id", "")), bool(update))

    def set_parent(self, parent: object) -> None:
        """Requests of views that run while a cell awaits come with a parent; ours have none."""

    def clear_output(self, wait: bool = False) -> None:  # noqa: FBT001, FBT002 - IPython's signature
        self.clear(bool(wait))
