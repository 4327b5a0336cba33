"""Notebook 02 runs on ranks of other hosts as on those of this machine: only the line that starts them differs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.cluster.hosts import why_not

# not of the notebook tests: processes of virtual hosts come and go beside them, which their leak check would take for ours
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are virtual hosts"),
]

FOLDER = Path(__file__).parents[2] / "notebooks"

_DASK = """import distributed
client = distributed.Client({address!r}, set_as_default=False)
%hpc start 4 --launcher dask --client client"""


def trained(start):
    """Run it; all that it shows, and its result without the seconds."""
    notebook = nbformat.read(FOLDER / "02_data_parallel.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = code[0].source.replace("%hpc start 4", start)
    code[1].source = code[1].source.replace("/usr/share/datasets", "/no/datasets")  # the small images: seconds
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    text = json.dumps(notebook, ensure_ascii=False)
    result = json.loads(re.search(r"RESULT (\{.*?\})", text.replace('\\"', '"'))[1])
    del result["seconds"]
    return text, result


@pytest.fixture(scope="module")
def at_home():
    return trained("%hpc start 4")[1]


@pytest.mark.parametrize("launcher", ["ssh", "mpi", "slurm", "sge", "dask"])
def test_data_parallel_is_the_same_to_the_last_digit(request, hosts, at_home, launcher):
    start = {
        "ssh": f"%hpc start 4 --launcher ssh --hosts n1,n2 --ssh-config {hosts.ssh_config}",
        "mpi": "%hpc start 4 --launcher mpi --hosts n1,n2",
        "slurm": "%hpc start 4 --launcher slurm --nodes 2 --partition debug",
        "sge": "%hpc start 4 --launcher sge --nodes 2",
    }
    if launcher != "ssh":
        fixture = request.getfixturevalue({"mpi": "mpiexec"}.get(launcher, launcher))
    if launcher == "dask":
        start["dask"] = _DASK.format(address=fixture.scheduler.address)
    text, result = trained(start[launcher])
    assert result == at_home
    assert re.search(r"train  ━+  \d+/\d+", text)
    assert "rank 1 is waited for" in text
    assert "Out[0-3]: True" in text  # the replicas are equal to the last bit
