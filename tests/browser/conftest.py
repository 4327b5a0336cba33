"""JupyterLab on loopback with folders of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.pages import CHROMIUM, STEP_S, Chromium, NotebookPage


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await(condition, what):
    """Poll another process. Not while a page is open: its requests pass through this thread."""
    deadline_s = time.monotonic() + STEP_S
    while not condition():
        assert time.monotonic() < deadline_s, f"after {STEP_S} s still not: {what}"
        time.sleep(0.1)


class Lab:
    """A running JupyterLab."""

    def __init__(self, folder):
        self.folder = folder
        self.root = folder / "work"
        self.clusters = folder / "run"
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.log = folder / "lab.log"
        for path in (self.root, self.clusters):
            path.mkdir(mode=0o700)
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        # a person's own settings, kernels and clusters are neither seen nor touched
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}
        environment |= {
            "HOME": str(folder / "home"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "IPYTHONDIR": str(folder / "ipython"),
            "HPCNB_RUNTIME_DIR": str(self.clusters),
        }
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                [
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                    f"--ServerApp.port={urlsplit(self.url).port}", "--ServerApp.port_retries=0",
                    f"--ServerApp.root_dir={self.root}", f"--IdentityProvider.token={self.token}",
                    "--LabApp.extension_manager=readonly", "--ServerApp.terminals_enabled=False",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.root,
                start_new_session=True,
            )  # fmt: skip

    def request(self, path, method="GET"):
        request = urllib.request.Request(
            self.url + path, method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=STEP_S) as answer:
            return json.loads(answer.read() or "null")

    def answers(self):
        assert self.process.poll() is None, f"JupyterLab ended:\n{self.log.read_text()}"
        with contextlib.suppress(OSError):
            return bool(self.request("/api/status"))
        return False

    def offspring(self):
        """Every process under the server: kernels, agents, ranks."""
        return self.process.children(recursive=True)

    def end_kernels(self):
        """End the kernels as closing a notebook does; nothing of theirs may be left."""
        running = self.offspring()
        for kernel in self.request("/api/kernels"):
            self.request(f"/api/kernels/{kernel['id']}", "DELETE")
        _, left = psutil.wait_procs(running, timeout=15)
        words = [f"{each.pid} {' '.join(each.cmdline())}" for each in left if each.is_running()]
        assert not words, "processes outlive their kernel:\n" + "\n".join(words)
        folders = [str(path) for path in self.clusters.glob("hpcnb-*/*")]
        assert not folders, f"folders of clusters are left: {folders}"

    def stop(self):
        family = [*self.offspring(), self.process]
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=20)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, timeout=5)
        assert not left, f"JupyterLab left {left}; its log:\n{self.log.read_text()[-3000:]}"


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    for package in ("jupyterlab", "playwright"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        _await(server.answers, "JupyterLab answers")
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def notebook(lab, request):
    try:
        with Chromium() as browser:
            opened = NotebookPage(lab, browser.page())
            yield opened
            opened.screenshot(f"end-of-{request.node.name}")  # what a failed test was looking at
    finally:
        lab.end_kernels()
    assert not browser.outside, f"the page asked the internet for {browser.outside}"
