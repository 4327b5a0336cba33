"""The ring of span records: written and drained in any order, overtaken, damaged, full."""

from __future__ import annotations

import mmap
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core import spans
from hpcnb.core.spans import SPAN, SPAN_FIELDS, Category, RankState, RingReader, RingWriter, SpanRecord

LIMITS = {
    "B": (0, 2**8),
    "H": (0, 2**16),
    "I": (0, 2**32),
    "Q": (0, 2**64),
    "i": (-(2**31), 2**31),
    "q": (-(2**63), 2**63),
}
records = st.builds(SpanRecord, *[st.integers(LIMITS[code][0], LIMITS[code][1] - 1) for _, code in SPAN_FIELDS])


def ring(num_slots):
    memory = mmap.mmap(-1, spans.ring_bytes(num_slots))
    return memory, RingWriter(memory, num_slots)


def record(number):
    return SpanRecord(0, 0, 0, 0, 0, 0, 0, 0, -1, -1, number, 0, 0, number * 10, number * 10 + 5, 0, 0, 0)


def numbers(packed):
    return [SpanRecord(*each).sequence for each in SPAN.iter_unpack(packed)]


def test_fields_are_the_record():
    assert tuple(name for name, _ in SPAN_FIELDS) == SpanRecord._fields
    assert tuple(category.name.lower() for category in Category) == spans.CATEGORY_NAMES


@given(st.lists(records, max_size=10))
def test_every_value_comes_back(written):
    memory, writer = ring(16)
    for each in written:
        writer.write(*each)
    packed, lost = RingReader(memory).drain()
    assert [SpanRecord(*each) for each in SPAN.iter_unpack(packed)] == written
    assert lost == 0


@given(st.integers(1, 100), st.lists(st.integers(0, 70), max_size=12))
def test_a_record_is_read_once_in_order_or_counted_as_lost(num_slots, bursts):
    memory, writer = ring(num_slots)
    reader = RingReader(memory)
    written = position = 0
    for burst in bursts:
        for _ in range(burst):
            writer.write(*record(written))
            written += 1
        packed, lost = reader.drain()
        position += lost
        assert numbers(packed) == list(range(position, written))
        position = written
        if burst < num_slots:
            assert lost == 0
        assert len(packed) // SPAN.size >= min(burst, num_slots - 1)
        assert reader.drain() == (b"", 0)


class Overtaken(mmap.mmap):
    """Memory whose writer writes while the reader copies."""

    def __getitem__(self, where):
        if self.pending and isinstance(where, slice) and where.start >= spans.HEADER_BYTES:
            copied = super().__getitem__(where)
            half = len(copied) // 2
            self.pending.pop()()
            return copied[:half] + super().__getitem__(slice(where.start + half, where.stop))
        return super().__getitem__(where)


@given(st.integers(2, 40), st.integers(1, 100), st.integers(0, 100))
def test_a_reader_that_is_overtaken_while_it_copies_gives_no_torn_records(num_slots, before, during):
    memory = Overtaken(-1, spans.ring_bytes(num_slots))
    memory.pending = []
    writer = RingWriter(memory, num_slots)
    reader = RingReader(memory)
    for number in range(before):
        writer.write(*record(number))

    def overtake():
        for number in range(before, before + during):
            writer.write(*record(number))

    memory.pending = [overtake]
    packed, lost = reader.drain()
    assert numbers(packed) == list(range(lost, before))
    again, lost_again = reader.drain()
    assert numbers(again) == list(range(before + lost_again, before + during))


@given(st.lists(st.text(max_size=30) | st.sampled_from(["all_reduce", "", "cell 1"])))
def test_strings_are_numbered_once(texts):
    memory, writer = ring(4)
    reader = RingReader(memory)
    given_numbers = {}
    for text in texts:
        number = writer.intern(text)
        assert given_numbers.setdefault(text, number) == number
        assert reader.strings()[number] == text
    assert writer.intern("") == 0
    assert len(reader.strings()) == len({*texts, ""})


def test_a_full_string_table_gives_the_empty_string():
    memory, writer = ring(4)
    reader = RingReader(memory)
    kept = [text for number in range(1600) if writer.intern(text := f"{number:0300}")]
    assert 800 < len(kept) < 1600
    assert writer.intern("another " * 40) == 0
    assert writer.intern(kept[5]) == 6
    assert list(reader.strings()) == ["", *kept]
    writer.write(*record(7))  # the table has not grown into the records
    assert numbers(reader.drain()[0]) == [7]


def test_long_and_odd_strings():
    memory, writer = ring(4)
    numbers_of = [writer.intern("\u00e9" * 1000), writer.intern("a\udcff"), writer.intern("after")]
    assert [RingReader(memory).strings()[number] for number in numbers_of] == ["\u00e9" * 250, "a?", "after"]


def test_two_threads_that_name_the_same_string_get_one_number():
    memory, writer = ring(4)

    class Slow(dict):
        """Another thread names the same string between our look and our lock."""

        is_first = True

        def get(self, key, default=None):
            if self.is_first:
                self.is_first = False
                assert writer.intern(key) == 1
                return default
            return super().get(key, default)

    writer._strings = Slow(writer._strings)
    assert writer.intern("all_reduce") == 1
    assert writer.intern("broadcast") == 2
    assert list(RingReader(memory).strings()) == ["", "all_reduce", "broadcast"]


@pytest.mark.parametrize("where", ["_texts", "_strings"])
def test_an_interrupt_while_a_string_is_numbered_shifts_no_other(where):
    memory, writer = ring(4)
    reader = RingReader(memory)

    class Torn(dict):
        def __setitem__(self, key, value):
            raise KeyboardInterrupt

    whole = getattr(writer, where)
    setattr(writer, where, Torn(whole))
    with pytest.raises(KeyboardInterrupt):
        writer.intern("a string that is torn")
    setattr(writer, where, whole)
    reader.strings()
    told = {text: writer.intern(text) for text in ("barrier", "a string that is torn", "all_reduce")}
    for strings in (reader.strings(), RingReader(memory).strings()):
        assert all(strings[number] == text == writer.text(number) for text, number in told.items())


def test_strings_are_looked_up_while_another_thread_names_more():
    _, writer = ring(4)
    wanted, over = writer.intern("all_reduce"), threading.Event()

    def name_more():
        for number in range(5000):
            writer.intern(f"n{number}")
        over.set()

    thread = threading.Thread(target=name_more)
    thread.start()
    while not over.is_set():
        assert writer.text(wanted) == "all_reduce"
    thread.join()


def test_what_the_main_thread_does():
    memory, writer = ring(4)
    reader = RingReader(memory)
    assert not reader.state().in_communication
    name, group, source = (writer.intern(text) for text in ("all_reduce", "dp", "cell 3"))
    writer.enter_communication(name, group, 17, 6, source, 4096, 123_456_789, 5648, 3 << 40 | 17, -1)
    assert reader.state() == RankState(
        True, "all_reduce", "dp", 17, 6, "cell 3", 4096, 123_456_789, 5648, 3 << 40 | 17, -1
    )  # fmt: skip
    writer.leave_communication()
    assert not reader.state().in_communication


@pytest.mark.parametrize("size", [4096, spans.HEADER_BYTES, spans.ring_bytes(8)])
def test_memory_without_a_ring_is_refused(size):
    with pytest.raises(ValueError, match=f"not a span ring: .* {size} bytes"):
        RingReader(mmap.mmap(-1, size))


@pytest.mark.parametrize("num_slots", [0, 9, 2**32 - 1])
def test_a_ring_that_says_it_is_larger_than_its_memory_is_refused(num_slots):
    memory, _ = ring(8)
    memory[12:16] = num_slots.to_bytes(4, "little")
    with pytest.raises(ValueError, match="not a span ring"):
        RingReader(memory)
