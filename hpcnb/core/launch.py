"""What a node agent is told when it is launched, and the folder a cluster lives in. Both sides.

The folder (mode 0700) holds everything that a running cluster leaves on disk: the spec with its keys (0600),
logs, sockets, the ipyparallel profile and floods of output. It is removed as a whole when the cluster ends.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcnb.core.ranks import RankSet
from hpcnb.core.tree import FANOUT, Tree
from hpcnb.core.watch import GRACE_S

__all__ = ["IDLE_TIMEOUT_S", "MAX_SOCKET_PATH", "SILENCE_S", "STACK_SIGNAL", "TICKET_VARIABLE", "AgentSpec",
           "RunFolder", "Ticket", "agent_environment", "runtime_root"]  # fmt: skip


#: Makes a rank write its stack from C, without the interpreter. Users' code and libraries use SIGUSR1, SIGUSR2 and the
#: first real-time signals.
STACK_SIGNAL = signal.SIGRTMIN + 9
#: A cluster ends itself when no notebook has been connected for so long.
IDLE_TIMEOUT_S = 8 * 3600.0
#: A node that has not been heard of for so long is given up.
SILENCE_S = 8.0
#: Where a launcher cannot give a process its stdin, this variable holds the ticket.
TICKET_VARIABLE = "HPCNB_TICKET"


@dataclass(frozen=True)
class AgentSpec:
    """Everything one node agent needs to know.

    Attributes:
        cluster_name: As the person named it.
        world_size: Number of ranks of the whole cluster.
        first_rank: Lowest global rank of this node; local rank r is global rank first_rank + r.
        num_ranks: Number of ranks of this node.
        mesh: ``dp=2,tp=2``: axis names and sizes.
        threads_per_rank: OpenMP and torch threads of each rank.
        idle_timeout_s: The cluster ends this long after its last owner has gone; 0 ends it at once.
        hpcnb_version: Of the notebook; an agent of another version refuses.
        python_version: ``3.11``, of the notebook (pickles and bytecode need the same).
        link_address: zmq endpoint the agent listens on for notebooks.
        server_public: CURVE public key of the agent (Z85 text).
        server_secret: CURVE secret key of the agent.
        client_public: The only CURVE public key that may connect.
        client_secret: Its secret, for the notebook.
        environment: Extra environment of ranks.
        grace_s: Ranks that wait in vain are released after so long, also when no notebook is connected.
        record: Whether the recorder is on from the start.
        is_local: All ranks are on this machine: nothing listens beyond loopback.
        controller_profile: Profile folder of a running ipyparallel controller to register with; "" starts one.
        controller_id: Its cluster id.
        owner_pid: The Jupyter server, or whoever started the notebook kernel: when it has ended and no notebook is
            connected, the cluster ends; 0 if there is none.
        started_s: When it was launched, seconds since 1970.
        layout: Of the head of a cluster of many nodes: how many ranks each node has. Empty: all ranks are here.
        node: Of a node of such a cluster: its number; -1 for the head, and where there is one node only.
        address: Of such a cluster: the IP address of the head that nodes reach.
        nodes_public: CURVE public key of its nodes' agents.
        nodes_secret: The secret key.
        uplink: Of a node: ``host:port`` of who is above, the head or another node.
        uplink_public: Its CURVE public key.
        head: Of a node: ``host:port`` of the head, whose key is ``server_public``.
        is_relay: Of a node: other nodes are below it.
        fanout: So many nodes are right below the head and below each node.
        rendezvous: Of a node: ``host:port`` of the store of the process groups.
        silence_s: A node that has not been heard of for so long is given up.
        launcher: Who started the nodes, and its options: to start one of them again.
        launcher_options: Numbers and texts, and lists of these.
        is_late: Of a node: its ranks are not forked before they are asked for, since others run already.
        placement: Of a cluster of many nodes that has been scaled: the ranks of each, instead of ``layout``.
        groups_before_mesh: How many process groups had been made when the mesh was.
        carrier_pid: Of a node: the process that started it and that it does not outlive; 0 if there is none.
        carrier: What that process is, in words.
    """

    cluster_name: str
    world_size: int
    first_rank: int
    num_ranks: int
    mesh: str
    threads_per_rank: int
    idle_timeout_s: float
    hpcnb_version: str
    python_version: str
    link_address: str
    server_public: str
    server_secret: str
    client_public: str
    client_secret: str
    environment: dict[str, str]
    grace_s: float = GRACE_S
    record: bool = True
    is_local: bool = True
    controller_profile: str = ""
    controller_id: str = "hpcnb"
    owner_pid: int = 0
    started_s: float = 0.0
    layout: list[int] = field(default_factory=list)
    node: int = -1
    address: str = ""
    nodes_public: str = ""
    nodes_secret: str = ""
    uplink: str = ""
    uplink_public: str = ""
    head: str = ""
    is_relay: bool = False
    fanout: int = FANOUT
    rendezvous: str = ""
    silence_s: float = SILENCE_S
    launcher: str = "local"
    launcher_options: dict[str, Any] = field(default_factory=dict)
    is_late: bool = False
    placement: list[list[int]] = field(default_factory=list)
    groups_before_mesh: int = 0
    carrier_pid: int = 0
    carrier: str = ""

    @property
    def ranks_of_nodes(self) -> list[RankSet]:
        """Of each node of the layout, its ranks."""
        if self.placement:
            return [RankSet(ranks) for ranks in self.placement]
        firsts = [sum(self.layout[:node]) for node in range(len(self.layout))]
        return [RankSet(range(first, first + count)) for first, count in zip(firsts, self.layout, strict=True)]

    @property
    def tree(self) -> Tree:
        """Who is below whom."""
        return Tree(len(self.layout), self.fanout)

    @property
    def own_ranks(self) -> RankSet:
        """The ranks of this node; the local rank of each is its place among them."""
        if self.is_node and self.placement:
            return RankSet(self.placement[self.node])
        return RankSet(range(self.first_rank, self.first_rank + self.num_ranks))

    def scaled(self, world_size: int, mesh: str, placement: list[list[int]], *, groups_before_mesh: int) -> AgentSpec:
        """The same for another number of ranks."""
        num_ranks = len(placement[self.node]) if self.is_node else 0 if self.is_head else world_size
        return dataclasses.replace(
            self, world_size=world_size, num_ranks=num_ranks, mesh=mesh, placement=placement,
            layout=[len(ranks) for ranks in placement], groups_before_mesh=groups_before_mesh,
        )  # fmt: skip

    @property
    def is_head(self) -> bool:
        """Whether ranks are on nodes with agents of their own."""
        return bool(self.layout) and self.node < 0

    @property
    def is_node(self) -> bool:
        """Whether a head is above this agent."""
        return self.node >= 0

    def save(self, path: Path) -> None:
        """Write as JSON, readable by the owner only from its first byte on."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(dataclasses.asdict(self), file)

    def save_again(self, path: Path) -> None:
        """Write it in the place of an earlier one; who reads meanwhile has one or the other."""
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        self.save(fresh)
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> AgentSpec:
        """Inverse of :meth:`save`."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Ticket:
    """What a process on a node needs to join a cluster. It holds a key: it travels by stdin or in files of mode 0600.

    Attributes:
        cluster_name: As the person named it.
        address: ``host:port`` of the head.
        server_public: CURVE public key of the head.
        nodes_public: CURVE public key of the agents of nodes.
        nodes_secret: Its secret.
    """

    cluster_name: str
    address: str
    server_public: str
    nodes_public: str
    nodes_secret: str

    def to_text(self) -> str:
        """One line of letters, digits, ``-`` and ``_``."""
        return base64.urlsafe_b64encode(json.dumps(dataclasses.astuple(self)).encode()).decode().rstrip("=")

    @classmethod
    def of_text(cls, text: str) -> Ticket:
        """Inverse of :meth:`to_text`.

        Raises:
            ValueError: It is none.
        """
        text = text.strip()
        try:
            fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            ticket = cls(*fields)
        except (ValueError, TypeError) as error:
            msg = "this is no ticket of a cluster"
            raise ValueError(msg) from error
        if not all(isinstance(each, str) for each in dataclasses.astuple(ticket)):
            msg = "this is no ticket of a cluster"
            raise ValueError(msg)
        return ticket


def agent_environment(spec: AgentSpec) -> dict[str, str]:
    """Environment of the agent process and so of its ranks; read by libraries when they are loaded."""
    threads = str(spec.threads_per_rank)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # large temporaries are kept instead of being unmapped and faulted in again: 95 -> 13 ms for 100 MB
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "THP_MEM_ALLOC_ENABLE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if spec.is_local else {}),
        **spec.environment,
    }


def runtime_root(kind: str = "") -> Path:
    """The folder, private to this user, that holds one folder per running cluster; or per node, for ``nodes``."""
    base = os.environ.get("HPCNB_RUNTIME_DIR") or os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / (f"hpcnb-{os.getuid()}-{kind}" if kind else f"hpcnb-{os.getuid()}")


#: The kernel's limit on the path of a unix socket.
MAX_SOCKET_PATH = 107


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in a cluster's folder."""

    path: Path

    @classmethod
    def create(cls, cluster_name: str, root: Path | None = None) -> RunFolder:
        """Make a new, private folder, in ``root`` or :func:`runtime_root`.

        Raises:
            PermissionError: The parent folder belongs to someone else or is open to others.
            ValueError: The path is too long for a unix socket.
        """
        root = root or runtime_root()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            msg = (
                f"{root} must belong to you with mode 0700 (it holds the keys of clusters), but has owner "
                f"{status.st_uid} and mode {status.st_mode & 0o777:o}; run  chmod 700 {root}  or set "
                "HPCNB_RUNTIME_DIR"
            )
            raise PermissionError(msg)
        safe = "".join(letter if letter.isalnum() else "_" for letter in cluster_name)[:24]
        path = root / f"{safe}-{secrets.token_hex(4)}"
        if len(os.fsencode(cls(path).agent_socket)) > MAX_SOCKET_PATH:
            msg = (
                f"{path} is too long for the sockets in it; set HPCNB_RUNTIME_DIR to a shorter folder, for example /tmp"
            )
            raise ValueError(msg)
        path.mkdir(mode=0o700)
        folder = cls(path)
        folder.cells.mkdir(mode=0o700)
        folder.profile.mkdir(mode=0o700)
        return folder

    def remove(self) -> None:
        """Remove the folder, and the one for all clusters if this was the last."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other clusters are running
            self.path.parent.rmdir()

    @property
    def spec(self) -> Path:
        """AgentSpec as JSON."""
        return self.path / "cluster.json"

    @property
    def lock(self) -> Path:
        """Locked by the agent for its life; holds its process id. See :mod:`hpcnb.core.alive`."""
        return self.path / "agent.lock"

    @property
    def agent_log(self) -> Path:
        """What the agent, the template and the controller wrote."""
        return self.path / "agent.log"

    def log_lines(self, count: int = 15) -> list[str]:
        """The last lines of it; none once the folder is gone."""
        try:
            return self.agent_log.read_text(errors="replace").splitlines()[-count:]
        except FileNotFoundError:
            return []

    @property
    def joined(self) -> Path:
        """Is there when the agent of a node belongs to its cluster."""
        return self.path / "joined"

    @property
    def agent_socket(self) -> Path:
        """Where ranks connect to the agent."""
        return self.path / "ranks.sock"

    @property
    def link_socket(self) -> Path:
        """Where notebooks of this machine connect to the agent."""
        return self.path / "link.sock"

    @property
    def profile(self) -> Path:
        """ipyparallel's profile folder."""
        return self.path / "profile"

    @property
    def cells(self) -> Path:
        """Whole output of cells that printed more than is shown."""
        return self.path / "cells"

    def rank_log(self, rank: int) -> Path:
        """What a rank wrote outside of cells."""
        return self.path / f"rank-{rank}.log"

    def flood(self, cell: int, rank: int) -> Path:
        """Whole output of one rank in one cell."""
        return self.cells / f"cell-{cell}-rank-{rank}.txt"

    def connection_file(self, side: str) -> Path:
        """Connection file of our own ipyparallel controller for ``client`` or ``engine``."""
        return self.profile / "security" / f"ipcontroller-hpcnb-{side}.json"

    def of_controller(self) -> bytes:
        """What engines read of the controller; b"" until it is whole: the file is made first, and filled then."""
        try:
            content = self.connection_file("engine").read_bytes()
            json.loads(content)
        except (FileNotFoundError, ValueError):
            return b""
        return content
