"""Checks before a launch: from facts that are made up, the right line and what mends it."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import hpcnb
from hpcnb.cluster.preflight import Check, Facts, Reach, Report, facts
from hpcnb.cluster.preflight.checks import HERE, lines_of
from hpcnb.cluster.preflight.nodes import of_node, of_peers
from hpcnb.cluster.preflight.slurm import of_account, of_partition, of_trial, silent
from hpcnb.cluster.preflight.ssh import of_login
from hpcnb.cluster.preflight.wants import Wants

WANTS = Wants("3.11", "0.1.0", {"torch": "2.13.0+cpu", "pyzmq": "27.0"}, num_ranks=2, world_size=4, address="10.0.0.1")
GOOD = Facts(
    "n1", "3.11.7", "/p", "0.1.0", packages={"torch": "2.13.0+cpu", "pyzmq": "27.0"}, cores=2, own_name="10.0.0.2",
    limits={"NOFILE": [4096, 4096], "NPROC": [-1, -1], "STACK": [8 << 20, -1], "MEMLOCK": [65536, 65536]},
    address="10.0.0.2", interfaces={"lo": "127.0.0.1", "eth0": "10.0.0.2"}, memory_free=8 << 30, memory_total=16 << 30,
    shm_free=8 << 30, shm_total=8 << 30, folder="/tmp/hpcnb-0-nodes", socket_path_length=60, reach=Reach(),
)  # fmt: skip


def found(wants=WANTS, **changes):
    return {check.name: check for check in of_node("n1", dataclasses.replace(GOOD, **changes), wants)}


def test_a_good_node_has_nothing_to_mend():
    checks = found()
    assert {check.level for check in checks.values()} == {"ok"}, checks
    assert {
        "versions",
        "head",
        "clock",
        "interface",
        "names",
        "memory",
        "/dev/shm",
        "limits",
        "folder",
        "devices",
    } == set(checks)
    assert not any(check.fix for check in checks.values())


INSTALL = "on n1:  /p -m pip install"
BAD = [
    ("versions", "fail", {"python": "3.6.8"}, "Python 3.6.8 at /p, the notebook runs Python 3.11",
     "name an interpreter of Python 3.11 that is there:  --python /path/to/python3.11"),
    ("versions", "fail", {"hpcnb": "", "hpcnb_problem": "ModuleNotFoundError: No module named 'hpcnb'"},
     "no hpcnb for /p, the notebook runs hpcnb 0.1.0", f"{INSTALL} hpcnb==0.1.0  (or  %hpc doctor --install  puts it there)"),
    ("versions", "fail", {"hpcnb": "", "hpcnb_problem": "SyntaxError: x"}, "runs hpcnb 0.1.0 (SyntaxError: x)", INSTALL),
    ("versions", "fail", {"hpcnb": "0.0.9"}, "hpcnb 0.0.9 for /p, the notebook runs hpcnb 0.1.0", f"{INSTALL} hpcnb==0.1.0"),
    ("packages", "fail", {"packages": {"torch": "", "pyzmq": "1"}}, "torch missing for /p, the notebook has torch 2.13.0+cpu",
     f"{INSTALL} torch==2.13.0"),
    ("packages", "fail", {"packages": {"torch": "2.9.0", "pyzmq": "1"}}, "torch 2.9.0, the notebook has torch 2.13.0+cpu",
     f"{INSTALL} torch==2.13.0+cpu"),
    ("packages", "warn", {"packages": {"torch": "2.13.0+cu130", "pyzmq": "1"}}, "another build", "none is needed where"),
    ("head", "fail", {"reach": Reach("no answer")},
     "cannot reach this machine at 10.0.0.1 (no answer); every port of 32768-60999 must be open",
     "here:  iptables -I INPUT -p tcp -s 10.0.0.2 --dport 32768:60999 -j ACCEPT;  or choose"),
    ("head", "fail", {"reach": Reach("No route to host")}, "has no way to this machine at 10.0.0.1", "--address IP"),
    ("clock", "warn", {"reach": Reach(clock_s=-3.2, clock_bound_s=0.01)}, "3.2 s behind this machine's clock",
     "on n1:  timedatectl set-ntp true"),
    ("clock", "warn", {"reach": Reach(clock_s=90.0, clock_bound_s=0.01)}, "90.0 s ahead of this machine's clock", "on n1:"),
    ("interface", "fail", {"asked_interfaces": {"GLOO_SOCKET_IFNAME": "ib0"}},
     "GLOO_SOCKET_IFNAME=ib0 is set there, and it has lo, eth0", "unset GLOO_SOCKET_IFNAME there"),
    ("interface", "fail", {"asked_interfaces": {"NCCL_SOCKET_IFNAME": "=eth"}}, "NCCL_SOCKET_IFNAME==eth is set", "eth0"),
    ("interface", "fail", {"asked_interfaces": {"NCCL_SOCKET_IFNAME": "^eth"}}, "NCCL_SOCKET_IFNAME=^eth is set", "eth0"),
    ("interface", "fail", {"address": "", "no_address": "Network is unreachable"},
     "no interface leads to this machine (Network is unreachable); it has lo, eth0", "--address IP"),
    ("names", "warn", {"own_name": ""}, "its own name 'n1' has no address there", "on n1:  echo '10.0.0.2 n1' >> /etc/hosts"),
    ("memory", "fail", {"memory_free": 100_000_000}, "100 MB of 17 GB free; 2 ranks need 320 MB", "take another node"),
    ("memory", "fail", {"memory_free": 270_000_000}, "270 MB of 17 GB free", "take at most 1 rank per node"),
    ("memory", "warn", {"memory_free": 500_000_000}, "500 MB of 17 GB free", "take fewer ranks per node"),
    ("/dev/shm", "warn", {"shm_free": 1 << 20, "shm_total": 1 << 20}, "1.0 MB of 1.0 MB free",
     "as root on n1:  mount -o remount,size=2g /dev/shm   (in Docker: --shm-size=2g)"),
    ("/dev/shm", "warn", {"shm_free": -1, "shm_total": -1}, "there is none", "mount -t tmpfs -o size=2g none /dev/shm"),
    ("limits", "fail", {"limits": {"NOFILE": [64, 4096]}}, "ulimit -n allows 64 open files, 272 are needed", "--setup 'ulimit -n 272'"),
    ("limits", "fail", {"limits": {"NOFILE": [64, 64]}}, "ulimit -n allows 64 open files",
     "as root on n1:  echo '* - nofile 272' >> /etc/security/limits.d/hpcnb.conf"),
    ("limits", "fail", {"limits": {"NPROC": [10, -1]}}, "ulimit -u allows 10 processes and threads", "--setup 'ulimit -u 64'"),
    ("limits", "warn", {"limits": {"STACK": [4096, -1]}}, "ulimit -s allows 4,096 bytes of stack", "--setup 'ulimit -s 1024'"),
    ("limits", "warn", {"has_infiniband": True}, "ulimit -l allows 65,536 bytes of locked memory", "memlock unlimited"),
    ("folder", "fail", {"folder_problem": "Permission denied"}, "cannot hold the files of a cluster: Permission denied", "HPCNB_RUNTIME_DIR"),
    ("folder", "fail", {"folder_problem": "it belongs to user 7 with mode 755"}, "belongs to user 7", "on n1:  chmod 700 /tmp/hpcnb"),
    ("folder", "fail", {"socket_path_length": 120}, "is too long for sockets in it: 120 of 107", "set HPCNB_RUNTIME_DIR on n1"),
    ("devices", "warn", {"cores": 1}, "2 ranks on 1 processor, no GPU", "take at most 1 rank there"),
    ("devices", "warn", {"gpus": 2}, "2 GPUs, and torch 2.13.0+cpu cannot use them", "--force-reinstall torch==2.13.0"),
    ("devices", "warn", {"gpus": 1, "packages": {"torch": "2.13.0", "pyzmq": "1"}}, "2 ranks on 1 GPU", "--ranks-per-node 1"),
    ("devices", "warn", {"gpus": 4, "visible_gpus": "", "packages": {"torch": "2.13.0", "pyzmq": "1"}}, "hides them", "unset"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "level", "changes", "words", "fix"), BAD, ids=[f"{row[0]}-{row[3][:20]}" for row in BAD]
)
def test_what_is_wrong_is_said_with_what_mends_it(name, level, changes, words, fix):
    check = found(**changes)[name]
    assert check.level == level
    assert words in check.words
    assert fix in check.fix
    assert "\n" not in check.words + check.fix


@pytest.mark.parametrize(
    ("asked", "there"), [("eth", True), ("=eth0", True), ("^lo", True), ("^docker", True), ("ib", False)]
)
def test_interfaces_as_nccl_names_them(asked, there):
    assert (found(asked_interfaces={"NCCL_SOCKET_IFNAME": asked})["interface"].level == "ok") == there


def test_this_machine_is_not_looked_for_in_the_network():
    wants = dataclasses.replace(WANTS, is_here=True)
    checks = found(wants, hpcnb="0.0.9")
    assert not {"head", "clock", "interface", "names"} & set(checks)
    assert checks["versions"].fix.startswith("in a terminal here:  /p -m pip install")
    assert "in the shell that starts Jupyter:  ulimit -n" in found(wants, limits={"NOFILE": [64, 4096]})["limits"].fix


def peers(**reached):
    ends = {"n1": "10.0.0.2", "n2": "10.0.0.3"}
    return {
        name: dataclasses.replace(GOOD, host=name, address=ends[name], reach=Reach(peers=others))
        for name, others in reached.items()
    }


def test_nodes_that_do_not_reach_each_other():
    (first, second) = of_peers(peers(n1={"n2": "no answer at 10.0.0.3"}, n2={"n1": "no answer at 10.0.0.2"}), "1-9")
    assert (first.level, second.level) == ("fail", "fail")
    assert first.words == "cannot reach node n2 (no answer at 10.0.0.3), and ranks must, at any port of 1-9"
    assert first.fix == "on n2:  iptables -I INPUT -p tcp -s 10.0.0.2 --dport 1:9 -j ACCEPT"
    one_way = of_peers(peers(n1={"n2": "no answer"}, n2={"n1": ""}), "1-9")
    assert [(check.where, check.level) for check in one_way] == [("n1", "warn"), ("n2", "ok")]
    assert "node n2 reaches n1, which may do" in one_way[0].words
    assert [check.words for check in of_peers(peers(n1={"n2": ""}), "1-9")] == ["reaches n2"]


# --- what ssh says ----------------------------------------------------------------------------------------------

LOGINS = [
    ("ssh: Could not resolve hostname n9: Name or service not known", "names", "the name n9 has no address", "echo 'IP n9'"),
    ("ssh: connect to host n1 port 2222: Connection refused", "sshd", "nothing listens at its port 2222", "systemctl start sshd"),
    ("ssh: connect to host n1 port 22: Connection timed out", "sshd", "does not answer at port 22", "--dport 22 -j ACCEPT"),
    ("ssh: connect to host n1 port 22: No route to host", "sshd", "no way leads there (No route to host)", "getent hosts n1"),
    ("me@n1: Permission denied (publickey).", "login", "no key of yours is accepted", "ssh-copy-id -p 2222 n1   (first"),
    ("No ED25519 host key is known for n1 and you have requested strict checking.\nHost key verification failed.", "host key",
     "its host key is not known here", "ssh-keyscan -p 2222 n1 >> ~/.ssh/known_hosts"),
    ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "host key", "another host key than before",
     "ssh-keygen -R n1  and then  ssh-keyscan"),
    ("Received disconnect from 1.2.3.4: Too many authentication failures", "login", "too many keys", "IdentitiesOnly yes"),
    ("Permissions 0644 for '/h/.ssh/id' are too open.\nn1: Permission denied (publickey).", "login", "others may read the key /h/.ssh/id",
     "chmod 600 /h/.ssh/id"),
    ("Bad owner or permissions on /h/.ssh/config", "login", "others may write to /h/.ssh/config", "chmod 600 /h/.ssh/config"),
    ("kex_exchange_identification: read: Connection reset by peer", "sshd", "ended the connection before the login", "journalctl"),
    ("channel 0: open failed: connect failed: No\nstdio forwarding failed\nConnection closed by UNKNOWN port 65535", "login",
     "cannot be reached from the host that is gone through", "try  ssh -p 2222 n1 -v true"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "name", "words", "fix"), LOGINS, ids=[row[0][:25] for row in LOGINS])
def test_a_login_that_fails(said, name, words, fix):
    check = of_login("n1", said.splitlines(), ["-p", "2222"])
    assert check.level == "fail"
    assert (check.name, words in check.words, fix in check.fix) == (name, True, True), check


def test_the_key_is_copied_with_the_same_options():
    check = of_login("n1", ["Permission denied"], ["-l", "me", "-J", "gate", "-F", "conf"])
    assert check.fix.startswith("ssh-copy-id -o ProxyJump=gate -F conf me@n1 ")
    assert of_login("n1", ["something else"]) is None


# --- what Slurm says --------------------------------------------------------------------------------------------

ROWS = ["debug*|up|2", "debug*|up|1", "long|up|8", "old|down|4"]


@pytest.mark.parametrize(
    ("asked", "num_nodes", "rows", "level", "words", "fix"),
    [
        (None, 3, ROWS, "ok", "debug, 3 nodes", ""),
        ("long", 8, ROWS, "ok", "long, 8 nodes", ""),
        (
            "nosuch",
            1,
            ROWS,
            "fail",
            "there is no partition 'nosuch'; there are debug (3 nodes), long (8 nodes)",
            "--partition debug",
        ),
        (None, 1, ROWS[2:], "fail", "no partition is named, and Slurm has no default", "--partition long"),
        ("old", 1, ROWS, "fail", "partition 'old' takes no jobs now", "--partition debug"),
        ("debug", 4, ROWS, "fail", "4 nodes are asked for, and partition 'debug' has 3 nodes", "--nodes 3"),
    ],
)
def test_partitions(asked, num_nodes, rows, level, words, fix):
    check = of_partition(asked, num_nodes, rows)
    assert (check.level, words in check.words, fix in check.fix) == (level, True, True), check


def test_accounts():
    assert of_account("physics", "me", []) is None  # Slurm keeps none
    assert of_account("physics", "me", ["maths", "physics"]).level == "ok"
    wrong = of_account("physcs", "me", ["physics", "maths"])
    assert wrong.level == "fail"
    assert wrong.words == "user me cannot charge account 'physcs'; there are maths, physics"
    assert wrong.fix == "--account maths"


@pytest.mark.parametrize(
    ("said", "level", "words", "fix"),
    [
        (
            "srun: Job 5 to start at 2026-11-23T20:00:00 using 2 processors on nodes n[1-2] in partition debug",
            "ok",
            "on n[1-2]",
            "",
        ),
        (
            "allocation failure: Invalid account or account/partition combination specified",
            "fail",
            "Invalid account",
            "sacctmgr show",
        ),
        (
            "srun: error: allocation failure: Requested time limit is invalid (missing or exceeds some limit)",
            "fail",
            "time limit",
            "--time",
        ),
        (
            "allocation failure: Requested node configuration is not available",
            "fail",
            "would not take it: allocation",
            "sinfo -Nl",
        ),
    ],
)
def test_a_job_that_is_tried(said, level, words, fix):
    check = of_trial([said], 0 if level == "ok" else 1)
    assert (check.level, words in check.words, fix in check.fix) == (level, True, True), check


def test_slurm_that_does_not_answer():
    check = silent(["slurm_load_partitions: Unable to contact slurm controller (connect failure)"])
    assert check.words == "Slurm does not answer: Unable to contact slurm controller (connect failure)"
    assert "scontrol ping" in check.fix


# --- lines and reports ------------------------------------------------------------------------------------------


def test_facts_are_read_among_what_others_say():
    lines = [
        "Welcome!", '0: HPCNB-LOOK {"id": "a", "facts": {"host": "n1", "python": "3.11.7", "of_the_future": 1}}',
        'HPCNB-LOOK {"id": "a", "reach": {"problem": "no answer"}}', 'HPCNB-LOOK {"id": "b", "reach": {}}', 'HPCNB-LOOK {"id": "c',
    ]  # fmt: skip
    assert facts.read(lines) == {"a": Facts("n1", "3.11.7", reach=Reach("no answer"))}


def test_a_report_says_what_fails_first_and_names_nodes_together():
    checks = (
        Check("memory", "n1", "ok", "3 GB free"), Check("memory", "n2", "ok", "4 GB free"),
        Check("versions", "n1", "fail", "no hpcnb", "on n1:  pip install hpcnb"),
        Check("versions", "n2", "fail", "no hpcnb", "on n2:  pip install hpcnb"),
        Check("clock", "n2", "warn", "late", "on n2:  set it"),
    )  # fmt: skip
    report = Report("4 ranks on 2 nodes", checks, 0.5)
    assert not report.ok
    assert not report
    assert repr(report).splitlines() == [
        "4 ranks on 2 nodes: 2 of 5 checks fail, 1 warning (500 ms)",
        "FAIL  versions  n1, n2: no hpcnb",
        "                fix: on each:  pip install hpcnb",
        "warn  clock     n2: late",
        "                fix: on n2:  set it",
        "ok    memory    n1: 3 GB free; n2: 4 GB free",
    ]
    assert lines_of(report.failed) == ["versions: n1, n2: no hpcnb", "    fix: on each:  pip install hpcnb"]
    many = Report("", tuple(Check("memory", f"n{number}", "ok", "same") for number in range(9)))
    assert "n0, n1, n2, n3 and 5 more: same" in repr(many)
    assert "9 checks, none fails" in many.summary()
    assert HERE == "this machine"


def test_what_is_sent_to_nodes_is_plain_enough_for_old_interpreters():
    folder = Path(hpcnb.__file__).parent / "node"
    for name in ("look.py", "put.py"):
        tree = ast.parse((folder / name).read_text(), feature_version=(3, 6))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not imported & {"dataclasses", "zmq", "torch", "msgpack"}
        assert "from __future__" not in (folder / name).read_text()
    assert json.dumps(facts._MARK)[1:-1] in (folder / "look.py").read_text()
