"""``slurm``: a job with one agent per node, or a step of the allocation that this process is in.

``srun`` does all of it: waits in the queue, carries the ticket in its stdin to every node, brings back what a node
says that does not start, and works the same within ``salloc``, a batch job, or a JupyterHub server that runs in one.
It lives as long as the agents: the job ends with the cluster, and the cluster's ranks with the job.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic

from hpcnb.cluster.launchers.addresses import own_address
from hpcnb.cluster.launchers.command import Command
from hpcnb.cluster.launchers.nodes import NodeLauncher, Problem, fatal, problem_of, spread
from hpcnb.cluster.preflight import slurm as of_slurm
from hpcnb.cluster.preflight.checks import Check
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.core.launch import Ticket

__all__ = ["SlurmLauncher"]

_LABELLED = re.compile(r"^\s*(?P<task>\d+): (?P<text>.*)$")
_ENDED = re.compile(r"^srun: error: (?P<host>\S+): tasks? [\d,-]+: (?P<how>.*)$")
_ALLOCATED = re.compile(r"job \d+ has been allocated resources")
_QUEUED = re.compile(r"job (?P<job>\d+) queued and waiting for resources")
#: Slurm is asked so often why a job waits.
_ASK_S = 3.0
#: What a node said may come later than that its agent has ended.
_LAST_WORDS_S = 0.5
#: Of what an agent has said that ended.
_MOST_LINES = 15
#: The checks before a launch take nodes that are free within so long.
_VISIT_S = 8


class SlurmLauncher(NodeLauncher):
    """Starts agents with srun.

    Args:
        num_ranks: World size; by default ``ranks_per_node`` on every node.
        nodes: How many; by default those of the allocation that this process is in, else one.
        ranks_per_node: The same on every node.
        partition: Queue; by default the site's.
        time: Limit of the job, as Slurm takes it: ``1:30:00``.
        account: To be charged.
        constraint: Features that nodes must have.
        gpus_per_node: GPUs of each node.
        cpus_per_node: Processors of each node; by default one per rank, or what the allocation has.
        python: Interpreter on the nodes; by default the path of this one.
        setup: Shell command before Python, ``module load cuda``.
        srun: More options of srun, as in a shell.
        address: IP address of this machine that the nodes reach; by default that of its host name.

    Raises:
        OptionError: Numbers that contradict each other.
        LaunchError: There is no srun here, or this machine's name has no address that others reach.
    """

    def __init__(  # noqa: PLR0913 - all but the first are options by name
        self,
        num_ranks: int | None,
        *,
        nodes: int | None = None,
        ranks_per_node: int | None = None,
        partition: str | None = None,
        time: str | None = None,
        account: str | None = None,
        constraint: str | None = None,
        gpus_per_node: int | None = None,
        cpus_per_node: int | None = None,
        python: str | None = None,
        setup: str | None = None,
        srun: str | None = None,
        address: str | None = None,
    ) -> None:
        if shutil.which("srun") is None:
            msg = "launcher slurm needs the command srun, and there is none here; is this a machine of the cluster?"
            raise LaunchError(msg)
        allocated = os.environ.get("SLURM_JOB_NUM_NODES", "")
        if nodes is None:
            nodes = int(allocated) if allocated.isdecimal() else 1
        elif allocated.isdecimal() and nodes > int(allocated):
            plural = "" if allocated == "1" else "s"
            job = os.environ.get("SLURM_JOB_ID", "?")
            msg = f"this allocation (job {job}) has {allocated} node{plural}, not {nodes}"
            raise OptionError(msg)
        self.layout = spread(num_ranks, nodes, ranks_per_node)
        self.address = address or own_address()
        self._python = python or sys.executable
        self._setup = setup
        self._is_allocated = bool(allocated)
        self._partition, self._account = partition, account
        cpus = cpus_per_node or (_allocated_cpus() if allocated else 0) or max(self.layout)
        self._options = ["--ntasks-per-node=1", f"--cpus-per-task={cpus}", "--label", "--no-kill", "--wait=0"]
        self._options += ["--kill-on-bad-exit=0", "--unbuffered"]
        if allocated:
            self._options.append("--overlap")  # the step that we are in holds the processors
        for flag, value in (
            ("--partition", partition), ("--time", time), ("--account", account), ("--constraint", constraint),
            ("--gpus-per-node", gpus_per_node),
        ):  # fmt: skip
            self._options += [f"{flag}={value}"] if value is not None else []
        self._options += (srun or "").split()
        self._starting: list[Command] = []
        self._running: list[Command] = []
        self._asked_s, self._reason = float("-inf"), ""
        self._is_checked = False
        self._ended_s = float("inf")  # since when an agent is known to have ended

    def launch(self, ticket: Ticket, nodes: Sequence[int]) -> None:
        """See NodeLauncher."""
        self._ended_s = float("inf")
        join = ["-m", "hpcnb.node.join", "--stay", "--nodes", ",".join(map(str, nodes))]
        words = self._srun(nodes, ticket.cluster_name, join)
        self._starting.append(Command(words, stdin=ticket.to_text() + "\n"))

    def _srun(self, nodes: Sequence[int], name: str, arguments: Sequence[str], *more: str) -> list[str]:
        words = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", f"--job-name=hpcnb-{name}"]
        words += [*self._options, *more]
        python = [self._python, *arguments]
        return words + (["/bin/sh", "-c", f'{self._setup} && exec "$@"', "sh", *python] if self._setup else python)

    def visit(self, arguments: Sequence[str], nodes: Sequence[int]) -> dict[str, Command]:
        """See NodeLauncher: nodes that are taken are not waited for."""
        more = [] if self._is_allocated else [f"--immediate={_VISIT_S}", "--time=1"]
        return {"": Command(self._srun(nodes, "doctor", arguments, *more))}

    def checks(self) -> list[Check]:
        """See NodeLauncher: partition, account, and whether Slurm would take the job; nothing is queued."""
        if self._is_allocated:
            return []
        found = self._lasting()
        if all(check.level == "ok" for check in found):
            nodes = range(len(self.layout))
            found.append(of_slurm.of_trial(*_ask(self._srun(nodes, "doctor", ["-c", "pass"], "--test-only"))))
        return found

    def _lasting(self) -> list[Check]:
        """What does not change with the nodes that are up at the moment."""
        if self._is_allocated:
            return []
        said, status = _ask(["sinfo", "--all", "-h", "-o", "%P|%a|%D"])
        if status != 0:
            return [of_slurm.silent(said)]
        found = [of_slurm.of_partition(self._partition, len(self.layout), said)]
        user = getpass.getuser()
        rows, _ = _ask(["sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account"], only_stdout=True)
        account = of_slurm.of_account(self._account, user, rows)
        return found + ([account] if account is not None else [])

    def refused(self, where: str, said: Sequence[str], status: int | None) -> Problem:
        """See NodeLauncher: one srun speaks for all nodes."""
        for line in said:
            if (labelled := _LABELLED.match(line)) and fatal([labelled["text"]]) is not None:
                return super().refused(where or f"number {labelled['task']}", [labelled["text"]], status)
        why = next((_plain(line) for line in reversed(said)), f"srun ended with status {status}")
        is_busy = "immediate" in why or "busy" in why or status is None
        check = (
            Check(
                "nodes",
                "Slurm",
                "warn",
                f"could not be looked at, since they are taken now ({why})",
                "squeue  shows by whom",
            )
            if is_busy
            else Check("nodes", "Slurm", "fail", f"srun failed: {why}", "sinfo -R  shows nodes that are down, and why")
        )
        return Problem(f"srun failed: {why}", tuple(said[:-1]), check=check)

    def said(self) -> list[str]:
        """See NodeLauncher."""
        return [line for command in self._starting for line in command.lines()[-3:]]

    def look(self) -> Problem | None:
        """See NodeLauncher."""
        for command in self._starting:
            lines = command.lines()
            by_task: dict[str, list[str]] = {}
            for line in lines:
                if labelled := _LABELLED.match(line):
                    by_task.setdefault(labelled["task"], []).append(labelled["text"])
            for task, said in by_task.items():
                if (last := fatal(said)) is not None:
                    return problem_of(f"number {task}", self._python, said[: last + 1])
            if ended := next(filter(None, map(_ENDED.match, lines)), None):
                self._ended_s = min(self._ended_s, monotonic())
                if monotonic() < self._ended_s + _LAST_WORDS_S and command.status is None:
                    return None
                log = [text for said in by_task.values() for text in said][-_MOST_LINES:]
                return Problem(f"the agent of node {ended['host']} ended: {ended['how']}", tuple(log))
            if command.status is not None:
                said = [_plain(line) for line in lines]
                why = said[-1] if said else f"it ended with status {command.status}"
                return Problem(f"srun failed: {why}", tuple(said[:-1]))
        return self._in_vain()

    def _in_vain(self) -> Problem | None:
        """What a queued job waits for that will not come: Slurm takes a job for more nodes than there are."""
        if self._is_checked or not self._queued_job():
            return None
        self._is_checked = True
        wrong = next((check for check in self._lasting() if check.level == "fail"), None)
        return Problem(f"{wrong.words}; {wrong.fix}", check=wrong) if wrong is not None else None

    @property
    def is_queued(self) -> bool:
        """See NodeLauncher."""
        return bool(self._queued_job())

    def words(self) -> str:
        """See NodeLauncher: with Slurm's reason, ``Resources``, ``Priority``, ``PartitionNodeLimit``."""
        if not (job := self._queued_job()):
            return ""
        now_s = monotonic()
        if now_s >= self._asked_s + _ASK_S:
            self._asked_s = now_s
            asked = subprocess.run(
                ["squeue", "-h", "-j", job, "-o", "%r"], capture_output=True, text=True, timeout=_ASK_S, check=False
            )
            self._reason = asked.stdout.strip()
        why = f" ({self._reason})" if self._reason not in ("", "None") else ""
        return f"job {job} is queued{why}; Ctrl-C gives it up"

    def _queued_job(self) -> str:
        for command in self._starting:
            for line in reversed(command.lines()):
                if _ALLOCATED.search(line) or _LABELLED.match(line):
                    break
                if queued := _QUEUED.search(line):
                    return queued["job"]
        return ""

    def started(self) -> None:
        """See NodeLauncher: srun goes on as long as the nodes do."""
        self._running += self._starting
        self._starting = []

    def cancel(self) -> None:
        """See NodeLauncher: srun cancels its job when it is ended."""
        for command in self._starting:
            command.kill()
        self._starting = []

    def ended(self) -> None:
        """See NodeLauncher."""
        for command in self._running:
            command.kill()
        self._running = []


def _allocated_cpus() -> int:
    """Processors that the allocation has on each of its nodes, ``4(x2),2``; 0 if Slurm does not say."""
    said = os.environ.get("SLURM_JOB_CPUS_PER_NODE", "")
    return min((int(each) for each in re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", said)), default=0)


def _plain(line: str) -> str:
    return line.removeprefix("srun: ").removeprefix("error: ")


def _ask(words: list[str], *, only_stdout: bool = False) -> tuple[list[str], int | None]:
    """What a command of Slurm says, and its status; None if there is no such command or it does not end."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_VISIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return ([] if only_stdout else [str(error)]), None
    return (done.stdout + ("" if only_stdout else done.stderr)).splitlines(), done.returncode
