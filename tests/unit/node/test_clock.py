"""The clock of another node: estimated from exchanges, never worse than half of the quickest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcnb.node.clock import ClockOffset

MS = 1_000_000
delays = st.tuples(st.integers(1, 50 * MS), st.integers(1, 50 * MS))


@given(st.integers(-(10**18), 10**18), st.lists(delays, min_size=1, max_size=40))
def test_the_estimate_is_as_good_as_the_quickest_exchange(offset_ns, exchanges):
    clock, now_ns = ClockOffset(), 5_000 * MS
    for there_ns, back_ns in exchanges:
        asked_ns, now_ns = now_ns, now_ns + there_ns + back_ns
        clock.exchanged(asked_ns, asked_ns + there_ns + offset_ns, now_ns)
    quickest_ns = min(map(sum, exchanges))
    assert clock.error_ns == quickest_ns // 2
    if clock.estimate_ns:
        assert abs(clock.estimate_ns - offset_ns) <= quickest_ns // 2 + 1
    else:
        assert abs(offset_ns) <= 1.5 * quickest_ns + 1


def test_the_same_clock_is_not_corrected():
    clock = ClockOffset()
    assert (clock.estimate_ns, clock.error_ns) == (0, 0)
    clock.exchanged(10 * MS, 11 * MS, 12 * MS)
    clock.exchanged(20 * MS, 20 * MS, 22 * MS)
    assert clock.estimate_ns == 0


def test_old_exchanges_are_forgotten_since_clocks_drift():
    clock = ClockOffset()
    clock.exchanged(0, 100 * MS, 2)
    for turn in range(60):
        clock.exchanged(turn * MS, turn * MS + 200 * MS + 5, turn * MS + 10)
    assert clock.estimate_ns == 200 * MS
