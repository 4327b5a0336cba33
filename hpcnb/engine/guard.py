"""Whether a rank may issue an operation: the groups are whole, and the others issue the same one.

Before an operation goes to the backend it is published on the node's board and compared with what the others have
published under the same number. gloo would abort the interpreter where sizes differ and compute nonsense where types,
roots or operations differ. Of two ranks that differ at least the later one sees it, and does not issue: no byte of it
meets a byte of the other. A repeated operation costs a few lookups; no message is sent.

The guard also knows when groups are broken (a rank was released, died, or gave up a wait): until they are built
again, every operation is refused at once, so that clean-up code of a cell cannot hang a second time.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from zlib import crc32

from hpcnb.core.board import (
    HISTORY,
    NUM_CHANNELS,
    Board,
    ChannelReader,
    ChannelWriter,
    Issued,
    channel_key,
    generation_of,
    message_key,
    number_of,
    stamp,
)
from hpcnb.core.errors import CollectiveAborted, CollectiveError, CollectiveMismatch
from hpcnb.core.messages import GroupMade, Message
from hpcnb.core.ranks import RankSet
from hpcnb.core.spans import RingReader, RingWriter
from hpcnb.engine.ledger import BLOCK, Ledger

if TYPE_CHECKING:
    import torch

__all__ = ["Channel", "Guard", "Signature", "raise_instead"]

#: A rank waits before it is so many collectives ahead of a peer, which could not compare any more; but not for long.
_AHEAD = HISTORY - 8
_AHEAD_S = 1.0
_AHEAD_PAUSE_S = 0.0005
#: How gloo and the kernel say that the other side is gone.
_GLOO = re.compile(r"gloo/transport")
_LOST = re.compile(r"gloo/transport|[Cc]onnection (closed|reset|refused)|Broken pipe|Socket (closed|is not connected)")

#: So many different shapes are told in words; more would fill the table that all names share.
_MOST_SHAPES = 300

#: Words of an operation whose number of elements is in its signature only, and what makes it part of that number: an
#: odd factor, which can be taken back. 2^32 elements and more are not told.
_SOME = "[...]"
_SPREAD, _WORD = 0x9E3779B1, 1 << 32
_NUMBER = number_of(-1)

#: What an operation is, as numbers: for comparison, and its words in the string table.
Signature = tuple[int, int]


@dataclass(slots=True, eq=False)
class _Peer:
    rank: int
    reader: ChannelReader
    at: int = -1


@dataclass(slots=True, eq=False)
class Channel:
    """A sequence of operations that all who take part must issue alike."""

    key: int
    at: int
    members: RankSet
    sender: int = -1  #: of messages; -1 for collectives
    group: str = ""  #: name of the process group; "" for what ranks do before they have one
    is_behind: bool = False  #: peers have been waited for in vain, and have not caught up since
    told: int = 0  #: stamp when it was last asked what has been issued
    peers: list[_Peer] = field(default_factory=list)
    newest: int = 0
    passed: int = 0  #: stamp that all peers have come to, when that was last looked up


class Guard:
    """The guard of one rank.

    Args:
        board: Of the node.
        rank: Global rank.
        ring: Holds the strings.
        tell: Sends a message to the agent.
    """

    def __init__(self, board: Board, rank: int, ring: RingWriter, tell: Callable[[Message], None]) -> None:
        self.rank = rank
        self.generation = 0
        self.broken: str = ""  #: why groups cannot be used; "" if they can
        self.store: Any = None  #: of the groups; lives as long as they do
        self.mismatch = False  #: ... because ranks called different operations
        self.living: Callable[[], set[str]] | None = None  #: names of the groups that have not been destroyed
        self._board = board
        self._ring = ring
        self._tell = tell
        self._own = ChannelWriter(board.channels(rank))
        self._readers: dict[int, ChannelReader] = {}
        self._channels: dict[int, Channel] = {}
        self._groups: dict[str, int] = {}  # channels of their collectives
        self._signatures: dict[object, Signature] = {}
        self._shapes: set[tuple[str, ...]] = set()
        self._ledger = Ledger(rank, ChannelReader(board.channels(rank)))
        self._breaking = threading.Lock()
        self._fence = threading.Lock()
        self._base = 0  # stamps of this generation are larger
        self._notices: list[str] = []
        self._is_told = False  # that there is no room for more channels

    # --- channels -------------------------------------------------------------------------------------------

    def collectives(self, group: str, members: list[int]) -> Channel:
        """The channel of a group's collectives; ``group`` is the same text on its ranks and on no others."""
        key = self._groups[group] = channel_key("collectives", group, tuple(members))
        channel = self._open(key, RankSet(members), group=group)
        self._tell(GroupMade(channel.key, channel.members))  # who takes part cannot be read from the board
        return channel

    def messages(self, group: str, sender: int, receiver: int, tag: int) -> Channel:
        """The channel of messages from one rank to another; the group's own channel has been asked for before."""
        key = message_key(self._groups.get(group, group), sender, receiver, tag)
        return self._open(key, RankSet([sender, receiver]), sender, group)

    def making(self, members: list[int]) -> Channel:
        """The channel of what these ranks do together before they have a group: they make one."""
        channel = self._open(channel_key("making", tuple(members)), RankSet(members))
        self._tell(GroupMade(channel.key, channel.members))
        return channel

    def _open(self, key: int, members: RankSet, sender: int = -1, group: str = "") -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(key, -1, members, sender, group)
            for peer in members:
                if peer != self.rank and self._board.holds(peer):
                    channel.peers.append(_Peer(peer, self._reader(peer)))
        if channel.at < 0:
            self._place(channel)
        return channel

    def _reader(self, rank: int) -> ChannelReader:
        if (reader := self._readers.get(rank)) is None:
            reader = self._readers[rank] = ChannelReader(self._board.channels(rank))
        return reader

    def _place(self, channel: Channel) -> None:
        """Give the channel a place on the board; the numbers of its operations go on."""
        if not self._own.has_room:
            self._make_room(channel.group)
        if channel.at < 0:  # else it was among those that were waiting for room
            channel.at = self._own.open(channel.key, channel.newest)
        if channel.at < 0 and not self._is_told:
            self._is_told = True
            self._notices.append(
                "this rank uses more process groups, or messages with more tags, than hpcnb compares "
                f"({NUM_CHANNELS}): calls in further ones that differ between ranks hang or end a process. "
                "dist.destroy_process_group for groups that are done makes room"
            )

    def _make_room(self, group: str) -> None:
        """Take the places of groups that were destroyed; ``group`` is just being made."""
        if self.living is None:
            return
        living = self.living() | {"", group}
        for channel in self._channels.values():  # kept: a group of the same name goes on where this one ended
            if channel.at >= 0 and channel.group not in living:
                self._own.close(channel.at)
                channel.at = -1
        # where there is room, all that is used has a place: who looks relies on it
        for channel in self._channels.values():
            if channel.at < 0 and channel.group in living and self._number(channel.newest):
                channel.at = self._own.open(channel.key, channel.newest)

    def take_notices(self) -> list[str]:
        """What the person should know, once."""
        notices, self._notices = self._notices, []
        return notices

    def sent(self, group: str, sender: int, tag: int) -> int:
        """How many messages ``sender`` has issued to this rank in this generation."""
        if not self._board.holds(sender):
            return 0
        reader = self._reader(sender)
        at = reader.find(message_key(self._groups.get(group, group), sender, self.rank, tag))
        return self._number(reader.newest(at)) if at >= 0 else 0

    def missing(self, channel: Channel, stamped: int) -> RankSet:
        """Who has not issued this operation; of the ranks on this node."""
        return RankSet(peer.rank for peer in channel.peers if _passed(peer, channel.key) < stamped)

    def num_issued(self, channel: Channel) -> int:
        """How many operations this rank has issued in this generation."""
        return self._number(channel.newest)

    def _number(self, stamped: int) -> int:
        return number_of(stamped) if generation_of(stamped) == self.generation else 0

    def issued(self) -> list[tuple[int, int, RankSet]]:
        """Collectives since the last call: channel, how many, ranks of the group."""
        counts = []
        for channel in self._channels.values():
            if channel.sender < 0 and channel.newest != channel.told:
                before = self._number(channel.told)
                channel.told = channel.newest
                counts.append((channel.key, self._number(channel.newest) - before, channel.members))
        return counts

    # --- before an operation --------------------------------------------------------------------------------

    def signature(self, name: str, tensors: list[torch.Tensor], details: tuple[object, ...]) -> Signature:
        """What has to be equal on all ranks, as a number, and its words.

        Args:
            name: ``all_reduce``.
            tensors: What this rank contributes; their types and numbers of elements count.
            details: Reduce operation, root.
        """
        key = (name, details, *[(tensor.dtype, tensor.shape) for tensor in tensors])
        if (known := self._signatures.get(key)) is not None:
            return known
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors]
        shapes = [f"{dtype}{list(tensor.shape)}" for dtype, tensor in zip(dtypes, tensors, strict=True)]
        shown = shapes[:3] + ([f"... {len(shapes)} tensors"] if len(shapes) > 3 else [])
        if len(tensors) == 1:
            sizes = [f"{dtypes[0]}{_SOME}"]
            num_elements = tensors[0].numel()
        else:
            sizes = [f"{dtype}[{tensor.numel()}]" for dtype, tensor in zip(dtypes, tensors, strict=True)]
            num_elements = 0
        bare = f"{name}({', '.join([*sizes, *map(str, details)])})"
        if len(self._shapes) >= _MOST_SHAPES and (name, *shapes) not in self._shapes:  # strings have little room
            some = [f"{dtypes[0]}{_some(num_elements)}"] if len(tensors) == 1 else sorted(set(dtypes))
            shown = some if len(tensors) == 1 else [*some, f"{len(shapes)} tensors"]
        elif len(self._shapes) < _MOST_SHAPES:
            self._shapes.add((name, *shapes))
        words = f"{name}({', '.join([*shown, *map(str, details)])})" if tensors else bare
        known = _checked(bare, num_elements), self._ring.intern(words)
        if len(self._signatures) > 4096:  # shapes that never repeat: forget them all
            self._signatures.clear()
        self._signatures[key] = known
        return known

    def part(self, dtype: torch.dtype, num_elements: int) -> Signature:
        """The same for what one rank sends to another within an all_to_all."""
        key = ("part", dtype, num_elements)
        if (known := self._signatures.get(key)) is None:
            words = f"part of an all_to_all: {str(dtype).removeprefix('torch.')}"
            known = _checked(f"{words}{_SOME}", num_elements), self._ring.intern(f"{words}{_some(num_elements)}")
            if len(self._signatures) <= 4096:
                self._signatures[key] = known
        return known

    def issue(self, channel: Channel, signature: Signature, line: int, source: int) -> int:
        """Publish an operation and compare it with the others'; returns its stamp.

        Raises:
            CollectiveAborted: Groups are broken.
            CollectiveMismatch: Another rank has issued something else under this number.
        """
        if self.broken:
            raise self.error(self._ring.text(signature[1]))
        stamped = channel.newest + 1
        if stamped <= self._base:
            stamped = self._base + 1
        if channel.at < 0 and not self._find_place(channel):
            channel.newest = stamped
            return stamped
        if stamped & _NUMBER > _AHEAD:  # before anything is said, so that it can be given up
            if channel.sender < 0 and stamped - channel.passed > _AHEAD:
                self._await_peers(channel, stamped)
            if not stamped % BLOCK and channel.peers and self.store is not None:
                passed = [max(0, _passed(peer, channel.key)) for peer in channel.peers]
                self._ledger.keep(self.store, channel.key, channel.at, stamped, passed)
        channel.newest = stamped
        checked, key = signature[0], channel.key
        self._own.publish(channel.at, stamped, (checked, line, source, signature[1]))
        # x86 may let the looks below overtake the store above, while it is on its way to the cache: two ranks that
        # issue at once would both see nothing. Taking a lock is an atomic exchange, and waits for the store.
        with self._fence:  # not acquire() and release(): an interrupt between the two would leave it taken for good
            pass
        for peer in channel.peers:
            newest = peer.reader.newest_of(peer.at, key)
            if newest < 0:  # not found yet, or its place was taken
                newest = _passed(peer, key)
            if newest >= stamped:
                theirs = peer.reader.signature(peer.at, stamped)
                if theirs != checked:
                    self._look_again(channel, peer, stamped, signature, line)
        return stamped

    def _find_place(self, channel: Channel) -> bool:
        """Whether a channel that has no place on the board has one now."""
        if self._channels.setdefault(channel.key, channel) is not channel:
            return False  # of a group that was destroyed, and made again
        if self._own.has_room or channel.newest % HISTORY == 0:  # groups may have been destroyed; asked seldom
            self._place(channel)
        return channel.at >= 0

    def refused(self, channel: Channel, stamped: int) -> None:
        """The backend did not take the operation: it was never issued, and the next one has its number."""
        if channel.newest == stamped:
            channel.newest = stamped - 1
            if channel.at >= 0:
                self._own.withdraw(channel.at, stamped)

    def given_up(self, channel: Channel, stamped: int) -> None:
        """This rank does not wait for the operation any more, but the backend still has it.

        Others wait for it in vain, and who comes to it now must not issue it: tensors would meet that belong to another
        operation, or that have been changed since.
        """
        if channel.at >= 0 and generation_of(stamped) == self.generation:
            self._own.give_up(channel.at, stamped)

    def _await_peers(self, channel: Channel, stamped: int) -> None:
        """Let peers that are far behind catch up, so that they find on the board what they have to compare.

        For a while only, and once until they have caught up: a program may well issue many operations before others
        come to theirs, nobody who watches sees this wait, and what is overwritten is in the ledger.
        """
        deadline_s = 0.0
        slowest = stamped
        for peer in channel.peers:
            while (passed := _passed(peer, channel.key)) + _AHEAD < stamped:
                if channel.is_behind:
                    return
                if peer.at < 0 and peer.reader.full:
                    break  # it has no room to say what it issues
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + _AHEAD_S
                if now_s > deadline_s:
                    channel.is_behind = True
                    return
                self.check()
                time.sleep(_AHEAD_PAUSE_S)
            else:
                slowest = min(slowest, passed)
        channel.is_behind, channel.passed = False, slowest

    def _look_again(self, channel: Channel, peer: _Peer, stamped: int, signature: Signature, line: int) -> None:
        """What a peer has issued seems to be something else, or too old to be on the board.

        The first look may have met the moment at which it was overwritten: the stamp of one operation, and the rest of
        the next. A stamp that is still there says that what was read between belongs to it.
        """
        reader, at = peer.reader, peer.at
        checked, theirs = reader.signature(at, stamped), reader.issued(at, stamped)
        if theirs is not None:
            checked = theirs.signature  # also of one that was given up
        if reader.signature(at, stamped) is None and reader.issued(at, stamped) is None:
            checked, theirs = None, None
            if reader.newest_of(at, channel.key) < 0:
                return  # its place has just been taken: the peer has destroyed the group
            if self.store is not None:
                theirs = self._ledger.find(self.store, channel.key, peer.rank, stamped)
                checked = theirs.signature if theirs is not None else None
        if checked is not None and checked != signature[0]:
            self._differ(channel, peer, stamped, theirs, signature, line)
        if reader.given_up(at, stamped):
            self.given_up(channel, stamped)  # nor will this rank complete it
            self.break_groups(f"rank {peer.rank} does not wait for it any more")
            raise self.error(_words(self._ring.text(signature[1]), line, signature[0]))

    def _differ(
        self, channel: Channel, peer: _Peer, stamped: int, theirs: Issued | None, signature: Signature, line: int
    ) -> None:
        other = self._words_of(peer, theirs) or "something older"
        description = signature[1]
        mine = _words(self._ring.text(description), line, signature[0])
        number = number_of(stamped)
        if channel.sender < 0:
            called: dict[str, list[int]] = {}
            for rank, what in sorted(
                {**self._issued_there(channel, stamped), self.rank: mine, peer.rank: other}.items()
            ):
                called.setdefault(what, []).append(rank)
            parts = " and ".join(f"{RankSet(ranks).words()} called {what}" for what, ranks in called.items())
            words = f"as operation {number} of ranks {channel.members}, {parts}"
        else:  # the board has one word for both ends
            sent, expected = (mine, other) if channel.sender == self.rank else (other, mine)
            sent, expected = sent.replace("message(", "send(", 1), expected.replace("message(", "recv(", 1)
            receiver = (channel.members - RankSet([channel.sender])).first()
            words = f"message {number} from rank {channel.sender} is {sent}, and rank {receiver} expects {expected}"
        self.break_groups(words, mismatch=True)
        raise self.error(self._ring.text(description))

    def _issued_there(self, channel: Channel, stamped: int) -> dict[int, str]:
        """What other ranks have issued under this number, in words; those of which it is still known."""
        found: dict[int, str] = {}
        for peer in channel.peers:
            at = peer.at if peer.at >= 0 else peer.reader.find(channel.key)
            if words := self._words_of(peer, peer.reader.issued(at, stamped) if at >= 0 else None):
                found[peer.rank] = words
        return found

    def _words_of(self, peer: _Peer, theirs: Issued | None) -> str:
        """What a peer has issued, in its own words; "" if they are not known."""
        if theirs is None:
            return ""
        strings = RingReader(self._board.ring(peer.rank)).strings()
        if theirs.description >= len(strings):
            return ""
        return _words(strings[theirs.description], theirs.line, theirs.signature)

    # --- broken groups --------------------------------------------------------------------------------------

    def break_groups(self, reason: str, *, mismatch: bool = False) -> None:
        """No operation from now on, until groups are built again; the first reason stays. From any thread."""
        with self._breaking:  # a mismatch that is found here while the agent releases the rank: one of the two
            if not self.broken:
                self.mismatch = mismatch
                self.broken = reason

    def reseat(self, ranks: RankSet, resized: str) -> None:
        """These are all ranks from now on; the group ``resized`` begins anew, and those with other ranks are over."""
        self._readers = {rank: reader for rank, reader in self._readers.items() if rank in ranks}
        for key, channel in list(self._channels.items()):
            if channel.members - ranks or channel.group == resized:
                if channel.at >= 0:
                    self._own.close(channel.at)
                channel.at = -1
                del self._channels[key]

    def mend(self, generation: int) -> None:
        """Groups are about to be built again under a new generation."""
        self.broken = ""
        self.mismatch = False
        self.generation = generation
        self._base = stamp(generation, 0)
        if self.store is not None:
            self._ledger.forget(self.store)
        living = None if self.living is None else self.living() | {""}
        channels, self._channels = self._channels, {}
        for key, channel in channels.items():
            if channel.at >= 0:
                self._own.close(channel.at)
            channel.at, channel.is_behind, channel.passed = -1, False, 0
            if living is None or channel.group in living:  # of others the numbers are not needed any more
                self._channels[key] = channel
        for channel in self._channels.values():  # of messages when there are some
            if channel.sender < 0:
                channel.at = self._own.open(channel.key, channel.newest)

    def check(self, operation: str = "") -> None:
        """Raise if groups are broken."""
        if self.broken:
            raise self.error(operation)

    def error(self, operation: str, waited_s: float = 0.0) -> CollectiveError:
        """The error of an operation that groups cannot complete."""
        kind = CollectiveMismatch if self.mismatch else CollectiveAborted
        subject = f"{operation or 'this operation'} cannot be completed: " if not self.mismatch else ""
        error = kind(f"{subject}{self.broken}")
        error.operation, error.waited_s = operation, waited_s
        return error

    @staticmethod
    def outdated(operation: str) -> CollectiveAborted:
        """The error of an operation whose connections have been replaced; the groups are whole."""
        error = CollectiveAborted(
            f"{operation} cannot be completed: process groups have been built again since it was called"
        )
        error.operation = operation
        return error

    def explained(
        self,
        error: BaseException,
        operation: str,
        waited_s: float,
        *,
        in_wait: bool = True,
        generation: int | None = None,
    ) -> BaseException:
        """What to raise instead of what a wait raised; breaks the groups when connections are lost.

        Args:
            error: What was raised.
            operation: What was waited in, in words.
            waited_s: For how long.
            in_wait: Whether it came from a wait of ours; else it may be anything that a cell raises.
            generation: That the operation was issued in; by default the one that groups are in.
        """
        if generation not in (None, self.generation):  # says nothing of the groups as they are now
            return self.outdated(operation) if isinstance(error, RuntimeError) else error
        if isinstance(error, CollectiveError):
            return error if error.operation or not self.broken else self.error(operation, waited_s)
        if not isinstance(error, RuntimeError):
            if in_wait:  # what is given up is half done
                error.given_up = operation  # type: ignore[attr-defined] # for engine/failure.py
                self.break_groups(f"a wait was given up ({type(error).__name__})")
            return error
        if (_LOST if in_wait else _GLOO).search(str(error)):
            self.break_groups("it timed out" if "imed out" in str(error) else "the connection to another rank is lost")
        elif not in_wait:
            return error
        elif not self.broken:
            self.break_groups(f"it failed ({str(error).splitlines()[0][:200] if str(error) else 'without a word'})")
            return error
        return self.error(operation or "communication", waited_s)


def raise_instead(error: BaseException, explained: BaseException) -> NoReturn:
    """While ``error`` is handled, raise ``explained``, which may be the same."""
    try:
        if explained is error:
            raise  # noqa: PLE0704 - the caller handles it
        raise explained from None
    finally:
        del error, explained  # they would hold this frame, and the frame them


def _passed(peer: _Peer, key: int) -> int:
    """Stamp that the peer has come to in this channel; -1 where it is not on the board."""
    newest = peer.reader.newest_of(peer.at, key)
    if newest < 0:
        peer.at = peer.reader.find(key)
        newest = peer.reader.newest_of(peer.at, key)
    return newest


def _some(num_elements: int) -> str:
    return _SOME if num_elements < _WORD else "[2^32 or more]"


def _checked(words: str, num_elements: int) -> int:
    """What ranks compare; from it and the words the number of elements can be told."""
    if num_elements >= _WORD:
        return crc32(f"{words} {num_elements}".encode())
    return crc32(words.encode()) ^ num_elements * _SPREAD % _WORD


def _words(description: str, line: int, checked: int) -> str:
    if _SOME in description:
        num_elements = (checked ^ crc32(description.encode())) * pow(_SPREAD, -1, _WORD) % _WORD
        description = description.replace(_SOME, f"[{num_elements}]")
    return f"{description} (line {line})" if line else description
