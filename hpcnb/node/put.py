"""Puts the notebook's hpcnb on the machine that it runs on, and prints what came of it as a line of JSON.

Sent as source like look.py, and as plain as that. The wheel comes from the notebook's machine over the port where looks
meet; its hash came with the source, over the launcher's own way, so nothing else is installed.
"""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["main"]

MARK = "HPCNB-LOOK "
_WHEEL_S = 20.0


def main(asked: "dict[str, Any]") -> None:
    """Fetch the wheel, install it, say so.

    Args:
        asked: ``head`` (``host:port``), ``token``, ``sha256`` and ``file`` (name of the wheel).
    """
    why = _install(asked)
    facts = {"host": socket.gethostname(), "executable": sys.executable, "hpcnb_problem": why}
    os.write(1, (MARK + json.dumps({"id": str(os.getpid()), "facts": facts}) + "\n").encode())


def _install(asked: "dict[str, Any]") -> str:
    """Why it could not be; "" if it was."""
    host, _, port = asked["head"].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_WHEEL_S) as link:
            link.sendall(json.dumps({"token": asked["token"], "wants": "wheel"}).encode() + b"\n")
            wheel = b"".join(iter(lambda: link.recv(65536), b""))
    except OSError as error:
        return f"the wheel does not arrive: {error}"
    if hashlib.sha256(wheel).hexdigest() != asked["sha256"]:
        return "what arrived is not the notebook's wheel"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / asked["file"]
        path.write_bytes(wheel)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall",
             "--disable-pip-version-check", str(path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    said = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    return "" if done.returncode == 0 else next((line for line in said if "rror" in line), "\n".join(said[-1:]))


if __name__ == "__main__":
    main(json.loads(base64.b64decode(sys.argv[1])))
