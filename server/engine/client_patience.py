"""How long clients are known to wait, learned from those who leave: work for who leaves is lost.

Each key is known by its own clients alone, so that nobody shortens the wait of others. What was
learned is doubted: it doubles each minute until somebody leaves again. Lives in the event loop's
thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Who leaves sooner has changed its mind; the shortest known default is 5 s (httpx).
SHORTEST_S = 2.0
DOUBLES_AFTER_S = 60.0
MAX_KEYS = 10_000


class ClientPatience:
    """What the clients of each key who left had waited.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # by key: waited, and when that was learned

    def note_left(self, key: str, waited_s: float) -> None:
        """A client of this key left unanswered."""
        if waited_s < SHORTEST_S or waited_s > self.known_s(key):
            return
        self._left.pop(key, None)
        self._left[key] = waited_s, self.clock()
        if len(self._left) > MAX_KEYS:
            del self._left[next(iter(self._left))]  # learned longest ago

    def known_s(self, key: str) -> float:
        """How long this key's clients will wait, as far as is known; infinite if it is not."""
        if key not in self._left:
            return math.inf
        waited_s, learned_s = self._left[key]
        return waited_s * 2 ** min((self.clock() - learned_s) / DOUBLES_AFTER_S, 64)
