"""The debugger in a real kernel, with a front-end that answers, and with one that does not."""

from __future__ import annotations

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

pytestmark = pytest.mark.notebook

#: Generous: machines that test are slow at times.
_DEADLINE_S = 60


class FrontEnd:
    """A kernel, and a person who types into its stdin."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    def run(self, source, answers=()):
        """Returns (status, prompts, text of the outputs, what was on the screen at each prompt)."""
        answers = list(answers)
        prompts, shown, at_prompt = [], {}, []

        def on_output(message):
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
                key = content.get("transient", {}).get("display_id", len(shown))
                shown[key] = content["data"]["text/plain"]
            elif message["msg_type"] == "stream":
                shown[len(shown)] = content["text"]
            elif message["msg_type"] == "error":
                shown[len(shown)] = "\n".join(content["traceback"])

        def on_stdin(message):
            prompts.append(message["content"]["prompt"])
            while self.client.iopub_channel.msg_ready():  # what had been shown before the question
                on_output(self.client.get_iopub_msg(timeout=_DEADLINE_S))
            at_prompt.append("\n".join(shown.values()))
            answer = answers.pop(0)
            if answer is KeyboardInterrupt:
                self.manager.interrupt_kernel()
            else:
                self.client.input(answer)

        reply = self.client.execute_interactive(
            source, allow_stdin=True, stdin_hook=on_stdin, output_hook=on_output, timeout=_DEADLINE_S
        )
        return reply["content"]["status"], prompts, "\n".join(shown.values()), at_prompt


@pytest.fixture(scope="module")
def front_end():
    made = FrontEnd()
    made.run("%load_ext hpcnb\n%hpc start 2")
    yield made
    made.close()


def test_post_mortem(front_end):
    failing = "%%hpc_parallel --no-time\nx = rank + 41\ndef f(y):\n    return 1 / (1 - rank)\nf(x)"
    assert front_end.run(failing)[0] == "error"
    status, prompts, text, at_prompt = front_end.run("%hpc debug 1", ["p y", "w", "u", "p x", "q"])
    assert status == "ok"
    assert prompts == ["[rank 1] (Pdb) "] * 5
    assert at_prompt[0].splitlines()[:2] == ["[1] ZeroDivisionError: division by zero", "[1] > <cell In[2]>(4)f()"]
    assert at_prompt[1].splitlines()[-2:] == ["[1] (Pdb) p y", "[1] 42"]
    assert "-> f(x)" in text
    assert text.splitlines()[-1] == "[1] (Pdb) q"
    assert front_end.run("%hpc debug 0")[0] == "error"
    assert "no cell has failed on rank 0" in front_end.run("%hpc debug 0")[2]


def test_breakpoint_on_one_rank_while_the_other_waits(front_end):
    source = (
        "%%hpc_parallel --no-time\nimport torch.distributed as dist\nvalue = rank\nif rank == 1:\n    print('here')\n"
        "    breakpoint()\n    value += 10\ndist.barrier()\nvalue"
    )
    status, prompts, text, at_prompt = front_end.run(source, ["p value", "!value = 5", "c"])
    assert status == "ok", text
    assert prompts == ["[rank 1] (Pdb) "] * 3
    assert "[1] here" in at_prompt[0]
    assert "[1] -> breakpoint()" in at_prompt[0]
    assert text.splitlines()[-2:] == ["Out[0]: 0", "Out[1]: 15"]


def test_ctrl_c_at_the_prompt_interrupts_the_cell(front_end):
    status, prompts, text, _ = front_end.run("%%hpc_parallel --no-time\nbreakpoint()\n1", [KeyboardInterrupt])
    assert status == "error"
    assert len(prompts) == 1
    assert "ranks 0,1 of 2 raised  KeyboardInterrupt" in text
    assert front_end.run("%%hpc_parallel --no-time\nrank")[2].splitlines()[-1] == "Out[1]: 1"


def test_input(front_end):
    status, prompts, text, _ = front_end.run("%%hpc_parallel --no-time\ninput('name? ')", ["Ada", "Ada"])
    assert status == "ok"
    assert len(prompts) == 2
    assert text.splitlines() == ["[0,1]     name? Ada", "Out[0,1]: 'Ada'"] or text.splitlines()[-1] == "Out[0,1]: 'Ada'"


def test_check(front_end):
    front_end.run(
        "%%hpc_parallel --no-time\nimport torch\nw = torch.ones(2) * (1 + rank)\nmodel = torch.nn.Linear(1, 1)"
    )
    text = front_end.run("%hpc check w --axis dp")[2]
    assert text.splitlines()[1] == "  w  float32 (2,): rank 0 and rank 1 differ"
    assert front_end.run("%hpc check nothing")[0] == "error"


def test_a_notebook_that_nobody_watches_says_why():
    sources = [
        "%load_ext hpcnb",
        "%hpc start 1",
        "%%hpc_parallel --no-time\nbreakpoint()\n1 / 0",
        "%%hpc_parallel --no-time\ninput('name? ')",
        "%%hpc_parallel --no-time\n1 / 0",
        "%hpc debug 0",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=_DEADLINE_S, kernel_name="python3", allow_errors=True).execute()

    def error(number):
        (found,) = [each for each in notebook.cells[number].outputs if each.output_type == "error"]
        return "\n".join(found.traceback)

    why = "this front-end does not let cells ask for input"
    assert f"DebuggerQuit: the debugger was left: {why}" in error(2)
    assert f"EOFError: input('name? ') has no answer: {why}" in error(3)
    assert f"the debugger was left: {why}" in error(5)
