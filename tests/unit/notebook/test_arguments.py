"""Magic lines: what they become, and what is said about lines that cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcnb.core.errors import MagicError
from hpcnb.notebook import arguments
from hpcnb.notebook.arguments import (
    CellOptions,
    CheckOptions,
    ExportOptions,
    ScaleOptions,
    StartOptions,
    VerbOptions,
    parse_cell,
    parse_hpc,
)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", CellOptions()),
        ("--on 0-3", CellOptions(on="0-3")),
        ("--on dp=0&tp=1", CellOptions(on="dp=0&tp=1")),
        ("--on=~2 --timeout 1.5", CellOptions(on="~2", timeout_s=1.5)),
        ("--on '0, 1'", CellOptions(on="0, 1")),
        ("--out losses --no-time", CellOptions(out="losses", show_time=False)),
        ("--no-time --time", CellOptions()),
        ("--help", CellOptions(show_help=True)),
    ],
)
def test_cell_lines(line, options):
    assert parse_cell(line) == options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--onn 1", r"no option '--onn' \(did you mean --on\?\); write  %%hpc_parallel \[--on"),
        ("--on", r"--on needs a value: ranks: 0-3,7"),
        ("--on --out x", r"--on needs a value"),
        ("--timeout soon", r"--timeout soon: this is a number of seconds above 0, for example 30"),
        ("--timeout 0", r"--timeout 0: this is a number of seconds above 0"),
        ("--timeout -1", r"--timeout -1"),
        ("--timeout inf", r"--timeout inf"),
        ("--out 3x", r"'3x' is no Python name; for example --out losses"),
        ("rank", r"does not take 'rank'; ranks are chosen with --on"),
        ("--on dp=0 & tp=1", r"does not take '&'; a selection with spaces needs quotation marks"),
        ("--out class", r"'class' is no Python name"),
        ("--on '0", r"a quotation mark is missing"),
    ],
)
def test_bad_cell_lines(line, words):
    with pytest.raises(MagicError, match=words):
        parse_cell(line)


def test_start_lines():
    assert parse_hpc("start").start == StartOptions()
    assert parse_hpc("start 4 --mesh dp=2,tp=2 --name mine --threads 2 --idle-timeout 0").start == StartOptions(
        num_ranks=4, mesh="dp=2,tp=2", name="mine", threads_per_rank=2, idle_timeout_s=0.0
    )


def test_export_lines():
    assert parse_hpc("export train.py").export == ExportOptions("train.py")
    assert parse_hpc("export --cells 3-7,9 'my runs/train.py' --sbatch --force").export == ExportOptions(
        "my runs/train.py", cells="3-7,9", sbatch=True, force=True
    )
    assert parse_hpc("export train.py --cells=3").export == ExportOptions("train.py", cells="3")


def test_lines_about_several_clusters():
    assert parse_hpc("stop") == VerbOptions("stop")
    assert parse_hpc("stop --all") == VerbOptions("stop", of_all=True)
    assert parse_hpc("status --all") == VerbOptions("status", of_all=True)
    assert parse_hpc("attach") == VerbOptions("attach")
    assert parse_hpc("attach 'my cluster'") == VerbOptions("attach", ("my cluster",))
    assert parse_hpc("join") == VerbOptions("join")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stop --all now", r"%hpc stop does not take 'now'; write  %hpc stop \[--all\]"),
        ("attach a b", r"%hpc attach does not take 'b'; write  %hpc attach \[NAME\]"),
        ("attach --name a", r"%hpc attach has no option '--name'; write  %hpc attach \[NAME\]"),
        ("detach x", r"%hpc detach does not take 'x'"),
        ("export", r"^%hpc export: name the file to write, for example  %hpc export train.py"),
        ("export --sbatch", r"%hpc export: name the file"),
        ("export ''", r"%hpc export: name the file"),
        ("export a.py b.py", r"%hpc export does not take 'b.py' after 'a.py'; write  %hpc export FILE"),
        ("export a.py --cell 3", r"%hpc export has no option '--cell' \(did you mean --cells\?\)"),
        ("export a.py --cells", r"%hpc export --cells needs a value: numbers of cells, 3-7,9"),
        ("strat 4", r"no verb 'strat' \(did you mean start\?\); there are start, doctor, stop"),
        ("start four", r"RANKS four: this is a whole number above 0, for example 4"),
        ("start 0", r"RANKS 0"),
        ("start 2 3", r"given twice, 2 and 3"),
        ("start --meshh dp=2", r"no option '--meshh' \(did you mean --mesh\?\)"),
        ("start --mesh", r"--mesh needs a value: axis names and sizes"),
        ("start --idle-timeout never", r"--idle-timeout never: this is a number of seconds, for example 30"),
        ("stop now", r"%hpc stop does not take 'now'; write  %hpc stop"),
        ("recover --all", r"%hpc recover has no option '--all'"),
        ("timing bubble", r"no plot 'bubble'; there are breakdown, timeline"),
        ("logs x", r"%hpc logs x: a rank is a number"),
        ("help strat", r"no verb 'strat'"),
        ("debug", r"%hpc debug: name one rank by its number, for example  %hpc debug 1"),
        ("debug 0-1", r"%hpc debug 0-1: name one rank"),
        ("debug 0 1", r"%hpc debug does not take '1'; write  %hpc debug RANK"),
        ("check 3x", r"'3x' is no Python name; for example  %hpc check model"),
        ("check model --axes dp", r"no option '--axes' \(did you mean --axis\?\)"),
        ("check --axis", r"--axis needs a value: mesh axis along which"),
        ("restart-rank two", r"%hpc restart-rank two: a rank is a number, for example  %hpc restart-rank 0"),
        ("restart-rank 1 -2", r"%hpc restart-rank has no option '-2'; write  %hpc restart-rank \[RANK \.\.\.\]"),
        ("recover all", r"%hpc recover does not take 'all'; write  %hpc recover$"),
        ("interrupt 2", r"%hpc interrupt does not take '2'"),
    ],
)
def test_bad_hpc_lines(line, words):
    with pytest.raises(MagicError, match=words):
        parse_hpc(line)


def test_check_lines():
    assert parse_hpc("check").check == CheckOptions()
    assert parse_hpc("check model trainer.optimizer --axis tp --rng --on=~2").check == CheckOptions(
        ("model", "trainer.optimizer"), axis="tp", rng=True, on="~2"
    )
    assert parse_hpc("debug 1").words == ("1",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("recover", ()),
        ("interrupt", ()),
        ("restart-rank", ()),
        ("restart-rank 2", ("2",)),
        ("restart-rank 0 3", ("0", "3")),
    ],
)
def test_verbs_after_a_failure(line, words):
    parsed = parse_hpc(line)
    assert (parsed.verb, parsed.words) == (line.split()[0], words)


def test_help_is_complete():
    assert parse_hpc("").verb == "help"
    assert parse_hpc("start --help").words == ("start",)
    text = arguments.help_text()
    for verb, each in arguments.VERBS.items():
        assert verb in text
        assert each.help in text
        assert each.usage in arguments.help_text(verb)
    for flag in arguments.cell_flags():
        assert flag in arguments.cell_help()
    for verb in ("start", "check"):
        explained = {line.split()[0] for line in arguments.help_text(verb).splitlines()[3:]}
        assert {flag for flag in arguments.verb_words(verb) if flag.startswith("-")} <= explained
    starts = [
        line.index(arguments.VERBS[line.split()[1]].help) for line in text.splitlines() if line.startswith("  %hpc")
    ]
    assert len(set(starts)) == 1  # one column, whatever the longest verb is


def test_init_lines():
    assert parse_hpc("init") == VerbOptions("init")
    assert parse_hpc("init --clear") == VerbOptions("init", of_all=True)
    assert parse_hpc("init --clear 2 3") == VerbOptions("init", ("2", "3"), of_all=True)
    for line in ("init 2", "init --clear x", "init --claer"):
        with pytest.raises(MagicError, match=r"%hpc init does not take .*; write  %hpc init \[--clear \[N \.\.\.\]\]"):
            parse_hpc(line)


def test_ranks_of():
    assert arguments.ranks_of(("0-2,5", "7")) == [0, 1, 2, 5, 7]
    assert arguments.ranks_of(()) == []
    assert arguments.ranks_of(("9",)) == [9]
    assert len(arguments.ranks_of(("0-99999999999",))) < 200_000


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused(line):
    for parse in (parse_cell, parse_hpc):
        try:
            parse(line)
        except MagicError as error:
            assert str(error)  # noqa: PT017 - any other exception fails the test


@given(
    st.lists(
        st.sampled_from(["--on", "0-3", "--timeout", "2", "--out", "x", "--time", "--no-time", "=", "~1"]), max_size=6
    )
)
def test_any_mix_of_known_words_is_read_or_refused(words):
    try:
        options = parse_cell(" ".join(words))
    except MagicError:
        return
    assert options.out is None or options.out.isidentifier()
    assert options.timeout_s is None or options.timeout_s > 0


def test_doctor_takes_what_start_takes():
    line = "8 --launcher ssh --hosts n1,n2 --port 2222 --grace off"
    checked, started = parse_hpc(f"doctor {line}"), parse_hpc(f"start {line}")
    assert checked.start == started.start
    assert not checked.is_installing
    assert parse_hpc("doctor --install 8").is_installing
    assert parse_hpc("doctor --install 8").start == parse_hpc("start 8").start
    assert started.start.keywords()["hosts"] == "n1,n2"
    assert started.start.keywords()["grace_s"] is None
    with pytest.raises(MagicError, match="%hpc start has no option '--install'"):
        parse_hpc("start --install")
    with pytest.raises(MagicError, match=r"%hpc doctor has no option '--host' \(did you mean --hosts"):
        parse_hpc("doctor --host n1")


def test_scale_lines():
    assert parse_hpc("scale 8").scale == ScaleOptions(8)
    assert parse_hpc("scale --mesh dp=3,tp=2 6").scale == ScaleOptions(6, mesh="dp=3,tp=2")
    assert parse_hpc("scale 6 --hosts n3 --nodes=1").scale == ScaleOptions(6, hosts="n3", nodes=1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scale", "%hpc scale needs the number of ranks, for example  %hpc scale 4; write  %hpc scale RANKS"),
        ("scale 0", "RANKS 0: this is a whole number above 0"),
        ("scale -2", "RANKS -2: this is a whole number above 0"),
        ("scale many", "RANKS many: this is a whole number above 0"),
        ("scale 4 5", "the number of ranks is given twice, 4 and 5"),
        ("scale 4 --grace 3", "%hpc scale has no option '--grace'"),
        ("scale 4 --mesh", "%hpc scale --mesh needs a value: axis names"),
        ("scale 4 --hosts", "%hpc scale --hosts needs a value: for ssh and mpi: more hosts"),
        ("scale 4 --nodes x", "--nodes x: this is a whole number above 0"),
    ],
)
def test_bad_scale_lines(line, words):
    with pytest.raises(MagicError) as raised:
        parse_hpc(line)
    assert words in str(raised.value)
