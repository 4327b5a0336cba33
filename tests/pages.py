"""Notebooks in headless Chromium, which reaches nothing but loopback; for tests with JupyterLab and with JupyterHub."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["CHROMIUM", "STEP_S", "Chromium", "NotebookPage"]

CHROMIUM = "/usr/bin/chromium"
#: One step of a page; the machine may be shared.
STEP_S = 45
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
_ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
]  # fmt: skip
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Chromium:
    """A browser; a context manager. One a test: playwright's loop runs in this thread while it is open.

    Attributes:
        outside: What pages asked the internet for, and did not get.
    """

    def __init__(self):
        self.outside = []

    def __enter__(self):
        from playwright.sync_api import expect, sync_playwright

        expect.set_options(timeout=STEP_S * 1000)
        self._playwright = sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(
                executable_path=CHROMIUM, headless=True, args=_ARGUMENTS
            )  # fmt: skip
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *_):
        try:
            self._browser.close()
        finally:
            self._playwright.stop()

    def page(self):
        """A page that shares no cookies with others."""
        context = self._browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(STEP_S * 1000)
        context.route("**/*", self._route)
        page = context.new_page()
        page.on("websocket", lambda socket: None if _is_inside(socket.url) else self.outside.append(socket.url))
        return page

    def _route(self, route):
        if _is_inside(route.request.url):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


def _is_inside(url):
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname in _LOOPBACK


class NotebookPage:
    """A notebook in a browser page: what a person sees and clicks.

    Args:
        lab: Has ``root``, the folder that it shows, its ``url``, and a ``token`` or "".
        page: Of :class:`Chromium`.
    """

    def __init__(self, lab, page):
        self.lab = lab
        self.page = page

    def open(self, *sources):
        """A new notebook of these cells."""
        import nbformat

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        self._open(nbformat.writes(notebook))

    def open_copy(self, path):
        """A copy of a notebook, without its outputs."""
        import nbformat

        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        self._open(nbformat.writes(notebook))

    def _open(self, text):
        self.path = self.lab.root / f"{uuid.uuid4().hex[:8]}.ipynb"
        self.path.write_text(text)
        owner = self.lab.root.stat()
        os.chown(self.path, owner.st_uid, owner.st_gid)  # the server may run as somebody else
        token = f"&token={self.lab.token}" if self.lab.token else ""
        # ?reset: not the layout of an earlier page
        self.page.goto(f"{self.lab.url}/lab/tree/{self.path.name}?reset{token}")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        # the toolbar says idle before there is a kernel; the status bar does not
        self.page.wait_for_function(
            "() => / \\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')"
        )

    def cell(self, index):
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def output(self, index):
        return self.cell(index).locator(".jp-Cell-outputArea")

    def run(self, index, *, wait=True):
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        if wait:
            self.wait_until_run(index)

    def menu(self, name, entry):
        self.page.get_by_role("menuitem", name=name, exact=True).click()
        self.page.locator(".lm-Menu").get_by_text(entry, exact=True).click()

    def run_all(self, *, step_s=STEP_S):
        self.begin_all()
        self.wait_until_all_run(step_s=step_s)

    def begin_all(self):
        self.menu("Run", "Run All Cells")

    def wait_until_all_run(self, *, step_s=STEP_S):
        for index in range(self.page.locator(".jp-Notebook .jp-CodeCell").count()):
            self.wait_until_run(index, step_s=step_s)

    def wait_until_run(self, index, *, step_s=STEP_S):
        self.page.wait_for_function(
            "index => /\\[\\d+\\]/.test(document.querySelectorAll('.jp-Notebook .jp-CodeCell')[index]"
            ".querySelector('.jp-InputPrompt').textContent)",
            arg=index, timeout=step_s * 1000,
        )  # fmt: skip

    def save(self):
        """Save, and read what was saved."""
        import nbformat

        with self.page.expect_response(lambda answer: answer.request.method == "PUT" and self.path.name in answer.url):
            self.menu("File", "Save Notebook")
        return nbformat.read(self.path, as_version=4)

    def screenshot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
