"""What Slurm says of partitions, accounts and a job that is only tried -> checks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpcnb.cluster.preflight.checks import HERE, Check
from hpcnb.core.units import count

__all__ = ["of_account", "of_partition", "of_trial", "silent"]

_WHEN = re.compile(r"Job \d+ to start at (?P<when>\S+) .*on nodes? (?P<nodes>\S+)")


def silent(said: Sequence[str]) -> Check:
    """Slurm cannot be asked."""
    last = _plain(said[-1]) if said else "it said nothing"
    return Check("Slurm", HERE, "fail", f"Slurm does not answer: {last}", "scontrol ping   shows who should answer")


def of_partition(asked: str | None, num_nodes: int, rows: Sequence[str]) -> Check:
    """Whether the partition exists, is up, and has so many nodes.

    Args:
        asked: Its name; None for the site's own choice.
        num_nodes: That the job wants.
        rows: Of ``sinfo --all -h -o "%P|%a|%D"``: name (the default one with a ``*``), whether up, number of nodes.
    """
    nodes: dict[str, int] = {}
    default, down = "", set()
    for row in rows:
        name, state, number = row.strip().split("|")
        default = name.rstrip("*") if name.endswith("*") else default
        name = name.rstrip("*")
        nodes[name] = nodes.get(name, 0) + int(number)
        down |= {name} if state != "up" else set()
    known = ", ".join(f"{name} ({count(number, 'node')})" for name, number in nodes.items()) or "none"
    chosen = asked or default
    if not chosen:
        return Check("partition", HERE, "fail", f"no partition is named, and Slurm has no default; there are {known}",
                     f"--partition {next(iter(nodes), 'NAME')}")  # fmt: skip
    for name in chosen.split(","):
        if name not in nodes:
            return Check("partition", HERE, "fail", f"there is no partition {name!r}; there are {known}",
                         f"--partition {next(iter(nodes), 'NAME')}")  # fmt: skip
    if set(chosen.split(",")) <= down:
        up = next((name for name in nodes if name not in down), "")
        fix = f"--partition {up}" if up else "ask who runs the machine when it comes back"
        return Check("partition", HERE, "fail", f"partition {chosen!r} takes no jobs now", fix)
    most = max(nodes[name] for name in chosen.split(","))
    if num_nodes > most:
        words = f"{count(num_nodes, 'node')} are asked for, and partition {chosen!r} has {count(most, 'node')}"
        return Check("partition", HERE, "fail", words, f"--nodes {most}, or one of {known}")
    return Check("partition", HERE, "ok", f"{chosen}, {count(most, 'node')}")


def of_account(asked: str | None, user: str, rows: Sequence[str]) -> Check | None:
    """Whether the account may be charged by this user; None if Slurm keeps no accounts.

    Args:
        asked: Its name; None for the user's own.
        user: Login name.
        rows: Of ``sacctmgr -n -P show assoc user=NAME format=account``.
    """
    accounts = sorted({row.strip() for row in rows if row.strip()})
    if not accounts or asked is None:
        return Check("account", HERE, "ok", f"one of {', '.join(accounts)}") if accounts else None
    if asked in accounts:
        return Check("account", HERE, "ok", asked)
    words = f"user {user} cannot charge account {asked!r}; there are {', '.join(accounts)}"
    return Check("account", HERE, "fail", words, f"--account {accounts[0]}")


def of_trial(said: Sequence[str], status: int | None) -> Check:
    """What became of ``srun --test-only``."""
    text = "\n".join(said)
    if found := _WHEN.search(text):
        return Check("job", HERE, "ok", f"would start at {found['when']} on {found['nodes']}")
    if status == 0:
        return Check("job", HERE, "ok", "would be taken")
    last = next((_plain(line) for line in reversed(said) if line.strip()), f"srun ended with status {status}")
    return Check("job", HERE, "fail", f"Slurm would not take it: {last}", _mends(last))


def _mends(why: str) -> str:
    for pattern, fix in (
        ("account", "name an account of yours:  sacctmgr show assoc user=$USER format=account  lists them"),
        ("partition", "sinfo  lists the partitions; choose one:  --partition NAME"),
        ("[Tt]ime limit", "ask for less:  --time; the partition's limit:  sinfo -o '%P %l'"),
        ("node configuration|CPU count|Memory|feature|node count",
         "ask for less of a node (--cpus-per-node, --gpus-per-node, --constraint);  sinfo -Nl  shows what there is"),
        ("QOS|limit", "ask for less, or wait until your other jobs have ended:  squeue --me"),
    ):  # fmt: skip
        if re.search(pattern, why):
            return fix
    return "sinfo  shows what is there;  scontrol ping  whether Slurm answers"


def _plain(line: str) -> str:
    return re.sub(r"^(srun|sinfo|sacctmgr|slurm_\w+): (error: )?", "", line.strip())
