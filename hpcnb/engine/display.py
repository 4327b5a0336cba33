"""Where values and rich output of a cell go: to the notebook, over the link."""

from __future__ import annotations

from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from traitlets import Any as AnyTrait

__all__ = ["LastValue", "LinkDisplay"]


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
        self.send(data, metadata or {}, (transient or {}).get("display_id", ""), update)

    def set_parent(self, parent: object) -> None:
        """Requests of views that run while a cell awaits come with a parent; ours have none."""

    def clear_output(self, wait: bool = False) -> None:  # noqa: FBT001, FBT002 - IPython's signature
        self.clear(wait)
