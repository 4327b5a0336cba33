"""``sge``: an array of jobs of Grid Engine (Sun's, Son of, Univa, Altair)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hpcnb.cluster.launchers.batch import BatchLauncher, BatchSystem, Element, given

__all__ = ["SgeLauncher"]

#: job-ID prior name user state date time [queue] slots ja-task-ID; one element a line with ``-g d``
_ROW = re.compile(
    r"^\s*(?P<job>\d+) +[\d.]+ +\S+ +\S+ +(?P<state>[a-zA-Z]+) +\S+ +\S+ +(?:\S+@\S* +)?\d+ +(?P<number>\d+)\s*$"
)
_ERROR = re.compile(r"^error reason +(?P<number>\d+): +(?P<reason>.*)$")
_WHY = re.compile(r"^scheduling info: +(?P<reason>.*)$")
_ANSWERED = "hpcnb: that was all"


class GridEngine(BatchSystem):
    """As of 8.1."""

    launcher = "SGEEngineSetLauncher"
    submit = "qsub"
    job_id = r"[Yy]our job(?:-array)? (\d+)"
    number = '"$SGE_TASK_ID"'

    def template(self, asked: Mapping[str, str], num_elements: int) -> str:
        """See BatchSystem. Processors need a parallel environment, which most sites call ``smp``."""
        del num_elements
        lines = ["#!/bin/sh", "#$ -S /bin/sh", "#$ -N {name}", "#$ -t 1-{n}", "#$ -j y", "#$ -o /dev/null", "#$ -r n"]
        if asked["cpus"] != "1" and "-pe " not in asked["submit"]:
            lines.append("#$ -pe smp {cpus}")
        lines += given(asked, {
            "gpus": "#$ -l gpu={gpus}", "queue": "#$ -q {queue}", "time": "#$ -l h_rt={time}",
            "account": "#$ -A {account}", "submit": "#$ {submit}",
        })  # fmt: skip
        return "\n".join([*lines, "exec {program_and_args}", ""])

    def question(self, job: str) -> str:
        """See BatchSystem. The second command has reasons; it fails for a job that has ended."""
        return f"qstat -g d -u \"$(id -un)\" && echo '{_ANSWERED}'; qstat -j {job}"

    def elements(self, said: Sequence[str], job: str) -> dict[int, Element] | None:
        """See BatchSystem."""
        if _ANSWERED not in said:
            return None
        errors = {int(found["number"]): found["reason"].strip() for line in said if (found := _ERROR.match(line))}
        why = next((found["reason"].strip() for line in said if (found := _WHY.match(line))), "")
        elements = {}
        for row in filter(None, map(_ROW.match, said)):
            state, number = row["state"], int(row["number"])
            if row["job"] != job:
                continue
            if "E" in state:
                elements[number] = Element("stuck", errors.get(number, ""))
            elif "w" in state or "h" in state:
                elements[number] = Element("queued", "held" if "h" in state else why)
            else:
                elements[number] = Element("running")
        return elements


class SgeLauncher(BatchLauncher):
    """Starts agents with Grid Engine; see BatchLauncher."""

    _system = GridEngine()
