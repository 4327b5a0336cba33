"""What Tab offers."""

from __future__ import annotations

import pytest

from hpcnb.notebook.completion import candidates


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%hpc sta", ["start", "status"]),
        ("%hpc start --me", ["--mesh"]),
        ("%hpc timing ", ["breakdown", "timeline"]),
        ("%hpc help lo", ["logs"]),
        ("%hpc de", ["detach", "debug"]),
        ("%hpc check --a", ["--axis"]),
        ("%hpc stop ", ["--all"]),
        ("%hpc ex", ["export"]),
        ("%hpc export --s", ["--sbatch"]),
        ("%hpc at", ["attach"]),
        ("%hpc recover ", []),
        ("%%hpc_parallel --t", ["--timeout", "--time"]),
        ("%%hpc_parallel --on ", ["all", "failed", "slowest", "host=", "dp=", "tp="]),
        ("%%hpc_parallel --on t", ["tp="]),
    ],
)
def test_candidates(line, expected):
    assert candidates(line, ("dp", "tp")) == expected
