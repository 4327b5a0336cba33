"""``htcondor``: a cluster of jobs of HTCondor, one of them for each node."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hpcnb.cluster.launchers.batch import BatchLauncher, BatchSystem, Element, given
from hpcnb.core.errors import OptionError

__all__ = ["HtcondorLauncher"]

#: What is asked for: process, JobStatus, HoldReason
_ROW = re.compile(r"^(?P<process>\d+) (?P<state>\d) ?(?P<reason>.*)$")
_ANSWERED = "hpcnb: that was all"
#: JobStatus: 1 idle, 2 running, 3 removed, 4 completed, 5 held, 6 transferring output, 7 suspended
_IDLE, _REMOVED, _COMPLETED, _HELD = "1", "3", "4", "5"


class HtCondor(BatchSystem):
    """As of HTCondor 9."""

    launcher = "HTCondorEngineSetLauncher"
    submit = "condor_submit"
    job_id = r"submitted to cluster (\d+)"
    number = '"$(($1 + 1))"'  # processes count from 0

    def template(self, asked: Mapping[str, str], num_elements: int) -> str:
        """See BatchSystem.

        Raises:
            OptionError: A queue was asked for.
        """
        del num_elements
        if asked["queue"]:
            msg = "HTCondor has no queues; machines are chosen with  submit='requirements = ...'"
            raise OptionError(msg)
        lines = [
            "universe = vanilla", "executable = /bin/sh", "transfer_executable = False",
            'arguments = "{program_args} $(Process)"', "batch_name = {name}", "output = /dev/null", "error = /dev/null",
            "notification = never", "request_cpus = {cpus}",
            # one that was evicted would begin again without its folder
            "periodic_remove = (JobStatus == 1) && (NumJobStarts > 0)",
        ]  # fmt: skip
        lines += given(asked, {"gpus": "request_gpus = {gpus}", "account": "accounting_group = {account}"})
        if asked["time"]:
            hours, minutes, seconds = map(int, asked["time"].split(":"))
            lines.append(f"allowed_job_duration = {3600 * hours + 60 * minutes + seconds}")
        lines += [line.strip().replace("{", "{{").replace("}", "}}") for line in asked["submit"].split(";") if line]
        return "\n".join([*lines, "queue {n}", ""])

    def question(self, job: str) -> str:
        """See BatchSystem."""
        return (
            f"condor_q {job} -format '%d ' ProcId -format '%d ' JobStatus -format '%s' HoldReason "
            f"-format '\\n' JobStatus && echo '{_ANSWERED}'"
        )

    def elements(self, said: Sequence[str], job: str) -> dict[int, Element] | None:
        """See BatchSystem."""
        del job
        if _ANSWERED not in said:
            return None
        elements = {}
        for row in filter(None, map(_ROW.match, said)):
            number, state = int(row["process"]) + 1, row["state"]
            if state == _HELD:
                elements[number] = Element("stuck", row["reason"].strip())
            elif state not in (_REMOVED, _COMPLETED):
                elements[number] = Element("queued" if state == _IDLE else "running")
        return elements


class HtcondorLauncher(BatchLauncher):
    """Starts agents with HTCondor; see BatchLauncher."""

    _system = HtCondor()
