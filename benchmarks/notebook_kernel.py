"""A notebook kernel and a front-end that keeps outputs as a notebook does; for benchmarks that need the real thing."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import nbformat
import zmq
from jupyter_client.manager import KernelManager
from measure import Place, WrongResult

if TYPE_CHECKING:
    from jupyter_client.blocking import BlockingKernelClient
    from typing_extensions import Self


class Listener(Protocol):
    """Does something while a cell runs."""

    def tick(self) -> None:
        """Called a few hundred times per second."""

    def hear(self, message: dict[str, Any]) -> None:
        """Every message of the iopub channel."""


@dataclass
class Executed:
    """A cell that has run: seconds until reply and idle, and its outputs as a saved notebook has them."""

    seconds: float = 0.0
    outputs: list[Any] = field(default_factory=list)
    error: str = ""

    def take(self, message: dict[str, Any]) -> None:
        """One iopub message of this cell."""
        kind, content = message["msg_type"], message["content"]
        if kind == "update_display_data":
            for output in self.outputs:
                if output.get("display_id") == content.get("transient", {}).get("display_id"):
                    output.update(data=content["data"], metadata=content["metadata"])
        elif kind in ("display_data", "execute_result", "stream", "error"):
            output = nbformat.v4.output_from_msg(message)
            last = self.outputs[-1] if self.outputs else {}
            if kind == "stream" and last.get("name") == output["name"]:
                last["text"] += output["text"]
            else:
                self.outputs.append({**output, "display_id": content.get("transient", {}).get("display_id")})
            if kind == "error":
                self.error = "\n".join(content["traceback"])

    @property
    def num_bytes(self) -> int:
        """Bytes of the outputs in the saved notebook."""
        kept = [{name: value for name, value in output.items() if name != "display_id"} for output in self.outputs]
        return len(json.dumps(kept, ensure_ascii=False, indent=1).encode())

    @property
    def text(self) -> str:
        """All outputs as plain text."""
        return "\n".join(
            str(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in self.outputs
        )


class NotebookKernel:
    """A context manager: a kernel started in ``place``, with one client; killed at the end if it still lives."""

    def __init__(self, place: Place) -> None:
        self.manager = KernelManager(kernel_name="python3", transport_encryption="auto")
        self.manager.start_kernel(env=place.environment, cwd=str(place.folder))
        self.client: BlockingKernelClient = self.manager.client()
        try:
            self.client.start_channels()
            self.client.wait_for_ready(timeout=60)
            self.pid = int(self.run("import os; print(os.getpid())").text)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()

    def kill(self) -> None:
        """``kill -9``, without a word to anybody."""
        self.manager.signal_kernel(signal.SIGKILL)

    def run(self, source: str, *, timeout_s: float = 90.0, listener: Listener | None = None) -> Executed:
        """Run a cell as a front-end does.

        Raises:
            WrongResult: The cell raised, or did not end in time.
        """
        cell = Executed()
        poller = zmq.Poller()
        for channel in (self.client.iopub_channel, self.client.shell_channel):
            poller.register(channel.socket, zmq.POLLIN)
        began_s = time.perf_counter()
        request = self.client.execute(source, allow_stdin=False)
        open_ends = {"idle", "reply"}
        while open_ends:
            if time.perf_counter() - began_s > timeout_s:
                raise WrongResult(f"a cell did not end within {timeout_s:g} s: {source[:200]}")
            ready = dict(poller.poll(3))
            if self.client.shell_channel.socket in ready:
                reply = self.client.get_shell_msg(timeout=1)
                if reply["parent_header"].get("msg_id") == request:
                    open_ends.discard("reply")
            if self.client.iopub_channel.socket in ready:
                message = self.client.get_iopub_msg(timeout=1)
                if message["parent_header"].get("msg_id") == request:
                    cell.take(message)
                    if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                        open_ends.discard("idle")
                if listener is not None:
                    listener.hear(message)
            if listener is not None:
                listener.tick()
        cell.seconds = time.perf_counter() - began_s
        if cell.error:
            raise WrongResult(f"a cell failed: {source[:200]}\n{cell.error}")
        return cell

    def control(self, kind: str) -> dict[str, Any]:
        """Ask on the control channel; returns the content of the reply."""
        message = self.client.session.msg(kind, {})
        self.client.control_channel.send(message)
        while True:
            reply = self.client.get_control_msg(timeout=20)
            if reply["parent_header"].get("msg_id") == message["msg_id"]:
                return reply["content"]

    def tell(self, kind: str, content: dict[str, Any], *, subshell: str | None = None) -> None:
        """Send on the shell channel, to a subshell as JupyterLab does for comms."""
        message = self.client.session.msg(kind, content)
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)
