"""How long clients are known to wait, learned from those who leave: work for who leaves is lost.

Each key is known by its own clients alone, so that nobody shortens the wait of others; of addresses
nothing is learned, since a balancer's may be that of all. Who leaves a query says nothing of who
waits for a thousand texts, and work that ends for another reason (the server's own deadline, a front
end that is gone) says nothing at all. What was learned is doubted: it doubles each minute until somebody
leaves again. Lives in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import NamedTuple

# Who leaves sooner has changed its mind; the shortest known default is 5 s (httpx).
SHORTEST_S = 2.0
DOUBLES_AFTER_S = 60.0
MAX_KEYS = 10_000
# It is known of requests of up to so many times the tokens of the one that was left.
ALIKE = 2
# With this message work is cancelled whose client has left, and no other.
CLIENT_LEFT = "the client has left"
# How the name of a share begins that no key, but only an address tells apart.
ADDRESS = "address "


def is_left(error: BaseException) -> bool:
    """Whether work ended with this because its client has left."""
    return isinstance(error, asyncio.CancelledError) and error.args == (CLIENT_LEFT,)


class _Left(NamedTuple):
    waited_s: float
    tokens: int
    learned_s: float


class ClientPatience:
    """What the clients of each key who left had waited.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._left: dict[str, _Left] = {}  # by key

    def note_left(self, key: str, waited_s: float, tokens: int) -> None:
        """A client of this key left a request of so many tokens unanswered."""
        if key.startswith(ADDRESS) or not SHORTEST_S <= waited_s <= self.known_s(key, tokens):
            return
        self._left.pop(key, None)
        self._left[key] = _Left(waited_s, tokens, self.clock())
        if len(self._left) > MAX_KEYS:
            del self._left[next(iter(self._left))]  # learned longest ago

    def known_s(self, key: str, tokens: int) -> float:
        """How long this key's clients will wait for so much; infinite if that is not known."""
        left = self._left.get(key)
        if left is None or tokens > ALIKE * left.tokens:
            return math.inf
        return left.waited_s * 2 ** min((self.clock() - left.learned_s) / DOUBLES_AFTER_S, 64)
