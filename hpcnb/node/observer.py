"""Where the ranks of a node are, gathered from the board and /proc; the ranks are not asked."""

from __future__ import annotations

import time

from hpcnb.core import units
from hpcnb.core.board import ANYBODY, Activity, Board, ChannelReader, generation_of, message_key, number_of, stamp
from hpcnb.core.rank_facts import Inside, Issues, RankFacts
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RankState
from hpcnb.node.proc import read_proc
from hpcnb.node.rank_process import RankProcess

__all__ = ["Observer", "is_stopped", "words_of"]


class Observer:
    """Reads the board.

    Args:
        board: Of the node.
        ranks: By global rank.
    """

    def __init__(self, board: Board, ranks: dict[int, RankProcess]) -> None:
        self._board = board
        self._ranks = ranks
        self._members: dict[int, RankSet] = {}

    def group_made(self, key: int, members: RankSet) -> None:
        """A rank uses this group: its channel, its ranks."""
        self._members[key] = members

    def longest_wait_s(self) -> float:
        """How long the rank that waits longest in one operation has done so; infinite if a rank is stopped."""
        longest_s = 0.0
        now_ns = time.perf_counter_ns()
        for process in self._ranks.values():
            if process.cell and process.alive:
                state = process.communication()
                if state is not None:
                    longest_s = max(longest_s, (now_ns - state.since_ns) / 1e9)
        return longest_s

    def any_stopped(self) -> bool:
        """Whether a rank that runs a cell is stopped."""
        return any(process.cell and process.alive and is_stopped(process.pid) for process in self._ranks.values())

    def facts(self) -> dict[int, RankFacts]:
        """What is known of each rank now."""
        now_ns = time.perf_counter_ns()
        inside: dict[int, Inside] = {}
        for rank, process in self._ranks.items():
            state = process.communication() if process.alive and process.cell else None
            if state is not None and (found := self._inside(rank, state, now_ns)) is not None:
                inside[rank] = found
        stamps: dict[int, set[int]] = {}
        for each in inside.values():
            if each.key:
                stamps.setdefault(each.key, set()).add(each.stamp)
        return {
            rank: self._facts(rank, process, inside.get(rank), stamps)
            for rank, process in self._ranks.items()
            if process.alive and process.ready is not None
        }

    def _inside(self, rank: int, state: RankState, now_ns: int) -> Inside | None:
        if state.channel < 0:
            return None
        memory = self._board.channels(rank)
        key = int.from_bytes(memory[state.channel : state.channel + 8], "little")
        age_s = (now_ns - state.since_ns) / 1e9
        if state.peer == ANYBODY:
            members = self._members.get(key, RankSet())
            if not members or not all(map(self._board.holds, members)) or self._has_message(rank, key, members, state):
                return None  # it goes on, or nobody here can tell
            return Inside(words_of(state), 0, state.sequence, members, age_s, is_any=True)
        members = self._members.get(key, RankSet()) if state.peer < 0 else RankSet([rank, state.peer])
        return Inside(words_of(state), key, state.stamp, members, age_s)

    def _has_message(self, rank: int, group: int, members: RankSet, state: RankState) -> bool:
        """Whether somebody has sent what this rank receives from anybody: its stamp is generation and tag."""
        mine = ChannelReader(self._board.channels(rank))
        generation, tag = generation_of(state.stamp), number_of(state.stamp)
        for peer in members - RankSet([rank]):
            theirs = ChannelReader(self._board.channels(peer))
            key = message_key(group, peer, rank, tag)
            if (sent := _newest(theirs, key)) >= stamp(generation, 1) and sent > _newest(mine, key):
                return True
        return False

    def _facts(self, rank: int, process: RankProcess, inside: Inside | None, stamps: dict[int, set[int]]) -> RankFacts:
        reader = ChannelReader(self._board.channels(rank))
        issues: dict[int, Issues] = {}
        for key, wanted in stamps.items():
            at = reader.find(key)
            if at >= 0:
                issues[key] = self._issues(process, reader, at, wanted)
        activity = self._board.activity(rank).activity
        if process.cell and activity == Activity.IDLE:
            activity = Activity.CELL  # on its way to the rank, or its reply on its way to us
        return RankFacts(activity, process.cell, is_stopped(process.pid), inside, issues, reader.full)

    @staticmethod
    def _issues(process: RankProcess, reader: ChannelReader, at: int, wanted: set[int]) -> Issues:
        newest = reader.newest_kept(at)  # others wait in vain for what this rank has given up
        strings = process.strings()
        last: dict[int, tuple[int, str]] = {}
        for stamped in wanted:
            issued = reader.issued(at, stamped) if stamped <= newest else None
            if issued is not None and issued.description < len(strings):
                line = f" (line {issued.line})" if issued.line else ""
                last[stamped] = (issued.signature, strings[issued.description] + line)
        return Issues(newest, last)


def _newest(reader: ChannelReader, key: int) -> int:
    at = reader.find(key)
    return reader.newest(at) if at >= 0 else 0


def words_of(state: RankState) -> str:
    """What a rank waits in, as a person reads it: ``all_reduce #17 (4.2 MB, line 6)``."""
    line = f", line {state.line}" if state.line else ""
    return f"{state.name} #{state.sequence} ({units.size(state.num_bytes)}{line})"


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP); false for one that a debugger holds."""
    status = read_proc(pid, "stat").rpartition(b")")[2].split()  # its name, in parentheses, may hold anything
    return bool(status) and status[0] == b"T"
