"""The ipyparallel controller of a cluster, as a child of its agent: it lives and ends with the cluster."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

from hpcnb.core.launch import RunFolder
from hpcnb.node.template import die_with_parent

__all__ = ["start", "stop"]


def is_worth_telling(record: logging.LogRecord) -> bool:
    """Not what a healthy controller says whenever a client's subscription passes its monitor (ipyparallel 9)."""
    return not record.getMessage().startswith("Monitor message without topic")


def _filter() -> Callable[[logging.LogRecord], bool]:
    return is_worth_telling


#: Of the controller, by traitlets; it finds the filter by its name.
_LOGGING = {
    "filters": {"worth": {"()": f"{__name__}._filter"}},
    "loggers": {"IPController": {"level": "WARNING", "filters": ["worth"]}},
}


def start(folder: RunFolder, address: str = "") -> subprocess.Popen[bytes]:
    """Start the controller; its connection files appear in the profile of ``folder`` half a second later.

    Args:
        folder: Of the cluster.
        address: IP address that engines on other nodes reach; by default there are none.
    """
    return subprocess.Popen(
        [
            sys.executable, "-m", "ipyparallel.controller",
            f"--profile-dir={folder.profile}",
            "--cluster-id=hpcnb",
            *([f"--ip={address}", f"--location={address}"] if address else []),
            # also on loopback, where every user of the machine could otherwise subscribe to what engines print
            "--IPController.enable_curve=True",
            # schedulers as threads: 2 processes instead of 9
            "--IPController.use_threads=True",
            # a registration completes on a heartbeat: 3 s by default, and every engine is asked so often
            "--HeartMonitor.period=500",
            # the agent knows better than a heartbeat who is alive: 10 minutes of silence (SIGSTOP, swapping)
            "--HeartMonitor.max_heartmonitor_misses=1200",
            "--log-level=WARN",
            # the heart monitor is a process of its own and gets the level of the logger, where --log-level sets that of
            # its handler (ipyparallel 9, traitlets 5.2 and later): it told twice a second, for ten minutes, that a rank
            # which was replaced does not beat. It hears nothing but beats, so it cannot be told to forget the rank
            f"--IPController.logging_config={_LOGGING}",
        ],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_child,  # noqa: PLW1509 - the agent has one thread at this time
    )  # fmt: skip


def _child() -> None:
    die_with_parent(15)  # SIGTERM: it ends its heart monitor's process too


def stop(controller: subprocess.Popen[bytes] | None, grace_s: float) -> None:
    """End it."""
    if controller is None or controller.poll() is not None:
        return
    controller.terminate()
    try:
        controller.wait(grace_s)
    except subprocess.TimeoutExpired:
        controller.kill()
        controller.wait()
