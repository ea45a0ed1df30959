"""Failures of asyncio futures at which nobody may look.

Called in the event loop's thread. Knows nothing of what failed.
"""

from __future__ import annotations

import asyncio
from typing import Any


def ignore_failure(future: asyncio.Future[Any]) -> None:
    """Look at how a future ended; asyncio would log a failure that nobody has looked at.

    For `add_done_callback`, where those who wait may all have left.
    """
    if not future.cancelled():
        future.exception()
