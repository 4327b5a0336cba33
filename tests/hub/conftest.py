"""A hub for all tests of this folder, and a browser a test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hub.hub import PASSWORD, USERS, Hub, cmdline, of_users, why_not
from tests.pages import CHROMIUM, Chromium, NotebookPage
from tests.waiting import wait_until


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def hub():
    if why := why_not():
        pytest.skip(why)
    pytest.importorskip("playwright", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    with Hub() as hub:
        yield hub


@pytest.fixture
def chromium(hub):
    with Chromium() as browser:
        yield browser
    assert not browser.outside, f"pages asked the internet for {browser.outside}"


@pytest.fixture
def people(hub, chromium, request):
    """A function that logs a user in and gives a notebook's page on one of the user's servers."""
    opened = []

    def come(user, name=""):
        page = NotebookPage(None, chromium.page())
        page.page.goto(f"{hub.url}/hub/login?next=/jupyter/hub/home")
        page.page.get_by_label("Username").fill(user)
        page.page.get_by_label("Password").fill(PASSWORD)
        page.page.get_by_role("button", name="Sign in").click()
        page.page.wait_for_url("**/hub/home")
        page.lab = hub.start_server(user, name)
        opened.append((user, page))
        return page

    try:
        yield come
        for user, page in opened:  # what a failed test was looking at
            page.screenshot(f"end-of-{request.node.name}-{user}")
    finally:
        for user in USERS:
            for name in list(hub.servers(user)):
                hub.stop_server(hub.server(user, name), name)
        wait_until(lambda: not left(), 30)


def left(*users):
    """What users have on this machine beside their home: processes, folders of clusters, shared memory."""
    uids = {USERS[user] for user in users or USERS}
    words = [f"{process.pid} {' '.join(cmdline(process))}" for process in of_users(*users)]
    for folder in (Path("/tmp"), Path("/dev/shm")):
        words += [str(path) for path in folder.iterdir() if os.lstat(path).st_uid in uids]
    return words
