"""Requests and tokens a minute, counted by the library `limits` in memory or in Redis.

A minute begins with the first request after the one before has ended. If the shared storage is
away, each server counts for itself until it is back. Lives in the event loop's thread.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from server.access.counters import MINUTE_S, Counters, StorageCounters
from server.access.keys import Key
from server.errors import (
    RateLimitExceeded,
    RequestAboveTokenLimit,
    SettingError,
    StorageUnavailable,
)
from server.program.command_lines import install_command

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool

log = logging.getLogger(__name__)

MEMORY = "memory://"
# Longer than any Redis that is well takes; requests wait for it once, then it counts as away.
PATIENCE_S = 0.5
_PROBE = "embedding-server/probe"
_SCHEMES = ("redis://", "rediss://")
_CONNECTIONS = 32

T = TypeVar("T")


class Unit(enum.StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Window:
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
        self._here = here or StorageCounters(window_s=window_s)
        self._shared: RedisStorage | None = None
        self._pool: BlockingConnectionPool | None = None
        if url != MEMORY:
            self._shared, self._pool = _redis(url, patience_s)
            self._shared_counters = StorageCounters(self._shared, window_s=window_s)
        self._refuse_when_away = refuse_when_away
        self.away = False
        self.instead = "refusing" if refuse_when_away else "each server counts for itself"

    @property
    def is_shared(self) -> bool:
        """Whether the counters are elsewhere, and so another's answer can come in between."""
        return self._shared is not None or self._here.are_shared

    def of(self, key: Key) -> KeyLimits:
        """The limits of one request's key."""
        return KeyLimits(self, key)

    async def count(self, name: str, amount: int) -> tuple[int, float]:
        """Add to a counter; what it holds then, and in how many seconds it ends.

        Raises:
            StorageUnavailable: the shared storage is away and must not be.
        """
        return await self._ask(lambda counters: counters.count(name, amount))

    async def look(self, name: str) -> tuple[int, float]:
        """What a counter holds, and in how many seconds it ends.

        Raises:
            StorageUnavailable: the shared storage is away and must not be.
        """
        return await self._ask(lambda counters: counters.look(name))

    async def check(self) -> None:
        """Find out whether the shared storage is there and writes; called every now and then."""
        if self._shared is None:
            return
        try:
            await self._shared.incr(_PROBE, MINUTE_S)
        except self._shared.base_exceptions as error:
            self._leave(error)
        else:
            if self.away:
                log.warning("the rate limits' storage is back: limits are shared again")
            self.away = False

    def _leave(self, error: Exception) -> None:
        if not self.away:
            log.error("the rate limits' storage is away (%s): %s", error, self.instead)
        self.away = True

    async def close(self) -> None:
        """Let go of the connections to the shared storage."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _ask(self, question: Callable[[Counters], Awaitable[T]]) -> T:
        if self._shared is None:
            return await question(self._here)
        if not self.away:
            try:
                return await question(self._shared_counters)
            except self._shared.base_exceptions as error:
                self._leave(error)
        if self._refuse_when_away:
            raise StorageUnavailable("rate limits")
        return await question(self._here)


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
        self._windows: dict[Unit, Window] = {}

    async def take_request(self) -> None:
        """Count the request.

        Raises:
            RateLimitExceeded: this minute's requests are used up; it was not counted.
            StorageUnavailable: as `RateLimits.count`.
        """
        await self._take(Unit.REQUESTS, 1)

    async def take_tokens(self, tokens: int) -> None:
        """Count its tokens.

        Raises:
            RequestAboveTokenLimit: no minute has as many.
            RateLimitExceeded: this one has not as many left; they were not counted.
            StorageUnavailable: as `RateLimits.count`.
        """
        most = self._most.get(Unit.TOKENS)
        if most is not None and tokens > most:
            raise RequestAboveTokenLimit(tokens, most)
        await self._take(Unit.TOKENS, tokens)

    async def give_back_tokens(self, tokens: int) -> None:
        """Count fewer tokens: the request was refused for another reason."""
        if Unit.TOKENS in self._most:
            await self._uncount(Unit.TOKENS, tokens)

    async def headers(self) -> dict[str, str]:
        """The state of every limit the key has, for the answer."""
        found: dict[str, str] = {}
        with contextlib.suppress(StorageUnavailable):
            for unit in self._most:
                window = self._windows.get(unit) or await self._look(unit)
                found |= window.headers()
        return found

    async def _take(self, unit: Unit, amount: int) -> None:
        if unit not in self._most:
            return
        most = self._most[unit]
        # What is counted and taken back would refuse others that fit meanwhile, if it is more than
        # one and others can come in between.
        counted = 0
        if amount > 1 and self._limits.is_shared:
            counted, _ = await self._limits.look(self._name(unit))
        if counted + amount <= most:
            counted, _ = await self._count(unit, amount)
            if counted <= most:
                return
            await self._uncount(unit, amount)  # others were faster
        # Whoever waits for one limit must not be held up by the other one afterwards.
        windows = [await self._look(other) for other in self._most]
        raise RateLimitExceeded(unit, most, retry_after_s=max(window.reset_s for window in windows))

    async def _uncount(self, unit: Unit, amount: int) -> None:
        counted, _ = await self._limits.look(self._name(unit))
        if counted >= amount:  # else the minute is over, and the next one owes nothing
            await self._count(unit, -amount)

    async def _count(self, unit: Unit, amount: int) -> tuple[int, Window]:
        counted, reset_s = await self._limits.count(self._name(unit), amount)
        return counted, self._note(unit, counted, reset_s)

    async def _look(self, unit: Unit) -> Window:
        return self._note(unit, *await self._limits.look(self._name(unit)))

    def _note(self, unit: Unit, counted: int, reset_s: float) -> Window:
        most = self._most[unit]
        # Redis tells whole seconds, rounded; a client must not come back too early.
        window = Window(unit, most, max(most - counted, 0), min(max(reset_s, 0) + 0.5, MINUTE_S))
        self._windows[unit] = window
        return window

    def _name(self, unit: Unit) -> str:
        return f"embedding-server/{self._key.id}/{unit}"


def _redis(url: str, patience_s: float) -> tuple[RedisStorage, BlockingConnectionPool]:
    if not url.startswith(_SCHEMES):
        raise SettingError(f"setting rate_limit_storage: neither {MEMORY} nor {_SCHEMES[0]}HOST")
    try:
        from redis.asyncio import BlockingConnectionPool
    except ModuleNotFoundError:
        raise SettingError(
            "setting rate_limit_storage: Redis needs the package redis: "
            f"{install_command('shared')}"
        ) from None
    try:
        # The default pool fails when many ask at once; in this one they wait for their turn.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=patience_s,
            socket_timeout=patience_s,
            socket_connect_timeout=patience_s,
        )
        options: dict[str, Any] = {"implementation": "redispy", "connection_pool": pool}
        storage = storage_from_string(f"async+{url}", **options)
    except (ConfigurationError, ValueError):  # whose messages may hold the password
        raise SettingError("setting rate_limit_storage: not of the form redis://HOST:PORT") from (
            None
        )
    assert isinstance(storage, RedisStorage)
    return storage, pool
