"""A command that starts nodes (ssh, srun, mpiexec), while it runs: what it says is kept and can be read at any time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence

__all__ = ["Command"]


class Command:
    """Runs in a session of its own, so that a Ctrl-C of a terminal or of Jupyter does not reach it.

    Args:
        words: The command.
        stdin: What it reads; closed after that.
        environment: Variables beside ours.

    Raises:
        OSError: It cannot be run.
    """

    def __init__(self, words: Sequence[str], *, stdin: str = "", environment: dict[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by forget()
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=self._said, stderr=self._said, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        except OSError:
            self._said.close()
            raise
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why
            self._process.stdin.write(stdin.encode())
            self._process.stdin.close()

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def lines(self) -> list[str]:
        """What it has said so far, without empty lines."""
        if self._said.closed:
            return []
        size = os.fstat(self._said.fileno()).st_size
        text = os.pread(self._said.fileno(), size, 0).decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    def forget(self) -> None:
        """It has ended, or may go on by itself."""
        self._said.close()

    def wait(self, timeout_s: float) -> None:
        """Give it so long to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._said.close()
