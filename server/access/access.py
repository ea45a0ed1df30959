"""Who may do how much: what the routes ask.

Without a database there are only the keys that were given at start, or none, and nothing is
counted; then no database library is loaded either. Lives in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from server.access.keyring import Keyring
from server.access.keys import Key
from server.errors import Overloaded
from server.settings import Settings

if TYPE_CHECKING:
    from server.access.counters import Counters
    from server.access.rate_limits import KeyLimits
    from server.access.shared import Shared
    from server.metrics import Metrics


class Access:
    """The keys of this server and what they may do.

    Args:
        counters: where limits a minute are counted, unless in Redis; default: in this process.

    Raises:
        StartupError: the database cannot be used, or a setting is wrong.
    """

    def __init__(self, settings: Settings, counters: Counters | None = None) -> None:
        self._keyring = Keyring(settings.secrets())
        self._shared: Shared | None = None
        if settings.has_database():
            from server.access.shared import Shared

            self._shared = Shared(settings, self._keyring, counters)
        self._running: asyncio.Task[None] | None = None

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request without a key is refused."""
        return self._keyring.asks

    def find_key(self, authorization: str | None) -> Key:
        """See `Keyring.find`."""
        return self._keyring.find(authorization)

    def limits_of(self, key: Key) -> KeyLimits | None:
        """Counts one request against its key's limits; None if the key has none a minute."""
        if self._shared is None or not key.limits.by_the_minute:
            return None
        return self._shared.rate_limits.of(key)

    @contextlib.asynccontextmanager
    async def spend(
        self, key: Key, limits: KeyLimits | None, tokens: int, *, model: str, user: str | None
    ) -> AsyncIterator[None]:
        """Charge tokens for the work inside, and enter it into the ledger when it is done.

        Work that fails or is given up costs nothing of the budget; work that is not begun because
        of too much other work costs no tokens of the minute either.

        Raises:
            RequestAboveTokenLimit, RateLimitExceeded: the key's tokens a minute are too few.
            BudgetSpent: its budget is.
            StorageUnavailable: they cannot be counted, and must be.
        """
        if limits is not None:
            await limits.take_tokens(tokens)
        if self._shared is None:
            yield
            return
        try:
            await self._shared.budgets.take(key, tokens)
        except BaseException:
            if limits is not None:
                await limits.give_back_tokens(tokens)
            raise
        try:
            yield
        except BaseException as error:
            self._shared.budgets.give_back(key, tokens)
            if limits is not None and isinstance(error, Overloaded):
                await limits.give_back_tokens(tokens)
            raise
        self._shared.ledger.count(key, model, user, tokens)

    def troubles(self) -> dict[str, str]:
        """What is away, and what that means; for people."""
        return {} if self._shared is None else self._shared.troubles()

    def show_in(self, metrics: Metrics) -> None:
        """Let the metrics show what is away and what is not written yet."""
        if self._shared is not None:
            self._shared.show_in(metrics)

    def start(self) -> None:
        """Keep keys, ledger and budgets in step with the database from now on."""
        if self._shared is not None:
            self._running = asyncio.create_task(self._shared.run())

    async def close(self) -> None:
        """Write what is left; tell the log what could not be written."""
        if self._shared is None:
            return
        if self._running is not None:
            # Not cancelled: what it has begun, it must bring to its end.
            self._shared.end()
            await self._running
        await self._shared.close()
