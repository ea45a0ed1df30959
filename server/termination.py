"""SIGTERM as an exception, so that a command clears away what it began. Main thread only."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

TERMINATED = 143  # as shells report SIGTERM


@contextlib.contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """Let `finally` and `with` run in this block, then end with exit code TERMINATED."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
