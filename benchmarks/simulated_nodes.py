"""Nodes without torch and without processes of ranks: real links to a real head, and an echo in the place of ranks.

``python simulated_nodes.py 0 256 < ticket`` is 256 of them, from number 0. Used by bench_scale.py.
"""

from __future__ import annotations

import os
import time

from hpcnb.core import messages as m
from hpcnb.core.launch import AgentSpec
from hpcnb.core.ranks import RankSet
from hpcnb.node.uplink import Uplink


class Echo:
    """Stands where a node has its ranks: every rank says the cell's source and answers at once."""

    def __init__(self, spec: AgentSpec, above: Uplink) -> None:
        self._above = above
        self._ranks = RankSet(range(spec.first_rank, spec.first_rank + spec.num_ranks))
        self._host = os.uname().nodename

    def start(self) -> None:
        now_ns = time.perf_counter_ns()
        self._above.tell(m.Stage("import torch", now_ns, now_ns))
        for rank in self._ranks:
            self._above.tell(m.RankReady(rank, 100_000 + rank, f"{self._host}-{rank}", "cpu", {}))

    def begin(self, message) -> None:
        now_ns = time.perf_counter_ns()
        ranks = message.ranks & self._ranks
        replies, spans = [], {}
        for rank in ranks:
            value = m.CellReply(
                message.cell, rank, ok=True, start_ns=now_ns, end_ns=time.perf_counter_ns(), value="", has_value=False,
                value_shown=False, value_pickle=b"", value_problem="", error=None, notices=[], is_broken=False,
            )  # fmt: skip
            replies.append([getattr(value, name) for name in m.names_of(value)])
            spans[rank] = b""
        if isinstance(message, m.RunCell):
            self._above.say(m.Output(message.cell, [(ranks, [("stdout", message.source + "\n")])]))
        strings = {rank: {} for rank in ranks}
        lost = dict.fromkeys(ranks, 0)
        self._above.say(m.CellDone(message.cell, replies, spans, strings, lost, time.perf_counter_ns()))

    def obey(self, order) -> None:
        pass

    def alarm(self, seconds: float) -> None:
        pass

    def restart(self, message) -> None:
        pass

    def status(self, answer) -> None:
        answer([{"rank": rank, "host": self._host, "pid": 100_000 + rank, "device": "cpu", "state": "idle",
                 "memory_mb": 0.0} for rank in self._ranks])  # fmt: skip

    def log(self, _rank: int, answer) -> None:
        answer("")
