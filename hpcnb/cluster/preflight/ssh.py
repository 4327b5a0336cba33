"""What ssh says when a login fails -> the check that it is, and what mends it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpcnb.cluster.preflight.checks import Check

__all__ = ["of_login"]

#: What is said, the name of the check, its words, and what mends it. ``{host}`` is as ssh takes it, ``{login}`` a
#: whole command that logs in, ``{why}`` what was found.
_SAID = [
    (r"Could not resolve hostname (\S+?):", "names", "the name {why} has no address here",
     "look for a slip; else give it one:  echo 'IP {why}' | sudo tee -a /etc/hosts, or HostName in ~/.ssh/config"),
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "host key",
     "has another host key than before: it was installed anew, or another machine answers in its place",
     "if it was installed anew:  ssh-keygen -R {name}  and then  {keyscan}"),
    (r"Host key verification failed|host key is known for", "host key", "its host key is not known here",
     "{keyscan}   (and compare it with the one that its owner names)"),
    (r"Too many authentication failures", "login", "was offered too many keys before the right one",
     "name the key in ~/.ssh/config:  IdentityFile ... and IdentitiesOnly yes"),
    (r"Permissions \d+ for '([^']+)' are too open", "login", "others may read the key {why}, so ssh does not use it",
     "chmod 600 {why}"),
    (r"Bad owner or permissions on (\S+)", "login", "others may write to {why}, so ssh does not read it",
     "chmod 600 {why}"),
    (r"Permission denied", "login", "no key of yours is accepted there, and nobody can be asked for a password",
     "{copy_id}   (first  ssh-keygen  if you have no key)"),
    (r"stdio forwarding failed|open failed", "login", "cannot be reached from the host that is gone through",
     "try  {login} -v true"),
    (r"port (\d+): Connection refused", "sshd", "nothing listens at its port {why}: sshd is off, or at another port",
     "on {name}:  systemctl start sshd   (or name the port:  --port N)"),
    (r"port (\d+): (?:Connection|Operation) timed out|Connection timed out", "sshd",
     "does not answer at port {why}: it is off, or a firewall is between",
     "switch it on; or on {name}:  iptables -I INPUT -p tcp --dport {why} -j ACCEPT"),
    (r"port \d+: (No route to host|Network is unreachable)", "sshd", "no way leads there ({why})",
     "switch it on, or look at its address:  getent hosts {name}"),
    (r"kex_exchange_identification|Connection (?:closed|reset) by", "sshd", "ended the connection before the login",
     "look at its log:  on {name}:  journalctl -u ssh   (MaxStartups, hosts.allow, a full disk)"),
]  # fmt: skip


def of_login(host: str, said: Sequence[str], options: Sequence[str] = ()) -> Check | None:
    """Why a login failed; None if ssh says what is not known here.

    Args:
        host: As ssh takes it, ``user@n1``.
        said: Its lines.
        options: Those of ssh that the person has given, ``-p 2222``.
    """
    text = "\n".join(said)
    port = options[options.index("-p") + 1] if "-p" in options else ""
    name = host.rpartition("@")[2]
    login = " ".join(["ssh", *options, host])
    user = next((f"{options[at + 1]}@" for at, each in enumerate(options) if each == "-l"), "")
    copy = [
        each
        for flag, value in zip(options[::2], options[1::2], strict=False)
        if flag != "-l"
        for each in _copied(flag, value)
    ]
    words = {
        "host": host, "name": name, "login": login,
        "copy_id": " ".join(["ssh-copy-id", *copy, f"{user}{host}"]),
        "keyscan": " ".join(["ssh-keyscan", *(["-p", port] if port else []), name, ">> ~/.ssh/known_hosts"]),
    }  # fmt: skip
    for pattern, check, what, fix in _SAID:
        if found := re.search(pattern, text):
            why = next((group for group in found.groups() if group), port or "22")
            return Check(
                check,
                why if check == "names" else name,
                "fail",
                what.format(**words, why=why),
                fix.format(**words, why=why),
            )
    return None


def _copied(flag: str, value: str) -> list[str]:
    """The same option of ssh-copy-id."""
    given = {"-p": ["-p", value], "-J": ["-o", f"ProxyJump={value}"], "-F": ["-F", value]}
    return given.get(flag, [])
