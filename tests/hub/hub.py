"""A real JupyterHub for tests: base URL, named servers, and two users of the system that are there for nobody else.

The hub runs as root in a mount namespace of its own. There ``/etc/passwd`` has the two users, and folders on the way to
the interpreter that only root may enter (``/root``) are replaced by ones that lead there and nowhere else. So the servers
run under user ids of their own, as LocalProcessSpawner starts them anywhere, and nothing is to be undone afterwards.
"""

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
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["PASSWORD", "PREFIX", "USERS", "Hub", "Server", "cmdline", "of_users", "why_not"]

#: User ids that nobody has here, not even another run of these tests.
USERS = {"ada": 20_000 + os.getpid() % 20_000 * 2, "bob": 20_001 + os.getpid() % 20_000 * 2}
PREFIX = "/jupyter"
PASSWORD = "for the people of these tests"
#: A server of a user starts within so long on a machine that others work on too.
START_S = 120
_REPOSITORY = Path(__file__).parents[2]
_CONFIG = """
import sys
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{ports[0]}{prefix}/"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{ports[1]}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports[2]}"
c.ConfigurableHTTPProxy.command = [sys.executable, "{proxy}"]
c.ConfigurableHTTPProxy.pid_file = "{folder}/proxy.pid"
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie_secret"
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = "{password}"
c.Authenticator.allowed_users = {users}
c.JupyterHub.allow_named_servers = True
c.JupyterHub.services = [dict(name="tests", api_token="{token}")]
c.JupyterHub.load_roles = [dict(name="tests", services=["tests"], scopes=["admin:servers", "admin:users", "access:servers"])]
c.JupyterHub.spawner_class = "{spawner}"
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--LabApp.extension_manager=readonly", "--ServerApp.terminals_enabled=False"]
c.Spawner.default_url = "/lab"
c.Spawner.start_timeout = c.Spawner.http_timeout = {start_s}
c.Spawner.environment = dict(
    PYTHONPATH="{repository}", JUPYTERLAB_SETTINGS_DIR="{folder}/settings",
    TORCHINDUCTOR_CACHE_DIR=lambda spawner: "{folder}/home/" + spawner.user.name + "/inductor",  # not in /tmp
)
"""
_ENTER = """set -e
folder=$1; shift
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/group" /etc/group
wanted=; closed=; count=0
for word; do
    shift
    [ "$word" = -- ] && break
    case $word in
        closed:*) closed="$closed ${word#closed:}" ;;
        *)  mkdir "$folder/way-$count"
            mount --bind "$word" "$folder/way-$count"
            wanted="$wanted $word"; count=$((count + 1)) ;;
    esac
done
for each in $closed; do mount -t tmpfs -o mode=0711 none "$each"; done
count=0
for each in $wanted; do
    mkdir -p "$each"
    mount --move "$folder/way-$count" "$each"
    count=$((count + 1))
done
exec "$@"
"""


def why_not() -> str:
    """Why there can be no hub with users of its own here; "" if there can."""
    if os.geteuid() != 0:
        return "a hub that starts servers of other users needs root"
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return "a hub with users of its own needs unshare and mount"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "a hub with users of its own needs a mount namespace, which is not allowed here"
    for path in _wanted():
        if path.stat().st_mode & 0o005 != 0o005:
            return f"users of the hub cannot read {path}: chmod o+rx"
    for module in ("jupyterhub", "configurable_http_proxy"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not installed"
    return ""


def _wanted() -> list[Path]:
    """Folders that users must read: of the interpreter, its packages and ours."""
    return sorted({Path(path).resolve() for path in (sys.base_prefix, sys.prefix, _REPOSITORY)})


def _ways() -> list[str]:
    """``closed:/root`` for folders that only root may enter, and the wanted ones below these."""
    closed: set[Path] = set()
    wanted: list[Path] = []
    for path in _wanted():
        shut = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if shut and not any(path.is_relative_to(other) for other in wanted):
            closed.add(shut[0])
            wanted.append(path)
    return [f"closed:{path}" for path in sorted(closed)] + [str(path) for path in wanted]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class Server:
    """A running single-user server.

    Attributes:
        user: Whose.
        url: Without a slash at its end.
        root: Folder that it shows.
        pid: Of its process.
        token: None: who may come in is told by cookies of the hub.
    """

    user: str
    url: str
    root: Path
    pid: int
    token: str = ""


class Hub:
    """A running hub; a context manager. All of it is in one folder, and its processes are below :attr:`process`.

    Args:
        spawner: Class that starts servers, as JupyterHub names it.
        config: More lines for its configuration.
        environment: Variables beside ours.
    """

    def __init__(
        self,
        *,
        spawner: str = "jupyterhub.spawner.LocalProcessSpawner",
        config: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hpcnb-hub-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.token = secrets.token_hex(16)
        ports = _free_ports(3)
        self.url = f"http://127.0.0.1:{ports[0]}{PREFIX}"
        self.log = self.folder / "hub.log"
        self._config = _CONFIG.format(
            ports=ports, prefix=PREFIX, folder=self.folder, users=set(USERS), token=self.token, password=PASSWORD,
            proxy=Path(__file__).with_name("proxy.py"), start_s=START_S, repository=_REPOSITORY, spawner=spawner,
        ) + config  # fmt: skip
        self._environment = environment or {}
        self.process: psutil.Popen | None = None

    def __enter__(self):
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def home(self, user: str) -> Path:
        """Home of a user."""
        return self.folder / "home" / user

    def _prepare(self) -> None:
        (self.folder / "home").mkdir(mode=0o711)
        passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
        for user, uid in USERS.items():
            home = self.home(user)
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
            passwd += f"{user}:x:{uid}:{uid}::{home}:/bin/sh\n"
            group += f"{user}:x:{uid}:\n"
        (self.folder / "passwd").write_text(passwd)
        (self.folder / "group").write_text(group)
        settings = self.folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        config = self.folder / "jupyterhub_config.py"
        config.touch(mode=0o600)
        config.write_text(self._config)

    def _inside(self, *command: str) -> list[str]:
        """The command in the namespace that the users are in."""
        return ["unshare", "--mount", "--propagation=private", "sh", "-c", _ENTER, "hub", str(self.folder), *_ways(), "--", *command]  # fmt: skip

    def _start(self) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "JPY_", "HPCNB", "XDG_", "PYTEST"))
        }
        environment |= {"HOME": str(self.folder), **self._environment}
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                self._inside(sys.executable, "-m", "jupyterhub", "-f", str(self.folder / "jupyterhub_config.py")),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        self.wait_until(self._answers, "the hub answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the hub ended:\n{self.words()}"
        with contextlib.suppress(OSError):
            return bool(self.request(""))
        return False

    def words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-6000:]

    def wait_until(self, condition, what: str, timeout_s: float = START_S) -> None:
        """Poll. Not while a page is open: its requests pass through this thread."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"after {timeout_s} s still not: {what}\n{self.words()}"
            time.sleep(0.1)

    def request(self, path: str, method: str = "GET"):
        """Ask the hub's API; the answer, None if it is empty."""
        request = urllib.request.Request(
            f"{self.url}/hub/api/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            return json.loads(answer.read() or "null")

    def servers(self, user: str) -> dict[str, dict]:
        """Servers of a user, by name; "" is the default one."""
        return self.request(f"users/{user}?include_stopped_servers=0").get("servers") or {}

    def start_server(self, user: str, name: str = "") -> Server:
        """Start a server as the hub's page does; returns when it is ready."""
        with contextlib.suppress(urllib.error.HTTPError):  # 409: is there
            self.request(f"users/{user}", "POST")
        try:
            self.request(f"users/{user}/servers/{name}", "POST")
        except urllib.error.HTTPError as error:
            msg = f"server {name!r} of {user} does not start: {error}\n{self.words()}"
            raise AssertionError(msg) from error
        self.wait_until(lambda: self.servers(user).get(name, {}).get("ready"), f"server {name!r} of {user} is ready")
        return self.server(user, name)

    def server(self, user: str, name: str = "") -> Server:
        """One that runs."""
        facts = self.servers(user)[name]
        return Server(
            user,
            f"{self.url}{facts['url'].removeprefix(PREFIX).rstrip('/')}",
            self.home(user),
            facts["state"].get("pid", 0),
        )

    def stop_server(self, server: Server, name: str = "") -> None:
        """Stop it through the hub's API; returns when the hub says so."""
        self.request(f"users/{server.user}/servers/{name}", "DELETE")
        self.wait_until(lambda: name not in self.servers(server.user), f"server {name!r} of {server.user} has stopped")

    def stop(self, *, grace_s: float = 60) -> None:
        """End it as systemd does; whatever is left after a while is an error."""
        if self.process is None:
            return
        family = of_users()
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [self.process, *self.process.children(recursive=True)]
            self.process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(set(family), timeout=grace_s)
        words = [" ".join([str(each.pid), *cmdline(each)]) for each in left]
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, timeout=5)
        self.process = None
        assert not left, f"the hub left {words}; its log:\n{self.words()}"


def cmdline(process: psutil.Process) -> list[str]:
    """Its words; none once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def of_users(*users: str) -> list[psutil.Process]:
    """Processes that run as these users, or as any of :data:`USERS`."""
    uids = {USERS[user] for user in users or USERS}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real in uids and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
