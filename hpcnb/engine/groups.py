"""The process groups of a rank, all together: registered with torch, released, listed, and built again."""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from hpcnb.core.board import number_of
from hpcnb.core.messages import Rebuild, Scale
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import Kind
from hpcnb.engine import devices, sockets
from hpcnb.engine.process_group import BACKEND, HpcnbProcessGroup

if TYPE_CHECKING:
    from hpcnb.engine.guard import Guard
    from hpcnb.engine.recorder import Recorder

#: Waits whose connections have been shut end within so long, unless gloo has forgotten them; looked at so often.
_FORGOTTEN_S, _LOOK_S = 1.0, 0.02

__all__ = [
    "list_groups", "make_groups", "making_alone", "moved_bytes", "place_of", "rebuild_groups", "register",
    "release_groups",
]  # fmt: skip

#: Instead of the number of a group that has a hash for a name: it comes after all others.
_HASHED = 1 << 62


def register(recorder: Recorder, guard: Guard) -> None:
    """Make ``init_process_group("hpcnb")``, and every group and mesh axis after it, one of these."""
    HpcnbProcessGroup.recorder = recorder
    HpcnbProcessGroup.guard = guard
    guard.living = lambda: {str(group.group_name) for group in _living()}
    _offer_monitored_barrier()
    if BACKEND in dist.Backend.backend_list:
        return
    dist.Backend.register_backend(
        BACKEND,
        lambda options, _=None: _make_group(options, recorder, guard),
        extended_api=True,
        devices=devices.device_types(),
    )


def _make_group(options: Any, recorder: Recorder, guard: Guard) -> HpcnbProcessGroup:
    """A new group, once all of its ranks make it: for who watches, an operation that all of them have to issue.

    Raises:
        CollectiveError: Some of them do not, or make another one.
    """
    arguments = (options.store, options.group_rank, options.group_size, options.timeout)
    members = list(options.global_ranks_in_group)
    # before the first cell; a process that takes a rank's place makes them alone, as all do when a mesh is made anew
    if not recorder.cell or not members or _modes:
        return HpcnbProcessGroup(*arguments, is_hollow=any(_modes))
    channel = guard.making(members)
    signature = guard.signature("new_group", [], (f"named {str(options.group_id)[:8]}",))
    line, source = recorder.place(2)
    stamped = guard.issue(channel, signature, line, source)
    operation = recorder.issue(
        Kind.COLLECTIVE, recorder.ring.intern("new_group"), recorder.ring.intern(f"[{RankSet(members)}]"),
        number_of(stamped), -1, 0, 0,
    )  # fmt: skip
    operation.line, operation.source, operation.stamp, operation.channel = line, source, stamped, channel
    with recorder.inside(operation) as began_ns:
        try:
            return HpcnbProcessGroup(*arguments)
        except BaseException as error:
            guard.refused(channel, stamped)  # others wait for it in vain; nothing is sent before all are connected
            if guard.broken and isinstance(error, Exception):
                raise guard.error(recorder.words(operation), recorder.seconds_since(began_ns)) from None
            raise


def _offer_monitored_barrier() -> None:
    """Let ``dist.monitored_barrier`` take our groups.

    torch's function asks for the name of the backend and refuses whatever is not called gloo, before it asks the group,
    which has the method. A group that calls itself gloo would lie to everybody who asks, and subgroups, which take the
    name of their parent's backend, would be plain gloo groups. So the function is replaced, in both places it is known.
    """
    theirs = c10d.monitored_barrier
    if hasattr(theirs, "__wrapped__"):
        return

    @functools.wraps(theirs)
    def monitored_barrier(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> None:  # noqa: FBT001, FBT002 - torch's signature
        asked = c10d._get_default_group() if group is None else group
        if not isinstance(asked, HpcnbProcessGroup):
            theirs(group, timeout, wait_all_ranks)
            return
        limit = datetime.timedelta(seconds=timeout) if isinstance(timeout, int | float) else timeout
        asked.monitored_barrier(limit, wait_all_ranks=wait_all_ranks)

    c10d.monitored_barrier = monitored_barrier
    dist.monitored_barrier = monitored_barrier


def _living() -> list[HpcnbProcessGroup]:
    """The groups that torch knows, in one order on all ranks: a destroyed one may live on in a name.

    Names are numbers, in the order the groups were made, or hashes (use_local_synchronization), which ranks may have
    made in any order, and a new process makes last.
    """
    known = [group for group in list(c10d._world.pg_map) if isinstance(group, HpcnbProcessGroup)]
    living = [group for group in known if not group.is_given_up]
    return sorted(living, key=lambda group: (place_of(str(group.group_name)), str(group.group_name)))


def place_of(name: str) -> int:
    """Place of a group in the order in which ranks build them."""
    return int(name) if name.isdecimal() else _HASHED


def release_groups() -> Callable[[], None]:
    """What ends every wait of this rank in the groups as they are connected now; from the link thread.

    To be taken before groups are declared broken, and called on another thread: ranks may have come out by themselves
    and built new connections meanwhile, which must not be touched.

    Blocks: (what is returned) until nothing moves in the connections, a second at most.
    """
    groups = _living()
    ports = frozenset().union(*(group.ports for group in groups))
    accelerated = [inner for group in groups for inner in group.accelerated()]

    def release() -> None:
        if not groups:
            return
        sockets.quiesce(ports)
        sockets.shut(ports)
        for inner in accelerated:
            devices.abort(inner)
        # gloo has forgotten an operation whose message was half sent when a rank died; its thread waits on, and DDP in
        # C++ with it, for a future that only we can complete
        recorder = HpcnbProcessGroup.recorder
        deadline_s = time.monotonic() + _FORGOTTEN_S
        while recorder.waits_for_futures() and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
        if HpcnbProcessGroup.guard.broken and recorder.waits_for_futures():
            recorder.abandon_futures()

    return release


def moved_bytes() -> int:
    """Bytes that all groups of this rank have sent and received since they were connected."""
    return sockets.moved_bytes(frozenset().union(*(group.ports for group in _living())))


def list_groups() -> tuple[int, list[tuple[str, list[int]]]]:
    """How many groups torch has counted, and (name, ranks) of those that this rank is in."""
    return c10d._world.group_count, [(str(group.group_name), group.members()) for group in _living()]


def make_groups(groups: list[tuple[str, list[int]]], num_groups: int, rank: int) -> None:
    """Make the groups that others hold and this new process does not.

    Args:
        groups: Name and ranks, in the order of names that others build them in.
        num_groups: How many torch has counted elsewhere; names are numbers.
        rank: Of this process.
    """
    known = {str(group.group_name) for group in _living()}
    for name, members in groups:
        if name not in known and rank in members:
            _make_named(name, members)
    c10d._world.group_count = max(num_groups, c10d._world.group_count)


def make_kept(members: list[int], order: Scale) -> HpcnbProcessGroup:
    """A group of the ranks that were all ranks, for what goes on with them; given up if some of them are gone.

    Its name is the last number before those of the new mesh: who is new has left it out as well.
    """
    gone = RankSet(members) - order.ranks
    with _making(is_hollow=bool(gone)):
        group = _make_named(str(order.num_groups - 1), members)
    if gone:
        group.give_up(gone, order.world_size)
    return group


def _make_named(name: str, members: list[int]) -> HpcnbProcessGroup:
    # new_group takes no name: it counts, or hashes what this process holds; the rest is as there
    default = c10d._get_default_group()
    known: Any = c10d._world.pg_map[default]  # names and backends have types of their own, which older releases lack
    backend, store = known
    named: Any = name
    group, _ = c10d._new_process_group_helper(
        len(members), members.index(dist.get_rank()), members, backend, store, named,
        timeout=c10d._get_default_timeout(backend),
    )  # fmt: skip
    c10d._world.pg_group_ranks[group] = {rank: index for index, rank in enumerate(members)}
    made: HpcnbProcessGroup = group
    return made


@contextlib.contextmanager
def _making(*, is_hollow: bool) -> Iterator[None]:
    _modes.append(is_hollow)
    try:
        yield
    finally:
        _modes.pop()


def making_alone() -> contextlib.AbstractContextManager[None]:
    """Groups that are made in the body are waited for without a word to who watches: who joins may run no cell."""
    return _making(is_hollow=False)


_modes: list[bool] = []


def rebuild_groups(order: Rebuild | Scale, *, between: Callable[[], None] | None = None) -> int:
    """Replace the connections of all living groups of this rank, in the same order everywhere.

    Args:
        order: The new generation, and which groups stay without connections.
        between: Called when those that have a number are built: what it makes has a higher one.

    Ranks: collective over all ranks; returns the number of groups that were rebuilt.
    Blocks: until all ranks of each group are there.
    """
    if not dist.is_initialized():
        msg = "the default process group was destroyed (dist.destroy_process_group) and is not made again; start anew"
        raise RuntimeError(msg)
    guard = HpcnbProcessGroup.guard
    release = release_groups()
    guard.mend(order.generation)
    c10d._world.group_count = max(order.num_groups, c10d._world.group_count)
    groups: list[HpcnbProcessGroup] = _living()
    before: list[Any] = []
    numbered = [group for group in groups if place_of(str(group.group_name)) < _HASHED]
    try:
        before.extend(group.rebuild(order) for group in numbered)
        if between is not None:
            between()
        before.extend(group.rebuild(order) for group in groups[len(numbered) :])
    except BaseException as error:
        guard.break_groups(f"building groups again failed: {error}")
        raise
    finally:
        # a backend is destroyed when nothing waits in it any more; not on a thread that somebody needs
        threading.Thread(target=_let_go, args=(release, before), name="hpcnb-old-groups", daemon=True).start()
    return len(groups)


def _let_go(release: Callable[[], None], groups: list[Any]) -> None:
    release()
    groups.clear()
    # frames of the failed cell hold what it waited for, in circles that IPython makes (result -> error -> frame)
    gc.collect()
