"""Requests and tokens a minute of each key, counted in this process or in a Redis.

A minute begins with the first request after the one before has ended. If the shared Redis is away,
each server counts for itself until it is back. Lives in the event loop's thread.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.access.counters import MINUTE_S, Counters, MemoryCounters, Taken
from server.access.keys import Key
from server.errors import (
    RateLimitExceeded,
    RequestAboveTokenLimit,
    SettingError,
    StorageUnavailable,
    Unavailable,
)
from server.program.command_lines import install_command

if TYPE_CHECKING:
    from server.access.redis_counters import RedisCounters

log = logging.getLogger(__name__)

MEMORY = "memory://"
# Longer than any Redis that is well takes; requests wait for it once, then it counts as away.
PATIENCE_S = 0.5
# A client that comes back as told must not come too early, whatever its clock and its way take.
MARGIN_S = 0.5
_SCHEMES = ("redis://", "rediss://")
# As earlier versions call them in Redis, so that servers of both count together.
_COUNTERS = "LIMITS:embedding-server"


class Unit(enum.StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class RateWindow:
    """How much of a limit is left, and in how many seconds all of it will be."""

    unit: Unit
    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(self.remaining),
            f"x-ratelimit-reset-{self.unit}": f"{math.ceil(self.reset_s)}s",
        }


class RateLimits:
    """The limits of all keys.

    Args:
        url: `memory://`, or where a Redis is that several servers share.
        refuse_when_away: answer 503 while the Redis is away, instead of counting here.
        here: where this server counts by itself; default: in this process.
        window_s: how long a minute lasts.
        patience_s: how long the Redis may take for an answer.

    Raises:
        SettingError: the address is of no kind that is known.
    """

    def __init__(
        self,
        url: str,
        *,
        refuse_when_away: bool,
        here: Counters | None = None,
        window_s: int = MINUTE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._here = MemoryCounters(window_s=window_s) if here is None else here
        self._shared = (
            None if url == MEMORY else _redis(url, patience_s=patience_s, window_s=window_s)
        )
        self._refuse_when_away = refuse_when_away
        self.away = False
        self.instead = "refusing" if refuse_when_away else "each server counts for itself"

    def of(self, key: Key) -> KeyLimits:
        """The limits of one request's key."""
        return KeyLimits(self, key)

    async def take_if_fits(self, name: str, amount: int, most: int) -> Taken:
        """See Counters.

        Raises:
            StorageUnavailable: the shared storage is away and must not be.
        """
        if self._shared is None:
            return await self._here.take_if_fits(name, amount, most)
        if not self.away:
            try:
                return await self._shared.take_if_fits(name, amount, most)
            except self._shared.errors as error:
                self._note_away(error)
        if self._refuse_when_away:
            raise StorageUnavailable("rate limits")
        return await self._here.take_if_fits(name, amount, most)

    async def check(self) -> None:
        """Find out whether the shared storage is there and writes; called every now and then."""
        if self._shared is None:
            return
        try:
            await self._shared.probe()
        except self._shared.errors as error:
            self._note_away(error)
        else:
            if self.away:
                log.warning("the rate limits' storage is back: limits are shared again")
            self.away = False

    async def close(self) -> None:
        """Close the connections to the shared storage."""
        if self._shared is not None:
            await self._shared.close()

    def _note_away(self, error: Exception) -> None:
        if not self.away:
            log.error("the rate limits' storage is away (%s): %s", error, self.instead)
        self.away = True


class KeyLimits:
    """One request against the limits of its key."""

    def __init__(self, limits: RateLimits, key: Key) -> None:
        self._limits = limits
        self._key = key
        self._most = {
            unit: most
            for unit, most in (
                (Unit.REQUESTS, key.limits.requests_per_minute),
                (Unit.TOKENS, key.limits.tokens_per_minute),
            )
            if most is not None
        }
        self._windows: dict[Unit, RateWindow] = {}

    async def take_request(self) -> None:
        """Count the request.

        Raises:
            RateLimitExceeded: this minute's requests are used up; it was not counted.
            StorageUnavailable: see `RateLimits.take_if_fits`.
        """
        await self._take(Unit.REQUESTS, 1)

    async def take_tokens(self, tokens: int) -> None:
        """Count its tokens.

        Raises:
            RequestAboveTokenLimit: no minute has as many.
            RateLimitExceeded: this one has not as many left; they were not counted.
            StorageUnavailable: see `RateLimits.take_if_fits`.
        """
        most = self._most.get(Unit.TOKENS)
        if most is not None and tokens > most:
            raise RequestAboveTokenLimit(tokens, most)
        await self._take(Unit.TOKENS, tokens)

    async def give_back_tokens(self, tokens: int) -> None:
        """Count fewer tokens: the request was refused for another reason."""
        if Unit.TOKENS in self._most:
            await self._ask(Unit.TOKENS, -tokens)

    async def headers(self) -> dict[str, str]:
        """The state of every limit the key has, for the answer."""
        found: dict[str, str] = {}
        with contextlib.suppress(Unavailable):
            for unit in self._most:
                if unit not in self._windows:
                    await self._ask(unit, 0)
                found |= self._windows[unit].headers()
        return found

    async def _take(self, unit: Unit, amount: int) -> None:
        if unit not in self._most or await self._ask(unit, amount):
            return
        # Whoever waits for one limit must not be held up by the other one afterwards.
        for other in self._most:
            if other is not unit:
                await self._ask(other, 0)
        reset_s = max(window.reset_s for window in self._windows.values())
        raise RateLimitExceeded(unit, self._most[unit], retry_after_s=reset_s)

    async def _ask(self, unit: Unit, amount: int) -> bool:
        """Take an amount if it fits, and note the window as it is then."""
        most = self._most[unit]
        name = f"{_COUNTERS}/{self._key.id}/{unit}"
        fits, held, ends_in_s = await self._limits.take_if_fits(name, amount, most)
        reset_s = min(ends_in_s + MARGIN_S, MINUTE_S)
        self._windows[unit] = RateWindow(unit, most, max(most - held, 0), reset_s)
        return fits


def _redis(url: str, *, patience_s: float, window_s: int) -> RedisCounters:
    if not url.startswith(_SCHEMES):
        raise SettingError(f"setting rate_limit_storage: neither {MEMORY} nor {_SCHEMES[0]}HOST")
    try:
        from server.access.redis_counters import RedisCounters
    except ModuleNotFoundError:
        raise SettingError(
            "setting rate_limit_storage: Redis needs the package redis: "
            f"{install_command('shared')}"
        ) from None
    try:
        return RedisCounters(url, patience_s=patience_s, window_s=window_s)
    except ValueError:  # whose message may hold the password
        raise SettingError("setting rate_limit_storage: not of the form redis://HOST:PORT") from (
            None
        )
