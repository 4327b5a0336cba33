"""``python -m hpcnb.node.join --node N``: become the agent of node N of a cluster whose ticket comes on stdin.

Asks the head of the cluster what this node is to be, makes a folder for it, and becomes ``python -m hpcnb.node``: in
the background, so that whoever launched it (a login over SSH) may go, or with ``--stay`` as its child, so that a
scheduler sees the life of the node. With ``--carrier`` it does not outlive the process that started it. What goes wrong
is said in the last lines of stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import os
import platform
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import NoReturn

import zmq

from hpcnb.core import alive
from hpcnb.core import messages as m
from hpcnb.core.launch import TICKET_VARIABLE, AgentSpec, RunFolder, Ticket, agent_environment, runtime_root
from hpcnb.core.version import __version__
from hpcnb.node.template import die_with_parent
from hpcnb.node.uplink import connect

__all__ = ["main"]

#: The head's port answers within so long, unless something is between.
_REACH_S = 8.0
#: ... and the head itself, once its controller has started.
_ANSWER_S = 60.0
#: Meanwhile it is looked for so often.
_LOOK_S = 0.02
_SIOCGIFADDR = 0x8915
#: A shell's status for a process that a signal ended.
_BY_SIGNAL = 128
#: Variables in which launchers tell a process its number.
_NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def main(arguments: list[str] | None = None) -> None:
    """Join, and be the agent."""
    parser = argparse.ArgumentParser(prog="python -m hpcnb.node.join")
    parser.add_argument(
        "--node", type=int, default=None, help="number of the node; by default what srun or mpiexec says"
    )
    parser.add_argument(
        "--nodes", default="", help="numbers of all nodes that are started, 0,1,2: this one is among them"
    )
    parser.add_argument("--ticket", type=Path, help="file with the ticket; by default it comes on stdin")
    parser.add_argument("--stay", action="store_true", help="do not go to the background")
    parser.add_argument("--carrier", type=int, default=0, help="process id of the parent: end when it does")
    parser.add_argument("--carrier-name", default="process", help="what it is, in words")
    options = parser.parse_args(arguments)
    try:
        spec, files, own_address = _ask(_ticket(options.ticket), _number(options.node, options.nodes))
        spec = dataclasses.replace(spec, carrier_pid=options.carrier, carrier=options.carrier_name)
        folder = _prepare(spec, files)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    # a carrier is the agent's parent itself, and hears how it ended
    if not options.carrier and (pid := os.fork()):
        if options.stay:
            _accompany(pid, folder)
        _see_off(pid, folder)
        os._exit(0)
    if options.stay and not options.carrier:
        die_with_parent()
    elif not options.stay:
        os.setsid()
    _become_agent(spec, folder, own_address)


def _accompany(pid: int, folder: RunFolder) -> NoReturn:
    """Live as long as the agent; what its log ends with is said if it could not do so itself, which removes the log."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if folder.path.exists():
        sys.stderr.write("\n".join([*_last_words(folder, code), ""]))
        sys.stderr.flush()
    os._exit(code if code >= 0 else _BY_SIGNAL - code)


def _see_off(pid: int, folder: RunFolder) -> None:
    """Go when the agent has been welcomed by the head; say why if it ends instead."""
    deadline_s = time.monotonic() + _ANSWER_S
    while not folder.joined.exists() and time.monotonic() < deadline_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            sys.exit("\n".join(_last_words(folder, os.waitstatus_to_exitcode(status))))
        time.sleep(_LOOK_S)


def _last_words(folder: RunFolder, code: int) -> list[str]:
    """What an agent has left that ended too early; its folder is removed."""
    lines = folder.log_lines()
    folder.remove()
    # one that ended by itself says why in its last line
    return (
        [*lines, f"its agent ended with signal {-code}"]
        if code < 0
        else lines or [f"its agent ended with status {code}"]
    )


def _ticket(path: Path | None) -> Ticket:
    if path is not None:
        return Ticket.of_text(path.read_text())
    return Ticket.of_text(os.environ.pop(TICKET_VARIABLE, "") or sys.stdin.readline())


def _number(asked: int | None, of_all: str) -> int:
    said = [os.environ[name] for name in _NUMBERS if os.environ.get(name, "").isdecimal()]
    if asked is None and not said:
        msg = f"which node this is says neither --node nor any of {', '.join(_NUMBERS)}"
        raise ValueError(msg)
    if asked is not None:
        return asked
    numbers = [int(each) for each in of_all.split(",") if each.isdecimal()] or list(range(int(said[0]) + 1))
    if int(said[0]) >= len(numbers):
        msg = f"this is task {said[0]}, and {len(numbers)} nodes are to be started"
        raise ValueError(msg)
    return numbers[int(said[0])]


def _ask(ticket: Ticket, node: int) -> tuple[AgentSpec, dict[str, bytes], str]:
    """What this node is to be, its files, and its own address on the way to the head.

    Raises:
        ConnectionError: The head cannot be reached.
        ValueError: It refuses.
    """
    host, _, port = ticket.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_REACH_S) as connection:
            own_address = connection.getsockname()[0]
    except OSError as error:
        why = "no answer: a firewall, or another network" if isinstance(error, TimeoutError) else error.strerror
        msg = f"UNREACHABLE {ticket.address} from {os.uname().nodename}: {why}"
        raise ConnectionError(msg) from error
    python = ".".join(platform.python_version_tuple()[:2])
    context = zmq.Context()
    server = connect(context, ticket.address, (ticket.server_public, ticket.nodes_public, ticket.nodes_secret))
    try:
        server.send(m.encode(m.Join(m.PROTOCOL, __version__, python, node, os.uname().nodename)))
        if not server.poll(int(_ANSWER_S * 1000)):
            msg = (
                f"UNREACHABLE {ticket.address} from {os.uname().nodename}: it answers, but not as the head of a cluster"
            )
            raise ConnectionError(msg)
        answer = m.decode(server.recv())
    finally:
        server.close(0)
        context.term()
    if isinstance(answer, m.Assignment):
        return AgentSpec(**answer.spec), answer.files, own_address
    raise ValueError(
        answer.reason if isinstance(answer, m.NodeRefused) else f"the head answered {type(answer).__name__}"
    )


def _prepare(spec: AgentSpec, files: dict[str, bytes]) -> RunFolder:
    root = runtime_root("nodes")
    _clean(root)
    folder = RunFolder.create(f"{spec.cluster_name}-{spec.node}", root=root)
    spec.save(folder.spec)
    for name, content in files.items():
        path = folder.path / name
        if folder.path not in path.resolve().parents:
            msg = f"the head wants to write {name!r}, which is not in the folder of the node"
            raise ValueError(msg)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return folder


def _clean(root: Path) -> None:
    """Remove what agents have left that could not do so: the node lost its power, or they were killed."""
    for path in root.glob("*") if root.is_dir() else ():
        left = RunFolder(path)
        try:
            pulse = alive.feel(left)
        except OSError:
            continue  # it is not ours to judge
        if pulse.began and not pulse.pid:
            left.remove()


def _become_agent(spec: AgentSpec, folder: RunFolder, own_address: str) -> None:
    interface = interface_of(own_address)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ()
    environment = {**dict.fromkeys(names, interface), **os.environ, **agent_environment(spec)}
    log = os.open(folder.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.chdir(Path.home() if Path.home().is_dir() else "/")
    os.execve(sys.executable, [sys.executable, "-m", "hpcnb.node", str(folder.path)], environment)  # noqa: S606


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address; "" if none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name[:15].encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


if __name__ == "__main__":
    main()
