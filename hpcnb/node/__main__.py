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
from hpcnb.node.template_process import TemplateProcess


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
    template = None if spec.is_head else _fork_template(spec, folder)
    os.umask(
        0o077
    )  # logs, sockets and output are this user's alone; ranks, forked from the template, keep the person's
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    from hpcnb.node.agent import Agent

    Agent(spec, folder, template).run()


def _fork_template(spec: AgentSpec, folder: RunFolder) -> TemplateProcess:
    listener = None
    if spec.rendezvous:
        host, _, port = spec.rendezvous.rpartition(":")
        address = host, int(port)
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        address = listener.getsockname()[:2]
    board = new_board(spec.num_ranks)
    to_template, to_agent = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        to_template.close()
        from hpcnb.node.template import run_template

        run_template(to_agent, listener, spec, folder, board)
        os._exit(1)
    to_agent.close()
    if listener is not None:
        listener.close()
    return TemplateProcess(to_template, pid, address, board)


if __name__ == "__main__":
    main()
