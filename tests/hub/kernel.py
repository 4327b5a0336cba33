"""Cells in a kernel of a single-user server, as a program runs them: through the hub's proxy, without a page."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
import uuid

__all__ = ["Kernel"]


class Kernel:
    """A kernel of a server.

    Args:
        url: Of the server.
        token: That the hub lets in.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"token {token}"}
        request = urllib.request.Request(f"{url}/api/kernels", b"{}", self._headers, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            self._id = json.load(answer)["id"]

    def run(self, source: str, *, timeout_s: float = 120.0) -> str:
        """Run a cell; what it said as text."""
        return asyncio.run(asyncio.wait_for(self._run(source, time.monotonic() + timeout_s), timeout_s + 5))

    async def _run(self, source: str, deadline_s: float) -> str:
        from tornado.httpclient import HTTPRequest
        from tornado.websocket import websocket_connect

        url = f"{self._url}/api/kernels/{self._id}/channels".replace("http", "ws", 1)
        connection = await websocket_connect(HTTPRequest(url, headers=self._headers))
        number = uuid.uuid4().hex
        content = {"code": source, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        header = {"msg_id": number, "msg_type": "execute_request", "username": "", "session": "tests", "version": "5.3"}
        await connection.write_message(
            json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})
        )
        said = []
        while time.monotonic() < deadline_s:
            message = json.loads(await connection.read_message())
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                said.append(content["text"])
            elif kind in ("display_data", "update_display_data", "execute_result"):
                said.append(content["data"].get("text/plain", "") + "\n")
            elif kind == "error":
                said.append("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                break
        connection.close()
        while await connection.read_message() is not None:
            pass  # until the server has closed it too
        return "".join(said)
