"""``existing``: ranks on the hosts of an ipyparallel cluster that runs; on each one engine carries the agent.

The engines go on as they were: ranks are processes of their own, and names of an engine are not a rank's. On each host
the ranks end with the engine that carries them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcnb.cluster.launchers.addresses import address_towards, own_address
from hpcnb.cluster.launchers.carried import CarriedLauncher, spread_over
from hpcnb.cluster.launchers.nodes import hosts_of
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.named import Named

__all__ = ["ExistingLauncher"]

#: A controller, and engines that are idle, answer within so long.
_ANSWER_S = 10.0
_LOOK_S = 0.5
#: The name of its host, for engines that have no hpcnb too.
_HOST = Named("platform:node")


class ExistingLauncher(CarriedLauncher):
    """Starts agents through engines of ipyparallel.

    Args:
        num_ranks: World size; by default one rank per engine.
        client: An ``ipyparallel.Client`` of the cluster.
        profile: Where no client is given: its profile, ``default`` unless said.
        cluster_id: Its id, if it has one.
        connection_file: ``ipcontroller-client.json``, in the place of a profile.
        hosts: Names of hosts of engines, in the order of their ranks: only these; by default all.
        ranks_per_node: The same on every host.
        address: IP address of this machine that the hosts reach; by default the one on the way to the first host.

    Raises:
        OptionError: What is given is no client, or is given twice; numbers that contradict each other.
        LaunchError: The controller or an engine does not answer, or there are no engines.
    """

    def __init__(
        self,
        num_ranks: int | None,
        *,
        client: object = None,
        profile: str | None = None,
        cluster_id: str | None = None,
        connection_file: str | None = None,
        hosts: str | Sequence[str] | None = None,
        ranks_per_node: int | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__()
        self.carrier = "engine"
        self._controller = _Controller(client, profile, cluster_id, connection_file)
        self._hosts = hosts_of(hosts if hosts is None or isinstance(hosts, str) else list(hosts))
        if self._hosts and num_ranks is not None:  # as another notebook asks, perhaps while a host has no engine
            self.layout = spread_over([1] * len(self._hosts), num_ranks, ranks_per_node)
        else:
            try:
                known = self._controller.engines()
            finally:
                self._controller.close()
            if absent := [host for host in self._hosts if host not in known]:
                msg = f"no engine runs on host {absent[0]!r}; there are some on {', '.join(known)}"
                raise OptionError(msg)
            self._hosts = self._hosts or list(known)
            self.layout = spread_over([len(known[host]) for host in self._hosts], num_ranks, ranks_per_node)
        self._hosts = self._hosts[: len(self.layout)]
        self.address = address or self._own_address()

    def _own_address(self) -> str:
        far = [host for host in self._hosts if host != socket.gethostname()]
        if not far:
            return "127.0.0.1"
        try:
            return address_towards(far[0])
        except LaunchError:  # a host may have a name that is not known here
            return own_address()

    def find(self, node: int) -> str:
        """See CarriedLauncher."""
        host = self._hosts[node]
        if not (there := self._controller.engines().get(host)):
            msg = f"no engine runs on host {host}; start one there, and try again"
            raise LaunchError(msg)
        return str(there[0])

    def call(self, carrier: str, function: Named, *args: Any) -> Any:
        """See CarriedLauncher: an engine that runs something else answers when it has done so."""
        return self._controller.call([int(carrier)], function, *args)[0]

    def release(self) -> None:
        """See CarriedLauncher."""
        self._controller.close()

    def lasting(self, options: dict[str, Any]) -> dict[str, Any]:
        """See NodeLauncher."""
        plain = {name: value for name, value in options.items() if name not in ("client", "ranks_per_node")}
        if file := self._controller.connection_file:
            plain = {"connection_file": file, **({"address": plain["address"]} if "address" in plain else {})}
        return {**plain, "hosts": list(self._hosts)}


class _Controller:
    """A controller of ipyparallel, asked through the client that was given, or one of our own while it is needed."""

    def __init__(
        self, client: object, profile: str | None, cluster_id: str | None, connection_file: str | None
    ) -> None:
        import ipyparallel

        if client is not None and (profile or cluster_id or connection_file):
            msg = "client= says which cluster it is; profile=, cluster_id= and connection_file= are not needed then"
            raise OptionError(msg)
        if client is not None and not isinstance(client, ipyparallel.Client):
            msg = f"client= takes an ipyparallel.Client, not a {type(client).__name__}"
            raise OptionError(msg)
        self._given: Any = client
        self._own: Any = None
        self._profile, self._cluster_id = profile, cluster_id
        self.connection_file = connection_file or _file_of(client)  #: By which others find it; "" if not known.
        self._hosts: dict[int, str] = {}  # of engines that have said so
        self._lock = threading.RLock()
        self._is_closed = threading.Event()

    def engines(self) -> dict[str, list[int]]:
        """Ids of the engines on each host, hosts in the order of their first.

        Raises:
            LaunchError: An engine does not answer, or there is none.
        """
        with self._lock:
            ids = list(self._client().ids)
            if not ids:
                msg = "the ipyparallel cluster has no engines yet; wait for them with  client.wait_for_engines(1)"
                raise LaunchError(msg)
            if unknown := [each for each in ids if each not in self._hosts]:
                self._hosts.update(
                    zip(unknown, self.call(unknown, _HOST, timeout_s=_ANSWER_S), strict=True)
                )  # fmt: skip
            hosts: dict[str, list[int]] = {}
            for each in ids:
                hosts.setdefault(self._hosts[each], []).append(each)
            return hosts

    def call(self, engines: list[int], function: Named, *args: Any, timeout_s: float = float("inf")) -> list[Any]:
        """Call a function on engines, and wait for what it returns."""
        import ipyparallel

        with self._lock:
            self._is_closed.clear()
            asked = self._client()[engines].apply_async(function, *args)
        waited_s = 0.0
        while True:
            try:
                values: list[Any] = asked.get(timeout=_LOOK_S)
                return values
            except ipyparallel.error.TimeoutError:
                waited_s += _LOOK_S
            except ipyparallel.error.CompositeError as error:
                kind, value = error.elist[0][:2]
                msg = f"engines {', '.join(map(str, engines))} failed: {kind}: {value}"
                raise LaunchError(msg) from None
            if waited_s >= timeout_s or self._is_closed.is_set():
                numbers = ", ".join(map(str, engines))
                msg = f"engines {numbers} have not answered for {waited_s:.0f} s; is one of them busy?"
                raise LaunchError(msg)

    def _client(self) -> Any:
        if self._given is not None:
            return self._given
        import ipyparallel

        if self._own is None:
            if self.connection_file and not Path(self.connection_file).exists():
                msg = f"there is no connection file {self.connection_file}; does that ipyparallel cluster still run?"
                raise LaunchError(msg)
            options = {"profile": self._profile or "default", "cluster_id": self._cluster_id or ""}
            try:
                if self.connection_file:
                    self._own = ipyparallel.Client(self.connection_file, timeout=_ANSWER_S)
                else:
                    self._own = ipyparallel.Client(**options, timeout=_ANSWER_S)
            except (OSError, ipyparallel.error.TimeoutError) as error:
                said = str(error).splitlines()[0]
                msg = (
                    f"no ipyparallel cluster answers ({said}); start one, or say which it is: client=, profile=, "
                    "cluster_id= or connection_file="
                )
                raise LaunchError(msg) from error
        return self._own

    def close(self) -> None:
        """Close the client, if it is ours."""
        self._is_closed.set()
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()


def _file_of(client: Any) -> str:
    """The connection file of the cluster that a client was made by, if it says so; else "": clients keep no path."""
    cluster = getattr(client, "cluster", None)
    if cluster is None:
        return ""
    name = f"ipcontroller-{cluster.cluster_id}-client.json" if cluster.cluster_id else "ipcontroller-client.json"
    file = Path(cluster.profile_dir) / "security" / name
    return str(file) if file.exists() else ""
