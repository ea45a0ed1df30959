"""Whether another request can be served in time: one decision, before it is tokenised.

Counts the tokens of admitted requests by API key until they are computed and knows at what rate
they are computed. Because the queue is fair, a short request waits for little even when much is
waiting, and is let in when a long one is not. Lives in the event loop's thread; pure bookkeeping.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from server.errors import Overloaded

# Of a measurement's weight, what is left after each further micro-batch: fifty count.
_MEMORY = 0.98


class Ratio:
    """A quotient of two quantities over the recent past, newer observations counting more."""

    def __init__(self, first_guess: float, weight: float) -> None:
        """Args: weight: how much of the denominator the first guess stands for."""
        self._over, self._under = first_guess * weight, weight

    def observe(self, over: float, under: float) -> None:
        self._over = self._over * _MEMORY + over
        self._under = self._under * _MEMORY + under

    @property
    def value(self) -> float:
        return self._over / self._under


class _Load:
    """What is admitted for one API key and not computed yet."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0


class Admission:
    """Lets requests in while their work can be reached in time.

    Args:
        max_queue_tokens: most tokens that are admitted and not computed, over all keys.
        max_wait_s: longest time a request may have to wait for the work of others.
        tokens_per_second: measured speed of all workers together.
    """

    def __init__(
        self, *, max_queue_tokens: int, max_wait_s: float, tokens_per_second: Ratio
    ) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._max_wait_s = max_wait_s
        self._tokens_per_second = tokens_per_second
        self._loads: dict[str, _Load] = {}
        self.tokens = 0  # admitted and not computed yet

    def admit(self, key: str, tokens: int) -> Ticket:
        """Let a request of about this many tokens in.

        A request is never refused for its own size: an idle server takes every one.

        Raises:
            Overloaded: it would have to wait too long; tells when it need not.
        """
        rate = self._tokens_per_second.value
        excess = self.tokens + tokens - self._max_queue_tokens
        if self.tokens and excess > 0:
            raise Overloaded(
                f"{self.tokens} tokens are waiting and at most {self._max_queue_tokens} may",
                retry_after_s=min(excess, self.tokens) / rate,
            )
        wait_s = self._work_before(key, tokens) / rate
        if wait_s > self._max_wait_s:
            # What is before it shrinks for sure once no more than the longest wait is left of all.
            raise Overloaded(
                f"the work of others would take about {wait_s:.0f} s",
                retry_after_s=self.tokens / rate - self._max_wait_s,
            )
        load = self._loads.setdefault(key, _Load())
        load.requests += 1
        load.tokens += tokens
        self.tokens += tokens
        return Ticket(self, key, tokens)

    def _work_before(self, key: str, tokens: int) -> float:
        """Most tokens of others that fair queueing computes before `tokens` of this key are done.

        While one request gets its tokens, every other of its key gets no more than as many; while
        one key gets its tokens, every other key does.
        """
        load = self._loads.get(key)
        same_key = min(load.tokens, tokens * load.requests) if load else 0
        others = sum(
            min(other.tokens, same_key + tokens)
            for name, other in self._loads.items()
            if name != key
        )
        return same_key + others

    def grow(self, key: str, tokens: int) -> None:
        """A ticket of this key holds so many tokens more (or, below zero, fewer)."""
        self._loads[key].tokens += tokens
        self.tokens += tokens

    def leave(self, key: str) -> None:
        """A ticket of this key is given back."""
        load = self._loads[key]
        load.requests -= 1
        if not load.requests:
            del self._loads[key]


class Ticket:
    """One admitted request; what it still holds is given back on exit."""

    __slots__ = ("_admission", "key", "tokens")

    def __init__(self, admission: Admission, key: str, tokens: int) -> None:
        self._admission = admission
        self.key = key
        self.tokens = tokens  # admitted and not computed yet

    def correct(self, tokens: int) -> None:
        """Replace the estimate, now that the tokens are counted."""
        self._admission.grow(self.key, tokens - self.tokens)
        self.tokens = tokens

    def computed(self, tokens: int) -> None:
        """So many tokens wait no more."""
        self.correct(self.tokens - tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.correct(0)
        self._admission.leave(self.key)
