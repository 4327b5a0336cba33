"""``lsf``: an array of jobs of IBM Spectrum LSF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hpcnb.cluster.launchers.batch import BatchLauncher, BatchSystem, Element, given

__all__ = ["LsfLauncher"]

#: JOBID USER STAT QUEUE FROM_HOST EXEC_HOST JOB_NAME SUBMIT_TIME; EXEC_HOST is empty for what waits
_ROW = re.compile(r"^(?P<job>\d+)(?:\[\d+\])? +\S+ +(?P<state>[A-Z]+) .*\[(?P<number>\d+)\]")
_GONE = re.compile(r"^Job <\d+(\[.*\])?> is not found|^No matching job found|^No unfinished job found")
#: What bjobs -p says below a row: why a job waits.
_REASON = re.compile(r"^ (?P<reason>\S.*?)[;.]?\s*$")
_ENDED = ("DONE", "EXIT", "ZOMBI")


class Lsf(BatchSystem):
    """As of LSF 9 and 10."""

    launcher = "LSFEngineSetLauncher"
    submit = "bsub"
    job_id = r"Job <(\d+)>"
    reads_stdin = True
    number = '"$LSB_JOBINDEX"'

    def template(self, asked: Mapping[str, str], num_elements: int) -> str:
        """See BatchSystem."""
        del num_elements
        lines = ["#!/bin/sh", "#BSUB -L /bin/sh", '#BSUB -J "{name}[1-{n}]"', "#BSUB -o /dev/null", "#BSUB -rn"]
        lines += ["#BSUB -n {cpus}", '#BSUB -R "span[hosts=1]"']
        lines += given(asked, {"gpus": '#BSUB -gpu "num={gpus}"', "queue": "#BSUB -q {queue}"})
        if asked["time"]:
            hours, minutes, seconds = map(int, asked["time"].split(":"))
            minutes += bool(seconds)  # LSF counts minutes
            lines.append(f"#BSUB -W {hours + minutes // 60}:{minutes % 60:02}")
        lines += given(asked, {"account": "#BSUB -P {account}", "submit": "#BSUB {submit}"})
        return "\n".join([*lines, "exec {program_and_args}", ""])

    def question(self, job: str) -> str:
        """See BatchSystem. The second command has reasons, of what waits."""
        return f"bjobs -a -w {job}; bjobs -p -w {job} 2>/dev/null"

    def elements(self, said: Sequence[str], job: str) -> dict[int, Element] | None:
        """See BatchSystem."""
        rows = [row for row in map(_ROW.match, said) if row is not None and row["job"] == job]
        if not rows:
            return {} if any(map(_GONE.match, said)) else None
        why = next((found["reason"] for line in said if (found := _REASON.match(line))), "")
        elements = {}
        for row in rows:
            if row["state"] in ("PEND", "PSUSP", "WAIT"):
                elements[int(row["number"])] = Element("queued", "held" if row["state"] == "PSUSP" else why)
            elif row["state"] not in _ENDED:
                elements[int(row["number"])] = Element("running")
        return elements


class LsfLauncher(BatchLauncher):
    """Starts agents with LSF; see BatchLauncher."""

    _system = Lsf()
