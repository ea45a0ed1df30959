"""What stands on the database, and so is shared by all servers that use it.

Only loaded if there is a database. Lives in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from server.access.budgets import Budgets
from server.access.counters import Counters
from server.access.database import Database, in_thread
from server.access.key_store import KeyStore
from server.access.keyring import Keyring
from server.access.keys import Key, Snapshot
from server.access.ledger import Ledger
from server.access.rate_limits import KeyLimits, RateLimits
from server.access.spending import Spending
from server.errors import DatabaseError
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)

# How often keys are read again, usage is written, and what is away is asked for.
SYNC_INTERVAL_S = 1.0
# At the end it is tried so often to write what is left.
_LAST_TRIES = 2
_BETWEEN_TRIES_S = 0.5


class Shared:
    """Database, key store, ledger, budgets and rate limits of one server.

    Args:
        keyring: filled from the database, and kept in step with it.
        counters: see RateLimits.

    Raises:
        StartupError: the database cannot be used, or a setting is wrong.
    """

    def __init__(
        self, settings: Settings, keyring: Keyring, counters: Counters | None = None
    ) -> None:
        refuse = settings.if_storage_fails == "refuse"
        self._database = Database(settings.database())
        self._store = KeyStore(self._database)
        self.keyring = keyring
        self._keys_version = ""
        self._trouble = ""  # why the database does not answer
        self.ledger = Ledger(self._database, hash_users=settings.hash_users)
        self.budgets = Budgets(self._database, refuse_when_away=refuse)
        self.rate_limits = RateLimits(
            settings.rate_limit_storage.get_secret_value(), refuse_when_away=refuse, here=counters
        )
        self._exchanging = False
        self._ending = asyncio.Event()
        self._replace_keys(self._store.snapshot())

    async def run(self) -> None:
        """Keep keys, ledger and budgets in step with the database, until told to end."""
        while not self._ending.is_set():
            await self.sync()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), SYNC_INTERVAL_S)

    async def close(self) -> None:
        """Write what is left and put leases back; tell the log what could not be written."""
        for left in range(_LAST_TRIES - 1, -1, -1):
            try:
                await in_thread(self.ledger.write)
                await self.budgets.settle(everything=True)
                break
            except DatabaseError as error:
                log.error("%s", error.message)
                if left:
                    await asyncio.sleep(_BETWEEN_TRIES_S)
        self.ledger.report_unwritten()
        self.budgets.report_unsettled()
        await self.rate_limits.close()
        self._database.close()

    def end(self) -> None:
        """Let `run` end once what it does is done."""
        self._ending.set()

    async def sync(self) -> None:
        """Write usage, read keys that have changed, settle budgets, look for what was away."""
        trouble = ""
        try:
            await self.rate_limits.check()
            await self._exchange()
            await self.budgets.settle(everything=False)
        except DatabaseError as error:
            trouble = error.message
        except Exception as error:  # whatever it is, the next time must come
            log.exception("keys and usage could not be brought up to date")
            trouble = repr(error)
        if trouble and not self._trouble:
            log.error("%s: keys stay as they are, usage is written later", trouble)
        elif self._trouble and not trouble:
            log.warning("the database is back")
        self._trouble = trouble
        self.budgets.away = bool(trouble)

    async def _exchange(self) -> None:
        if self._exchanging:
            raise DatabaseError("the database still gives no answer")

        def end(_: object = None) -> None:
            self._exchanging = False

        self._exchanging = True
        await in_thread(self._read_changes, then=end, otherwise=end)
        await in_thread(self.ledger.write)

    def _read_changes(self) -> None:
        if self._store.version() != self._keys_version:
            asked = self.keyring.asks
            self._replace_keys(self._store.snapshot())
            if self.keyring.asks and not asked:
                log.warning("the database holds a key: from now on one is asked for")

    def spend(
        self, key: Key, limits: KeyLimits | None, tokens: int, *, model: str, user: str | None
    ) -> Spending:
        """See `Access.spend`."""
        return Spending(key, tokens, model, user, limits, self.budgets, self.ledger)

    def troubles(self) -> dict[str, str]:
        """What is away, and what that means."""
        found = {}
        if self._trouble:
            found["database"] = "away; keys stay as they are, usage is written later"
        if self.rate_limits.away:
            found["rate_limit_storage"] = "away; " + self.rate_limits.instead
        return found

    def report_to(self, metrics: Metrics) -> None:
        """Let the metrics show what is away and what is not written yet."""
        metrics.database_up.set_function(lambda: not self._trouble)
        metrics.rate_limit_storage_up.set_function(lambda: not self.rate_limits.away)
        metrics.unwritten_usage_tokens.set_function(lambda: self.ledger.unwritten_tokens)

    def _replace_keys(self, snapshot: Snapshot) -> None:
        self.keyring.replace(snapshot)
        self._keys_version = snapshot.version
