"""A rank's process from the fork to its end: descriptors, seeds, process group, ipyparallel engine, cells."""

from __future__ import annotations

import atexit
import datetime
import faulthandler
import gc
import logging
import mmap
import os
import random
import signal
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from IPython.core import page

from hpcnb.core.board import NUM_SLOTS, Board
from hpcnb.core.launch import STACK_SIGNAL, AgentSpec, RunFolder
from hpcnb.core.messages import RankReady
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RingWriter
from hpcnb.core.version import __version__
from hpcnb.engine import devices, groups, process_group, scaling
from hpcnb.engine.boundary import Boundary
from hpcnb.engine.cell import CellRunner
from hpcnb.engine.control import Control
from hpcnb.engine.debugger import Debugger
from hpcnb.engine.group_store import GroupStore
from hpcnb.engine.guard import Guard
from hpcnb.engine.hpc import Hpc
from hpcnb.engine.interrupts import Interrupts
from hpcnb.engine.ipp import Engine
from hpcnb.engine.link import RankLink
from hpcnb.engine.plain_source import recognize_plain_source
from hpcnb.engine.prompter import Prompter
from hpcnb.engine.recorder import Recorder
from hpcnb.engine.streams import LinkStream

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["RankSeat", "run_rank"]

#: Nothing gives up by itself: the watch tells a hang from patience, and a person may think in a debugger.
_TIMEOUT = datetime.timedelta(days=30)


@dataclass(frozen=True)
class RankSeat:
    """Which rank a process is, and where its rendezvous is."""

    rank: int
    store_host: str
    store_port: int
    generation: int
    world_size: int
    mesh: str
    local_ranks: list[int]  # of this node
    groups_before_mesh: int = 0  # that torch had counted when the mesh was made
    is_replacement: bool = False
    groups: tuple[tuple[str, list[int]], ...] = ()  # that cells have made before this process was there
    num_groups: int = 0

    @property
    def local_rank(self) -> int:
        """Rank on this node."""
        return self.local_ranks.index(self.rank)


def run_rank(seat: RankSeat, spec: AgentSpec, folder: RunFolder, memory: mmap.mmap) -> None:
    """Be rank ``seat.rank`` until told to end. Called in the freshly forked process; does not return.

    Args:
        seat: Which rank.
        spec: Of the cluster as it was started; how many ranks it has now, the seat says.
        folder: Of the cluster.
        memory: The node's board.
    """
    # PyErr_CheckSignals before we are ready must not end the process: the agent decides
    interrupts = Interrupts()
    interrupts.install()
    os.setsid()  # a group of its own: what a cell starts can be ended with its rank
    board = Board(memory, RankSet(seat.local_ranks))
    board.clear(seat.rank)
    ring = RingWriter(board.ring(seat.rank), NUM_SLOTS)
    link = _connect(seat, folder, interrupts)
    _seed(seat.rank)
    _prepare_interpreter(seat)
    torch.set_num_threads(spec.threads_per_rank)
    recorder = Recorder(ring, enabled=spec.record)
    device = devices.select_device(seat.local_rank)
    guard = Guard(board, seat.rank, ring, link.send)
    guard.mend(seat.generation)
    boundary = Boundary(board, seat.rank)
    mesh = _join_group(seat, device, recorder, guard)
    hpc = Hpc(seat.rank, seat.world_size, seat.local_rank, device, mesh, recorder, link, boundary)
    hpc._is_replacement = hpc._wants_rng = seat.is_replacement
    names = {
        "rank": seat.rank,
        "world_size": seat.world_size,
        "local_rank": seat.local_rank,
        "device": device,
        "mesh": mesh,
        "hpc": hpc,
    }
    engine = Engine.instance(
        boundary=boundary,
        is_replacement=seat.is_replacement,
        folder=folder,
        id=seat.rank,
        enable_nanny=False,  # a second process per rank; the agent does its work
        max_heartbeat_misses=0,  # the agent tells when the cluster ends
        wait_for_url_file=60.0,
        timeout=60.0,  # for the answer to the registration: 5 s are not enough on a busy machine
        log_level=logging.ERROR,
    )
    profile = spec.controller_profile or str(folder.profile)
    engine.initialize([f"--profile-dir={profile}", f"--cluster-id={spec.controller_id}"])

    def when_registered() -> None:
        streams = (
            LinkStream("stdout", 1, link, interrupts, lambda: recorder.cell),
            LinkStream("stderr", 2, link, interrupts, lambda: recorder.cell),
        )
        sys.stdout, sys.stderr = streams
        _prepare_shell(engine.kernel.shell)
        prompter = Prompter(seat.rank, link, streams, lambda: recorder.cell)
        prompter.install()
        debugger = Debugger(seat.rank, link, prompter, streams[0], lambda: recorder.cell)
        debugger.install()
        runner = CellRunner(
            seat.rank, engine.kernel.shell, link, streams, recorder, guard, boundary, interrupts, names, debugger, board
        )
        interrupts.install()  # the engine ignores SIGINT from here on; cells shall not
        loop = engine.loop.asyncio_loop
        loop.add_reader(link.cells, runner.on_readable)
        control = Control(
            seat.rank, link, guard, interrupts, prompter, current_cell=lambda: recorder.cell,
            end=lambda: engine.loop.add_callback(_end), leave=lambda: engine.loop.add_callback(_leave, engine),
        )  # fmt: skip
        link.start(control.hear, lambda: os._exit(1))
        link.send(
            RankReady(
                seat.rank, os.getpid(), os.uname().nodename, str(device),
                {"python": sys.version.split()[0], "torch": torch.__version__, "hpcnb": __version__},
            )
        )  # fmt: skip

    engine.when_registered = when_registered
    signal.signal(signal.SIGTERM, lambda *_: _end())
    engine.start()
    _end()


def _end() -> None:
    """End the process, after what users registered with atexit; gloo's own teardown may block and is skipped."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _leave(engine: Engine) -> None:
    """End the process of a rank that the cluster goes on without."""
    engine.unregister()
    _end()


def _connect(seat: RankSeat, folder: RunFolder, interrupts: Interrupts) -> RankLink:
    """Standard streams become pipes that the agent reads, and one more takes the stack on a signal."""
    pipes = [os.pipe(), os.pipe()]
    stacks_read, stacks_write = os.pipe()
    link = RankLink(folder.agent_socket, seat.rank, [pipes[0][0], pipes[1][0], stacks_read], interrupts)
    os.close(stacks_read)
    faulthandler.register(STACK_SIGNAL, file=stacks_write, all_threads=False, chain=False)
    for descriptor, (read, write) in zip((1, 2), pipes, strict=True):
        os.dup2(write, descriptor)
        os.close(write)
        os.close(read)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # type: ignore[misc] # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # type: ignore[misc] # noqa: SIM115
    return link


def _seed(rank: int) -> None:
    """Every rank draws its own random numbers: the fork gave all of them the same state."""
    seed = int.from_bytes(os.urandom(6), "little") + rank
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy generator is what users' code draws from
    torch.manual_seed(seed)


def _join_group(seat: RankSeat, device: torch.device, recorder: Recorder, guard: Guard) -> DeviceMesh:
    """Join the process group; returns the mesh."""
    groups.register(recorder, guard)
    recorder.enabled, wanted = False, recorder.enabled
    client = dist.TCPStore(seat.store_host, seat.store_port, is_master=False, timeout=_TIMEOUT)
    # C++ finds the methods of a store in its Python object, which it does not keep alive
    guard.store = GroupStore(client, _TIMEOUT, lambda: guard.check("the making of a process group"))
    dist.init_process_group(
        process_group.BACKEND,
        store=guard.store,
        rank=seat.rank,
        world_size=seat.world_size,
        timeout=_TIMEOUT,
    )
    earlier = [group for group in seat.groups if groups.place_of(group[0]) < seat.groups_before_mesh]
    groups.make_groups(earlier, seat.groups_before_mesh, seat.rank)  # in the order in which others build them
    mesh = scaling.make_mesh(device.type, seat.mesh)
    groups.make_groups(list(seat.groups), seat.num_groups, seat.rank)
    recorder.enabled = wanted
    return mesh


def _prepare_interpreter(seat: RankSeat) -> None:
    """What code on a rank expects of its process, and what it cannot have."""
    # as torchrun names them
    os.environ.update(RANK=str(seat.rank), LOCAL_RANK=str(seat.local_rank))
    scaling.tell_environment(seat.world_size, len(seat.local_ranks))
    # IPython warns after sys.exit() how to leave a terminal; the reply says what happened here
    warnings.filterwarnings("ignore", message="To exit: use", category=UserWarning)
    # processes that a cell forks (multiprocessing, data loaders) end as any other process does
    os.register_at_fork(after_in_child=_become_plain)


def _become_plain() -> None:
    """A process that a cell has forked: neither the rank's signals nor its sockets are its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    Prompter.uninstall()
    Debugger.uninstall()


def _prepare_shell(shell: Any) -> None:
    """What IPython does for a front-end of its own is done for the link."""
    # `exit` and `quit` would stop the engine's event loop
    shell.ask_exit = _exit_cell
    # `name?` is shown as output
    shell.set_hook("show_in_pager", page.as_hook(page.display_page), 90)
    recognize_plain_source(shell)
    # tqdm.auto and others take this for a kernel whose widgets somebody shows; their text form is what works here
    shell.config.pop("IPKernelApp", None)


def _exit_cell() -> None:
    raise SystemExit


def prepare_template() -> None:
    """What ranks share: called in the template after its imports and before its first fork."""
    assert threading.active_count() == 1, "the template must not have threads when it forks"
    devices.check_untouched()
    gc.collect()
    gc.freeze()  # the collector then leaves shared pages alone, so they stay shared
