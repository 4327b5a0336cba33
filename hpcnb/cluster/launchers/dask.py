"""``dask``: ranks on the hosts of a Dask cluster; on each one worker carries the agent, and the agent ends with it.

Any scheduler that a ``distributed.Client`` can talk to will do: LocalCluster, SSHCluster, dask-jobqueue, Gateway,
Kubernetes. The Dask cluster goes on as it was, and its workers go on with their tasks.
"""

from __future__ import annotations

import contextlib
import inspect
import ipaddress
import re
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcnb.cluster.launchers.addresses import address_towards
from hpcnb.cluster.launchers.carried import CarriedLauncher, spread_over
from hpcnb.cluster.launchers.nodes import hosts_of
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.named import Named

if TYPE_CHECKING:
    import distributed

__all__ = ["DaskLauncher", "Worker", "by_host", "chosen"]

#: A scheduler answers within so long.
_CONNECT_S = 10.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Worker:
    """A worker of Dask.

    Attributes:
        name: As the Dask cluster calls it.
        address: ``tcp://10.0.0.1:37001``.
        host: ``10.0.0.1``.
    """

    name: str
    address: str
    host: str


class DaskLauncher(CarriedLauncher):
    """Starts agents through workers of Dask.

    Args:
        num_ranks: World size; by default one rank per worker.
        client: A ``distributed.Client``, a Dask cluster, or the address of a scheduler, ``tcp://n1:8786``; by default
            the client that Dask uses.
        workers: Of Dask, by name or address, ``w1,w2`` or a list: only these; by default all.
        hosts: IP addresses of hosts of workers, in the order of their ranks: only these; by default all.
        ranks_per_node: The same on every host.
        address: IP address of this machine that the hosts reach; by default the one on the way to the first host.

    Raises:
        OptionError: There is no client, or it is none; no such workers; numbers that contradict each other.
        LaunchError: The scheduler does not answer, or has no workers.
    """

    def __init__(
        self,
        num_ranks: int | None,
        *,
        client: object = None,
        workers: str | Sequence[str | int] | None = None,
        hosts: str | Sequence[str] | None = None,
        ranks_per_node: int | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__()
        self.carrier = "Dask worker"
        self._scheduler = _Scheduler(client)
        self._wanted = workers.replace(",", " ").split() if isinstance(workers, str) else list(map(str, workers or ()))
        self._hosts = hosts_of(hosts if hosts is None or isinstance(hosts, str) else list(hosts))
        if self._hosts and num_ranks is not None:  # as another notebook asks, perhaps while a host has no worker
            self.layout = spread_over([1] * len(self._hosts), num_ranks, ranks_per_node)
        else:
            known = by_host(self._known())
            if absent := [host for host in self._hosts if host not in known]:
                msg = f"no Dask worker runs on host {absent[0]!r}; there are some on {', '.join(known)}"
                raise OptionError(msg)
            self._hosts = self._hosts or list(known)
            self.layout = spread_over([len(known[host]) for host in self._hosts], num_ranks, ranks_per_node)
        self._hosts = self._hosts[: len(self.layout)]
        self.address = address or self._own_address()
        self._lock = threading.Lock()

    def _known(self) -> list[Worker]:
        try:
            workers = self._scheduler.workers()
        finally:
            self._scheduler.close()
        if not workers:
            msg = (
                f"the Dask cluster at {self._scheduler.address} has no workers yet; wait for them with  "
                "client.wait_for_workers(1)"
            )
            raise LaunchError(msg)
        return chosen(workers, self._wanted)

    def _own_address(self) -> str:
        """Loopback, where all there is is on this machine and nothing of it reaches further."""
        places = [*self._hosts, _host_in(self._scheduler.address)]
        far = [place for place in places if place and not _is_loopback(place)]
        return address_towards(far[0]) if far else _LOOPBACK

    def find(self, node: int) -> str:
        """See CarriedLauncher: a worker on the node's host, or on a host that has taken its place."""
        known = by_host(self._scheduler.workers())
        with self._lock:
            host = self._hosts[node]
            if host not in known:
                spare = [each for each in known if each not in self._hosts]
                if not spare:
                    msg = (
                        f"no Dask worker runs on host {host}, nor on one that has no ranks of this cluster; "
                        "start a worker there, and try again"
                    )
                    raise LaunchError(msg)
                host = self._hosts[node] = spare[0]
        there = known[host]
        return next((each for each in there if {each.name, each.address} & set(self._wanted)), there[0]).address

    def call(self, carrier: str, function: Named, *args: Any) -> Any:
        """See CarriedLauncher: beside the worker's tasks, which may be long."""
        answers = self._scheduler.client().run(function, *args, workers=[carrier])
        if carrier not in answers:
            msg = f"Dask worker {carrier} is gone"
            raise LaunchError(msg)
        return answers[carrier]

    def release(self) -> None:
        """See CarriedLauncher."""
        self._scheduler.close()

    def lasting(self, options: dict[str, Any]) -> dict[str, Any]:
        """See NodeLauncher: a client is known by the address of its scheduler."""
        plain = {name: options[name] for name in ("address",) if name in options}
        lasting: dict[str, Any] = {**plain, "client": self._scheduler.address, "hosts": list(self._hosts)}
        return lasting if not self._wanted else {**lasting, "workers": self._wanted}


class _Scheduler:
    """A scheduler of Dask, asked through the client that was given, or one of our own while it is needed."""

    def __init__(self, given: object) -> None:
        self._own: distributed.Client | None = None
        self._lock = threading.Lock()
        self._given, self.address, self._security = _client_of(given)

    def client(self) -> distributed.Client:
        """A client whose calls block.

        Raises:
            LaunchError: The scheduler does not answer.
        """
        given = self._given
        if given is not None and given.status == "running" and not given.asynchronous:
            return given
        from distributed import Client

        with self._lock:
            if self._own is None:
                try:
                    self._knock()  # a Client that cannot connect leaves the thread of its event loop behind
                    self._own = Client(
                        self.address, security=self._security, set_as_default=False, timeout=_CONNECT_S
                    )  # fmt: skip
                except (OSError, TypeError, ValueError, RuntimeError) as error:
                    raise LaunchError(_unreachable(self.address, error)) from error
            return self._own

    def _knock(self) -> None:
        from distributed import Security

        if self.address.startswith("tls://") and self._security is None:
            security = Security()  # with what is in the configuration of Dask
            if security.get_connection_args("client")["ssl_context"] is None:
                msg = "there are none in the configuration of Dask"
                raise ValueError(msg)
        if host := _host_in(self.address):
            socket.create_connection((host, int(self.address.rpartition(":")[2])), timeout=_CONNECT_S).close()

    def workers(self) -> list[Worker]:
        """All that it has now."""
        client = self.client()
        # all of them: in some releases five are the default, in others there is no such argument
        asked = {"n_workers": -1} if "n_workers" in inspect.signature(client.scheduler_info).parameters else {}
        told = client.scheduler_info(**asked)["workers"]
        return [
            Worker(str(each.get("name", address)), address, str(each.get("host") or _host_in(address)))
            for address, each in told.items()
        ]

    def close(self) -> None:
        """Close the client, if it is ours."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()


def _client_of(given: object) -> tuple[distributed.Client | None, str, Any]:
    """The client if there is one, the address of its scheduler, and how its connections are secured."""
    import distributed

    default: distributed.Client | None = None
    with contextlib.suppress(ValueError):
        default = distributed.default_client()
    if given is None:
        if default is None:
            msg = (
                "launcher dask needs a Dask cluster, and there is no client of one; for example  "
                "client=distributed.Client('tcp://n1:8786')  or  %hpc start --launcher dask --client tcp://n1:8786"
            )
            raise OptionError(msg)
        given = default
    if isinstance(given, distributed.Client):
        address = str(given.scheduler.address) if given.scheduler is not None else ""
        return given, _checked(address, "the client that was given is closed; make another one"), given.security
    if isinstance(given, str):
        address = given if "://" in given else f"tcp://{given}"
        _checked(address, f"client={given!r} is no address of a Dask scheduler; for example  tcp://n1:8786")
        if default is not None and default.scheduler is not None and default.scheduler.address == address:
            return default, address, default.security
        return None, address, None
    if not hasattr(given, "scheduler_address"):
        msg = (
            f"client= takes a distributed.Client, a Dask cluster or the address of a scheduler, not a "
            f"{type(given).__name__}"
        )
        raise OptionError(msg)
    address = _checked(str(given.scheduler_address), "the Dask cluster that was given is not running; start it first")
    return None, address, getattr(given, "security", None)


def _checked(address: str, problem: str) -> str:
    if not re.fullmatch(r"\w+://\S+", address) or (address.startswith("tcp:") and not re.search(r":\d+$", address)):
        raise OptionError(problem)
    return address


def _unreachable(address: str, error: Exception) -> str:
    if address.startswith("tls://") and not isinstance(error, ConnectionError | TimeoutError):
        return (
            f"the Dask scheduler at {address} lets nobody in without its certificates; make a client with them first, "
            f"distributed.Client({address!r}, security=...),  and try again"
        )
    return f"the Dask scheduler at {address} does not answer: {error}; is it running, and is the address right?"


def _host_in(address: str) -> str:
    """``tcp://10.0.0.1:8786`` -> ``10.0.0.1``; "" for what is reached through a proxy or within this process."""
    scheme, _, rest = address.partition("://")
    return rest.rpartition(":")[0].strip("[]") if scheme in ("tcp", "tls", "ucx") else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def chosen(workers: Sequence[Worker], wanted: Sequence[str]) -> list[Worker]:
    """Those that are wanted, by name or address; all if none is named.

    Raises:
        OptionError: There is no such worker.
    """
    known = {key for each in workers for key in (each.name, each.address)}
    if absent := [each for each in wanted if each not in known]:
        names = ", ".join(each.name for each in sorted(workers, key=_order)[:20])
        msg = f"the Dask cluster has no worker {absent[0]!r}; it has {names}"
        raise OptionError(msg)
    return [each for each in workers if not wanted or {each.name, each.address} & set(wanted)]


def by_host(workers: Sequence[Worker]) -> dict[str, list[Worker]]:
    """Workers of each host; hosts in the order of their first worker, workers in that of their names."""
    hosts: dict[str, list[Worker]] = {}
    for worker in sorted(workers, key=_order):
        hosts.setdefault(worker.host, []).append(worker)
    return hosts


def _order(worker: Worker) -> list[tuple[int, str]]:
    """Worker 2 is before worker 10."""
    return [(int(each), "") if each.isdecimal() else (-1, each) for each in re.split(r"(\d+)", worker.name)]
