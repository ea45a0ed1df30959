"""Counters in a Redis that several servers share. Lives in the event loop's thread."""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from server.access.counters import MINUTE_S, Taken

_PROBE = "embedding-server/probe"
_CONNECTIONS = 32
# Redis runs a script as a whole, before it hears the next question.
_TAKE_IF_FITS = """
local held = tonumber(redis.call('get', KEYS[1])) or 0
local left = redis.call('pttl', KEYS[1])
-- Restored or persisted by hand it would never end; and its clock may have been set back.
if left == -1 or left > tonumber(ARGV[3]) then
    redis.call('pexpire', KEYS[1], ARGV[3])
end
local amount, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local after = held + amount
local fits = after >= 0 and (amount <= 0 or after <= most)
if fits and amount ~= 0 then
    redis.call('incrby', KEYS[1], ARGV[1])
    if held == 0 then
        redis.call('pexpire', KEYS[1], ARGV[3])
    end
    held = after
end
return {fits and 1 or 0, held, redis.call('pttl', KEYS[1])}
"""


class RedisCounters:
    """See Counters; an answer takes one round trip.

    Args:
        url: `redis://` or `rediss://`.
        window_s: after so long a counter ends.
        patience_s: how long the Redis may take for an answer.

    Raises:
        ValueError: the address is of another form; the message may hold its password.
    """

    errors = RedisError  # what is raised while the Redis is away

    def __init__(self, url: str, *, patience_s: float, window_s: float = MINUTE_S) -> None:
        # The default pool fails when many ask at once; in this one they wait for their turn.
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=patience_s,
            socket_timeout=patience_s,
            socket_connect_timeout=patience_s,
        )
        self._window_ms = round(window_s * 1000)
        self._script = Redis(connection_pool=self._pool).register_script(_TAKE_IF_FITS)

    async def take_if_fits(self, name: str, amount: int, most: int) -> Taken:
        """See Counters."""
        fits, held, ends_in_ms = await self._script(
            keys=[name], args=[amount, most, self._window_ms]
        )
        return Taken(bool(fits), held, max(ends_in_ms, 0) / 1000)

    async def probe(self) -> None:
        """Find out whether the Redis is there and writes; raises `errors` if not."""
        await self.take_if_fits(_PROBE, 1, most=1_000_000)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.disconnect()
