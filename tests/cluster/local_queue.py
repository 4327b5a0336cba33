"""A stand-in for batch systems that cannot be had: their commands, an array's elements as processes of this machine.

``LocalQueue`` makes a folder with qsub, qstat, qdel, bsub, bjobs, bkill, condor_submit, condor_q and condor_rm, all of
which are this file, and puts it into PATH. It refuses what the real ones refuse where that was read in their manuals,
and answers in their words; whether the real ones agree it cannot tell. An element waits while there is no slot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalQueue"]

_COMMANDS = {
    "pbs": ("qsub", "qstat", "qdel"), "torque": ("qsub", "qstat", "qdel"), "lsf": ("bsub", "bjobs", "bkill"),
    "htcondor": ("condor_submit", "condor_q", "condor_rm"),
}  # fmt: skip
_WHY = {
    "pbs": "Not Running: Insufficient amount of resource: ncpus (R: 2 A: 0 T: 4)",
    "lsf": "Job slot limit reached",
}


class LocalQueue:
    """A queue of one system; a context manager.

    Args:
        system: ``pbs``, ``torque``, ``lsf`` or ``htcondor``.
        slots: So many elements run at a time.
    """

    def __init__(self, system: str, *, slots: int = 4) -> None:
        self._system = system
        self.folder = Path(tempfile.mkdtemp(prefix="local-queue-", dir="/tmp"))
        self.spool = self.folder / "spool"
        self.spool.mkdir()
        self.slots = slots

    @property
    def slots(self) -> int:
        """How many elements run at a time."""
        return int((self.folder / "slots").read_text())

    @slots.setter
    def slots(self, slots: int) -> None:
        (self.folder / "slots").write_text(str(slots))

    def __enter__(self) -> Self:
        for name in _COMMANDS[self._system]:
            command = self.folder / name
            command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {self._system} {name} "$@"\n')
            command.chmod(0o755)
        self._path = os.environ["PATH"]
        os.environ["PATH"] = f"{self.folder}:{self._path}"
        os.environ["LOCAL_QUEUE"] = str(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        os.environ["PATH"] = self._path
        del os.environ["LOCAL_QUEUE"]
        with _jobs(self.folder) as jobs:
            for job in jobs.values():
                _end(job)
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)

    def jobs(self) -> list[str]:
        """Ids of jobs that wait or run."""
        with _jobs(self.folder) as jobs:
            return list(jobs)

    def cancel(self, job: str) -> None:
        """End a job."""
        with _jobs(self.folder) as jobs:
            _end(jobs.pop(job))


@contextlib.contextmanager
def _jobs(folder: Path) -> Any:
    """All jobs, those that have ended removed and those that may run begun; what is changed is kept."""
    with (folder / "jobs").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        jobs = json.loads(file.read() or "{}")
        elements = [element for job in jobs.values() for element in job["elements"]]
        for element in elements:
            element["ended"] |= bool(element["pid"]) and not _lives(element["pid"])
        running = sum(bool(element["pid"]) and not element["ended"] for element in elements)
        for element in elements:
            if not element["pid"] and not element["ended"] and running < int((folder / "slots").read_text()):
                running += 1
                null = subprocess.DEVNULL
                element["pid"] = subprocess.Popen(
                    element["command"], env={**os.environ, **element["environment"]}, stdin=null, stdout=null,
                    stderr=null, start_new_session=True, cwd="/",
                ).pid  # fmt: skip
        for number in [number for number, job in jobs.items() if all(each["ended"] for each in job["elements"])]:
            del jobs[number]
        yield jobs
        file.seek(0)
        file.truncate()
        file.write(json.dumps(jobs))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _end(job: dict[str, Any]) -> None:
    for element in job["elements"]:
        if element["pid"] and not element["ended"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(element["pid"], signal.SIGKILL)
        element["ended"] = True


# --- submitting -----------------------------------------------------------------------------------------------


def _submit(system: str, folder: Path, text: str) -> str:
    counter = folder / "counter"
    number = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(number))
    script = folder / "spool" / f"{number}.script"  # as batch systems do, which is why no key may be in it
    script.write_text(text)
    read = {"pbs": _read_pbs, "torque": _read_torque, "lsf": _read_lsf, "htcondor": _read_htcondor}[system]
    commands = read(text, str(script))
    elements = [
        {"command": command, "environment": environment, "pid": 0, "ended": False} for command, environment in commands
    ]
    with _jobs(folder) as jobs:
        jobs[str(number)] = {"elements": elements}
    with _jobs(folder):
        pass  # what may run begins
    brackets = "[]" if len(elements) > 1 or system == "torque" else ""
    return {
        "pbs": f"{number}{brackets}.server", "torque": f"{number}{brackets}.server",
        "lsf": f"Job <{number}> is submitted to default queue <normal>.",
        "htcondor": f"Submitting job(s){'.' * len(elements)}\n{len(elements)} job(s) submitted to cluster {number}.",
    }[system]  # fmt: skip


def _directives(text: str, mark: str) -> list[str]:
    lines = [line.removeprefix(mark) for line in text.splitlines() if line.startswith(f"{mark} ")]
    return [word for line in lines for word in shlex.split(line)]


def _value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1] if flag in words else ""


def _read_pbs(text: str, script: str) -> list[tuple[list[str], dict[str, str]]]:
    words = _directives(text, "#PBS")
    if _value(words, "-q") == "nosuch":
        sys.exit("qsub: Unknown queue")
    if not (indices := _value(words, "-J")):
        return [(["/bin/sh", script], {})]
    first, last = map(int, indices.split("-"))
    if first >= last:
        sys.exit("qsub: illegal -J value")
    return [(["/bin/sh", script], {"PBS_ARRAY_INDEX": str(index)}) for index in range(first, last + 1)]


def _read_torque(text: str, script: str) -> list[tuple[list[str], dict[str, str]]]:
    words = _directives(text, "#PBS")
    if _value(words, "-q") == "nosuch":
        sys.exit("qsub: submit error (Unknown queue MSG=cannot locate queue)")
    if any("select=" in word for word in words):
        sys.exit("qsub: submit error (Unknown resource type  Resource_List.select)")
    first, last = map(int, _value(words, "-t").split("-"))
    return [(["/bin/sh", script], {"PBS_ARRAYID": str(index)}) for index in range(first, last + 1)]


def _read_lsf(text: str, script: str) -> list[tuple[list[str], dict[str, str]]]:
    words = _directives(text, "#BSUB")
    if _value(words, "-q") == "nosuch":
        sys.exit("nosuch: No such queue. Job not submitted.")
    found = re.fullmatch(r"[\w-]+\[(\d+)-(\d+)\]", _value(words, "-J"))
    assert found is not None, words
    first, last = map(int, found.groups())
    return [(["/bin/sh", script], {"LSB_JOBINDEX": str(index)}) for index in range(first, last + 1)]


def _read_htcondor(text: str, script: str) -> list[tuple[list[str], dict[str, str]]]:
    del script
    lines = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    queue = re.search(r"(?m)^queue (\d+)$", text)
    if queue is None or not lines.get("arguments", "").startswith('"'):
        sys.exit("Submitting job(s)\nERROR: Failed to parse command file (line 1).")
    arguments = lines["arguments"].strip('"')
    return [
        ([lines["executable"], *shlex.split(arguments.replace("$(Process)", str(process)))], {})
        for process in range(int(queue[1]))
    ]


# --- asking ---------------------------------------------------------------------------------------------------


def _tell_pbs(number: str, job: dict[str, Any] | None, system: str) -> None:
    if job is None:
        sys.exit(f"qstat: Unknown Job Id {number}[].server")
    is_array = len(job["elements"]) > 1 or system == "torque"
    states = ["F" if each["ended"] else "R" if each["pid"] else "Q" for each in job["elements"]]
    if is_array and system == "pbs":
        comment = f"    comment = {_WHY['pbs'][:40]}\n\t{_WHY['pbs'][40:]}\n" if "Q" in states else ""
        print(f"Job Id: {number}[].server\n    Job_Name = hpcnb\n    job_state = B\n{comment}    array = True\n")
    for index, state in enumerate(states, 1):
        if state != "F" or system == "pbs":
            element = f"[{index}]" if is_array else ""
            print(
                f"Job Id: {number}{element}.server\n    Job_Name = hpcnb\n    job_state = {'X' if state == 'F' else state}\n"
            )


def _tell_lsf(number: str, job: dict[str, Any] | None, words: list[str]) -> None:
    if job is None:
        sys.exit(f"Job <{number}> is not found")
    print("JOBID   USER    STAT  QUEUE      FROM_HOST   EXEC_HOST   JOB_NAME   SUBMIT_TIME")
    for index, each in enumerate(job["elements"], 1):
        state = "DONE" if each["ended"] else "RUN " if each["pid"] else "PEND"
        if "-p" not in words or state == "PEND":
            host = "" if state == "PEND" else "node1"
            print(f"{number:<7} someone {state}  normal     head        {host:<11} hpcnb-x[{index}] Nov 23 20:31")
            if "-p" in words:
                print(f" {_WHY['lsf']};")


def _tell_htcondor(job: dict[str, Any] | None) -> None:
    for process, each in enumerate(job["elements"] if job else ()):
        if not each["ended"]:
            print(f"{process} {2 if each['pid'] else 1} ")


def _main(system: str, name: str, words: list[str]) -> None:
    folder = Path(os.environ["LOCAL_QUEUE"])
    if words == ["--version"]:
        print("Version: 6.1.2\nCommit: 661e092" if system == "torque" else "pbs_version = 20.0.1")
    elif name in ("qsub", "bsub", "condor_submit"):
        print(_submit(system, folder, Path(words[-1]).read_text() if words else sys.stdin.read()))
    else:
        number = next(found[0] for word in words if (found := re.match(r"\d+", word)))
        with _jobs(folder) as jobs:
            if name in ("qdel", "bkill", "condor_rm"):
                if number not in jobs:
                    sys.exit(f"{name}: Unknown Job Id {number}")
                _end(jobs.pop(number))
            elif name == "qstat":
                _tell_pbs(number, jobs.get(number), system)
            elif name == "bjobs":
                _tell_lsf(number, jobs.get(number), words)
            else:
                _tell_htcondor(jobs.get(number))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3:])
