"""What tests wait for."""

from __future__ import annotations

import time

__all__ = ["wait_until"]


def wait_until(condition, timeout_s=20):
    """Return when a condition holds; it is asked again and again."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.02)
