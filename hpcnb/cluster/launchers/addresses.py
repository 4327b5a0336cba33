"""Which address of this machine others reach."""

from __future__ import annotations

import socket

from hpcnb.core.errors import LaunchError

__all__ = ["address_towards", "has_address", "own_address"]


def address_towards(host: str) -> str:
    """The IP address that this machine has on its way to a host.

    Raises:
        LaunchError: The host has no address, or there is no way to it.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            address: str = probe.getsockname()[0]
    except OSError as error:
        msg = f"host {host!r} cannot be reached from here: {error.strerror}; look at its name, or give address=..."
        raise LaunchError(msg) from error
    return address


def own_address() -> str:
    """The IP address that this machine's host name stands for.

    Raises:
        LaunchError: It has none, or one that only this machine reaches.
    """
    name = socket.gethostname()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET)}
    except OSError as error:
        msg = f"this machine's name {name!r} has no address ({error.strerror}); say which one nodes reach: address=..."
        raise LaunchError(msg) from error
    reachable = sorted(each for each in found if not each.startswith("127."))
    if not reachable:
        msg = (
            f"this machine's name {name!r} stands for {', '.join(sorted(found))}, which nodes do not reach; say which "
            "address they do: address=..."
        )
        raise LaunchError(msg)
    return reachable[0]


def has_address(host: str) -> bool:
    """Whether a name has an IP address."""
    try:
        return bool(socket.getaddrinfo(host, None, socket.AF_INET))
    except (OSError, UnicodeError):
        return False
