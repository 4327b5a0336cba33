"""Batch systems: the scripts that are handed in, and what is read from their answers."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from hpcnb.cluster.launchers import htcondor, lsf, make, pbs, sge
from hpcnb.cluster.launchers.batch import Element
from hpcnb.cluster.launchers.batch_job import SharedFolder, _rendered
from hpcnb.core.errors import LaunchError, OptionError

ALL = {"name": "hpcnb-a", "queue": "workq", "time": "1:30:20", "account": "me", "cpus": "4", "gpus": "2",
       "submit": "-x 'a b'"}  # fmt: skip
NOTHING = dict.fromkeys(ALL, "") | {"name": "hpcnb-a", "cpus": "1"}


@pytest.fixture
def torque(monkeypatch, request):
    monkeypatch.setattr(pbs, "_is_torque", lambda: request.param)


def rendered(system, asked, num_elements, tmp_path):
    template = system.template(asked, num_elements)
    script = Path(_rendered(system, tmp_path, template, asked, num_elements).batch_file)
    if not isinstance(system, htcondor.HtCondor):
        subprocess.run(["bash", "-n", str(script)], check=True)
    return script.read_text().replace(str(tmp_path), "/folder")


@pytest.mark.parametrize("torque", [False], indirect=True)
def test_scripts_of_openpbs(torque, tmp_path):
    assert rendered(pbs.Pbs(), ALL, 2, tmp_path) == (
        "#!/bin/sh\n#PBS -S /bin/sh\n#PBS -N hpcnb-a\n#PBS -j oe\n#PBS -o /dev/null\n#PBS -J 1-2\n#PBS -r y\n"
        "#PBS -l select=1:ncpus=4:ngpus=2\n#PBS -q workq\n#PBS -l walltime=1:30:20\n#PBS -A me\n#PBS -x 'a b'\n"
        "exec /bin/sh /folder/join\n"
    )
    assert rendered(pbs.Pbs(), NOTHING, 1, tmp_path) == (  # an array of one element would be refused
        "#!/bin/sh\n#PBS -S /bin/sh\n#PBS -N hpcnb-a\n#PBS -j oe\n#PBS -o /dev/null\n#PBS -l select=1:ncpus=1\n"
        "exec /bin/sh /folder/join\n"
    )


@pytest.mark.parametrize("torque", [True], indirect=True)
def test_scripts_of_torque(torque, tmp_path):
    assert rendered(pbs.Pbs(), ALL, 2, tmp_path) == (
        "#!/bin/sh\n#PBS -S /bin/sh\n#PBS -N hpcnb-a\n#PBS -j oe\n#PBS -o /dev/null\n#PBS -t 1-2\n"
        "#PBS -l nodes=1:ppn=4:gpus=2\n#PBS -q workq\n#PBS -l walltime=1:30:20\n#PBS -A me\n#PBS -x 'a b'\n"
        "exec /bin/sh /folder/join\n"
    )


def test_scripts_of_grid_engine(tmp_path):
    assert rendered(sge.GridEngine(), ALL, 2, tmp_path) == (
        "#!/bin/sh\n#$ -S /bin/sh\n#$ -N hpcnb-a\n#$ -t 1-2\n#$ -j y\n#$ -o /dev/null\n#$ -r n\n#$ -pe smp 4\n"
        "#$ -l gpu=2\n#$ -q workq\n#$ -l h_rt=1:30:20\n#$ -A me\n#$ -x 'a b'\nexec /bin/sh /folder/join\n"
    )
    asked = NOTHING | {"cpus": "4", "submit": "-pe threads 4"}
    assert rendered(sge.GridEngine(), asked, 1, tmp_path) == (
        "#!/bin/sh\n#$ -S /bin/sh\n#$ -N hpcnb-a\n#$ -t 1-1\n#$ -j y\n#$ -o /dev/null\n#$ -r n\n#$ -pe threads 4\n"
        "exec /bin/sh /folder/join\n"
    )


def test_scripts_of_lsf(tmp_path):
    assert rendered(lsf.Lsf(), ALL, 2, tmp_path) == (
        '#!/bin/sh\n#BSUB -L /bin/sh\n#BSUB -J "hpcnb-a[1-2]"\n#BSUB -o /dev/null\n#BSUB -rn\n#BSUB -n 4\n'
        '#BSUB -R "span[hosts=1]"\n#BSUB -gpu "num=2"\n#BSUB -q workq\n#BSUB -W 1:31\n#BSUB -P me\n'
        "#BSUB -x 'a b'\nexec /bin/sh /folder/join\n"
    )
    assert "#BSUB -W 2:00\n" in rendered(lsf.Lsf(), NOTHING | {"time": "1:59:01"}, 1, tmp_path)


def test_descriptions_of_htcondor(tmp_path):
    asked = ALL | {"queue": "", "submit": 'requirements = Name == "{x}"; +a = 1'}
    assert rendered(htcondor.HtCondor(), asked, 2, tmp_path) == (
        "universe = vanilla\nexecutable = /bin/sh\ntransfer_executable = False\n"
        'arguments = "/folder/join $(Process)"\nbatch_name = hpcnb-a\noutput = /dev/null\nerror = /dev/null\n'
        "notification = never\nrequest_cpus = 4\nperiodic_remove = (JobStatus == 1) && (NumJobStarts > 0)\n"
        "request_gpus = 2\naccounting_group = me\nallowed_job_duration = 5420\n"
        'requirements = Name == "{x}"\n+a = 1\nqueue 2\n'
    )


@pytest.mark.parametrize(("number", "node"), [("1", "3"), ("2", "7")])
def test_an_element_finds_its_node_by_its_number(tmp_path, number, node):
    folder = SharedFolder.create(tmp_path / "it's shared")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.write("join", folder.script('"$SGE_TASK_ID"', [3, 7], "echo setup", "/bin/echo"))
    subprocess.run(["/bin/sh", folder.path / "join"], env={"SGE_TASK_ID": number}, check=True)
    assert folder.said(int(number)) == [
        "setup", f"-m hpcnb.node.join --stay --node {node} --ticket {folder.path}/ticket",
    ]  # fmt: skip
    assert folder.said(9) is None
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_have_left_is_removed(tmp_path):
    first = SharedFolder.create(tmp_path)
    first.write("ticket", "secret")
    assert stat.S_IMODE((first.path / "ticket").stat().st_mode) == 0o600
    left = first.path.rename(tmp_path / first.path.name.replace(first.path.name.split("-")[-2], "4194305"))
    SharedFolder.create(tmp_path).remove()
    assert not left.exists()
    assert tmp_path.exists(), "it was there before"


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"file/x cannot be used .*folder=\.\.\."):
        SharedFolder.create(tmp_path / "file" / "x")


# --- answers --------------------------------------------------------------------------------------------------

OPENPBS = """Job Id: 1234[].pbsserver
    Job_Name = hpcnb-a
    Job_Owner = someone@login1
    job_state = B
    queue = workq
    comment = Job Array Began at Mon Nov 23 at 20:31
    array = True
    array_state_count = Queued:1 Running:1 Exiting:0 Expired:1
    array_indices_submitted = 1-3

Job Id: 1234[1].pbsserver
    Job_Name = hpcnb-a
    job_state = R
    exec_host = n1/0*4
    Submit_arguments = -J 1-3 /home/someone/.hpcnb/login1-1-0/
\tjob

Job Id: 1234[2].pbsserver
    Job_Name = hpcnb-a
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus (R: 4
\t A: 0 T: 8)

Job Id: 1234[3].pbsserver
    Job_Name = hpcnb-a
    job_state = X
"""
WAITS = """Job Id: 7[].s
    job_state = Q
    comment = Not Running: Job would conflict with reservation or top job
Job Id: 7[1].s
    job_state = Q
Job Id: 7[2].s
    job_state = H
"""


@pytest.mark.parametrize(
    ("said", "elements"),
    [
        (
            OPENPBS,
            {
                1: Element("running"),
                2: Element("queued", "Not Running: Insufficient amount of resource: ncpus (R: 4 A: 0 T: 8)"),
            },
        ),
        (
            WAITS,
            {
                1: Element("queued", "Not Running: Job would conflict with reservation or top job"),
                2: Element("queued", "held"),
            },
        ),
        ("Job Id: 99.server\n    job_state = R\n", {1: Element("running")}),
        ("Job Id: 99.server\n    job_state = C\n", {}),
        ("qstat: Unknown Job Id 99.server", {}),
        ("qstat: 99.server Job has finished, use -x or -H to obtain historical job information", {}),
        ("Connection refused\nqstat: cannot connect to server head (errno=111)", None),
        ("", None),
    ],
)
def test_what_pbs_answers(said, elements):
    lines = [line for line in said.splitlines() if line.strip()]
    assert pbs.Pbs().elements(lines, "1234[]") == elements


#: Of Grid Engine 8.1.9.
GRID_ENGINE = """job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
      1 0.25000 tst        root         r     11/23/2026 20:31:09 all.q@n1                           1 2
      2 0.27564 tst        root         t     11/23/2026 20:31:09 all.q@n2                           3 1
      2 0.27564 tst        root         qw    11/23/2026 20:31:09                                    3 2
      2 0.00000 tst        root         hqw   11/23/2026 20:31:09                                    3 3
      2 0.27564 tst        root         Eqw   11/23/2026 20:31:09                                    3 4
hpcnb: that was all
==============================================================
job_number:                 2
error reason    4:          11/23/2026 20:39:03 [0:90]: error: can't chdir to /no/such: No such file or directory
scheduling info:            cannot run in PE "smp" because it only offers 0 slots
                            queue instance "all.q@n1" dropped because it is full
"""


@pytest.mark.parametrize(
    ("said", "elements"),
    [
        (
            GRID_ENGINE,
            {
                1: Element("running"),
                2: Element("queued", 'cannot run in PE "smp" because it only offers 0 slots'),
                3: Element("queued", "held"),
                4: Element(
                    "stuck", "11/23/2026 20:39:03 [0:90]: error: can't chdir to /no/such: No such file or directory"
                ),
            },
        ),
        ("hpcnb: that was all\nFollowing jobs do not exist:\n2", {}),
        ("error: commlib error: got select error (Connection refused)\nunable to send message to qmaster", None),
    ],
)
def test_what_grid_engine_answers(said, elements):
    assert sge.GridEngine().elements(said.splitlines(), "2") == elements


LSF = """JOBID   USER    STAT  QUEUE      FROM_HOST   EXEC_HOST   JOB_NAME   SUBMIT_TIME
7678    someone RUN   priority   hostD       hostA       hpcnb-a[1] Oct 28 13:08
7678    someone PEND  priority   hostD                   hpcnb-a[2] Oct 28 13:08
7678[3] someone EXIT  priority   hostD       hostA       hpcnb-a[3] Oct 28 13:08
7678    someone PSUSP priority   hostD                   hpcnb-a[4] Oct 28 13:08
JOBID   USER    STAT  QUEUE      FROM_HOST   JOB_NAME   SUBMIT_TIME
7678    someone PEND  priority   hostD       hpcnb-a[2] Oct 28 13:08
 Queue's resource requirements not satisfied: 3 hosts;
 Not enough job slots: 1 host;
"""


@pytest.mark.parametrize(
    ("said", "elements"),
    [
        (
            LSF,
            {
                1: Element("running"),
                2: Element("queued", "Queue's resource requirements not satisfied: 3 hosts"),
                4: Element("queued", "held"),
            },
        ),
        ("Job <7678> is not found", {}),
        ("LSF is down. Please wait ...", None),
        ("", None),
    ],
)
def test_what_lsf_answers(said, elements):
    assert lsf.Lsf().elements(said.splitlines(), "7678") == elements


@pytest.mark.parametrize(
    ("said", "elements"),
    [
        (
            "0 2 \n1 1 \n2 5 Error from slot1@n1: Failed to execute '/bin/sh'\n3 4 \nhpcnb: that was all",
            {
                1: Element("running"),
                2: Element("queued"),
                3: Element("stuck", "Error from slot1@n1: Failed to execute '/bin/sh'"),
            },
        ),
        ("hpcnb: that was all", {}),
        ("-- Failed to fetch ads from: <10.0.0.1:9618> : head\nSECMAN:2007:Failed to end classad message.", None),
    ],
)
def test_what_htcondor_answers(said, elements):
    assert htcondor.HtCondor().elements(said.splitlines(), "5") == elements


@pytest.mark.parametrize(
    ("system", "said", "job"),
    [
        (pbs.Pbs(), "1234[].pbsserver\n", "1234[]"),
        (pbs.Pbs(), "1234.head2\n", "1234"),
        (sge.GridEngine(), 'Your job-array 7.1-2:1 ("hpcnb-a9") has been submitted\n', "7"),
        (sge.GridEngine(), 'Your job 17 ("hpcnb-a9") has been submitted\n', "17"),
        (lsf.Lsf(), "Job <123> is submitted to default queue <normal>.\n", "123"),
        (htcondor.HtCondor(), "Submitting job(s)..\n2 job(s) submitted to cluster 837.\n", "837"),
    ],
)
def test_ids_of_jobs_are_found_by_ipyparallel(system, said, job, tmp_path):
    launcher = _rendered(system, tmp_path, "{program}", NOTHING, 1)
    assert launcher.parse_job_id(said) == job
    assert launcher.submit_command == [system.submit]


# --- options --------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands of all batch systems, which do nothing."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in ("qsub", "bsub", "condor_submit"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(pbs, "_is_torque", lambda: False)


@pytest.mark.parametrize(
    ("launcher", "options", "words"),
    [
        ("pbs", {"time": "90"}, "time='90' is no limit of a job: write hours, minutes and seconds"),
        ("sge", {"submit": "-a\n-b"}, "this is one line; for more there is template=FILE"),
        ("lsf", {"nodes": 5}, "4 ranks cannot be spread over 5 nodes"),
        ("htcondor", {"queue": "fast"}, "HTCondor has no queues; machines are chosen with"),
        ("pbs", {"template": "/no/such/file"}, "template='/no/such/file' cannot be read: No such file"),
        ("pbs", {"template": "{tmp}/empty"}, "template .*/empty starts no agent: .*{program_and_args}"),
        ("pbs", {"partition": "x"}, "launcher 'pbs' has no option 'partition'"),
    ],
)
def test_odd_options_are_one_clear_error(commands, tmp_path, launcher, options, words):
    (tmp_path / "empty").write_text("#!/bin/sh\n")
    options = {name: value.format(tmp=tmp_path) if name == "template" else value for name, value in options.items()}
    with pytest.raises(OptionError, match=words):
        make(launcher, 4, options)


@pytest.mark.parametrize(("launcher", "command"), [("pbs", "qsub"), ("sge", "qsub"), ("lsf", "bsub"), ("htcondor", "condor_submit")])  # fmt: skip
def test_where_the_system_is_not_the_command_is_named(monkeypatch, launcher, command):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match=f"needs the command {command}, and there is none here"):
        make(launcher, 4, {})


def test_a_template_of_ones_own_is_rendered(tmp_path):
    asked = NOTHING | {"queue": "workq"}
    _rendered(pbs.Pbs(), tmp_path, "#PBS -J 1-{n}\n#PBS -q {queue}\n{program_and_args} ${{X}}\n", asked, 2)
    script = (tmp_path / "job").read_text()
    assert script == f"#PBS -J 1-2\n#PBS -q workq\n/bin/sh {tmp_path}/join ${{X}}\n"
