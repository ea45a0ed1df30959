"""What is left of each key's budget.

Of a budget a server takes tokens in advance, in one transaction that never takes more than there
are, and spends them without asking; what it does not use it puts back. So no budget is overdrawn,
however many servers share the database. If the database is away, budgets are spent on credit,
without a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select, update

from server.access.database import KEYS, Database
from server.access.keys import Key
from server.access.off_loop import in_thread
from server.errors import BudgetSpent, DatabaseError, StorageUnavailable

log = logging.getLogger(__name__)

# Taken in advance: what the key used lately, but no more than this part of what is left, so that
# little is out of reach of other servers, and little is lost with a server that is killed.
LEASED_PART = 1 / 16


@dataclass(slots=True)
class _Lease:
    """Tokens of one key's budget that this server may spend; below zero what it owes."""

    tokens: int = 0
    moving_tokens: int = 0  # on their way back into the database
    budget: int | None = None  # of which they were taken
    used_tokens: int = 0  # since it was looked at last
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, tokens: int) -> None:
        """Hold so many more."""
        self.tokens += tokens

    def arrived(self, tokens: int) -> None:
        """So many are in the database again."""
        self.moving_tokens -= tokens

    def came_back(self, tokens: int) -> None:
        """So many could not be put into the database."""
        self.moving_tokens -= tokens
        self.tokens += tokens


class Budgets:
    """The budgets of all keys; lives in the event loop's thread.

    Args:
        refuse_when_away: answer 503 while the database is away, instead of giving credit.
    """

    def __init__(self, database: Database, *, refuse_when_away: bool) -> None:
        self._database = database
        self._refuse_when_away = refuse_when_away
        self._leases: defaultdict[str, _Lease] = defaultdict(_Lease)
        self.away = False  # the database, as `settle` found it

    async def take(self, key: Key, tokens: int) -> None:
        """Spend tokens of the key's budget, if it has one.

        Raises:
            BudgetSpent: there are not as many left; none were spent.
            StorageUnavailable: the database is away, and no credit is to be given.
        """
        if key.limits.token_budget is None:
            return
        lease = self._leases[key.id]
        async with lease.lock:
            lease.used_tokens += tokens
            if lease.budget != key.limits.token_budget:  # an operator has changed it
                await self._ask(self._put_back(key.id, lease))
                lease.budget = key.limits.token_budget
            if lease.tokens < tokens:
                await self._ask(self._lease_more(key.id, lease, tokens))
            if lease.tokens < tokens and not self.away:
                raise BudgetSpent(key.limits.token_budget, tokens)
            if lease.tokens < tokens and self._refuse_when_away:
                raise StorageUnavailable("budgets")
            lease.tokens -= tokens

    def give_back(self, key: Key, tokens: int) -> None:
        """Undo `take`: the server has failed to do the work."""
        if key.limits.token_budget is not None:
            self._leases[key.id].tokens += tokens

    async def settle(self, *, everything: bool) -> None:
        """Put back what is not used and pay what is owed.

        Args:
            everything: also put back what was used lately, since the server stops.

        Raises:
            DatabaseError: the database is away.
        """
        for key_id, lease in list(self._leases.items()):
            idle = everything or not lease.used_tokens
            lease.used_tokens = 0
            if lease.tokens < 0 or (lease.tokens and idle):
                await self._put_back(key_id, lease)

    def forget_leases(self) -> None:
        """Another database is there: nothing was taken of its budgets; what is owed stays."""
        for lease in self._leases.values():
            lease.tokens = min(lease.tokens, 0)

    def report_unsettled(self) -> None:
        """Tell the log what was spent on credit and not paid, and what was not put back."""
        for key_id, lease in self._leases.items():
            if tokens := lease.tokens + lease.moving_tokens:
                what = "not charged" if tokens < 0 else "charged, but not used"
                log.error("budget %s: key=%s tokens=%d", what, key_id, abs(tokens))

    async def _ask(self, asking: Coroutine[Any, Any, None]) -> None:
        """Ask the database unless it is away."""
        if self.away:
            asking.close()
            return
        try:
            await asking
        except DatabaseError as error:
            log.error("budgets cannot be asked for: %s", error.message)
            self.away = True

    async def _lease_more(self, key_id: str, lease: _Lease, tokens: int) -> None:
        needed, wanted = tokens - lease.tokens, 2 * lease.used_tokens
        # Taken tokens are added also if the client that they were taken for has left.
        await in_thread(
            lambda: lease_tokens(self._database, key_id, needed, wanted), then=lease.add
        )

    async def _put_back(self, key_id: str, lease: _Lease) -> None:
        tokens, lease.tokens = lease.tokens, 0
        if not tokens:
            return
        lease.moving_tokens += tokens
        await in_thread(
            lambda: spend(self._database, key_id, -tokens),
            then=lambda _: lease.arrived(tokens),
            otherwise=lambda: lease.came_back(tokens),
        )


def lease_tokens(database: Database, key_id: str, needed: int, wanted: int) -> int:
    """Take the needed tokens of a budget in advance, more if wanted, or none.

    Raises:
        DatabaseError: the database is away.
    """
    with database.write() as connection:
        row = connection.execute(
            select(KEYS.c.token_budget, KEYS.c.spent_tokens)
            .where(KEYS.c.id == key_id)
            .with_for_update()
        ).first()
        if row is None or row.token_budget is None:
            return needed  # the limit was lifted a moment ago
        left = row.token_budget - row.spent_tokens
        if left < needed:
            return 0
        taken: int = max(needed, min(round(left * LEASED_PART), wanted))
        _add_spent(connection, key_id, taken)
        return taken


def spend(database: Database, key_id: str, tokens: int) -> None:
    """Charge a budget, whatever is left of it (below zero: put back).

    Raises:
        DatabaseError: the database is away.
    """
    with database.write() as connection:
        _add_spent(connection, key_id, tokens)


def _add_spent(connection: Connection, key_id: str, tokens: int) -> None:
    changed = update(KEYS).where(KEYS.c.id == key_id)
    connection.execute(changed.values(spent_tokens=KEYS.c.spent_tokens + tokens))
