"""configurable-http-proxy in Python, with what 0.4.0 lacks for notebooks: a websocket keeps its protocol and its bytes.

It needs no node.js. Without the protocol that the server chose a browser gives up the websocket of a kernel; messages
that are no text came to the server as text.
"""

from __future__ import annotations

from configurable_http_proxy.cli import main
from configurable_http_proxy.handlers import ProxyHandler


def _select_subprotocol(self, subprotocols):
    return self.ws_client.selected_subprotocol


def _on_message(self, message):
    if self.ws_client:
        self.proxy.update_last_activity(self.target["prefix"])
        self.ws_client.write_message(message, binary=isinstance(message, bytes))


if __name__ == "__main__":
    ProxyHandler.select_subprotocol = _select_subprotocol
    ProxyHandler.on_message = _on_message
    main()
