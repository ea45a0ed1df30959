"""Counters that end a minute after they began, and take what fits in one step.

Knows no keys and no limits. Lives in the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

MINUTE_S = 60


class Taken(NamedTuple):
    """What came of asking a counter to take something."""

    fits: bool  # whether it did
    held: int
    ends_in_s: float  # never below zero; zero also if it holds nothing


class Counters(Protocol):
    """Counters by name; a minute begins when a counter that holds nothing takes something."""

    async def take_if_fits(self, name: str, amount: int, most: int) -> Taken:
        """Add to a counter unless it would then hold more than `most`; else leave it as it is.

        One step: what is refused to one never keeps out another, however many ask at once.

        Args:
            amount: zero only looks. Below zero gives back, whatever `most` is; what an ended minute
                has forgotten is not given back, so that the next one owes nothing.
        """
        ...


class MemoryCounters:
    """Counters of this process.

    Args:
        window_s: after so long a counter ends.
        now: seconds of a clock that never goes back.
    """

    def __init__(
        self, *, window_s: float = MINUTE_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._now = now
        # What each holds and when it ends; in the order in which they end, as all last as long.
        self._counters: dict[str, tuple[int, float]] = {}

    @property
    def kept(self) -> int:
        """How many counters are in memory."""
        return len(self._counters)

    async def take_if_fits(self, name: str, amount: int, most: int) -> Taken:
        """See Counters."""
        now = self._now()
        self._forget_ended(now)
        held, ends = self._counters.get(name, (0, now))
        after = held + amount
        fits = after >= 0 and (amount <= 0 or after <= most)
        if fits and amount:
            if not held:
                self._counters.pop(name, None)  # to the end of the order
                ends = now + self._window_s
            held = after
            self._counters[name] = held, ends
        return Taken(fits, held, ends - now)

    def _forget_ended(self, now: float) -> None:
        while self._counters:
            name, (_, ends) = next(iter(self._counters.items()))
            if ends > now:
                break
            del self._counters[name]
