"""``python -m hpcnb.node FOLDER``: be the node agent of the cluster that lives in FOLDER.

Forks the template before anything else, while this process has one thread and a few modules; then serves.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
from pathlib import Path

from hpcnb.core.board import new_board
from hpcnb.core.launch import AgentSpec, RunFolder
from hpcnb.core.version import __version__


def main() -> None:
    """Start template and agent."""
    folder = RunFolder(Path(sys.argv[1]))
    spec = AgentSpec.load(folder.spec)
    python = ".".join(platform.python_version_tuple()[:2])
    if (spec.hpcnb_version, spec.python_version) != (__version__, python):
        # exit status and last line are read by the launcher
        sys.exit(
            f"VERSION the notebook runs hpcnb {spec.hpcnb_version} on Python {spec.python_version}, this node runs "
            f"hpcnb {__version__} on Python {python} ({sys.executable})"
        )
    rendezvous = socket.create_server(("127.0.0.1", 0), backlog=4096)
    address = rendezvous.getsockname()[:2]
    board = new_board(spec.num_ranks)
    to_template, to_agent = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        to_template.close()
        from hpcnb.node.template import run_template

        run_template(to_agent, rendezvous, spec, folder, board)
        os._exit(1)
    to_agent.close()
    rendezvous.close()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    from hpcnb.node.agent import Agent
    from hpcnb.node.host import TemplateProcess

    Agent(spec, folder, TemplateProcess(to_template, pid, address, board)).run()


if __name__ == "__main__":
    main()
