"""Checks before a launch, and what a launch that fails says: each trouble is made, and named with what mends it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import hpcnb
from hpcnb import Cluster, doctor
from hpcnb.core.errors import LaunchError, VersionMismatch
from hpcnb.core.version import __version__
from tests.cluster import slurm as virtual_slurm
from tests.cluster.hosts import HEAD_IP, Hosts, why_not
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are virtual hosts"),
]

START = {"threads_per_rank": 1, "idle_timeout_s": 0, "start_timeout_s": 30}


@pytest.fixture(scope="module")
def hosts():
    with Hosts(3) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def slurm(hosts):
    if why := virtual_slurm.why_not():
        pytest.skip(why)
    with virtual_slurm.Slurm(hosts) as slurm:
        yield slurm


@pytest.fixture
def mpiexec(hosts, monkeypatch):
    if shutil.which("mpiexec") is None:
        pytest.skip("there is no mpiexec")
    for name, value in {
        "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_plm_rsh_agent": f"ssh -F {hosts.ssh_config}", "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def by_ssh(hosts, names="n1,n2", **options):
    return {"launcher": "ssh", "hosts": names, "ssh_config": str(hosts.ssh_config), **options}


def only_failure(report, level="fail"):
    (check,) = [check for check in report.checks if check.level == level]
    return check


def failure_of(**options):
    """The text of a start that fails; never a bare timeout."""
    began_s = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        Cluster(**{**START, **options}).start()
    text = str(caught.value)
    assert time.monotonic() - began_s < START["start_timeout_s"] + 15
    assert not re.fullmatch(r".*(not ready after|timed out)[^\n]*", text), text
    return text


@contextlib.contextmanager
def firewall(*rule, host=None):
    """A rule of this machine's, or of a host's, for a while."""
    if shutil.which("iptables") is None:
        pytest.skip("there is no iptables")

    def run(action):
        command = ["iptables", action, "INPUT", *rule]
        subprocess.run(command if host is None else host.command(*command), check=True)

    run("-I")
    try:
        yield
    finally:
        run("-D")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter without any package, which does not obey PYTHONPATH of the hosts."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {folder}/venv/bin/python -E "$@"\n')
    script.chmod(0o755)
    return str(script)


# --- all is well ------------------------------------------------------------------------------------------------


def test_good_nodes_pass_every_check_over_ssh(hosts):
    report = doctor(4, **by_ssh(hosts))
    assert report.ok, report
    ok = {check.name for check in report.checks if check.where == "n2" and check.level == "ok"}
    assert ok >= {"login", "versions", "head", "nodes", "clock", "interface", "names", "memory", "limits", "folder"}
    assert report.took_s < 10
    for name in hosts.names:
        wait_until(lambda name=name: hosts[name].processes() == [], 5)


def test_good_nodes_pass_every_check_with_mpi(hosts, mpiexec):
    report = doctor(launcher="mpi", hosts="n1,n2")
    assert report.ok, report
    assert {check.where for check in report.checks if check.name == "nodes"} == {"n1", "n2"}


def test_good_nodes_pass_every_check_with_slurm(hosts, slurm):
    report = doctor(launcher="slurm", nodes=2, partition="debug")
    assert report.ok, report
    assert len({check.where for check in report.checks if check.name == "nodes"}) == 2
    assert {"partition", "job"} <= {check.name for check in report.checks}
    wait_until(lambda: not slurm.jobs(), 5)


# --- logins -----------------------------------------------------------------------------------------------------


def test_a_wrong_name_is_told_and_does_not_hide_the_others(hosts):
    report = doctor(**by_ssh(hosts, "n1,n9"))
    check = only_failure(report)
    assert (check.name, check.where) == ("names", "n9")
    assert "echo 'IP n9'" in check.fix
    assert any(check.where == "n1" and check.name == "head" for check in report.checks)
    assert "the name n9 has no address here; look for a slip" in failure_of(**by_ssh(hosts, "n1,n9"))


def test_an_sshd_that_is_off(hosts):
    check = only_failure(doctor(**by_ssh(hosts, "n1", port=2222)))
    assert check.words == "nothing listens at its port 2222: sshd is off, or at another port"
    assert "on n1:  systemctl start sshd" in check.fix
    assert "systemctl start sshd" in failure_of(**by_ssh(hosts, "n1", port=2222))


def test_a_host_that_does_not_answer(hosts):
    hosts.link("n3", up=False)  # as short as that Slurm does not give it up
    try:
        check = only_failure(doctor(**by_ssh(hosts, "n1,n3")))
        assert (check.name, check.where) == ("sshd", "n3")
        assert "does not answer at port 22: it is off, or a firewall is between" in check.words
    finally:
        hosts.link("n3", up=True)


def config(hosts, tmp_path, *lines):
    path = tmp_path / "ssh_config"
    path.write_text("\n".join(["Host n*", *lines, hosts.ssh_config.read_text().partition("\n")[2]]))
    return str(path)


def test_a_key_that_is_refused(hosts, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    ssh_config = config(hosts, tmp_path, f"  IdentityFile {tmp_path}/other", "  IdentitiesOnly yes")
    text = Path(ssh_config).read_text()
    Path(ssh_config).write_text(re.sub(r"\n  IdentityFile \S+/keys/id\n", "\n", text))
    check = only_failure(doctor(launcher="ssh", hosts="n1", ssh_config=ssh_config))
    assert (check.name, check.words[:29]) == ("login", "no key of yours is accepted t")
    assert check.fix.startswith(f"ssh-copy-id -F {ssh_config} n1 ")
    assert "ssh-copy-id" in failure_of(launcher="ssh", hosts="n1", ssh_config=ssh_config)


def test_a_host_key_that_is_not_known(hosts, tmp_path):
    ssh_config = config(hosts, tmp_path, "  StrictHostKeyChecking yes", f"  UserKnownHostsFile {tmp_path}/none")
    check = only_failure(doctor(launcher="ssh", hosts="n1", ssh_config=ssh_config))
    assert (check.name, check.words) == ("host key", "its host key is not known here")
    assert check.fix.startswith("ssh-keyscan n1 >> ~/.ssh/known_hosts")
    assert "ssh-keyscan n1" in failure_of(launcher="ssh", hosts="n1", ssh_config=ssh_config)


def test_a_shell_that_never_comes_to_python(hosts, monkeypatch):
    monkeypatch.setattr("hpcnb.cluster.doctor._LOOK_S", 2.0)
    check = only_failure(doctor(**by_ssh(hosts, "n1", setup="sleep 60")))
    assert "its Python has not begun: a slow login script" in check.words
    assert check.fix == f"on n1:  time {sys.executable} -c pass"
    for line in hosts["n1"].run("ps", "-eo", "pid=,args=").splitlines():
        if line.endswith("sleep 60"):
            hosts["n1"].run("kill", line.split()[0])
    text = failure_of(**by_ssh(hosts, "n1", setup="sleep 15", start_timeout_s=2))
    assert "node n1 has not joined; logging in to n1; said nothing" in text
    assert "start: n1: is reached, but its Python has not begun" in text


# --- software ---------------------------------------------------------------------------------------------------


def test_an_interpreter_that_is_not_there(hosts):
    check = only_failure(doctor(**by_ssh(hosts, "n1", python="/opt/no/python")))
    assert (check.name, check.words) == ("python", "no interpreter /opt/no/python")
    assert "--python PATH" in check.fix


def test_a_python_without_anything_is_told_what_it_lacks(hosts, bare_python):
    report = doctor(**by_ssh(hosts, "n1", python=bare_python))
    fixes = {check.name: check.fix for check in report.failed}
    assert set(fixes) == {"versions", "packages"}
    assert re.match(rf"on n1:  \S+/venv/bin/python -m pip install hpcnb=={__version__}", fixes["versions"])
    assert re.search(r"pip install torch==\S+ pyzmq==\S+ ", fixes["packages"])
    assert "has no hpcnb" in failure_of(**by_ssh(hosts, "n1", python=bare_python))


@pytest.fixture
def other_version(tmp_path):
    """A copy of hpcnb that says that it is another version."""
    shutil.copytree(Path(hpcnb.__file__).parent, tmp_path / "hpcnb", ignore=shutil.ignore_patterns("__pycache__"))
    version = tmp_path / "hpcnb" / "core" / "version.py"
    version.write_text(version.read_text().replace(__version__, "0.0.9"))
    return f"export PYTHONPATH={tmp_path}"


def test_another_version_is_named_with_both_and_the_command(hosts, other_version):
    check = only_failure(doctor(**by_ssh(hosts, "n1", setup=other_version)))
    assert check.words == f"hpcnb 0.0.9 for {sys.executable}, the notebook runs hpcnb {__version__}"
    assert check.fix.startswith(f"on n1:  {sys.executable} -m pip install hpcnb=={__version__}  ")
    with pytest.raises(VersionMismatch) as caught:
        Cluster(**{**START, **by_ssh(hosts, "n1", setup=other_version)}).start()
    assert f"on n1:  {sys.executable} -m pip install hpcnb=={__version__}" in str(caught.value)


def test_hpcnb_is_put_on_a_node_only_if_asked(hosts, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {tmp_path}/venv/bin/python -E "$@"\n')
    script.chmod(0o755)
    options = by_ssh(hosts, "n1,n2", python=str(script))  # both see the same folder
    assert {check.name for check in doctor(**options).failed} == {"versions", "packages"}
    report = doctor(install=True, **by_ssh(hosts, "n1", python=str(script)))
    assert [check.words for check in report.checks if check.name == "install"] == [
        f"hpcnb {__version__} was put there, for {tmp_path}/venv/bin/python"
    ]
    assert {check.name for check in report.failed} == {"packages"}, report  # these it leaves alone
    again = doctor(install=True, **options)
    assert not [check for check in again.checks if check.name == "install"]
    version = subprocess.run(
        [script, "-c", "import hpcnb, importlib.metadata as m; print(hpcnb.__file__, m.version('hpcnb'))"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert str(tmp_path) in version
    assert version.split()[-1] == __version__


def test_a_node_without_pip_is_told_so(hosts, bare_python):
    report = doctor(install=True, **by_ssh(hosts, "n1", python=bare_python))
    (check,) = [check for check in report.failed if check.name == "install"]
    assert "No module named pip" in check.words
    assert "-m ensurepip" in check.fix


# --- networks ---------------------------------------------------------------------------------------------------


def test_a_firewall_before_this_machine(hosts):
    with firewall("-p", "tcp", "--syn", "-s", hosts["n2"].ip, "-j", "DROP"):
        check = only_failure(doctor(**by_ssh(hosts)))
        assert (check.name, check.where) == ("head", "n2")
        assert f"cannot reach this machine at {HEAD_IP} (no answer); every port of " in check.words
        assert f"iptables -I INPUT -p tcp -s {hosts['n2'].ip} --dport " in check.fix
        text = failure_of(**by_ssh(hosts))
        assert f"head: n2: cannot reach this machine at {HEAD_IP}" in text
        assert f"fix: here:  iptables -I INPUT -p tcp -s {hosts['n2'].ip} --dport " in text


def test_an_address_that_is_not_ours_and_one_that_nodes_do_not_reach(hosts):
    check = only_failure(doctor(**by_ssh(hosts, address="10.99.0.1")))
    assert (check.name, check.fix[:12]) == ("address", "--address IP")
    report = doctor(**by_ssh(hosts, address="127.0.0.1"))
    assert {(check.name, check.where) for check in report.failed} >= {("head", "n1"), ("head", "n2")}
    assert "127.0.0.1" in next(check.words for check in report.warned if check.name == "address")


def test_nodes_that_do_not_reach_each_other(hosts):
    with (
        firewall("-p", "tcp", "--syn", "-s", hosts["n1"].ip, "-j", "DROP", host=hosts["n2"]),
        firewall("-p", "tcp", "--syn", "-s", hosts["n2"].ip, "-j", "DROP", host=hosts["n1"]),
    ):
        report = doctor(**by_ssh(hosts))
        assert {(check.name, check.where) for check in report.failed} == {("nodes", "n1"), ("nodes", "n2")}
        fixes = " ".join(check.fix for check in report.failed)
        assert f"on n2:  iptables -I INPUT -p tcp -s {hosts['n1'].ip} --dport " in fixes
        text = failure_of(**by_ssh(hosts), start_timeout_s=8)
        assert "nodes: n1: cannot reach node n2 (no answer at" in text
        assert "on n2:  iptables -I INPUT" in text
    with firewall("-p", "tcp", "--syn", "-s", hosts["n1"].ip, "-j", "DROP", host=hosts["n2"]):
        check = only_failure(doctor(**by_ssh(hosts)), "warn")
        assert "node n2 reaches n1, which may do" in check.words


def test_an_interface_that_is_not_there(hosts):
    environment = {"GLOO_SOCKET_IFNAME": "ib9"}
    report = doctor(environment=environment, **by_ssh(hosts))
    assert {check.name for check in report.failed} == {"interface"}
    assert report.failed[0].words == "GLOO_SOCKET_IFNAME=ib9 is set there, and it has lo, eth0"
    text = failure_of(environment=environment, **by_ssh(hosts))
    assert "interface: n1, n2: GLOO_SOCKET_IFNAME=ib9 is set there" in text
    assert "or  GLOO_SOCKET_IFNAME=eth0" in text
    assert "Unable to find address for: ib9" in text  # the last lines of the rank's log


def test_a_node_whose_own_name_has_no_address(hosts):
    hosts["n2"].run("hostname", "n2-renamed")
    try:
        check = only_failure(doctor(**by_ssh(hosts)), "warn")
        assert "its own name 'n2-renamed' has no address there" in check.words
        assert check.fix == f"on n2:  echo '{hosts['n2'].ip} n2-renamed' >> /etc/hosts"
    finally:
        hosts["n2"].run("hostname", "n2")


# --- resources --------------------------------------------------------------------------------------------------


def test_little_shared_memory(hosts):
    hosts["n2"].run("mount", "-o", "remount,size=1M", "/dev/shm")
    try:
        check = only_failure(doctor(**by_ssh(hosts)), "warn")
        assert (check.name, check.where) == ("/dev/shm", "n2")
        assert "mount -o remount,size=2g /dev/shm" in check.fix
    finally:
        hosts["n2"].run("mount", "-o", "remount,size=2g", "/dev/shm")


@pytest.mark.parametrize(
    ("limit", "fix"), [("ulimit -Sn 60", "--setup 'ulimit -n "), ("ulimit -n 60", "as root on n1:  echo '* - nofile ")]
)
def test_few_open_files(hosts, limit, fix):
    check = only_failure(doctor(2, **by_ssh(hosts, "n1", setup=limit)))
    assert check.words.startswith("ulimit -n allows 60 open files, ")
    assert check.fix.startswith(fix)


def test_a_folder_that_cannot_be(hosts):
    long = f"export HPCNB_RUNTIME_DIR={hosts['n1'].folder}/{'x' * 90}"
    check = only_failure(doctor(**by_ssh(hosts, "n1", setup=long)))
    assert "is too long for sockets in it" in check.words
    assert "is too long" in failure_of(**by_ssh(hosts, "n1", setup=long))
    taken = hosts["n1"].folder / "open" / f"hpcnb-{os.getuid()}-nodes"
    taken.mkdir(parents=True)
    taken.chmod(0o755)
    assert stat.S_IMODE(taken.stat().st_mode) == 0o755
    check = only_failure(doctor(**by_ssh(hosts, "n1", setup=f"export HPCNB_RUNTIME_DIR={taken.parent}")))
    assert check.fix.startswith(f"on n1:  chmod 700 {taken}")


# --- schedulers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name", "words", "fix"),
    [
        (
            {"partition": "nosuch"},
            "partition",
            "there is no partition 'nosuch'; there are debug (3 nodes)",
            "--partition debug",
        ),
        ({"nodes": 7}, "partition", "7 nodes are asked for, and partition 'debug' has 3 nodes", "--nodes 3"),
        ({"constraint": "fast"}, "job", "Slurm would not take it: allocation failure: Invalid feature", "--constraint"),
        ({"python": "/opt/no/python"}, "python", "no interpreter /opt/no/python", "--python PATH"),
    ],
)
def test_what_slurm_does_not_give(slurm, options, name, words, fix):
    options = {"launcher": "slurm", "nodes": 2, **options}
    check = only_failure(doctor(**options))
    assert (check.name, words in check.words, fix in check.fix) == (name, True, True), check
    text = failure_of(**options)
    assert words in text or "has no interpreter /opt/no/python" in text
    assert fix in text or "choose one that is there" in text
    wait_until(lambda: not slurm.jobs(), 5)


def test_nodes_that_are_taken_are_not_waited_for(slurm):
    other = subprocess.Popen(["srun", "--nodes=3", "--exclusive", "sleep", "60"])
    try:
        wait_until(slurm.jobs, 10)
        report = doctor(launcher="slurm", nodes=2)
        check = only_failure(report, "warn")
        assert (check.name, report.ok) == ("nodes", True)
        assert "could not be looked at, since they are taken now" in check.words
        assert report.took_s < 25
    finally:
        other.terminate()
        other.wait()
    wait_until(lambda: not slurm.jobs(), 10)


def test_an_account_that_is_not_ones_own(slurm, tmp_path, monkeypatch):
    asked = tmp_path / "sacctmgr"  # this Slurm keeps no accounts
    asked.write_text("#!/bin/sh\nprintf 'physics\\nmaths\\n'\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check = only_failure(doctor(launcher="slurm", nodes=1, account="physcs"))
    assert check.words == "user root cannot charge account 'physcs'; there are maths, physics"
    assert check.fix == "--account maths"


def test_mpiexec_is_read_for_what_was_wrong(hosts, mpiexec):
    check = only_failure(doctor(launcher="mpi", hosts="n1,n2", python="/opt/no/python"))
    assert (check.name, check.words) == ("python", "no interpreter /opt/no/python")
    assert only_failure(doctor(launcher="mpi", hosts="n1,n9")).name == "names"
    assert "the name n9 has no address here" in failure_of(launcher="mpi", hosts="n1,n9")
    assert "no interpreter /opt/no/python" in failure_of(launcher="mpi", hosts="n1", python="/opt/no/python")


# --- logs -------------------------------------------------------------------------------------------------------


def kill_agent(host):
    """As the kernel does that is out of memory."""
    for _ in range(200):
        if pids := [line.split()[0] for line in host.processes() if "-m hpcnb.node /" in line]:
            host.run("kill", "-9", *pids)
            return
        time.sleep(0.02)


@pytest.mark.parametrize("launcher", ["ssh", "slurm"])
def test_an_agent_that_is_killed_while_it_starts(hosts, request, launcher):
    if launcher == "slurm":
        request.getfixturevalue("slurm")
    options = by_ssh(hosts, "n1,n2") if launcher == "ssh" else {"launcher": "slurm", "nodes": 3}
    killer = threading.Thread(target=kill_agent, args=(hosts["n2"],))
    killer.start()
    text = failure_of(**options)
    killer.join()
    assert re.search("its agent ended with signal 9|the agent of node n2 ended", text), text


def test_a_node_that_fails_after_it_has_joined_leaves_the_last_lines_of_its_log(hosts, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ImportError('libcudart.so.99: cannot open shared object file')"
    )
    setup = f"export PYTHONPATH={tmp_path}:$PYTHONPATH"
    text = failure_of(**by_ssh(hosts, "n1", setup=setup))
    assert "node n1" in text
    assert "libcudart.so.99" in text
    assert text.count("\n") > 3, text


def test_ctrl_c_ends_the_checks_and_keeps_the_error(hosts, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcnb.cluster.doctor.examine", interrupted)
    text = failure_of(**by_ssh(hosts, setup="sleep 15", start_timeout_s=2))
    assert "the checks of what is wrong were interrupted" in text
    assert "nodes n1, n2 have not joined" in text
