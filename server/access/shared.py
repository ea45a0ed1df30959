"""What stands on the database, and so is shared by all servers that use it.

Only loaded if there is a database. Lives in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keyring import Keyring
from server.access.keys import Snapshot
from server.access.ledger import Budgets, Ledger
from server.access.rate_limits import RateLimits
from server.errors import DatabaseError
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)

# At the end it is tried so often to write what is left.
_LAST_TRIES = 3
_BETWEEN_TRIES_S = 0.5


class Shared:
    """Database, key store, ledger, budgets and rate limits of one server.

    Raises:
        StartupError: the database cannot be used, or a setting is wrong.
    """

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        refuse = settings.if_storage_fails == "refuse"
        self._database = Database(settings.database())
        self._store = KeyStore(self._database)
        self._keyring = keyring
        self._keys_version = ""
        self._trouble = ""  # why the database does not answer
        self.ledger = Ledger(self._database, hash_users=settings.hash_users)
        self.budgets = Budgets(self._database, refuse_when_away=refuse)
        self.rate_limits = RateLimits(
            settings.rate_limit_storage.get_secret_value(), refuse_when_away=refuse
        )
        self._take_over(self._store.snapshot())

    async def sync(self) -> None:
        """Write usage, read keys that have changed, settle budgets, look for what was away."""
        await self.rate_limits.check()
        try:
            snapshot = await asyncio.to_thread(self._exchange)
            if snapshot is not None:
                self._take_over(snapshot)
            await self.budgets.settle(everything=False)
        except DatabaseError as error:
            if not self._trouble:
                log.error("%s: keys stay as they are, usage is written later", error.message)
            self._trouble = error.message
        else:
            if self._trouble:
                log.warning("the database is back")
            self._trouble = ""
        self.budgets.away = bool(self._trouble)

    async def close(self) -> None:
        """Write what is left and put leases back; tell the log what could not be written."""
        for last in range(_LAST_TRIES - 1, -1, -1):
            try:
                await asyncio.to_thread(self.ledger.write)
                await self.budgets.settle(everything=True)
            except DatabaseError as error:
                if last:
                    await asyncio.sleep(_BETWEEN_TRIES_S)
                    continue
                log.error("%s", error.message)
                self.ledger.report_unwritten()
                self.budgets.report_owed()
            break
        await self.rate_limits.close()
        self._database.close()

    def troubles(self) -> dict[str, str]:
        """What is away, and what that means."""
        found = {}
        if self._trouble:
            found["database"] = "away; keys stay as they are, usage is written later"
        if self.rate_limits.away:
            found["rate_limit_storage"] = "away; " + self.rate_limits.instead
        return found

    def show_in(self, metrics: Metrics) -> None:
        """Let the metrics show what is away and what is not written yet."""
        metrics.database_up.set_function(lambda: not self._trouble)
        metrics.rate_limit_storage_up.set_function(lambda: not self.rate_limits.away)
        metrics.unwritten_usage_tokens.set_function(lambda: self.ledger.unwritten_tokens)

    def _exchange(self) -> Snapshot | None:
        self.ledger.write()
        if self._store.version() == self._keys_version:
            return None
        return self._store.snapshot()

    def _take_over(self, snapshot: Snapshot) -> None:
        self._keyring.replace(snapshot)
        self._keys_version = snapshot.version
