"""One submission to a batch system: its folder, what the system and the nodes say of it, and its end.

Commands of batch systems take seconds where the system is busy, so none of them is waited for while nodes start.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import Problem, fatal, problem_of
from hpcnb.core.errors import LaunchError

if TYPE_CHECKING:
    from hpcnb.cluster.launchers.batch import BatchSystem, Element

__all__ = ["Job", "SharedFolder"]

#: The queue is asked so often, counted from an answer.
_ASK_S = 3.0
#: ... and asked again if there was none for so long.
_ANSWER_S = 30.0
#: A job may be unknown to the queue for so long after it was submitted.
_APPEAR_S = 15.0
#: An element is believed to have ended when so many answers in a row lack it.
_MISSED = 2
_SUBMIT_S = 20.0
#: Submit commands announce what they are about to do, and tell afterwards that they exit.
_TELLS_NOTHING = re.compile(r"^(Submitting job\(s\)|Exiting\.|.*\.\.\.$)")


@dataclass(frozen=True)
class SharedFolder:
    """A folder of mode 0700 that this machine and the nodes see, while the nodes start.

    Attributes:
        path: The folder.
        has_made_root: Whether the one that it is in was made for it, too.
    """

    path: Path
    has_made_root: bool

    @classmethod
    def create(cls, root: Path) -> SharedFolder:
        """Make a new one; removes what processes of this machine have left that were killed.

        Raises:
            LaunchError: It cannot be made.
        """
        host = os.uname().nodename
        has_made_root = not root.exists()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in root.glob(f"{host}-*-*"):
                pid = left.name.split("-")[-2]
                if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
                    shutil.rmtree(left, ignore_errors=True)
            path = root / f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
            path.mkdir(mode=0o700)
        except OSError as error:
            msg = f"the folder {root} cannot be used ({error.strerror}); choose another that nodes see too: folder=..."
            raise LaunchError(msg) from error
        return cls(path, has_made_root)

    def write(self, name: str, text: str) -> None:
        """Write a file that only this user reads, from its first byte on."""
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")

    def script(self, number: str, nodes: Sequence[int], setup: str, python: str) -> str:
        """What each element runs: it finds its node by its number, and writes into a file what goes wrong."""
        folder = shlex.quote(str(self.path))
        return (
            f"number={number}\n"
            f'exec >{folder}/said."$number" 2>&1\n'
            f"set -- {' '.join(map(str, nodes))}\n"
            "shift $((number - 1))\n"
            'node="$1"\n'
            f"{setup} || exit\n"
            f'exec {shlex.quote(python)} -m hpcnb.node.join --stay --node "$node" --ticket {folder}/ticket'
        )

    def said(self, number: int) -> list[str] | None:
        """What an element has said, without empty lines; None if it has not begun, or does not see this folder."""
        try:
            text = (self.path / f"said.{number}").read_text(errors="replace")
        except OSError:
            return None
        return [line for line in text.splitlines() if line.strip()]

    def remove(self) -> None:
        """Remove it, and the one that it is in if that was made for it and is empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.has_made_root:
            with contextlib.suppress(OSError):  # another launch uses it
                self.path.parent.rmdir()


class Job:
    """An array of jobs, from its submission until its nodes have joined or it is deleted.

    Args:
        system: The batch system.
        folder: With what the elements need; removed at the end.
        nodes: Their numbers in the cluster; element 1 is the first.
        python: Interpreter of the nodes.
    """

    def __init__(self, system: BatchSystem, folder: SharedFolder, nodes: Sequence[int], python: str) -> None:
        self._system = system
        self._folder = folder
        self._nodes = list(nodes)
        self._python = python
        self._submission: Command | None = None
        self._problem: Problem | None = None
        self._id = ""
        self._elements: dict[int, Element] | None = None
        self._missed: dict[int, int] = {}
        self._silence = ""
        self._question: Command | None = None
        self._submitted_s, self._next_s, self._asked_s = 0.0, 0.0, 0.0

    def submit(self, template: str, asked: Mapping[str, str]) -> None:
        """Render the script and hand it in; returns at once."""
        try:
            self._launcher = _rendered(self._system, self._folder.path, template, asked, len(self._nodes))
        except Exception as error:  # noqa: BLE001 - templates are evaluated: a mistake in one may raise anything
            self._problem = Problem(
                f"the template cannot be filled in: {type(error).__name__}: {error}; it may have {{n}}, "
                f"{{program_and_args}}, {', '.join(f'{{{word}}}' for word in asked)}, and other braces doubled"
            )
            return
        script = Path(self._launcher.batch_file)
        words = self._launcher.submit_command if self._system.reads_stdin else self._launcher.find_args()
        self._submission = Command(words, stdin=script.read_text() if self._system.reads_stdin else "")

    def look(self) -> Problem | None:
        """Whether one of its nodes will not start."""
        if self._problem is None and self._submission is not None and self._submission.status is not None:
            self._take_id(self._submission)
        if self._problem is None and self._id:
            self._ask()
            numbered = enumerate(self._nodes, 1)
            self._problem = next(filter(None, (self._problem_of(number, node) for number, node in numbered)), None)
        return self._problem

    def _take_id(self, submission: Command) -> None:
        said, status = submission.lines(), submission.status
        submission.forget()
        self._submission = None
        if status == 0 and re.search(self._launcher.job_id_regexp, "\n".join(said)):
            self._id = self._launcher.parse_job_id("\n".join(said))
            self._submitted_s = monotonic()
            return
        telling = [line.strip() for line in said if not _TELLS_NOTHING.match(line)]
        told = telling[0] if telling else f"it ended with status {status}"
        self._problem = Problem(f"{self._system.submit} failed: {told}", tuple(telling[1:]))

    def _ask(self) -> None:
        now_s = monotonic()
        if self._question is None and now_s >= self._next_s:
            self._question, self._asked_s = Command(["/bin/sh", "-c", self._system.question(self._id)]), now_s
        if self._question is None:
            return
        if self._question.status is None and now_s < self._asked_s + _ANSWER_S:
            return
        said = self._question.lines()
        self._question.kill()
        self._question, self._next_s = None, now_s + _ASK_S
        self._hear(said, now_s)

    def _hear(self, said: list[str], now_s: float) -> None:
        elements = self._system.elements(said, self._id)
        if elements is None:
            self._silence = said[-1].strip() if said else "the queue does not answer"
            return
        self._silence = ""
        numbers = range(1, len(self._nodes) + 1)
        has_begun = self._elements is not None or any(self._folder.said(number) is not None for number in numbers)
        if not elements and not has_begun and now_s < self._submitted_s + _APPEAR_S:
            return
        self._elements = elements
        for number in numbers:
            self._missed[number] = 0 if number in elements else self._missed.get(number, 0) + 1

    def _problem_of(self, number: int, node: int) -> Problem | None:
        said = self._folder.said(number)
        element = (self._elements or {}).get(number)
        if said and ((last := fatal(said)) is not None):
            return problem_of(f"number {node}", self._python, said[: last + 1])
        if element is not None:
            stuck = f"job {self._id} will not run: {element.reason or 'the queue says no more'}"
            return Problem(stuck) if element.state == "stuck" else None
        if said and self._missed.get(number, 0):
            return problem_of(f"number {node}", self._python, said)
        if self._missed.get(number, 0) < _MISSED:
            return None
        if said is not None:
            return Problem(
                f"job {self._id} ended on node number {node} before it had joined: it was deleted, or a limit was "
                f"reached; its log may be on that node, in its temporary folder: hpcnb-{os.getuid()}-nodes/*/agent.log"
            )
        return Problem(
            f"job {self._id} ended without a word of node number {node}: it was deleted, or the node does not see the "
            f"folder {self._folder.path.parent} (No such file); choose one that all nodes share: folder=..., --folder"
        )

    @property
    def is_queued(self) -> bool:
        """Whether an element has yet to begin."""
        return self._problem is None and (
            self._elements is None or any(element.state == "queued" for element in self._elements.values())
        )

    def words(self) -> str:
        """How far it is, for a person who waits."""
        if self._problem is not None:
            return ""
        if not self._id:
            return f"submitting with {self._system.submit}"
        if self._elements is None:
            return f"job {self._id} is submitted{f' ({self._silence})' if self._silence else ''}; Ctrl-C gives it up"
        if not self.is_queued:
            return f"job {self._id} runs"
        elements = list(self._elements.values())
        reason = self._silence or next((each.reason for each in elements if each.reason), "")
        why = f" ({reason})" if reason else ""
        running = sum(element.state == "running" for element in elements)
        part = f", {running} of {len(self._nodes)} nodes run" if running else ""
        return f"job {self._id} is queued{why}{part}; Ctrl-C gives it up"

    def forget(self) -> None:
        """It goes on by itself; what it needed here is removed."""
        for command in (self._question, self._submission):
            if command is not None:
                command.kill()
        self._folder.remove()

    def delete(self) -> None:
        """End it, wherever it is."""
        if self._submission is not None:  # it may be in the queue already, under a number that we have yet to hear
            self._submission.wait(_SUBMIT_S)
            if self._submission.status is not None:
                self._take_id(self._submission)
        if self._id:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [*self._launcher.delete_command, self._id], capture_output=True, timeout=_SUBMIT_S, check=False
                )
        self.forget()


def _rendered(system: BatchSystem, folder: Path, template: str, asked: Mapping[str, str], num_elements: int) -> Any:
    """ipyparallel's launcher of this system, which has written the script."""
    from ipyparallel.cluster import launcher as theirs  # 0.3 s

    made = getattr(theirs, system.launcher)(
        work_dir=str(folder), batch_template=template, batch_file_name="job", output_file=os.devnull,
        program=["/bin/sh"], program_args=[str(folder / "join")], queue=asked["queue"], namespace=dict(asked),
        job_id_regexp=system.job_id, job_id_regexp_group=1,
    )  # fmt: skip
    made.write_batch_script(num_elements)
    return made
