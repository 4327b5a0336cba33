"""Memory, limits, folder and devices of a node -> checks."""

from __future__ import annotations

from collections.abc import Iterator

from hpcnb.cluster.preflight.checks import Check
from hpcnb.cluster.preflight.facts import Facts
from hpcnb.cluster.preflight.wants import Wants
from hpcnb.core.launch import MAX_SOCKET_PATH
from hpcnb.core.units import count, size

__all__ = ["devices", "folder", "limits", "memory", "shared_memory"]

#: A process of torch that ranks are forked from, and what a rank has of its own before it has done anything.
_TEMPLATE_BYTES, _RANK_BYTES = 200_000_000, 60_000_000
#: With less than so much per rank a first model may already be too large.
_GOOD_RANK_BYTES = 300_000_000
_SHM = "/dev/shm"  # noqa: S108 - looked at, not written to
#: Data loaders and NCCL share memory there; containers have 64 MiB unless told otherwise.
_GOOD_SHM_BYTES = 256_000_000
#: Descriptors of an agent and a controller, and of both per rank; of a rank among 500 others.
_BASE_FILES, _FILES_PER_RANK = 256, 8
#: Threads of an agent, a template and a controller; of a rank.
_BASE_THREADS, _THREADS_PER_RANK = 32, 16
_SMALL_STACK_BYTES = 1 << 20


# --- memory and limits ------------------------------------------------------------------------------------------


def memory(where: str, facts: Facts, wants: Wants) -> Iterator[Check]:
    """Enough for ranks that have not done anything yet."""
    least = _TEMPLATE_BYTES + _RANK_BYTES * wants.num_ranks
    good = _TEMPLATE_BYTES + _GOOD_RANK_BYTES * wants.num_ranks
    words = f"{size(facts.memory_free)} of {size(facts.memory_total)} free"
    if facts.memory_free >= good:
        yield Check("memory", where, "ok", words)
        return
    fits = max(0, (facts.memory_free - _TEMPLATE_BYTES) // _RANK_BYTES)
    words = f"{words}; {count(wants.num_ranks, 'rank')} need {size(least)} before their first model"
    if facts.memory_free >= least:
        yield Check("memory", where, "warn", words, "take fewer ranks per node, or end what else uses memory there")
        return
    most = f"at most {count(fits, 'rank')} per node" if fits else "another node"
    yield Check("memory", where, "fail", words, f"take {most}, or end what else uses memory there (ps aux --sort -rss)")


def shared_memory(where: str, facts: Facts) -> Iterator[Check]:
    """Room in /dev/shm."""
    if facts.shm_free >= _GOOD_SHM_BYTES:
        yield Check(_SHM, where, "ok", f"{size(facts.shm_free)} free")
        return
    is_there = facts.shm_total >= 0
    words = f"{size(facts.shm_free)} of {size(facts.shm_total)} free" if is_there else "there is none"
    fix = "mount -o remount,size=2g /dev/shm" if is_there else "mount -t tmpfs -o size=2g none /dev/shm"
    words = f"{words}; DataLoader workers and NCCL need it, hpcnb does not"
    yield Check(_SHM, where, "warn", words, f"as root on {where}:  {fix}   (in Docker: --shm-size=2g)")


def limits(where: str, facts: Facts, wants: Wants) -> Iterator[Check]:
    """Open files, processes, locked memory and stack; this machine has the controller of all ranks."""
    ranks = wants.world_size if wants.is_here else wants.num_ranks
    files = max(_BASE_FILES + _FILES_PER_RANK * ranks, 64 + 4 * wants.world_size)
    threads = _BASE_THREADS + _THREADS_PER_RANK * wants.num_ranks
    checks = [
        *_limit(where, facts, wants, ("NOFILE", "ulimit -n", "open files", files, "fail")),
        *_limit(where, facts, wants, ("NPROC", "ulimit -u", "processes and threads", threads, "fail")),
        *_limit(where, facts, wants, ("STACK", "ulimit -s", "bytes of stack", _SMALL_STACK_BYTES, "warn")),
    ]
    if facts.has_infiniband:
        checks += _limit(where, facts, wants, ("MEMLOCK", "ulimit -l", "bytes of locked memory", 1 << 62, "warn"))
    if checks:
        yield from checks
        return
    soft = facts.limits.get("NOFILE", [-1])[0]
    yield Check("limits", where, "ok", f"{'any number of' if soft < 0 else f'{soft:,}'} open files")


def _limit(where: str, facts: Facts, wants: Wants, asked: tuple[str, str, str, int, str]) -> Iterator[Check]:
    name, command, noun, least, level = asked
    soft, hard = facts.limits.get(name, [-1, -1])
    if soft < 0 or soft >= least:
        return
    is_any = least >= 1 << 62
    value = "unlimited" if is_any else str(least // 1024 if name == "STACK" else least)
    words = f"{command} allows {soft:,} {noun}, {'more' if is_any else f'{least:,}'} are needed"
    raised = f"{command} {value}"
    if 0 <= hard < least:
        item = {"NOFILE": "nofile", "NPROC": "nproc", "MEMLOCK": "memlock", "STACK": "stack"}[name]
        fix = f"as root on {where}:  echo '* - {item} {value}' >> /etc/security/limits.d/hpcnb.conf, and log in again"
    elif wants.is_here:
        fix = f"in the shell that starts Jupyter:  {raised}"
    else:
        fix = f"--setup '{raised}'"
    yield Check("limits", where, "fail" if level == "fail" else "warn", words, fix)


def folder(where: str, facts: Facts) -> Iterator[Check]:
    """Where the cluster's files and sockets lie."""
    if facts.folder_problem:
        words = f"{facts.folder} cannot hold the files of a cluster: {facts.folder_problem}"
        fix = f"set HPCNB_RUNTIME_DIR on {where} to a folder of yours that can be written to, for example /tmp"
        if "belongs to" in facts.folder_problem:
            fix = f"on {where}:  chmod 700 {facts.folder}   (if it is yours; else set HPCNB_RUNTIME_DIR)"
        yield Check("folder", where, "fail", words, fix)
    elif facts.socket_path_length > MAX_SOCKET_PATH:
        words = (
            f"{facts.folder} is too long for sockets in it: {facts.socket_path_length} of {MAX_SOCKET_PATH} characters"
        )
        yield Check(
            "folder", where, "fail", words, f"set HPCNB_RUNTIME_DIR on {where} to a shorter one, for example /tmp"
        )
    else:
        yield Check("folder", where, "ok", facts.folder)


# --- devices ----------------------------------------------------------------------------------------------------


def devices(where: str, facts: Facts, wants: Wants) -> Iterator[Check]:
    """A GPU or a processor for every rank."""
    num = facts.gpus
    if facts.visible_gpus is not None:
        num = min(num, len([each for each in facts.visible_gpus.split(",") if each.strip() not in ("", "-1")]))
    ranks = count(wants.num_ranks, "rank")
    if facts.gpus and facts.packages.get("torch", "").endswith("+cpu"):
        fix = f"{facts.executable} -m pip install --force-reinstall torch=={facts.packages['torch'].partition('+')[0]}"
        words = f"{count(facts.gpus, 'GPU')}, and torch {facts.packages['torch']} cannot use them"
        yield Check("devices", where, "warn", words, wants.typed(where, fix))
    elif facts.gpus and not num:
        words = f"{count(facts.gpus, 'GPU')}, and CUDA_VISIBLE_DEVICES={facts.visible_gpus!s} hides them"
        yield Check("devices", where, "warn", words, "unset CUDA_VISIBLE_DEVICES there")
    elif 0 < num < wants.num_ranks:
        words = f"{ranks} on {count(num, 'GPU')}: ranks share them, which NCCL refuses"
        yield Check("devices", where, "warn", words, f"take {count(num, 'rank')} per node:  --ranks-per-node {num}")
    elif num:
        yield Check("devices", where, "ok", f"{count(num, 'GPU')} for {ranks}")
    elif wants.num_ranks > facts.cores:
        words = f"{ranks} on {count(facts.cores, 'processor')}, no GPU: they wait for each other"
        yield Check("devices", where, "warn", words, f"take at most {count(facts.cores, 'rank')} there")
    else:
        yield Check("devices", where, "ok", f"{count(facts.cores, 'processor')} for {ranks}, no GPU")
