"""What connections hold that belongs to no seat: heads, and requests that wait behind others.

A request has a seat from its head on. Whatever lies before that, or stands behind an unanswered
request of the same connection, is counted here, over all connections of a port.
Lives in the event loop's thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from server.api.seats import memory_for_requests
from server.settings import Settings

SHARE = 4  # one part in so many of what requests may take
HEADER_BYTES = 200  # of a header as objects, beyond its text
REQUEST_BYTES = 4096  # of a request that waits, beyond its head and body


class WaitingRoom:
    """So many bytes, and how many are in use."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    @classmethod
    def of(cls, settings: Settings) -> WaitingRoom:
        """One process's share."""
        return cls(math.ceil(memory_for_requests(settings) / SHARE))

    def change(self, held_bytes: int, new_bytes: int) -> bool:
        """A connection that holds so many bytes wants so many; whether it may."""
        total = self.held_bytes + new_bytes - held_bytes
        if new_bytes > held_bytes and total > self._max_bytes:
            return False
        self.held_bytes = total
        return True


def head_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """What a head takes as objects."""
    return sum(len(name) + len(value) + HEADER_BYTES for name, value in headers)


def waiting_bytes(waiting: Iterable[tuple[Any, Any]]) -> int:
    """What requests of uvicorn's pipeline take."""
    return sum(
        REQUEST_BYTES + len(cycle.body) + head_bytes(cycle.scope["headers"]) for cycle, _ in waiting
    )
