"""``hpc`` in a script that ``%hpc export`` has written: the same methods where no agent and no notebook is.

Collectives go over the process group of the script. Spans are recorded nowhere, and progress is told on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from hpcnb.core.board import NUM_SLOTS, Board, new_board
from hpcnb.core.messages import Message, RankProgress
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RingWriter
from hpcnb.engine.boundary import Boundary
from hpcnb.engine.hpc import Hpc
from hpcnb.engine.recorder import Recorder

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ProgressLines", "hpc_of_script"]

#: A log of a long job should not fill with lines about its progress: so long from one to the next, and to a last one.
_LINE_S, _LAST_LINE_S = 10.0, 1.0


class ProgressLines:
    """Tells on one line now and then how far ``hpc.progress`` is.

    Args:
        stream: Where lines go; by default the stderr of that moment.
        clock: Monotonic seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._told_s = clock()

    def send(self, message: Message) -> None:
        """Take what a loop says of itself."""
        if not isinstance(message, RankProgress):
            return
        now_s = self._clock()
        if now_s - self._told_s < (_LAST_LINE_S if message.finished else _LINE_S):
            return
        self._told_s = now_s
        rate = message.position / message.elapsed_s if message.elapsed_s > 0 else 0.0
        total = f"/{message.total}" if message.total >= 0 else ""
        words = f"{message.description or 'progress'}  {message.position}{total} · {rate:.3g} turns/s"
        print(words, file=self._stream or sys.stderr, flush=True)


class _Silent:
    """Tells nothing: ranks but the first."""

    def send(self, message: Message) -> None:
        pass


def hpc_of_script(rank: int, world_size: int, local_rank: int, device: torch.device, mesh: DeviceMesh) -> Hpc:
    """What cells find as ``hpc``, for a script.

    Args:
        rank: Global rank.
        world_size: Number of ranks.
        local_rank: Rank on this node.
        device: This rank's device.
        mesh: Over all ranks.
    """
    board = Board(new_board(1), RankSet([rank]))  # nobody looks at it
    recorder = Recorder(RingWriter(board.ring(rank), NUM_SLOTS), enabled=False)
    link = ProgressLines() if rank == 0 else _Silent()
    return Hpc(rank, world_size, local_rank, device, mesh, recorder, link, Boundary(board, rank))
