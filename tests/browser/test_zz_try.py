def test_button(notebook):
    notebook.open("""import ipywidgets as w, threading, time
b=w.Button(description='hit'); l=w.Label('none')
def f(_): l.value = threading.current_thread().name
b.on_click(f); b.comm._reply_subshell_for=None; w.VBox([b,l])""", "import time; time.sleep(4)")
    notebook.run(0)
    notebook.run(1, wait=False)
    notebook.page.wait_for_timeout(500)
    notebook.page.get_by_role("button", name="hit").click()
    notebook.page.wait_for_timeout(1500)
    print("NOW", notebook.output(0).inner_text())
    notebook.wait_until_run(1)
    notebook.page.wait_for_timeout(500)
    print("LATER", notebook.output(0).inner_text())
    notebook.screenshot("try")
