"""The key-value store of the process groups as a rank uses it: a wait for a key can be given up.

torch waits for keys in C++, out of reach of Ctrl-C and of the agent. This store asks again and again instead, which
also ends a ``new_group`` or a mesh that another rank never comes to make.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from hpcnb.engine.pauses import pauses_s

__all__ = ["GroupStore"]


class GroupStore(dist.Store):
    """A store over the cluster's rendezvous.

    Args:
        inner: Client of the rendezvous.
        timeout: Of a wait.
        check: Called while waiting; raises when the wait is to be given up.
    """

    def __init__(self, inner: dist.Store, timeout: datetime.timedelta, check: Callable[[], None]) -> None:
        super().__init__()
        self._inner: Any = inner  # torch's stub lacks half of the methods
        self._timeout = timeout
        self._check = check
        self._remembered: list[str] | None = None

    @contextlib.contextmanager
    def remembering(self, keys: list[str]) -> Iterator[None]:
        """Keys that this rank sets in the body are added to ``keys``, so that they can be deleted one day."""
        before, self._remembered = self._remembered, keys
        try:
            yield
        finally:
            self._remembered = before

    def _remember(self, *keys: str) -> None:
        if self._remembered is not None:
            self._remembered.extend(keys)

    def _await(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        pauses = pauses_s()
        deadline_s = time.monotonic() + (timeout or self._timeout).total_seconds()
        while not self._inner.check(keys):
            self._check()
            if time.monotonic() > deadline_s:
                msg = f"nobody set {keys[0]!r} within {(timeout or self._timeout).total_seconds():.0f} s"
                raise dist.DistStoreError(msg)
            time.sleep(next(pauses))

    def set(self, key: str, value: str | bytes) -> None:
        self._remember(key)
        self._inner.set(key, value)

    def get(self, key: str) -> bytes:
        self._await([key])
        return bytes(self._inner.get(key))

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._await(keys)
        return list(self._inner.multi_get(keys))

    def multi_set(self, keys: list[str], values: list[str]) -> None:
        self._remember(*keys)
        self._inner.multi_set(keys, values)

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        self._await(keys, timeout)

    def check(self, keys: list[str]) -> bool:
        return bool(self._inner.check(keys))

    def add(self, key: str, value: int) -> int:
        return int(self._inner.add(key, value))

    def append(self, key: str, value: str) -> None:
        self._inner.append(key, value)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        return bytes(self._inner.compare_set(key, expected, desired))

    def delete_key(self, key: str) -> bool:
        return bool(self._inner.delete_key(key))

    def num_keys(self) -> int:
        return int(self._inner.num_keys())

    def has_extended_api(self) -> bool:
        return True

    def set_timeout(self, timeout: datetime.timedelta) -> None:
        self._timeout = timeout

    @property
    def timeout(self) -> datetime.timedelta:
        return self._timeout
