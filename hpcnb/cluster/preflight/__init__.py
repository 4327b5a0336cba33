"""Checks before a launch, pure: what was seen -> what is well, what is not, and what mends it. Starts nothing."""

from __future__ import annotations

from hpcnb.cluster.preflight.checks import Check, Report
from hpcnb.cluster.preflight.facts import Facts, Reach

__all__ = ["Check", "Facts", "Reach", "Report"]
