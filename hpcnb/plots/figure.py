"""What a plot returns: words, a static picture, and a table and a HoloViews object, made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hpcnb.plots import live, warm

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Figure"]


class Figure:
    """A plot of a timeline.

    In a notebook it shows as a live Bokeh plot where the page can load BokehJS from its Jupyter server, else
    as a static picture; a terminal shows words and bars of text. Nothing is fetched from the internet.

    Args:
        words: What it shows, in a line.
        text: The same as rows of text.
        svg: The same as a static picture.
        table: Makes the table behind it.
        build: Makes the HoloViews object.
    """

    def __init__(
        self,
        *,
        words: str,
        text: Iterable[str],
        svg: str,
        table: Callable[[], pd.DataFrame],
        build: Callable[[], Any],
    ) -> None:
        self.words = words
        self.text = "\n".join((words, *text))
        self.svg = svg
        self._table = table
        self._build = build

    @cached_property
    def table(self) -> pd.DataFrame:
        """What is drawn, as a table."""
        return self._table()

    @cached_property
    def object(self) -> Any:
        """The HoloViews object, to style, to lay out beside others, or to save."""
        with warm.bokeh_backend():
            return self._build()

    @cached_property
    def html(self) -> str:
        """The picture with the live plot in it."""
        with warm.bokeh_backend() as hv:
            return live.html(self.svg, self.words, hv.render(self.object, backend="bokeh"))

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(
        self,
        include: Iterable[str] | None = None,  # noqa: ARG002 - IPython's protocol
        exclude: Iterable[str] | None = None,  # noqa: ARG002
    ) -> dict[str, str]:
        return {"text/plain": self.text, "image/svg+xml": self.svg, "text/html": self.html}
