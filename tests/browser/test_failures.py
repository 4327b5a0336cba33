from __future__ import annotations


def test_a_failure_is_explained_and_the_next_cell_works(notebook):
    notebook.open(
        "%load_ext hpcnb",
        "%hpc start 3",
        "%%hpc_parallel\nimport os, signal, torch, torch.distributed as dist\nx = torch.ones(1_000_000)\nkept = rank * 10",
        "%%hpc_parallel\nif rank == 1:\n    raise ValueError('bad shard 17')\ndist.all_reduce(x)",
        "%%hpc_parallel\nif rank == 2:\n    os.kill(os.getpid(), signal.SIGKILL)\ndist.all_reduce(x)",
        "%hpc restart-rank",
        "%%hpc_parallel --on 0-1\nkept",
        "%%hpc_parallel\nimport torch.distributed as dist\nwhile True:\n    dist.barrier()",
        "%hpc stop",
    )
    for index in range(7):
        notebook.run(index)
    raised = notebook.output(3).inner_text()
    assert "rank 1 of 3 raised  ValueError: bad shard 17" in raised
    assert "ranks 0,2 were in  all_reduce #1 (4.0 MB, line 4)" in raised
    assert "all names on all ranks are intact" in raised
    assert "rank 2 of 3 was ended by SIGKILL" in notebook.output(4).inner_text()
    assert "rank 2 was replaced" in notebook.output(5).inner_text()
    assert "10" in notebook.output(6).inner_text()
    notebook.cell(3).scroll_into_view_if_needed()
    notebook.screenshot("failure")
    notebook.cell(5).scroll_into_view_if_needed()
    notebook.screenshot("restart")
    notebook.run(7, wait=False)
    notebook.output(7).get_by_text("running").wait_for()
    notebook.menu("Kernel", "Interrupt Kernel")
    notebook.wait_until_run(7)
    assert "KeyboardInterrupt" in notebook.output(7).inner_text()
    notebook.run(8)
    assert "stopped" in notebook.output(8).inner_text()
