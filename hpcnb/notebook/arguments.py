"""Magic lines -> frozen options. Pure: knows neither IPython nor a cluster.

Every unreadable line raises MagicError with one message: what was asked, what there is, what to type.
"""

from __future__ import annotations

import difflib
import keyword
import re
import shlex
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from hpcnb.core.errors import MagicError
from hpcnb.core.launch import IDLE_TIMEOUT_S, SILENCE_S
from hpcnb.core.watch import GRACE_S

__all__ = [
    "VERBS", "CellOptions", "CheckOptions", "ExportOptions", "ScaleOptions", "StartOptions", "Verb", "VerbOptions",
    "cell_flags",
    "cell_help", "help_text", "parse_cell", "parse_hpc", "ranks_of", "verb_words",
]  # fmt: skip


@dataclass(frozen=True)
class CellOptions:
    """Options of ``%%hpc_parallel``."""

    on: str = "all"
    timeout_s: float | None = None
    out: str | None = None
    show_time: bool = True
    is_init: bool = False
    show_help: bool = False


@dataclass(frozen=True)
class StartOptions:
    """Options of ``%hpc start``; None where nothing was asked."""

    num_ranks: int | None = None
    launcher: str = "local"
    mesh: str | None = None
    name: str = "default"
    idle_timeout_s: float = IDLE_TIMEOUT_S
    threads_per_rank: int | None = None
    grace_s: float | None = GRACE_S
    auto_restart: bool = False
    python: str | None = None
    silence_s: float = SILENCE_S
    launcher_options: dict[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """All but the number of ranks, as ``hpcnb.Cluster`` and ``hpcnb.doctor`` take them."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        del given["num_ranks"], given["launcher_options"]
        return given | self.launcher_options


@dataclass(frozen=True)
class CheckOptions:
    """Options of ``%hpc check``."""

    names: tuple[str, ...] = ()
    axis: str | None = None
    rng: bool = False
    on: str = "all"


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``%hpc export``."""

    file: str
    cells: str | None = None
    sbatch: bool = False
    force: bool = False


@dataclass(frozen=True)
class ScaleOptions:
    """Options of ``%hpc scale``; None where nothing was asked."""

    num_ranks: int
    mesh: str | None = None
    hosts: str | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class VerbOptions:
    """A verb of ``%hpc`` and what follows it; ``of_all`` is --all, and --clear of ``init``."""

    verb: str
    words: tuple[str, ...] = ()
    start: StartOptions | None = None
    check: CheckOptions | None = None
    is_installing: bool = False
    export: ExportOptions | None = None
    scale: ScaleOptions | None = None
    of_all: bool = False


@dataclass(frozen=True)
class Verb:
    """How a verb of ``%hpc`` is written, and what each of its options does."""

    usage: str
    help: str
    max_words: int = 0
    has_all: bool = False
    options: dict[str, str] = field(default_factory=dict)


_START_FLAGS = {
    "--mesh": "axis names and sizes, for example dp=2,tp=2; one axis dp by default",
    "--name": "what the cluster is called",
    "--threads": "OpenMP and torch threads of a rank; cores divided by ranks by default",
    "--idle-timeout": "end the cluster so many seconds after the last notebook has gone; 8 hours by default, 0 at once",
    "--grace": "release ranks that wait in vain after so many seconds, 1 by default; off for never",
    "--auto-restart": "replace ranks that die by themselves",
    "--launcher": "where ranks run: local (this machine), ssh, mpi, slurm, pbs, sge, lsf, htcondor, dask, existing",
    "--silence": "give a node up that has not answered for so many seconds; 8 by default",
    "--mpiexec": "for mpi: the command, and options that come first, in quotation marks",
    "--hosts": "for ssh, mpi, dask and existing: names of hosts, n1,n2,n3; for ssh also user@host",
    "--nodes": "for batch systems, and mpi within a batch job: how many; by default those of the allocation, else one",
    "--client": "for dask and existing: a client, by its name in this notebook; for dask also tcp://n1:8786",
    "--workers": "for dask: only these, by name or address, w1,w2",
    "--profile": "for existing: of the running ipyparallel cluster",
    "--cluster-id": "for existing: its id, if it has one",
    "--connection-file": "for existing: ipcontroller-client.json, in the place of a profile",
    "--partition": "for slurm: queue",
    "--queue": "for pbs, sge and lsf: queue",
    "--time": "for batch systems: limit of the job, 1:30:00",
    "--account": "for batch systems: to be charged",
    "--constraint": "for slurm: features that nodes must have",
    "--gpus-per-node": "for batch systems: GPUs of each node",
    "--cpus-per-node": "for batch systems: processors of each node; by default one per rank",
    "--srun": "for slurm: more options of srun, in quotation marks",
    "--submit": "for pbs, sge and lsf: more options of qsub or bsub, quoted; for htcondor lines with ; between",
    "--template": "for pbs, sge, lsf and htcondor: file with a script of your own",
    "--folder": "for pbs, sge, lsf and htcondor: folder that all nodes see, ~/.hpcnb by default",
    "--ranks-per-node": "how many ranks each node has; otherwise RANKS are spread evenly",
    "--python": "interpreter of the ranks; by default the notebook's, at the same path on every node",
    "--setup": "for ssh and batch systems: shell command that runs before Python, for example 'source env.sh'",
    "--user": "for ssh: login name",
    "--port": "for ssh: of the hosts' sshd",
    "--jump": "for ssh: host to go through",
    "--ssh-config": "for ssh: configuration file, instead of ~/.ssh/config",
    "--address": "IP address of this machine that the nodes reach",
}
#: Those that go to the launcher; numbers among them.
_LAUNCHER_FLAGS = (
    "--hosts", "--ranks-per-node", "--setup", "--user", "--port", "--jump", "--ssh-config", "--address", "--nodes",
    "--partition", "--time", "--account", "--constraint", "--gpus-per-node", "--cpus-per-node", "--srun",
    "--mpiexec", "--queue", "--submit", "--template", "--folder", "--client", "--workers", "--profile", "--cluster-id",
    "--connection-file",
)  # fmt: skip
_LAUNCHER_NUMBERS = ("--ranks-per-node", "--port", "--nodes", "--gpus-per-node", "--cpus-per-node")
_INSTALL = "put this hpcnb on nodes that have none, or another version; nothing else is installed"
_SCALE_FLAGS = {
    "--mesh": "axis names and sizes; without it the first axis grows or shrinks",
    "--hosts": "for ssh and mpi: more hosts, which the new ranks go to; otherwise to those that are there",
    "--nodes": "for slurm: so many more nodes, which the new ranks go to; otherwise to those that are there",
}
_CHECK_FLAGS = {
    "--axis": "mesh axis along which ranks should hold the same; dp by default",
    "--rng": "compare the random number generators too",
    "--on": "ranks that are compared: 0-3,7 · ~2 · dp=0&tp=1 · all",
}
_EXPORT_FLAGS = {
    "--cells": "numbers of cells, 3-7,9; by default all that ended well. One that is named alone may have failed",
    "--sbatch": "write a batch job for Slurm beside it, train.sbatch",
    "--force": "overwrite files that are there",
}

VERBS: dict[str, Verb] = {
    "start": Verb(
        "start [RANKS] [--mesh dp=2,tp=2] [--name NAME] [--threads N] [--idle-timeout SECONDS] [--grace SECONDS|off] "
        "[--auto-restart] [--launcher ssh --hosts n1,n2]",
        "start ranks; without a number one per GPU, else one per core up to 4",
        options={"RANKS": "how many", **_START_FLAGS},
    ),
    "doctor": Verb(
        "doctor [RANKS] [options of start] [--install]",
        "check what such a start needs, here and on the nodes, and say what mends it; starts nothing",
        options={"RANKS": "how many", "--install": _INSTALL, **_START_FLAGS},
    ),
    "stop": Verb(
        "stop [--all]",
        "end the cluster, or all of yours; names on the ranks are lost",
        has_all=True,
        options={"--all": "every cluster of yours on this machine, whichever notebook started it"},
    ),
    "status": Verb(
        "status [--all]",
        "one row per rank: node, process, device, state, memory; or per cluster",
        has_all=True,
        options={"--all": "one row per cluster of yours on this machine"},
    ),
    "attach": Verb(
        "attach [NAME]",
        "take a cluster that runs, after a kernel restart for example; names are kept",
        1,
        options={"NAME": "as %hpc status --all lists it; may be left out where there is one"},
    ),
    "detach": Verb("detach", "let go of the cluster; it goes on until %hpc attach or its idle timeout"),
    "join": Verb("join", "show the cell that still runs, from its beginning, until it ends"),
    "interrupt": Verb("interrupt", "stop the cell that runs; names are kept"),
    "recover": Verb("recover", "build the process groups again"),
    "restart-rank": Verb(
        "restart-rank [RANK ...]",
        "replace ranks by new processes; without a number those that died",
        64,
        options={"RANK": "numbers, also 0-2 and 0,3; names on these ranks are lost"},
    ),
    "scale": Verb(
        "scale RANKS [--mesh dp=3,tp=2] [--hosts n3 | --nodes 1]",
        "add ranks to the cluster, or end the highest; names on those that stay are kept",
        options={"RANKS": "how many there are to be", **_SCALE_FLAGS},
    ),
    "debug": Verb("debug RANK", "pdb on the last failure of a rank; breakpoint() in a cell stops there", 1),
    "init": Verb(
        "init [--clear [N ...]]",
        "cells marked with --init, which run again on a rank that takes the place of another",
        64,
        options={"--clear": "forget those of these numbers, or all"},
    ),
    "check": Verb(
        "check [NAME ...] [--axis dp] [--rng] [--on RANKS]",
        "compare what replicas hold, bit by bit; without names all modules and optimizers",
        options={"NAME": "of a cell on the ranks, also trainer.model", **_CHECK_FLAGS},
    ),
    "timing": Verb("timing [breakdown|timeline]", "where the time of the last cell went, as plots", 1),
    "export": Verb(
        "export FILE [--cells 3-7,9] [--sbatch] [--force]",
        "write the parallel cells that were run as a script for torchrun and plain python",
        options={"FILE": "of the script, train.py", **_EXPORT_FLAGS},
    ),
    "logs": Verb("logs [RANK]", "what a rank wrote outside of cells; without a rank, the agent's log", 1),
    "panel": Verb("panel", "a widget: start, stop, status, strip of the last cell"),
    "help": Verb("help [VERB]", "this text", 1),
}

#: Verbs whose words are ranks.
_RANKS = ("logs", "restart-rank")
#: A range names no more of them; no cluster has so many.
_MOST_RANKS = 100_000

_CELL_USAGE = "%%hpc_parallel [--on RANKS] [--timeout SECONDS] [--out NAME] [--init] [--time | --no-time]"
_CELL_FLAGS = {
    "--on": "ranks: 0-3,7 · ~2 · dp=0&tp=1 · host=n1 · failed · slowest · all",
    "--timeout": "interrupt the cell after so many seconds",
    "--out": "set NAME to {rank: value of the last expression}",
    "--init": "run the cell again on a rank that takes the place of one that died",
    "--time": "show where the time went (default)",
    "--no-time": "show output only",
    "--help": "this text",
}


def cell_help() -> str:
    """Help of ``%%hpc_parallel``."""
    return f"{_CELL_USAGE}\n\nRun the cell on every rank.\n\n{_table(_CELL_FLAGS)}"


def help_text(verb: str | None = None) -> str:
    """Help of ``%hpc``, or of one verb."""
    if verb is not None:
        rows = _table(VERBS[verb].options)
        return f"%hpc {VERBS[verb].usage}\n  {VERBS[verb].help}" + (f"\n\n{rows}" if rows else "")
    rows = _table({f"%hpc {word}": each.help for word, each in VERBS.items()})
    return (
        f"%hpc VERB\n\n{rows}\n\n%hpc VERB --help explains its options\n\n"
        f"{_CELL_USAGE}\n  run the cell on every rank; --help tells more"
    )


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {word:<{width}}  {words}" for word, words in rows.items())


def parse_cell(line: str) -> CellOptions:
    """Read the line of ``%%hpc_parallel``.

    Raises:
        MagicError: An unknown or incomplete option, or a value that cannot be.
    """
    options: dict[str, Any] = {}
    words = _split(line, "%%hpc_parallel")
    while words:
        word = words.pop(0)
        flag, given = _flag(word, _CELL_FLAGS, "%%hpc_parallel", _CELL_USAGE)
        if flag in ("--time", "--no-time"):
            options["show_time"] = flag == "--time"
        elif flag == "--init":
            options["is_init"] = True
        elif flag == "--help":
            options["show_help"] = True
        else:
            value = _value(flag, given, words, "%%hpc_parallel")
            if flag == "--on":
                options["on"] = value
            elif flag == "--timeout":
                options["timeout_s"] = _positive(flag, value, float)
            elif not value.isidentifier() or keyword.iskeyword(value):
                _fail(f"%%hpc_parallel --out {value}: {value!r} is no Python name; for example --out losses")
            else:
                options["out"] = value
    return CellOptions(**options)


def parse_hpc(line: str) -> VerbOptions:
    """Read the line of ``%hpc``.

    Raises:
        MagicError: No or an unknown verb, an unknown option, too many words.
    """
    words = _split(line, "%hpc")
    if not words or words[0] in ("--help", "-h"):
        return VerbOptions("help")
    verb, *rest = words
    if verb not in VERBS:
        _fail(f"%hpc has no verb {verb!r}{_meant(verb, VERBS)}; there are {', '.join(VERBS)}")
    if rest in (["--help"], ["-h"]):
        return VerbOptions("help", (verb,))
    if (options := _with_options(verb, rest)) is not None:
        return options
    of_all = VERBS[verb].has_all and "--all" in rest
    rest = [word for word in rest if not (of_all and word == "--all")]
    _check_words(verb, rest)
    return VerbOptions(verb, tuple(rest), of_all=of_all)


def _with_options(verb: str, rest: list[str]) -> VerbOptions | None:
    """The line of a verb that has more options than --all."""
    match verb:
        case "start" | "doctor":
            wanted = [word for word in rest if verb == "start" or word != "--install"]
            return VerbOptions(verb, start=_parse_start(wanted[:], verb), is_installing=wanted != rest)
        case "check":
            return VerbOptions(verb, check=_parse_check(rest))
        case "scale":
            return VerbOptions(verb, scale=_parse_scale(rest))
        case "export":
            return VerbOptions(verb, export=_parse_export(rest))
        case "init":
            return _parse_init(rest)
        case _:
            return None


def ranks_of(words: tuple[str, ...]) -> list[int]:
    """``("0-2,5", "7")`` -> 0, 1, 2, 5, 7; whether there are such ranks the cluster says."""
    ranks: list[int] = []
    for part in ",".join(words).split(",") if words else ():
        first, _, last = part.partition("-")
        ranks += range(int(first), min(int(last or first), int(first) + _MOST_RANKS) + 1)
    return ranks


def _check_words(verb: str, rest: list[str]) -> None:
    for word in rest:
        if word.startswith("-"):
            _fail(f"%hpc {verb} has no option {word!r}; write  %hpc {VERBS[verb].usage}")
    if len(rest) > VERBS[verb].max_words:
        _fail(f"%hpc {verb} does not take {rest[-1]!r}; write  %hpc {VERBS[verb].usage}")
    if verb == "help" and rest and rest[0] not in VERBS:
        _fail(f"%hpc has no verb {rest[0]!r}{_meant(rest[0], VERBS)}; there are {', '.join(VERBS)}")
    if verb == "timing" and rest and rest[0] not in ("breakdown", "timeline"):
        _fail(f"%hpc timing has no plot {rest[0]!r}; there are breakdown, timeline")
    for word in rest if verb in _RANKS else ():
        if not re.fullmatch(r"\d+" if verb == "logs" else r"\d+(-\d+)?(,\d+(-\d+)?)*", word):
            _fail(f"%hpc {verb} {word}: a rank is a number, for example  %hpc {verb} 0")
    if verb == "debug" and not (rest and rest[0].isdecimal()):
        _fail(f"%hpc debug{' ' + rest[0] if rest else ''}: name one rank by its number, for example  %hpc debug 1")


def _parse_init(words: list[str]) -> VerbOptions:
    clears = words[:1] == ["--clear"]
    for word in words[1:] if clears else words:
        if not (clears and word.isdecimal()):
            _fail(f"%hpc init does not take {word!r}; write  %hpc {VERBS['init'].usage}")
    return VerbOptions("init", tuple(words[1:]), of_all=clears)


def _parse_check(words: list[str]) -> CheckOptions:
    options: dict[str, Any] = {}
    names: list[str] = []
    usage = f"%hpc {VERBS['check'].usage}"
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if not all(part.isidentifier() and not keyword.iskeyword(part) for part in word.split(".")):
                _fail(f"%hpc check {word}: {word!r} is no Python name; for example  %hpc check model trainer.optimizer")
            names.append(word)
            continue
        flag, given = _flag(word, _CHECK_FLAGS, "%hpc check", usage)
        if flag == "--rng":
            options["rng"] = True
        else:
            options[flag.removeprefix("--")] = _value(flag, given, words, "%hpc check")
    return CheckOptions(tuple(names), **options)


def _parse_export(words: list[str]) -> ExportOptions:
    options: dict[str, Any] = {}
    usage = f"%hpc {VERBS['export'].usage}"
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if "file" in options:
                _fail(f"%hpc export does not take {word!r} after {options['file']!r}; write  {usage}")
            options["file"] = word
            continue
        flag, given = _flag(word, _EXPORT_FLAGS, "%hpc export", usage)
        if flag == "--cells":
            options["cells"] = _value(flag, given, words, "%hpc export")
        else:
            options[flag.removeprefix("--")] = True
    if not options.get("file"):
        _fail("%hpc export: name the file to write, for example  %hpc export train.py")
    return ExportOptions(**options)


def _parse_scale(words: list[str]) -> ScaleOptions:
    options: dict[str, Any] = {}
    usage = f"%hpc {VERBS['scale'].usage}"
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if "num_ranks" in options:
                _fail(f"%hpc scale: the number of ranks is given twice, {options['num_ranks']} and {word}")
            options["num_ranks"] = _positive("RANKS", word, int)
            continue
        flag, given = _flag(word, _SCALE_FLAGS, "%hpc scale", usage)
        value = _value(flag, given, words, "%hpc scale")
        options[flag.removeprefix("--")] = _positive(flag, value, int) if flag == "--nodes" else value
    if "num_ranks" not in options:
        _fail(f"%hpc scale needs the number of ranks, for example  %hpc scale 4; write  {usage}")
    return ScaleOptions(**options)


def _parse_start(words: list[str], verb: str = "start") -> StartOptions:
    options: dict[str, Any] = {}
    magic = f"%hpc {verb}"
    usage = f"%hpc {VERBS[verb].usage}"
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if "num_ranks" in options:
                _fail(f"{magic}: the number of ranks is given twice, {options['num_ranks']} and {word}")
            options["num_ranks"] = _positive("RANKS", word, int)
            continue
        flag, given = _flag(word, _START_FLAGS, magic, usage)
        if flag == "--auto-restart":
            options["auto_restart"] = True
            continue
        value = _value(flag, given, words, magic)
        if flag == "--grace":
            options["grace_s"] = None if value == "off" else _positive(flag, value, float)
        elif flag == "--threads":
            options["threads_per_rank"] = _positive(flag, value, int)
        elif flag == "--idle-timeout":
            options["idle_timeout_s"] = _positive(flag, value, float, allow_zero=True)
        elif flag == "--silence":
            options["silence_s"] = _positive(flag, value, float)
        elif flag in _LAUNCHER_FLAGS:
            name = flag.removeprefix("--").replace("-", "_")
            given_to = options.setdefault("launcher_options", {})
            given_to[name] = _positive(flag, value, int) if flag in _LAUNCHER_NUMBERS else value
        else:
            options[flag.removeprefix("--")] = value
    return StartOptions(**options)


def _split(line: str, magic: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        _fail(f"{magic} {line}: cannot be read, {error}".replace("No closing quotation", "a quotation mark is missing"))


def _flag(word: str, flags: dict[str, str], magic: str, usage: str) -> tuple[str, str | None]:
    flag, equals, value = word.partition("=")
    if not word.startswith("-"):
        hint = "a selection with spaces needs quotation marks" if word in "&,~" else "ranks are chosen with --on"
        _fail(f"{magic} does not take {word!r}; {hint}, write  {usage}")
    if flag not in flags:
        _fail(f"{magic} has no option {word!r}{_meant(flag, flags)}; write  {usage}")
    return flag, value if equals else None


def _meaning(flag: str, magic: str) -> str:
    flags = {
        "%hpc scale": _SCALE_FLAGS,
        "%hpc export": _EXPORT_FLAGS,
        "%hpc check": _CHECK_FLAGS,
        "%%hpc_parallel": _CELL_FLAGS,
    }
    return flags.get(magic, _START_FLAGS)[flag]


def _value(flag: str, given: str | None, words: list[str], magic: str) -> str:
    if given is not None:
        return given
    if not words or words[0].startswith("--"):
        _fail(f"{magic} {flag} needs a value: {_meaning(flag, magic)}")
    return words.pop(0)


def _positive(flag: str, text: str, kind: type[float | int], *, allow_zero: bool = False) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not (value > 0 or (allow_zero and value == 0)) or value == float("inf"):
        what = "a whole number above 0" if kind is int else "a number of seconds" + ("" if allow_zero else " above 0")
        _fail(f"{flag} {text}: this is {what}, for example {4 if kind is int else 30}")
    return value


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _fail(words: str) -> NoReturn:
    raise MagicError(words)


def cell_flags() -> list[str]:
    """Options of ``%%hpc_parallel``, for completion."""
    return list(_CELL_FLAGS)


def verb_words(verb: str) -> list[str]:
    """What may follow a verb of ``%hpc``, for completion."""
    words = {
        "start": list(_START_FLAGS),
        "doctor": [*_START_FLAGS, "--install"],
        "check": list(_CHECK_FLAGS),
        "export": list(_EXPORT_FLAGS),
        "scale": list(_SCALE_FLAGS),
        "init": ["--clear"],
        "timing": ["breakdown", "timeline"],
        "help": list(VERBS),
    }
    return words.get(verb, ["--all"] if verb in VERBS and VERBS[verb].has_all else [])
