"""The port where looks at nodes meet, and the wheel that may be fetched there."""

from __future__ import annotations

import io
import json
import socket
import zipfile

import pytest

from hpcnb.cluster import wheel
from hpcnb.cluster.reception import Reception
from hpcnb.core.version import __version__


@pytest.fixture
def reception():
    with Reception("127.0.0.1", b"the wheel") as reception:
        yield reception


class Guest:
    def __init__(self, reception):
        host, _, port = reception.at.rpartition(":")
        self._reception = reception
        self._link = socket.create_connection((host, int(port)), timeout=2)
        self._lines = self._link.makefile("rwb")

    def says(self, **what):
        self._lines.write(json.dumps(what).encode() + b"\n")
        self._lines.flush()
        for _ in range(3):  # accepted, heard, answered
            self._reception.turn(0.1)

    def hears(self):
        return self._lines.readline()

    def close(self):
        self._lines.close()
        self._link.close()


@pytest.fixture
def guests(reception):
    made = [Guest(reception) for _ in range(3)]
    yield made
    for guest in made:
        guest.close()


def test_those_that_arrive_are_told_the_time_and_each_other(reception, guests):
    for number, guest in enumerate(guests):
        guest.says(token=reception.token, wants="time")
        assert json.loads(guest.hears())["time_s"] > 1e9
        guest.says(token=reception.token, host="n1" if number == 0 else "n2", address="10.0.0.1", port=number)
    assert reception.num_arrived == 3
    reception.introduce()
    assert json.loads(guests[0].hears()) == {"n2 (10.0.0.1:1)": "10.0.0.1:1", "n2 (10.0.0.1:2)": "10.0.0.1:2"}
    assert list(json.loads(guests[1].hears())) == ["n2 (10.0.0.1:2)", "n1"]
    guests[2].hears()
    for guest in guests[:2]:
        guest.says(done=True)
    reception.part()
    assert reception.num_arrived == 3  # one still tries the others
    guests[2].says(done=True)
    reception.part()
    assert [guest.hears() for guest in guests] == [b"{}\n"] * 3


def test_who_does_not_know_the_token_is_sent_away(reception, guests):
    guests[0].says(token="x" * 16, wants="wheel")
    guests[1].says(wants="time")
    guests[2].says(token=reception.token, host="n1", address="10.0.0.1", port="x")
    assert [guest.hears() for guest in guests] == [b""] * 3
    assert reception.num_arrived == 0


def test_the_wheel_goes_to_who_asks(reception, guests):
    guests[0].says(token=reception.token, wants="wheel")
    assert guests[0].hears() == b"the wheel"


def test_a_wheel_is_the_package_as_it_runs_here():
    packed = wheel.pack()
    assert packed == wheel.pack()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
        record = archive.read(f"hpcnb-{__version__}.dist-info/RECORD").decode().splitlines()
        assert f"Version: {__version__}" in archive.read(f"hpcnb-{__version__}.dist-info/METADATA").decode()
    assert [line.split(",")[0] for line in record] == names
    assert {"hpcnb/node/look.py", "hpcnb/core/version.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert wheel.file_name() == f"hpcnb-{__version__}-py3-none-any.whl"
