"""What a person calls a client in the notebook becomes the object."""

from __future__ import annotations

import pytest

from hpcnb.core.errors import MagicError
from hpcnb.notebook import arguments
from hpcnb.notebook.clients import resolved


def options(line):
    return arguments.parse_hpc(line).start.launcher_options


def test_a_name_becomes_the_object():
    client = object()
    asked = options("start 4 --launcher dask --client mine --workers w1,w2")
    assert resolved(asked, {"mine": client}) == {"client": client, "workers": "w1,w2"}
    assert resolved({}, {}) == {}


@pytest.mark.parametrize("address", ["tcp://n1:8786", "n1:8786", "gateway://hub/x", "tls://10.0.0.1:1"])
def test_an_address_stays_one(address):
    assert resolved(options(f"start --launcher dask --client {address}"), {}) == {"client": address}


def test_a_name_that_is_not_there():
    with pytest.raises(MagicError, match=r"no name 'clent' \(did you mean client\?\); make a client first"):
        resolved({"client": "clent"}, {"client": 1})
    with pytest.raises(MagicError, match=r"--client tcp://n1:8786"):
        resolved({"client": "x"}, {})


def test_options_of_existing():
    line = "start --launcher existing --profile mine --cluster-id 7 --connection-file /f --hosts n1"
    assert options(line) == {"profile": "mine", "cluster_id": "7", "connection_file": "/f", "hosts": "n1"}
