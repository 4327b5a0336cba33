"""Notebook 02 runs on ranks of other hosts as on those of this machine: only the line that starts them differs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.cluster, pytest.mark.notebook, pytest.mark.slow]

FOLDER = Path(__file__).parents[2] / "notebooks"

_DASK = """import distributed
client = distributed.Client({address!r}, set_as_default=False)
%hpc start 4 --launcher dask --client client"""


@pytest.mark.parametrize("launcher", ["ssh", "mpi", "slurm", "sge", "dask"])
def test_data_parallel(request, hosts, launcher):
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
    notebook = nbformat.read(FOLDER / "02_data_parallel.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = code[0].source.replace("%hpc start 4", start[launcher])
    code[1].source = code[1].source.replace("/usr/share/datasets", "/no/datasets")  # the small images: seconds
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    text = json.dumps(notebook, ensure_ascii=False)
    result = json.loads(re.search(r"RESULT (\{.*?\})", text.replace('\\"', '"'))[1])
    assert result["num_ranks"] == 4
    assert result["test_accuracy"] >= 0.9
    assert re.search(r"train  ━+  \d+/\d+", text)
    assert "rank 1 is waited for" in text
    assert "Out[0-3]: True" in text  # the replicas are equal to the last bit
