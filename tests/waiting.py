"""Waiting for what others bring about, which tells no event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

WAIT_S = 30  # for what takes milliseconds on a machine without other work
_LOOK_EVERY_S = 0.005


def wait_for(condition: Callable[[], object], what: str = "", timeout_s: float = WAIT_S) -> None:
    """Return when it holds; this thread does nothing meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"it never came: {what}"
        time.sleep(_LOOK_EVERY_S)


async def until(condition: Callable[[], object]) -> None:
    """Return when it holds; the event loop runs meanwhile."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY_S)
