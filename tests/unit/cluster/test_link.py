"""The notebook's end of the link: what is sent once it is closed goes nowhere."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest

from hpcnb import Cluster
from hpcnb.cluster import link as link_module
from hpcnb.cluster.launchers import local
from hpcnb.cluster.link import Link
from hpcnb.core import messages as m
from hpcnb.core.errors import TransferError
from hpcnb.core.launch import RunFolder
from hpcnb.core.mesh import MeshSpec
from hpcnb.core.ranks import RankSet


@pytest.fixture
def link(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCNB_RUNTIME_DIR", str(tmp_path))
    spec = local.new_spec(
        RunFolder.create("x"), MeshSpec.parse("dp=1"), cluster_name="x", threads_per_rank=1, idle_timeout_s=1.0,
        environment={},
    )  # fmt: skip
    link = Link(spec, lambda _: None)
    yield link
    link.close()


def test_what_is_sent_after_close_writes_into_no_file_of_somebody_else(link):
    before = {link._wake_read, link._wake_write}
    link.close()
    pipes = [os.pipe() for _ in range(10)]  # take the numbers that are free now
    assert before <= {end for pipe in pipes for end in pipe}
    link.send(m.Interrupt(0, RankSet([0])))
    for read, write in pipes:
        os.close(write)
        assert os.read(read, 10) == b""
        os.close(read)


def test_threads_that_send_while_it_is_closed_fail_in_nothing(link):
    failed = []

    def send():
        try:
            for _ in range(2000):
                link.send(m.Interrupt(0, RankSet([0])))
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    link.close()
    for thread in threads:
        thread.join()
    assert failed == []


def test_who_waits_is_told_of_a_detach_before_the_link_is_closed(monkeypatch):
    cluster, told = Cluster(1), []
    monkeypatch.setattr(cluster._submitter, "let_go", lambda: told.append("who waits"))
    cluster._node = SimpleNamespace(let_go=lambda: told.append("link"))
    cluster.detach()
    assert told == ["who waits", "link"]


def test_what_cannot_be_sent_raises_where_it_is_sent(link, monkeypatch):
    with pytest.raises(TransferError, match=r"Check\.rng cannot be a int"):
        link.send(m.Check(1, RankSet([0]), ["x"], 1))
    monkeypatch.setattr(link_module, "MAX_MESSAGE_BYTES", 50)
    with pytest.raises(TransferError, match="bytes to send; at most 50 are: let the ranks load it"):
        link.send(m.Shutdown("x" * 60))
