"""What launchers of batch systems have in common: their options, and an array of jobs with one element per node.

An array needs no mpiexec and no login between nodes, and is what ipyparallel submits too. Elements are independent:
two may run on one machine, and the cluster begins when the last one does. They end with the cluster, which ends with
them. What differs between the systems is in one file for each (pbs.py, sge.py, lsf.py, htcondor.py).
"""

from __future__ import annotations

import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hpcnb.cluster.launchers.addresses import own_address
from hpcnb.cluster.launchers.batch_job import Job, SharedFolder
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, spread
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.launch import Ticket

__all__ = ["BatchLauncher", "BatchSystem", "Element", "given"]

_TIME = re.compile(r"\d+:[0-5]\d:[0-5]\d")


@dataclass(frozen=True)
class Element:
    """One job of an array, as its batch system sees it.

    Attributes:
        state: ``stuck`` is what waits and will never run.
        reason: Why it waits or is stuck; "" where the system does not say.
    """

    state: Literal["queued", "running", "stuck"]
    reason: str = ""


class BatchSystem(ABC):
    """What one batch system wants to be told, and how it answers.

    Attributes:
        launcher: ipyparallel's class for it, which has its commands and renders its templates.
        job_id: Finds the id of a job in what the submit command says: first group.
        submit: The submit command.
        reads_stdin: Whether the submit command wants the script there.
        number: How the shell of an element writes its number, which counts from 1.
    """

    launcher: ClassVar[str]
    job_id: ClassVar[str]
    submit: ClassVar[str]
    reads_stdin: ClassVar[bool] = False
    number: ClassVar[str]

    @abstractmethod
    def template(self, asked: Mapping[str, str], num_elements: int) -> str:
        """A script for ipyparallel to render.

        Args:
            asked: What there is to be filled in, ``""`` for what was not asked: name, queue, time, account, cpus, gpus
                and submit. ipyparallel adds n, program, program_args and program_and_args.
            num_elements: Of the array.
        """

    @abstractmethod
    def question(self, job: str) -> str:
        """Shell command that asks for the state of a job."""

    @abstractmethod
    def elements(self, said: Sequence[str], job: str) -> dict[int, Element] | None:
        """By their number from 1, those that wait or run; None if the answer is none.

        Args:
            said: Lines of the answer, without empty ones.
            job: Id of the job.
        """


class BatchLauncher(NodeLauncher):
    """Starts agents as an array of jobs.

    Args:
        num_ranks: World size; by default ``ranks_per_node`` on every node.
        nodes: How many.
        ranks_per_node: The same on every node.
        queue: By default the site's.
        time: Limit of the job, ``1:30:00``.
        account: To be charged.
        cpus_per_node: Processors of each node; by default one per rank.
        gpus_per_node: GPUs of each node.
        submit: More options of the submit command; for HTCondor lines of the description, with ``;`` between them.
        template: File with a script of one's own, as ipyparallel renders it; the options above are words in it.
        folder: One that all nodes see, for the time of the start; by default ``~/.hpcnb``.
        python: Interpreter on the nodes; by default the path of this one.
        setup: Shell command before Python, ``module load cuda``.
        address: IP address of this machine that the nodes reach; by default that of its host name.

    Raises:
        OptionError: Numbers that contradict each other, a limit that is none, a template that starts nothing.
        LaunchError: There is no such batch system here, or this machine's name has no address that others reach.
    """

    _system: ClassVar[BatchSystem]

    def __init__(  # noqa: PLR0913 - all but the first are options by name
        self,
        num_ranks: int | None,
        *,
        nodes: int = 1,
        ranks_per_node: int | None = None,
        queue: str | None = None,
        time: str | None = None,
        account: str | None = None,
        cpus_per_node: int | None = None,
        gpus_per_node: int | None = None,
        submit: str | None = None,
        template: str | None = None,
        folder: str | None = None,
        python: str | None = None,
        setup: str | None = None,
        address: str | None = None,
    ) -> None:
        self.layout = spread(num_ranks, nodes, ranks_per_node)
        if time is not None and not _TIME.fullmatch(time):
            msg = f"time={time!r} is no limit of a job: write hours, minutes and seconds, for example  time='1:30:00'"
            raise OptionError(msg)
        self._asked = {
            "queue": queue or "", "time": time or "", "account": account or "", "submit": submit or "",
            "cpus": str(cpus_per_node or max(self.layout)), "gpus": str(gpus_per_node or ""),
        }  # fmt: skip
        if odd := next((name for name, value in self._asked.items() if "\n" in value), None):
            msg = f"{odd}={self._asked[odd]!r}: this is one line; for more there is template=FILE"
            raise OptionError(msg)
        self._template = _read(template) if template is not None else None
        if shutil.which(self._system.submit) is None:
            msg = (
                f"this launcher needs the command {self._system.submit}, and there is none here; is this a machine of "
                "the cluster?"
            )
            raise LaunchError(msg)
        if template is None:  # says now what cannot be asked for
            self._system.template({"name": "", **self._asked}, len(self.layout))
        self.address = address or own_address()
        self._folder = Path(folder or "~/.hpcnb").expanduser().absolute()
        self._python = python or sys.executable
        self._setup = setup or ":"
        self._jobs: list[Job] = []

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """See NodeLauncher; the ticket lies in a folder of this user alone, since scripts are copied to spools.

        Raises:
            LaunchError: The folder cannot be made.
        """
        safe = "".join(letter if letter.isalnum() else "_" for letter in ticket.cluster_name)
        asked = {"name": f"hpcnb-{safe}"[:15], **self._asked}  # as many letters as PBS takes
        template = self._template or self._system.template(asked, len(nodes))
        shared = SharedFolder.create(self._folder)
        self._jobs.append(Job(self._system, shared, nodes, self._python))
        shared.write("ticket", ticket.to_text())
        shared.write("join", shared.script(self._system.number, nodes, self._setup, self._python))
        self._jobs[-1].submit(template, asked)

    def look(self) -> Problem | None:
        """See NodeLauncher."""
        return next(filter(None, (job.look() for job in self._jobs)), None)

    @property
    def is_queued(self) -> bool:
        """See NodeLauncher."""
        return any(job.is_queued for job in self._jobs)

    def words(self) -> str:
        """See NodeLauncher: with the reason, where the batch system gives one."""
        return "; ".join(filter(None, (job.words() for job in self._jobs)))

    def started(self) -> None:
        """See NodeLauncher: the jobs go on as long as the nodes do."""
        for job in self._jobs:
            job.forget()
        self._jobs = []

    def cancel(self) -> None:
        """See NodeLauncher."""
        for job in self._jobs:
            job.delete()
        self._jobs = []


def given(asked: Mapping[str, str], lines: Mapping[str, str]) -> list[str]:
    """Those of some lines whose word was asked for."""
    return [line for word, line in lines.items() if asked[word]]


def _read(template: str) -> str:
    try:
        text = Path(template).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"template={template!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise OptionError(msg) from error
    if "{program" not in text:
        msg = (
            f"template {template} starts no agent: where a script runs the program, write  {{program_and_args}}  "
            "(for HTCondor  {program_args} $(Process)  as arguments of /bin/sh)"
        )
        raise OptionError(msg)
    return text
