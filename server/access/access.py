"""Who may do how much: what the routes ask.

Without a database there are only the keys that were given at start, or none, and nothing is
counted; then no database library is loaded either. The default database may appear while the server
runs: from then on all is as if the server had been started again. Lives in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from server.access.concealing import conceal, sent_secrets
from server.access.keyring import Keyring
from server.access.keys import Key
from server.errors import StartupError, StorageUnavailable
from server.settings import Settings

if TYPE_CHECKING:
    from server.access.counters import Counters
    from server.access.rate_limits import KeyLimits
    from server.access.shared import Shared
    from server.metrics import Metrics

log = logging.getLogger(__name__)

# How often it is looked whether a database has appeared.
LOOK_INTERVAL_S = 1.0


class Access:
    """The keys of this server and what they may do.

    Args:
        counters: where limits a minute are counted, unless in Redis; default: in this process.

    Raises:
        StartupError: the database cannot be used, or a setting is wrong.
    """

    def __init__(self, settings: Settings, counters: Counters | None = None) -> None:
        self._settings = settings
        self._counters = counters
        self._secrets = settings.secrets()
        self._keyring = Keyring(self._secrets)
        self._shared: Shared | None = None
        if settings.has_database():
            self._adopt(self._open())
        self._trouble = ""  # why a database that has appeared cannot be used
        self._metrics: Metrics | None = None
        self._ending = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request without a key is refused."""
        return self._keyring.asks

    def find_key(self, authorization: str | None) -> Key:
        """See `Keyring.find`.

        Raises:
            StorageUnavailable: nobody knows who may come in: a database has appeared, and it cannot
                be read yet.
        """
        if self._trouble and not self._keyring.asks:
            raise StorageUnavailable("keys")
        return self._keyring.find(authorization)

    def conceal(self, text: str, authorization: str | None = None) -> str:
        """What a client has sent, without keys that it may hold: any of this server's, or its own.

        Args:
            authorization: the request's header, whose secret is concealed whatever it is.
        """
        secrets = (*sent_secrets(authorization), *self._secrets)
        return conceal(text, secrets, self._keyring.knows if self._keyring.asks else None)

    def limits_of(self, key: Key) -> KeyLimits | None:
        """Counts one request against its key's limits; None if the key has none a minute."""
        if self._shared is None or not key.limits.by_the_minute:
            return None
        return self._shared.rate_limits.of(key)

    def spend(
        self, key: Key, limits: KeyLimits | None, tokens: int, *, model: str, user: str | None
    ) -> AbstractAsyncContextManager[None]:
        """Charge tokens for the work inside, as `Spending` does; nothing without a database.

        Args:
            limits: from `limits_of`.
            user: who the client says that the request is for.

        Raises:
            RequestAboveTokenLimit, RateLimitExceeded: the key's tokens a minute are too few.
            BudgetSpent: its budget is.
            StorageUnavailable: they cannot be counted, and must be.
        """
        if self._shared is None:
            return contextlib.nullcontext()
        return self._shared.spend(key, limits, tokens, model=model, user=user)

    def troubles(self) -> dict[str, str]:
        """What is away, and what that means; for people."""
        if self._shared is not None:
            return self._shared.troubles()
        return (
            {"database": "cannot be opened; who has no other key is refused"}
            if self._trouble
            else {}
        )

    def report_to(self, metrics: Metrics) -> None:
        """Let the metrics show what is away and what is not written yet."""
        self._metrics = metrics
        if self._shared is not None:
            self._shared.report_to(metrics)

    def start(self) -> None:
        """Keep keys, ledger and budgets in step with the database from now on, or look for one."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is left; tell the log what could not be written."""
        self._ending.set()
        if self._shared is not None:
            self._shared.end()
        if self._running is not None:
            # Not cancelled: what it has begun, it must bring to its end.
            await self._running
        if self._shared is not None:
            await self._shared.close()

    def _open(self) -> Shared:
        from server.access.shared import Shared

        return Shared(self._settings, Keyring(self._secrets), self._counters)

    def _adopt(self, shared: Shared) -> None:
        self._shared, self._keyring = shared, shared.keyring

    async def _run(self) -> None:
        while self._shared is None and not self._ending.is_set():
            await self._look_for_database()
            if self._shared is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), LOOK_INTERVAL_S)
        if self._shared is not None and not self._ending.is_set():
            await self._shared.run()

    async def _look_for_database(self) -> None:
        """Open the default database if it has appeared."""
        trouble = ""
        try:
            # In a thread, since a folder on a network may hang.
            if await asyncio.to_thread(self._settings.has_database):
                # Loading the library takes a third of a second: requests must not wait for it.
                await asyncio.to_thread(importlib.import_module, "server.access.shared")
                from server.access.off_loop import in_thread

                await in_thread(self._open, then=self._adopt_first)
        except StartupError as error:
            trouble = error.message
        except Exception as error:  # whatever it is, the next time must come
            trouble = repr(error)
        if trouble and trouble != self._trouble:
            log.error("a database has appeared and cannot be used yet: %s", trouble)
        self._trouble = trouble

    def _adopt_first(self, shared: Shared) -> None:
        if self._shared is not None:  # another attempt, which was taken for hanging, was in time
            return
        self._adopt(shared)
        if self._metrics is not None:
            shared.report_to(self._metrics)
        log.warning(
            "the database %s has appeared: %s",
            self._settings.database_file(),
            "from now on a key is asked for"
            if self.asks_for_keys
            else "a key is asked for once it holds one",
        )
