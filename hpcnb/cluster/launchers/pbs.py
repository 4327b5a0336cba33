"""``pbs``: an array of jobs of PBS (OpenPBS, PBS Professional) or of Torque, which share names and little else."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Mapping, Sequence

from hpcnb.cluster.launchers.batch import BatchLauncher, BatchSystem, Element, given
from hpcnb.core.errors import LaunchError

__all__ = ["PbsLauncher"]

_ASK_S = 20.0
#: ``Job Id: 7[2].server``: an element; without a number between the brackets the array as a whole.
_JOB = re.compile(r"^Job Id: \d+(?:\[(?P<number>\d*)\])?")
_FIELD = re.compile(r"^ {4}(?P<name>\w+) = (?P<value>.*)$")
_GONE = re.compile(r"(?i)unknown job|has finished")
#: States of what has not begun: queued, held, waiting for its time, being moved.
_WAITS = {"Q": "", "H": "held", "W": "it waits for its time", "T": ""}
#: ... and of what has ended; B is an array of which some elements have begun.
_ENDED = ("F", "X", "C", "E", "M", "B")


class Pbs(BatchSystem):
    """As of OpenPBS 20 and Torque 6."""

    launcher = "PBSEngineSetLauncher"
    submit = "qsub"
    # the brackets of an array belong to its id: without them qdel finds no job
    job_id = r"(?m)^(\d+(?:\[\])?)"
    number = '"${PBS_ARRAY_INDEX:-${PBS_ARRAYID:-1}}"'

    def template(self, asked: Mapping[str, str], num_elements: int) -> str:
        """See BatchSystem."""
        lines = ["#!/bin/sh", "#PBS -S /bin/sh", "#PBS -N {name}", "#PBS -j oe", "#PBS -o /dev/null"]
        if _is_torque():
            lines.append("#PBS -t 1-{n}")
            lines.append("#PBS -l nodes=1:ppn={cpus}" + (":gpus={gpus}" if asked["gpus"] else ""))
        else:
            # an array of one element is refused, and so is one that is not rerunnable
            lines += ["#PBS -J 1-{n}", "#PBS -r y"] if num_elements > 1 else []
            lines.append("#PBS -l select=1:ncpus={cpus}" + (":ngpus={gpus}" if asked["gpus"] else ""))
        lines += given(asked, {
            "queue": "#PBS -q {queue}", "time": "#PBS -l walltime={time}", "account": "#PBS -A {account}",
            "submit": "#PBS {submit}",
        })  # fmt: skip
        return "\n".join([*lines, "exec {program_and_args}", ""])

    def question(self, job: str) -> str:
        """See BatchSystem."""
        return f"qstat -f -t '{job}'"

    def elements(self, said: Sequence[str], job: str) -> dict[int, Element] | None:
        """See BatchSystem: what is said of the array as a whole goes for elements of which nothing is said."""
        del job
        elements: dict[int, Element] = {}
        why = ""
        for number, fields in _records(said):
            state, reason = fields.get("job_state", ""), fields.get("comment", "")
            if number is None:
                why = reason
            elif state in _WAITS:
                elements[number] = Element("queued", reason or _WAITS[state])
            elif state not in _ENDED:
                elements[number] = Element("running")
        if not elements and not any(_GONE.search(line) or _JOB.match(line) for line in said):
            return None
        return {
            number: Element("queued", why) if element == Element("queued") else element
            for number, element in elements.items()
        }


def _records(said: Sequence[str]) -> list[tuple[int | None, dict[str, str]]]:
    """Of each job its number, None for an array, and its fields; those that go on in the next line are joined."""
    records: list[tuple[int | None, dict[str, str]]] = []
    name = ""
    for line in said:
        if found := _JOB.match(line):
            number = 1 if found["number"] is None else int(found["number"]) if found["number"] else None
            records.append((number, {}))
        elif records and (field := _FIELD.match(line)):
            name = field["name"]
            records[-1][1][name] = field["value"]
        elif records and line.startswith("\t") and name:
            records[-1][1][name] += line.removeprefix("\t")
    return records


@functools.cache
def _is_torque() -> bool:
    """Which of the two it is.

    Raises:
        LaunchError: Neither of them, or no answer.
    """
    try:
        asked = subprocess.run(["qstat", "--version"], capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"launcher pbs asks with qstat, which does not answer here: {error}"
        raise LaunchError(msg) from error
    said = asked.stdout + asked.stderr
    if re.search(r"\b(SGE|UGE|OGS|GE) \d", said):
        msg = "the commands qsub and qstat here are those of Grid Engine, not of PBS; write  --launcher sge"
        raise LaunchError(msg)
    return bool(re.search(r"(?m)^\s*[Vv]ersion: ", said))


class PbsLauncher(BatchLauncher):
    """Starts agents with PBS; see BatchLauncher."""

    _system = Pbs()
