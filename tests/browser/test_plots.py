from __future__ import annotations

CELL = """%%hpc_parallel
import time, torch, torch.distributed as dist
x = torch.randn(400, 400)
for step in range(3):
    x = x @ x / x.norm()
    if rank == 1:
        time.sleep(0.05)
    dist.all_reduce(x)"""


def test_timing_comes_alive_from_this_server(notebook):
    """BokehJS comes from the Jupyter server itself; the fixture checks that nothing else was asked."""
    notebook.open("%load_ext hpcnb\n%hpc start 2", CELL, "%hpc timing")
    notebook.run(0)
    notebook.run(1)
    notebook.run(2)
    figures = notebook.output(2).locator(".hpcnb-figure")
    assert figures.count() == 2
    for index in range(2):
        figures.nth(index).locator(".hpcnb-live canvas").first.wait_for()
        assert not figures.nth(index).locator(".hpcnb-static").is_visible()
    notebook.page.wait_for_timeout(500)
    notebook.output(2).scroll_into_view_if_needed()
    notebook.screenshot("timing")
    saved = notebook.save()
    for output in saved.cells[2].outputs:
        assert output.data.keys() >= {"text/plain", "image/svg+xml", "text/html"}
        assert "rank" in output.data["text/plain"]
