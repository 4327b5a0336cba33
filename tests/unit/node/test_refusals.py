"""The log of refusals: bounded, whatever peers do."""

from __future__ import annotations

import logging

from hpcnb.node.refusals import Refusals


def test_each_peer_and_kind_is_written_once_and_then_counted(caplog):
    now_s = [0.0]
    refusals = Refusals(logging.getLogger("test"), lambda: now_s[0])
    for number in range(1000):
        refusals.note("process 7", "no message", f"frame {number}\n{'x' * 1000}")
    refusals.note("process 8", "no message", "")
    refusals.tick()
    assert len(caplog.records) == 2
    assert caplog.messages[0].startswith("refused process 7: no message (frame 0\\nxxx")
    assert len(caplog.messages[0]) < 300
    now_s[0] = 61.0
    refusals.tick()
    refusals.tick()
    assert caplog.messages[2:] == ["refused process 7: no message, 1000 times so far"]
    assert refusals.total == 1001


def test_many_peers_are_counted_together(caplog):
    refusals = Refusals(logging.getLogger("test"), lambda: 0.0)
    for number in range(5000):
        refusals.note(f"process {number}", "kind", "words")
    refusals.flush()
    assert len(caplog.records) == 202
    assert caplog.messages[-1] == "refused other peers: refused, 4800 times so far"
    assert refusals.total == 5000
