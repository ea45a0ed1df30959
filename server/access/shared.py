"""What stands on the database, and so is shared by all servers that use it.

Only loaded if there is a database. Lives in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime

from server.access.budgets import Budgets
from server.access.counters import Counters
from server.access.database import Database
from server.access.key_sync import KeySync
from server.access.keyring import Keyring
from server.access.keys import Key
from server.access.ledger import Ledger
from server.access.off_loop import in_thread
from server.access.rate_limits import KeyLimits, RateLimits
from server.access.spending import Spending
from server.access.wall_clock import WallClock
from server.errors import DatabaseError, DatabaseReplaced
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)

# How often keys are read again, usage is written, and what is away is asked for.
SYNC_INTERVAL_S = 1.0
# At the end it is tried so often to write what is left.
_LAST_TRIES = 2
_BETWEEN_TRIES_S = 0.5
# So long /readyz tells that another database is there: long enough to be seen by who put it there,
# and by who did not.
REPLACED_TOLD_S = 600.0


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
        self.keyring = keyring
        self._trouble = ""  # what is wrong with the database
        self._replaced = ""  # when it became another one
        self._replaced_s = 0.0
        self._wall_clock = WallClock()
        self._metrics: Metrics | None = None
        self.ledger = Ledger(self._database, hash_users=settings.hash_users)
        self._keys = KeySync(self._database, keyring, self.ledger.read_salt)
        self.budgets = Budgets(self._database, refuse_when_away=refuse)
        self.rate_limits = RateLimits(
            settings.rate_limit_storage.get_secret_value(), refuse_when_away=refuse, here=counters
        )
        self._exchanging = False
        self._ending = asyncio.Event()

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
                await self._write_last()
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
        trouble, why = "", ""
        self._wall_clock.look()
        try:
            await self.rate_limits.check()
            await self._exchange()
            await self.budgets.settle(everything=False)
        except DatabaseError as error:
            trouble, why = error.state, error.message
        except Exception as error:  # whatever it is, the next time must come
            log.exception("keys and usage could not be brought up to date")
            trouble, why = DatabaseError.state, repr(error)
        if trouble and trouble != self._trouble:
            log.error("%s: keys stay as they are, usage is written later", why)
        elif self._trouble and not trouble:
            log.warning("the database is back")
        self._trouble = trouble
        self.budgets.away = bool(trouble)

    async def _exchange(self) -> None:
        if self._exchanging:
            raise DatabaseError("the database still gives no answer")

        def end(found: DatabaseError | None = None) -> None:
            self._exchanging = False
            if found is not None:
                self._tell_replaced(found)

        self._exchanging = True
        await in_thread(self._keys.read_changes, then=end, otherwise=end)
        await in_thread(self._write_usage)

    async def _write_last(self) -> None:
        try:
            await in_thread(self._write_usage)
        except DatabaseReplaced:
            await self._exchange()
        await self.budgets.settle(everything=True)

    def _write_usage(self) -> None:
        self.ledger.write()
        self._database.settle()

    def _tell_replaced(self, found: DatabaseError) -> None:
        self.budgets.forget_leases()
        self._replaced_s = time.monotonic()
        self._replaced = datetime.now(UTC).strftime("%H:%M:%S UTC")
        if self._metrics is not None:
            self._metrics.database_replacements.inc()
        log.warning(
            "%s: keys were read from it; usage that is not written yet (%d tokens) goes into it",
            found.message, self.ledger.unwritten_tokens,
        )  # fmt: skip

    def spend(
        self, key: Key, limits: KeyLimits | None, tokens: int, *, model: str, user: str | None
    ) -> Spending:
        """See `Access.spend`."""
        return Spending(key, tokens, model, user, limits, self.budgets, self.ledger)

    def troubles(self) -> dict[str, str]:
        """What is away, and what that means."""
        found = {}
        if self._trouble:
            found["database"] = f"{self._trouble}; keys stay as they are, usage is written later"
        elif self._replaced and time.monotonic() - self._replaced_s < REPLACED_TOLD_S:
            found["database"] = f"another one since {self._replaced}; keys were read again"
        if self.rate_limits.away:
            found["rate_limit_storage"] = "away; " + self.rate_limits.instead
        return found

    def report_to(self, metrics: Metrics) -> None:
        """Let the metrics show what is away and what is not written yet."""
        self._metrics = metrics
        metrics.database_up.set_function(lambda: not self._trouble)
        metrics.rate_limit_storage_up.set_function(lambda: not self.rate_limits.away)
        metrics.unwritten_usage_tokens.set_function(lambda: self.ledger.unwritten_tokens)
