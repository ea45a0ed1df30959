"""Requests that come at once begin a few at a time: else a probe would wait for the begin of all.

Thousands of connections may have their heads read in one turn of the event loop, and each begin of
a request costs some tenths of a millisecond. Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE = 32  # in a turn of the event loop, which takes some milliseconds then


class Starts:
    """Begins that wait for the next turns, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def later(self, start: Callable[[], None]) -> None:
        """Begin in one of the next turns."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._go_on)
        self._waiting.append(start)

    def _go_on(self) -> None:
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._go_on)
