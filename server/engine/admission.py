"""Whether another request can be served in time: one decision, before it is tokenised.

Counts the tokens of admitted requests by API key until they are computed and knows at what rate
they are computed. Because the queue is fair, a short request waits for little even when much is
waiting, and is let in when a long one is not. Lives in the event loop's thread; pure bookkeeping.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

from server.errors import Overloaded

# Requests of at most so many tokens are served as they came. On a CPU a micro-batch of this size is
# nearly as efficient as it gets (Pace).
LIGHT_TOKENS = 96
# A forward pass over one token takes about as long as this many tokens take in a larger one.
MIN_COST_TOKENS = 32
# Bulk requests of a key get no more than this many times what its light ones get while both wait:
# two hundred of them would otherwise make each query wait for two hundred times its own cost.
MAX_BULK_SHARE = 4
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


class _Flow:
    """Light or bulk requests of one key."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0  # not computed yet


class _Load:
    """What is admitted for one API key."""

    __slots__ = ("bulk", "light")

    def __init__(self) -> None:
        self.light = _Flow()
        self.bulk = _Flow()

    @property
    def requests(self) -> int:
        return self.light.requests + self.bulk.requests

    @property
    def tokens(self) -> int:
        return self.light.tokens + self.bulk.tokens

    def flow(self, tokens: int) -> _Flow:
        """Where a request of this size belongs."""
        return self.light if tokens <= LIGHT_TOKENS else self.bulk

    def before(self, tokens: int) -> float:
        """Most tokens of this key that are computed before a further request of this size is done.

        Light requests are served as they came, and the bulk ones get as many shares beside them as
        there are. While a bulk one gets its tokens every other gets no more than as many.
        """
        light_tokens = self.light.tokens + min(tokens, LIGHT_TOKENS)
        light_requests = self.light.requests + 1
        # The fewer light ones are left the larger the share of the bulk ones becomes; the sum of
        # 1/n over n light requests is below 1 + ln n.
        beside = light_tokens * self.bulk.requests / light_requests * (1 + math.log(light_requests))
        beside = min(beside, MAX_BULK_SHARE * max(light_tokens, MIN_COST_TOKENS))
        if tokens > LIGHT_TOKENS:
            beside = max(beside, tokens * self.bulk.requests)
        return self.light.tokens + min(self.bulk.tokens, beside)


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
        wait_s = self.expected_wait_s(key, tokens)
        if wait_s > self._max_wait_s:
            # What is before it shrinks for sure once no more than the longest wait is left of all.
            raise Overloaded(
                f"the work of others would take about {wait_s:.0f} s",
                retry_after_s=self.tokens / rate - self._max_wait_s,
            )
        return Ticket(self, key, tokens)

    def expected_wait_s(self, key: str, tokens: int) -> float:
        """The time for what fair queueing computes of others before `tokens` of this key are done.

        While one key gets its tokens, every other gets no more than as many.
        """
        load = self._loads.get(key)
        same_key = load.before(tokens) if load else 0.0
        others = sum(
            min(other.tokens, same_key + tokens)
            for name, other in self._loads.items()
            if name != key
        )
        return (same_key + others) / self._tokens_per_second.value

    def enter(self, key: str, tokens: int) -> _Flow:
        """A ticket of this key holds so many tokens from now on; where it belongs."""
        flow = self._loads.setdefault(key, _Load()).flow(tokens)
        flow.requests += 1
        self.shrink(flow, -tokens)
        return flow

    def shrink(self, flow: _Flow, tokens: int) -> None:
        """A ticket holds so many tokens less."""
        flow.tokens -= tokens
        self.tokens -= tokens

    def leave(self, key: str, flow: _Flow, tokens: int) -> None:
        """A ticket of this key is given back, with what it still holds."""
        self.shrink(flow, tokens)
        flow.requests -= 1
        if not self._loads[key].requests:
            del self._loads[key]


class Ticket:
    """One admitted request; what it still holds is given back on exit."""

    __slots__ = ("_admission", "_flow", "key", "tokens")

    def __init__(self, admission: Admission, key: str, tokens: int) -> None:
        self._admission = admission
        self.key = key
        self.tokens = tokens  # admitted and not computed yet
        self._flow = admission.enter(key, tokens)

    def correct(self, tokens: int) -> None:
        """Replace the estimate, now that the tokens are counted."""
        if tokens == self.tokens:
            return
        self._leave()
        self.tokens = tokens
        self._flow = self._admission.enter(self.key, tokens)

    def computed(self, tokens: int) -> None:
        """So many tokens wait no more."""
        self._admission.shrink(self._flow, tokens)
        self.tokens -= tokens

    def _leave(self) -> None:
        self._admission.leave(self.key, self._flow, self.tokens)
        self.tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()
