"""Whether another request can be served in time: one decision, before it is tokenised.

Counts the tokens of admitted requests by API key until they are computed and knows at what rate
they are computed. Because the queue is fair, a short request waits for little even when much is
waiting, and is let in when a long one is not. Lives in the event loop's thread; pure bookkeeping.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from server.engine.client_patience import ClientPatience
from server.engine.fair_share import FairShare
from server.engine.ratio import Ratio
from server.errors import Overloaded


class Admission:
    """Lets requests in while their work can be reached in time.

    Args:
        max_queue_tokens: most tokens that are admitted and not computed, over all keys.
        max_wait_s: longest time a request may have to wait for the work of others.
        tokens_per_second: measured speed of all workers together.
        patience: of the clients of each key.
    """

    def __init__(
        self,
        *,
        max_queue_tokens: int,
        max_wait_s: float,
        tokens_per_second: Ratio,
        patience: ClientPatience | None = None,
    ) -> None:
        self._max_queue_tokens = max_queue_tokens
        self._max_wait_s = max_wait_s
        self._tokens_per_second = tokens_per_second
        self._shares = FairShare()
        self._patience = patience or ClientPatience()

    @property
    def tokens(self) -> int:
        """Tokens that are admitted and not computed yet."""
        return self._shares.tokens

    def admit(self, key: str, tokens: int) -> Ticket:
        """Let a request of about this many tokens in.

        A request is never refused for its own size: an idle server takes every one.

        Raises:
            Overloaded: it would have to wait too long; tells when it need not.
        """
        rate = self._tokens_per_second.value
        refusals: list[tuple[str, float]] = []  # why, and in how many seconds no more
        excess = self.tokens + tokens - self._max_queue_tokens
        if self.tokens and excess > 0:
            why = f"{self.tokens} tokens are waiting and at most {self._max_queue_tokens} may"
            refusals.append((why, min(excess, self.tokens) / rate))
        wait_s = self.expected_wait_s(key, tokens)
        stays_s = self._patience.known_s(key, tokens) - tokens / rate
        max_wait_s = min(self._max_wait_s, max(0.0, stays_s))
        if wait_s > max_wait_s:
            # What is before it shrinks for sure once no more than the longest wait is left of all.
            why = f"the work of others would take about {wait_s:.0f} s"
            refusals.append((why, self.tokens / rate - max_wait_s))
        if refusals:  # who comes back must not be refused for the other reason then
            why, _ = refusals[0]
            raise Overloaded(why, retry_after_s=max(seconds for _, seconds in refusals))
        return Ticket(self._shares, key, tokens, self._patience)

    def expected_wait_s(self, key: str, tokens: int) -> float:
        """The time for what is computed of others before so many tokens of this key are done."""
        return self._shares.work_before(key, tokens) / self._tokens_per_second.value


class Ticket:
    """One admitted request; what it still holds is given back on exit.

    Args:
        shares: where it counts.
        tokens: about how many it holds.
        patience: told if its client leaves.
    """

    __slots__ = ("_asked", "_began_s", "_flow", "_patience", "_share", "_shares", "key", "tokens")

    def __init__(self, shares: FairShare, key: str, tokens: int, patience: ClientPatience) -> None:
        self._shares = shares
        self.key = key
        self._patience = patience
        self._began_s = patience.clock()
        self._enter(tokens)

    def correct(self, tokens: int) -> None:
        """Replace the estimate, now that the tokens are counted."""
        if tokens != self.tokens:
            self._leave()
            self._enter(tokens)

    def computed(self, tokens: int) -> None:
        """So many tokens wait no more."""
        self._shares.subtract(self._flow, tokens)
        self.tokens -= tokens

    def client_left(self) -> None:
        """Its client has not waited for it."""
        self._patience.note_left(self.key, self._patience.clock() - self._began_s, self._asked)

    def _enter(self, tokens: int) -> None:
        self._share = self._shares.enter(self.key, tokens)
        self._flow = self._share.flow_of(tokens)
        self._asked = self.tokens = tokens  # the latter: admitted and not computed yet

    def _leave(self) -> None:
        self._shares.subtract(self._flow, self.tokens)
        self._shares.leave(self._share, self._flow)
        self._shares.forget_absent_keys()
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
