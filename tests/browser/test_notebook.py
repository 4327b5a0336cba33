from __future__ import annotations


def test_cell_output_is_grouped_and_the_strip_follows(notebook):
    notebook.open(
        "%load_ext hpcnb",
        "%hpc start 2",
        '%%hpc_parallel\nimport torch.distributed as dist\nprint("hello")\nprint("I am", rank)\ndist.barrier()',
        "%hpc stop",
    )
    notebook.run_all()
    assert "2 ranks ready" in notebook.output(1).inner_text()
    shown = notebook.output(2).inner_text()
    assert "[0,1] hello" in shown
    assert "[0]   I am 0" in shown
    assert "[1]   I am 1" in shown
    assert "2 ranks ·" in shown
    assert "computation" in shown
    assert "■" in shown
    assert "stopped" in notebook.output(3).inner_text()
    notebook.cell(2).scroll_into_view_if_needed()
    notebook.screenshot("cell")
