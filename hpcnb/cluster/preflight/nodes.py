"""Facts of a node -> checks. Each function looks at one thing, and says in its fix what is typed where."""

from __future__ import annotations

from collections.abc import Iterator

from hpcnb.cluster.preflight.checks import Check
from hpcnb.cluster.preflight.facts import Facts
from hpcnb.cluster.preflight.resources import devices, folder, limits, memory, shared_memory
from hpcnb.cluster.preflight.wants import Wants

__all__ = ["of_network", "of_node", "of_peers", "of_software"]

#: Clocks that differ by more make logs and times of jobs hard to read.
_GOOD_CLOCK_S = 1.0


def of_node(where: str, facts: Facts, wants: Wants) -> list[Check]:
    """All that can be said of one node by itself."""
    return [
        *of_software(where, facts, wants),
        *([] if wants.is_here else of_network(where, facts, wants)),
        *memory(where, facts, wants),
        *shared_memory(where, facts),
        *limits(where, facts, wants),
        *folder(where, facts),
        *devices(where, facts, wants),
    ]


# --- software ---------------------------------------------------------------------------------------------------


def of_software(where: str, facts: Facts, wants: Wants) -> Iterator[Check]:
    """Python, hpcnb and what it needs: the same versions as the notebook's."""
    there = ".".join(facts.python.split(".")[:2])
    if there != wants.python:
        words = f"Python {facts.python} at {facts.executable}, the notebook runs Python {wants.python}"
        fix = f"name an interpreter of Python {wants.python} that is there:  --python /path/to/python{wants.python}"
        yield Check("versions", where, "fail", words, fix)
        return  # what is installed for another Python says nothing
    install = f"{facts.executable} -m pip install"
    if not facts.hpcnb:
        fix = wants.typed(where, f"{install} hpcnb=={wants.hpcnb}  (or  %hpc doctor --install  puts it there)")
        words = f"no hpcnb for {facts.executable}, the notebook runs hpcnb {wants.hpcnb}"
        yield Check("versions", where, "fail", _with(words, facts.hpcnb_problem), fix)
    elif facts.hpcnb != wants.hpcnb:
        fix = wants.typed(where, f"{install} hpcnb=={wants.hpcnb}  (or  %hpc doctor --install  puts it there)")
        words = f"hpcnb {facts.hpcnb} for {facts.executable}, the notebook runs hpcnb {wants.hpcnb}"
        yield Check("versions", where, "fail", words, fix)
    else:
        torch = facts.packages.get("torch", "")
        words = f"Python {facts.python}, hpcnb {facts.hpcnb}{f', torch {torch}' if torch else ''}"
        yield Check("versions", where, "ok", words)
    yield from _packages(where, facts, wants, install)


def _with(words: str, why: str) -> str:
    """The reason too, unless it is only that the thing itself is missing."""
    return words if not why or "No module named 'hpcnb'" in why else f"{words} ({why})"


def _packages(where: str, facts: Facts, wants: Wants, install: str) -> Iterator[Check]:
    missing = [name for name in wants.packages if not facts.packages.get(name)]
    if missing:
        pins = " ".join(_pin(name, wants.packages[name]) for name in missing)
        words = f"{', '.join(missing)} missing for {facts.executable}, the notebook has {_listed(missing, wants)}"
        yield Check("packages", where, "fail", words, wants.typed(where, f"{install} {pins}"))
    ours, theirs = wants.packages.get("torch", ""), facts.packages.get("torch", "")
    if ours and theirs not in ("", "?") and theirs != ours:
        is_same = ours.partition("+")[0] == theirs.partition("+")[0]
        words = f"torch {theirs}, the notebook has torch {ours}"
        fix = wants.typed(where, f"{install} torch=={ours}")
        if is_same:
            words, fix = f"{words}: another build", f"none is needed where both can use the node's devices; else {fix}"
        yield Check("packages", where, "warn" if is_same else "fail", words, fix)


def _listed(names: list[str], wants: Wants) -> str:
    return ", ".join(f"{name} {wants.packages[name]}" for name in names)


def _pin(name: str, version: str) -> str:
    return name if version in ("", "?") else f"{name}=={version.partition('+')[0]}"


# --- network ----------------------------------------------------------------------------------------------------


def of_network(where: str, facts: Facts, wants: Wants) -> Iterator[Check]:
    """The way to the notebook's machine, names, interface and clock."""
    if facts.reach is not None:
        yield from _head(where, facts, wants)
        yield from _clock(where, facts)
    yield from _interface(where, facts)
    if facts.own_name:
        yield Check("names", where, "ok", f"{facts.host} is {facts.own_name}")
    else:
        words = f"its own name {facts.host!r} has no address there, which libraries ask for"
        fix = wants.typed(where, f"echo '{facts.address or '127.0.1.1'} {facts.host}' >> /etc/hosts")
        yield Check("names", where, "warn", words, fix)


def _head(where: str, facts: Facts, wants: Wants) -> Iterator[Check]:
    assert facts.reach is not None
    if not (why := facts.reach.problem):
        yield Check("head", where, "ok", f"reaches this machine at {wants.address}")
        return
    words = f"cannot reach this machine at {wants.address} ({why}); every port of {wants.ports} must be open"
    ports = wants.ports.replace("-", ":")
    accept = f"iptables -I INPUT -p tcp -s {facts.address or where} --dport {ports} -j ACCEPT"
    fix = f"here:  {accept};  or choose an address that {where} reaches:  --address IP"
    if "unreachable" in why or "route" in why:
        words = f"has no way to this machine at {wants.address} ({why})"
        fix = f"choose an address of this machine that {where} reaches:  --address IP"
    elif not wants.address.replace(".", "").isdecimal() and "name" in why.lower():
        words = f"the name {wants.address!r} of this machine has no address there ({why})"
        fix = f"give the address as a number:  --address IP;  or on {where}:  echo 'IP {wants.address}' >> /etc/hosts"
    yield Check("head", where, "fail", words, fix)


def of_peers(found: dict[str, Facts], ports: str) -> list[Check]:
    """Whether nodes reach each other; ranks need both ways, though gloo may do with one.

    Args:
        found: Facts by node.
        ports: That kernels give to listeners.
    """
    called = {facts.host: where for where, facts in found.items()}
    reach = {where: facts.reach.peers for where, facts in found.items() if facts.reach is not None}
    checks = []
    for where, peers in reach.items():
        if peers and not any(peers.values()):
            checks.append(Check("nodes", where, "ok", f"reaches {', '.join(sorted(peers))}"))
        for name, why in peers.items():
            if not why:
                continue
            is_one_way = reach.get(called.get(name, name), {}).get(found[where].host) == ""
            words = f"cannot reach node {name} ({why}), and ranks must, at any port of {ports}"
            words += f"; node {name} reaches {where}, which may do" if is_one_way else ""
            source = found[where].address or where
            fix = f"on {name}:  iptables -I INPUT -p tcp -s {source} --dport {ports.replace('-', ':')} -j ACCEPT"
            checks.append(Check("nodes", where, "warn" if is_one_way else "fail", words, fix))
    return checks


def _clock(where: str, facts: Facts) -> Iterator[Check]:
    assert facts.reach is not None
    if facts.reach.problem:
        return
    ahead_s, bound_s = facts.reach.clock_s, facts.reach.clock_bound_s
    if abs(ahead_s) - bound_s <= _GOOD_CLOCK_S:
        yield Check("clock", where, "ok", f"within {max(abs(ahead_s) + bound_s, 0.001):.3f} s of this machine's")
        return
    words = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's clock; times in logs differ"
    yield Check("clock", where, "warn", words, f"on {where}:  timedatectl set-ntp true   (or  chronyc makestep)")


def _interface(where: str, facts: Facts) -> Iterator[Check]:
    there = ", ".join(facts.interfaces)
    used = next((name for name, address in facts.interfaces.items() if address == facts.address), "")
    if facts.no_address:
        words = f"no interface leads to this machine ({facts.no_address}); it has {there}"
        fix = f"choose an address of this machine that {where} reaches:  --address IP"
        yield Check("interface", where, "fail", words, fix)
    asked = facts.asked_interfaces
    absent = {name: given for name, given in asked.items() if not _is_there(given, name, facts.interfaces)}
    for name, given in absent.items():
        words = f"{name}={given} is set there, and it has {there}"
        fix = f"unset {name} there (it is chosen by itself), or  {name}={used or 'NAME'}"
        yield Check("interface", where, "fail", words, fix)
    used = asked.get("GLOO_SOCKET_IFNAME", used).partition(",")[0]
    if used and not absent:
        yield Check("interface", where, "ok", f"{used}, {facts.interfaces.get(used, facts.address)}")


def _is_there(asked: str, variable: str, interfaces: dict[str, str]) -> bool:
    """Gloo takes the first name as it is; NCCL takes beginnings of names, ``=`` for whole ones and ``^`` for others."""
    if variable.startswith("GLOO"):
        return asked.partition(",")[0] in interfaces
    names = asked.lstrip("^=").split(",")
    found = {each for each in interfaces if each in names or ("=" not in asked[:2] and each.startswith(tuple(names)))}
    return bool(set(interfaces) - found - {"lo"}) if asked.startswith("^") else bool(found)
