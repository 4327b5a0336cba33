"""Checks of this machine, and starts on it that fail."""

from __future__ import annotations

import sys

import pytest

from hpcnb import Cluster, doctor
from hpcnb.core.errors import LaunchError, OptionError
from hpcnb.notebook import show

pytestmark = pytest.mark.engines


def test_this_machine_can_run_ranks():
    report = doctor(1)
    assert report.ok, report
    assert {"versions", "memory", "/dev/shm", "limits", "folder", "devices"} == {check.name for check in report.checks}


def test_a_report_has_words_and_a_table(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    report = doctor(1, environment={"PYTHONHOME": "/no/<home>"})
    show.report(report)
    (bundle,) = shown
    assert bundle["text/plain"] == repr(report)
    assert "<table><tr><td>FAIL</td><td>python</td>" in bundle["text/html"]
    assert "<home>" not in bundle["text/html"]


def test_options_are_those_of_a_cluster():
    with pytest.raises(OptionError, match="no launcher 'slum'"):
        doctor(2, launcher="slum")
    with pytest.raises(OptionError, match="no option 'mehs'"):
        doctor(2, mehs="dp=2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"python": "/opt/no/python"}, "python: this machine: /opt/no/python cannot be run: No such file or directory"),
        ({"environment": {"PYTHONHOME": "/no"}}, f"{sys.executable} does not run: Fatal Python error"),
    ],
)
def test_a_start_that_fails_says_which_check_it_was(options, words):
    with pytest.raises(LaunchError) as caught:
        Cluster(1, idle_timeout_s=0, start_timeout_s=20, **options).start()
    assert words in str(caught.value)
    assert "fix: " in str(caught.value)
