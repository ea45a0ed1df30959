"""Whether the wall clock jumps: keys expire, and usage is counted by the day, as it says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

log = logging.getLogger(__name__)

# NTP corrects less than half a second without a jump, and a leap second is one; what moves an
# expiry by less than some seconds is nobody's trouble.
JUMP_S = 5.0


class WallClock:
    """Compares the wall clock with one that never jumps.

    Args:
        wall: seconds since 1970.
        steady: seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._ahead_s = wall() - steady()

    def look(self) -> None:
        """Tell the log if it has jumped since it was looked at before."""
        now_s, steady_s = self._wall(), self._steady()
        due_s = steady_s + self._ahead_s
        jump_s = now_s - due_s
        self._ahead_s = now_s - steady_s
        if abs(jump_s) >= JUMP_S:
            log.warning(
                "the wall clock has jumped %.0f s %s, from %s to %s: keys expire and usage is "
                "counted by the day as it says now; limits a minute do not depend on it",
                abs(jump_s), "forward" if jump_s > 0 else "back", _shown(due_s), _shown(now_s),
            )  # fmt: skip


def _shown(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
