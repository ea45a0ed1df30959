"""Counters that end a minute after they began, by the library `limits`.

Lives in the event loop's thread; knows no keys.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from limits.aio.storage import MemoryStorage, Storage

MINUTE_S = 60


class Counters(Protocol):
    """Counters by name; a minute begins with the first count after the one before has ended."""

    @property
    def are_shared(self) -> bool:
        """Whether they are elsewhere, and so another's answer can come in between."""
        ...

    async def count(self, name: str, amount: int) -> tuple[int, float]:
        """Add to a counter; what it holds then, and in how many seconds it ends."""
        ...

    async def look(self, name: str) -> tuple[int, float]:
        """What a counter holds, and in how many seconds it ends."""
        ...


class StorageCounters:
    """Counters in a storage of the library; default: this process's memory.

    Args:
        window_s: after so long a counter ends.
    """

    def __init__(self, storage: Storage | None = None, *, window_s: int = MINUTE_S) -> None:
        self._window_s = window_s
        self.are_shared = storage is not None
        self._storage = storage or MemoryStorage()

    async def count(self, name: str, amount: int) -> tuple[int, float]:
        counted = await self._storage.incr(name, self._window_s, amount=amount)
        return counted, await self._storage.get_expiry(name) - time.time()

    async def look(self, name: str) -> tuple[int, float]:
        storage = self._storage
        if not self.are_shared:  # there is nothing to wait for
            return await storage.get(name), await storage.get_expiry(name) - time.time()
        counted, expiry = await asyncio.gather(storage.get(name), storage.get_expiry(name))
        return counted, expiry - time.time()
