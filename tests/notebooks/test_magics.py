"""Magics in a real kernel: what a person types wrong gets one clear message, and nothing is lost."""

from __future__ import annotations

import time

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from tests.waiting import wait_until

pytestmark = pytest.mark.notebook


@pytest.fixture(scope="module")
def cells():
    """Source -> what the cell showed, all run in one kernel in this order."""
    sources = [
        "%load_ext hpcnb",
        "%%hpc_parallel\n1",
        "%hpc start 3 --mesh dp=2,tp=2",
        "%hpc start 2 --mesh dp=1,tp=2",
        "%hpc start 4",
        "%hpc",
        "%hpc_parallel --help",
        "%%hpc_parallel --no-time\nkept = rank\nprint('same')",
        "%%hpc_parallel --no-time --on 1\nraise RuntimeError('only here')",
        "%%hpc_parallel --no-time --on 5\n1",
        "%%hpc_parallel --no-time --on pp=0\n1",
        "%%hpc_parallel --no-time --out values\nkept",
        "values",
        "%%hpc_parallel --no-time --out unsent\nimport threading\nthreading.Lock()",
        "%%hpc_parallel --no-time --timeout 0.3\nimport time\ntime.sleep(60)",
        "%%hpc_parallel --no-time\nkept",
        "%hpc status",
        "%hpc timing",
        "%hpc recover",
        "%hpc logs 7",
        "%hpc stop",
        "%hpc stop",
        "values, 'unsent' in dir()",
        "%%hpc_parallel --help\nraise SystemError('it ran')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True).execute()
    return [cell.outputs for cell in notebook.cells]


def plain(outputs):
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs).strip()


def error(outputs):
    (found,) = [output for output in outputs if output.output_type == "error"]
    return "\n".join(found.traceback)


def test_before_start(cells):
    assert error(cells[1]) == "ClusterStateError: no cluster is running; start one with  %hpc start 4"
    assert error(cells[2]).startswith("MeshError: mesh dp=2 x tp=2 needs 4 ranks, but the cluster has 3; try 4 ranks")


def test_start_shows_its_stages_and_only_once(cells):
    (shown,) = cells[3]
    text = shown.data["text/plain"]
    assert text.startswith("2 ranks ready")
    assert "mesh dp=1,tp=2" in text
    assert "import torch" in text
    assert "controller" in text
    assert "stop it first: %hpc stop" in error(cells[4])


def test_help(cells):
    assert "%hpc start" in plain(cells[5])
    assert "--timeout" in plain(cells[6])
    assert plain(cells[23]) == plain(cells[6])  # and the cell is not run


def test_output_is_one_area_with_text_and_html(cells):
    (shown,) = cells[7]
    assert shown.data["text/plain"] == "[0,1] same"
    assert "same" in shown.data["text/html"]


def test_errors_say_who_and_where(cells):
    text = error(cells[8])
    assert text.startswith(
        "rank 1 of 2 raised  RuntimeError: only here\n      line 2:  raise RuntimeError('only here')"
    )
    assert "hpcnb" not in text
    assert "no rank 5; the cluster has ranks 0-1" in error(cells[9])
    assert "no axis 'pp'; this cluster's mesh is dp=1,tp=2" in error(cells[10])


def test_out_brings_values_and_nothing_else_is_written(cells):
    assert plain(cells[12]) == "{0: 0, 1: 1}"
    assert "ranks 0,1: a _thread.lock cannot be pickled" in error(cells[13])
    assert plain(cells[22]) == "({0: 0, 1: 1}, False)"


def test_timeout_keeps_names(cells):
    assert "longer than its timeout of 0.3 s" in error(cells[14])
    assert plain(cells[15]) == "Out[0]: 0\nOut[1]: 1"


def test_status_timing_recover_logs(cells):
    assert "idle" in plain(cells[16])
    assert "2 ranks" in plain(cells[17])
    # on a busy machine the cell of the timeout was not only interrupted but released, and groups were rebuilt then
    assert plain(cells[18]) in {f"process groups rebuilt: generation {number}" for number in (1, 2)}
    assert "no rank 7; the cluster has ranks 0-1" in error(cells[19])


def test_stop(cells):
    assert plain(cells[20]) == "cluster 'default' stopped"
    assert "no cluster is running" in error(cells[21])


def test_the_kernel_answers_comms_while_a_cell_runs():
    """A widget's message on the main shell channel is answered before the cell ends, and Ctrl-C still works."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        for source in ("%load_ext hpcnb", "%hpc start 1", TARGET):
            client.execute_interactive(source, timeout=60, output_hook=lambda _: None)
        client.execute("%%hpc_parallel --no-time\nimport time\ntime.sleep(60)", stop_on_error=False)
        wait_for(client, lambda message: message["msg_type"] == "execute_input")
        opened = client.session.msg("comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
        client.shell_channel.send(opened)
        wait_for(client, lambda message: message["msg_type"] == "comm_msg" and message["content"]["data"] == "heard")
        manager.interrupt_kernel()
        failed = wait_for(client, lambda message: message["msg_type"] == "error")
        assert "KeyboardInterrupt" in "\n".join(failed["content"]["traceback"])
        again = client.execute_interactive("%%hpc_parallel\nrank", timeout=30, output_hook=lambda _: None)
        assert again["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


def test_the_kernel_answers_comms_while_a_rank_is_replaced_and_ctrl_c_ends_that(tmp_path):
    """An init cell that takes a minute when it runs again: a widget is answered meanwhile, and the prompt comes back."""
    again = tmp_path / "again"
    init = f"import os, time\nprint('init')\nif os.path.exists({str(again)!r}): time.sleep(60)"
    dies = f"import os\nif rank == 1: open({str(again)!r}, 'w').close(); os._exit(3)"
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        for source in ("%load_ext hpcnb", "%hpc start 2 --auto-restart", TARGET, f"%%hpc_parallel --init\n{init}"):
            reply = client.execute_interactive(source, timeout=60, output_hook=lambda _: None)
            assert reply["content"]["status"] == "ok"
        client.execute(f"%%hpc_parallel --no-time\n{dies}", stop_on_error=False)
        wait_until(again.exists)
        time.sleep(2)  # the new process runs the init cell
        opened = client.session.msg("comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
        client.shell_channel.send(opened)
        wait_for(client, lambda message: message["msg_type"] == "comm_msg" and message["content"]["data"] == "heard")
        manager.interrupt_kernel()
        failed = wait_for(client, lambda message: message["msg_type"] == "error")
        text = "\n".join(failed["content"]["traceback"])
        assert "rank 1 of 2 ended its process with status 3" in text
        assert "rank 1 was replaced" in text
        assert "failed there: it was interrupted" in text
        reply = client.execute_interactive("%%hpc_parallel\nrank", timeout=30, output_hook=lambda _: None)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


TARGET = """
def heard(comm, message):
    comm.send("heard")
get_ipython().kernel.comm_manager.register_target("echo", heard)
"""


def wait_for(client, is_it):
    while True:
        message = client.get_iopub_msg(timeout=20)
        if is_it(message):
            return message


def test_inside_other_magics_the_cell_blocks_and_works():
    sources = [
        "%load_ext hpcnb",
        "%hpc start 1",
        "%%capture caught\n%%hpc_parallel\nrank + 41",
        "str(caught.outputs[0])[:6]",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert plain(notebook.cells[3].outputs)


def test_a_cluster_grows_and_shrinks():
    sources = [
        "%load_ext hpcnb",
        "%hpc scale 4",
        "%hpc start 1 --threads 1",
        "%%hpc_parallel --no-time\nkept = rank",
        "%hpc scale 2",
        "%%hpc_parallel --no-time --on 1\nworld_size, mesh.size()",
        "%hpc scale 2",
        "%hpc scale 3 --hosts n1",
        "%hpc scale 1",
        "%%hpc_parallel --no-time\nkept, world_size",
        "%hpc scale --help",
        "%hpc stop",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True).execute()
    cells = [cell.outputs for cell in notebook.cells]
    assert error(cells[1]) == "ClusterStateError: no cluster is running; start one with  %hpc start 4"
    (shown,) = cells[4]  # one line, whatever it said while ranks were added
    first = shown.data["text/plain"].splitlines()[0]
    assert first.startswith("2 ranks (1 new: 1) · mesh dp=2 · groups rebuilt (generation 1)")
    assert first.endswith("names that rank 1 lacks: kept")
    assert "(2, 2)" in plain(cells[5])
    assert error(cells[6]) == "OptionError: the cluster has 2 ranks and mesh dp=2 already"
    assert "cannot start more nodes yet (hosts='n1')" in error(cells[7])
    assert plain(cells[8]).startswith("1 rank (1 removed) · mesh dp=1")
    assert "(0, 1)" in plain(cells[9])
    assert "--mesh" in plain(cells[10])
