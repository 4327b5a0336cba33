from __future__ import annotations

import re

from playwright.sync_api import expect

BLOCKING = """import hpcnb
result = hpcnb.current().run("import time; time.sleep(40)")
"was interrupted" if result.interrupted else result"""
SLEEP = "%%hpc_parallel\nimport time\nkept = 'still here'\nprint('begun')\ntime.sleep(40)"


def button(notebook, name):
    return notebook.output(1).get_by_role("button", name=name)


def test_panel_starts_interrupts_and_stops(notebook):
    notebook.open("%load_ext hpcnb", "%hpc panel", SLEEP, "%%hpc_parallel\nkept", BLOCKING)
    notebook.run(0)
    notebook.run(1)
    panel = notebook.output(1)
    expect(panel.get_by_text("no cluster is running")).to_be_visible()
    expect(button(notebook, "Stop")).to_be_disabled()
    expect(button(notebook, "Interrupt")).to_be_disabled()
    notebook.screenshot("panel-none")

    panel.get_by_label("Mesh").fill("dp=3")
    panel.get_by_label("Ranks").fill("2")
    button(notebook, "Start").click()
    expect(panel.get_by_role("alert")).to_contain_text("dp=3")
    notebook.screenshot("panel-problem")

    panel.get_by_label("Mesh").fill("dp=2")
    button(notebook, "Start").click()
    expect(panel.get_by_role("status")).to_contain_text("starting 2 ranks")
    notebook.screenshot("panel-starting")
    expect(panel.get_by_role("status")).to_contain_text("2 ranks, mesh dp=2 · idle")
    expect(panel.locator("tr")).to_have_count(3)
    expect(panel.get_by_text(re.compile(r"started: .*import torch \d+\.\d s.*2 ranks ready \d+\.\d s"))).to_be_visible()
    expect(button(notebook, "Start")).to_be_disabled()

    notebook.run(2, wait=False)
    expect(notebook.output(2)).to_contain_text("begun")
    expect(panel.get_by_role("status")).to_contain_text("a cell runs")
    expect(panel.get_by_text("runs cell")).to_have_count(2)
    notebook.screenshot("panel-busy")
    button(notebook, "Interrupt").click()
    notebook.wait_until_run(2)
    assert "KeyboardInterrupt" in notebook.output(2).inner_text()
    expect(panel.get_by_text("last cell, In[3]: interrupted")).to_be_visible()
    expect(panel.get_by_role("status")).to_contain_text("idle")
    notebook.run(3)
    assert "still here" in notebook.output(3).inner_text()
    expect(panel.get_by_text("last cell, In[4]")).to_be_visible()
    panel.scroll_into_view_if_needed()
    notebook.screenshot("panel-after")
    saved = notebook.save().cells[1].outputs[0].data
    assert "2 ranks, mesh dp=2" in saved["text/plain"]
    assert "<table" in saved["text/html"]

    notebook.run(4, wait=False)
    expect(panel.get_by_text("runs cell")).to_have_count(2)
    # the notebook kernel's main thread is blocked: this click is handled on another one
    button(notebook, "Interrupt").click()
    notebook.wait_until_run(4)
    assert "was interrupted" in notebook.output(4).inner_text()

    button(notebook, "Stop").click()
    expect(panel.get_by_text("no cluster is running")).to_be_visible()
    expect(panel.locator("tr")).to_have_count(0)
    expect(button(notebook, "Start")).to_be_enabled()


def test_panel_follows_a_cluster_that_a_cell_started(notebook):
    notebook.open("%load_ext hpcnb", "%hpc panel", "%hpc start 2", "import hpcnb; hpcnb.panel()", THREADS)
    for index in range(4):
        notebook.run(index)
    for index in (1, 3):
        expect(notebook.output(index).get_by_role("status")).to_contain_text("2 ranks")
    notebook.run(4)
    assert "one thread" in notebook.output(4).inner_text()
    # a cleared output is no view: after the last one the watching thread ends
    for index in (1, 3):
        notebook.cell(index).locator(".cm-content").click()
        notebook.menu("Edit", "Clear Cell Output")
    notebook.page.keyboard.press("Escape")
    notebook.run(4)
    expect(notebook.output(4)).to_contain_text("no thread")


THREADS = """import threading, time
def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "hpcnb-panel"]
for _ in range(60):
    if not watchers():
        break
    time.sleep(0.05)
["no thread", "one thread"][len(watchers())]"""
