"""Two people on one JupyterHub, in real browsers, with user ids, servers and clusters of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import expect

from tests.hub.conftest import left
from tests.hub.hub import USERS, Hub, of_users
from tests.hub.kernel import Kernel
from tests.waiting import wait_until

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
#: Training takes minutes where two notebooks share two cores.
CELL_S = 300


def text_of(notebook):
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain") or "\n".join(output.get("traceback", []))
        for output in outputs
    )


def test_notebooks_of_two_people_run_at_the_same_time(people):
    ada, bob = people("ada"), people("bob", "numbers")
    assert ada.lab.url.endswith("/jupyter/user/ada")
    assert bob.lab.url.endswith("/jupyter/user/bob/numbers")
    ada.open_copy(NOTEBOOKS / "02_data_parallel.ipynb")
    bob.open_copy(NOTEBOOKS / "01_first_cell.ipynb")
    ada.begin_all()
    bob.begin_all()
    bob.wait_until_all_run(step_s=CELL_S)
    bob.cell(1).scroll_into_view_if_needed()
    bob.screenshot("hub-bob-01")
    shown = text_of(bob.save())
    assert re.search(r"4 ranks ready \d+\.\d s · mesh dp=4", shown)
    assert "[0-3]   hello from all\n[1,3]   an odd rank\nOut[0]: 0\nOut[1]: 1\nOut[2]: 4\nOut[3]: 9" in shown
    assert "ranks 2,3 of 4 raised  IndexError: list index out of range" in shown
    assert "{0: '0', 1: '10'}" in shown
    ada.wait_until_all_run(step_s=CELL_S)
    ada.cell(5).scroll_into_view_if_needed()
    ada.screenshot("hub-ada-02")
    result = json.loads(re.search(r"RESULT (\{.*\})", text_of(ada.save()))[1])
    assert result["num_ranks"] == 4
    assert result["test_accuracy"] >= (0.85 if result["dataset"] == "Fashion-MNIST" else 0.9)


START = "%load_ext hpcnb\n%hpc start 2"
#: What another user can try, with the same packages and all names known: each word says how it went.
TRIES = """
import json, os, socket, subprocess, zmq, hpcnb
from pathlib import Path

def how(act):
    try:
        return "open: " + str(act())[:200]
    except Exception as error:
        return type(error).__name__

def connect(path):
    with socket.socket(socket.AF_UNIX) as mine:
        mine.connect(path)

def heard(ports):
    "Where zmq subscribers without keys get anything."
    with zmq.Context() as context:
        subscribers = {}
        poller = zmq.Poller()
        for port in ports:
            mine = context.socket(zmq.SUB)
            mine.subscribe(b"")
            mine.linger = 0
            mine.connect(f"tcp://127.0.0.1:{port}")
            subscribers[mine] = port
            poller.register(mine)
        found = [subscribers[mine] for mine, _ in poller.poll(5000)]
        for mine in subscribers:
            mine.close()
    return found

theirs = json.loads(Path(FACTS).read_text())
print("RESULT", json.dumps({
    "uid": os.getuid(),
    "list": how(lambda: os.listdir(theirs["root"])),
    "read": how(lambda: Path(theirs["folder"], "cluster.json").read_text()),
    "link": how(lambda: connect(theirs["folder"] + "/link.sock")),
    "ranks": how(lambda: connect(theirs["folder"] + "/ranks.sock")),
    "environ": [how(lambda: Path(f"/proc/{pid}/environ").read_bytes()) for pid in theirs["pids"]],
    "memory": [how(lambda: os.listdir(f"/proc/{pid}/fd")) for pid in theirs["pids"]],
    "cmdlines": [how(lambda: Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in theirs["pids"]],
    "clusters": [row.key for row in hpcnb.clusters()],
    "attach": how(lambda: hpcnb.attach(theirs["key"])),
    "heard": heard(theirs["ports"]),
}))
"""
SAYS_ON = "for _ in range(12):\n    hpcnb.current().client[:].execute('print(\"a secret of ada\")', block=True); time.sleep(1)"


def cluster_facts(user):
    """What root sees of the one cluster of a user: everything but keys is what another user could guess."""
    (folder,) = clusters_of(user)
    agent = psutil.Process(int((folder / "agent.lock").read_text()))
    family = [agent, *agent.children(recursive=True)]
    listening = [each for process in family for each in process.net_connections("inet") if each.status == "LISTEN"]
    return {
        "root": str(folder.parent), "folder": str(folder), "key": folder.name, "pids": [each.pid for each in family],
        "ports": sorted({each.laddr.port for each in listening}), "addresses": sorted({each.laddr.ip for each in listening}),
    }  # fmt: skip


def clusters_of(user):
    root = Path(f"/tmp/hpcnb-{USERS[user]}")
    return sorted(root.iterdir()) if root.exists() else []


def keys_of(folder):
    """All that opens something, of a cluster's folder."""
    spec = json.loads((folder / "cluster.json").read_text())
    keys = [spec[name] for name in ("server_public", "server_secret", "client_public", "client_secret")]
    for path in (folder / "profile" / "security").glob("*.json"):
        connection = json.loads(path.read_text())
        keys += [connection["key"], connection["curve_serverkey"]]
    return [key.encode() for key in keys if key]


def test_nobody_reaches_the_cluster_of_another(people):
    ada, bob = people("ada"), people("bob")
    ada.open(f"{START} --name pearl", f"import time, hpcnb\n{SAYS_ON}", "%hpc status --all", "%hpc stop")
    ada.run(0)
    assert "2 ranks ready" in ada.output(0).inner_text()
    theirs = cluster_facts("ada")
    folder = Path(theirs["folder"])
    assert set(theirs["addresses"]) == {"127.0.0.1"}
    for path in [folder.parent, folder, *(path for path in folder.rglob("*") if path.name != "README")]:  # IPython's
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o077, f"{path} has mode {mode:o}"

    facts = bob.lab.root / "facts.json"
    facts.write_text(json.dumps(theirs))
    facts.chmod(0o644)
    bob.open(
        "%load_ext hpcnb", f"FACTS = {str(facts)!r}\n{TRIES}", "%hpc start 2", "%hpc status --all",
        "%hpc stop\n%hpc attach pearl",
    )  # fmt: skip
    ada.run(1, wait=False)
    bob.run(0)
    bob.run(1)
    tried = json.loads(bob.output(1).inner_text().partition("RESULT")[2])
    assert tried["uid"] == USERS["bob"]
    assert {tried[name] for name in ("list", "read", "link", "ranks")} == {"PermissionError"}
    assert set(tried["environ"]) == set(tried["memory"]) == {"PermissionError"}
    assert tried["clusters"] == []
    assert tried["attach"] == "ClusterStateError"
    assert len(theirs["ports"]) > 4
    assert tried["heard"] == []
    # command lines are there for everybody to read
    assert all(line.startswith("open: ") for line in tried["cmdlines"])
    for process in of_users("ada"):
        words = "\0".join(process.cmdline()).encode()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert not [key for key in keys_of(folder) if key in words + environment], process

    for index in (2, 3, 4):
        bob.run(index)
    assert "2 ranks ready" in bob.output(2).inner_text()
    listed = bob.output(3).inner_text()
    assert "default" in listed
    assert "pearl" not in listed
    assert "no cluster of yours is running" in bob.output(4).inner_text()
    bob.screenshot("hub-bob-sees-his-own")
    ada.wait_until_run(1)
    ada.run(2)
    assert "pearl" in ada.output(2).inner_text()
    assert "default" not in ada.output(2).inner_text()
    ada.screenshot("hub-ada-sees-her-own")
    assert (len(clusters_of("ada")), clusters_of("bob")) == (1, [])


def test_servers_of_one_person_have_clusters_of_their_own(people, hub):
    first, second = people("ada"), people("ada", "second")
    cells = (
        START,
        "%%hpc_parallel\nmine = {!r}\nmine",
        "%hpc status --all",
        "import hpcnb\nhpcnb.attach()",
        "%%hpc_parallel\nmine",
    )
    for page, name in ((first, "first"), (second, "second")):
        page.open(*(cell.format(name) for cell in cells))
        page.run(0)
        page.run(1)
    for page in (first, second):
        page.run(2)
        assert page.output(2).inner_text().count("default") >= 2, page.output(2).inner_text()
        page.run(3)
    assert "this notebook has cluster 'default' already" in first.output(3).inner_text()
    keys = {cluster.name for cluster in clusters_of("ada")}
    assert len(keys) == 2
    second.screenshot("hub-ada-two-servers")

    hub.stop_server(second.lab, "second")
    wait_until(lambda: len(clusters_of("ada")) == 1, 30)
    first.run(4)
    assert "'first'" in first.output(4).inner_text()
    first.run(2)
    first.screenshot("hub-ada-one-server-left")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_ends_takes_its_cluster_along(people, hub, how):
    ada = people("ada")
    ada.open(START, "%%hpc_parallel\nimport time\nprint('begun')\ntime.sleep(600)")
    ada.run(0)
    ada.run(1, wait=False)
    expect(ada.output(1)).to_contain_text("begun")
    if how == "stop":
        hub.stop_server(ada.lab)
    else:
        os.kill(ada.lab.pid, signal.SIGKILL)
    began_s = time.monotonic()
    wait_until(lambda: not left("ada"), 30)
    print(f"nothing left after {time.monotonic() - began_s:.1f} s")


def test_a_hub_that_is_stopped_leaves_nothing(hub):
    with Hub() as other:
        kernels = [Kernel(other.start_server(user).url, other.token) for user in USERS]
        for kernel in kernels:
            assert "2 ranks ready" in kernel.run(f"{START} --idle-timeout 3600")
        assert "running" in kernels[0].run("%hpc status --all")
        assert all(clusters_of(user) for user in USERS)
        other.stop()  # nothing may outlive it
        wait_until(lambda: not left(), 30)
