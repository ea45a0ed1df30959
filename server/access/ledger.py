"""What was used: requests and tokens by day, key, model and user; and what is left of budgets.

Usage is counted in memory and written once a second. Of a budget a server takes tokens in advance,
in one transaction that never takes more than there are, and spends them without asking; what it
does not use it puts back. So no budget is overdrawn, however many servers share the database. If
the database is away, usage waits in memory and budgets are spent on credit, without a bound.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import threading
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.access.database import KEYS, USAGE, USER_SALT, Database, in_thread, meta
from server.access.keys import Key
from server.errors import BudgetSpent, DatabaseError, StorageUnavailable

log = logging.getLogger(__name__)

# Taken in advance: what the key used lately, but no more than this part of what is left, so that
# little is out of reach of other servers, and little is lost with a server that is killed.
LEASED_PART = 1 / 16
MAX_UNWRITTEN_ACCOUNTS = 100_000
_HASHED_USER_DIGITS = 32


class Account(NamedTuple):
    """Whose usage is counted together; the primary key of the table."""

    day: str
    key_id: str
    model: str
    user: str


@dataclass(slots=True)
class _Used:
    requests: int = 0
    tokens: int = 0


class Ledger:
    """The usage of this process, and its way into the database.

    Args:
        hash_users: write a keyed hash in place of each user's id.
        most_unwritten: with more accounts that cannot be written users are not told apart.
    """

    def __init__(
        self,
        database: Database,
        *,
        hash_users: bool,
        most_unwritten: int = MAX_UNWRITTEN_ACCOUNTS,
    ) -> None:
        self._database = database
        with database.read() as connection:
            salt = meta(connection, USER_SALT) or ""
        self._salt = salt.encode() if hash_users else None
        self._most_unwritten = most_unwritten
        self._lock = threading.Lock()
        self._unwritten: defaultdict[Account, _Used] = defaultdict(_Used)
        self._writing: defaultdict[Account, _Used] = defaultdict(_Used)
        self._one_writes = threading.Lock()

    def count(self, key: Key, model: str, user: str | None, tokens: int) -> None:
        """Note an answered request; any thread may call."""
        day = datetime.now(UTC).date().isoformat()
        account = Account(day, key.id, model, self._user(user))
        with self._lock:
            if len(self._unwritten) >= self._most_unwritten and account not in self._unwritten:
                account = account._replace(user="")
            used = self._unwritten[account]
            used.requests += 1
            used.tokens += tokens

    @property
    def unwritten_tokens(self) -> int:
        """Tokens that are counted and not in the database yet."""
        return sum(used.tokens for used in self._not_written().values())

    def write(self) -> None:
        """Put what was counted into the database; what cannot be put waits for the next time.

        Raises:
            DatabaseError: the database is away, full or locked.
        """
        with self._one_writes:
            with self._lock:
                self._writing, self._unwritten = self._unwritten, defaultdict(_Used)
            try:
                if self._writing:
                    with self._database.write() as connection:
                        _add(connection, self._writing)
            except BaseException:
                with self._lock:
                    _merge(self._unwritten, self._writing)
                    self._writing = defaultdict(_Used)
                raise
            with self._lock:
                self._writing = defaultdict(_Used)

    def report_unwritten(self) -> None:
        """Tell the log what never reached the database, so that it can be entered by hand."""
        for account, used in self._not_written().items():
            log.error(
                "usage not written: day=%s key=%s model=%s user=%r requests=%d tokens=%d",
                *account, used.requests, used.tokens,
            )  # fmt: skip

    def _not_written(self) -> defaultdict[Account, _Used]:
        with self._lock:
            both: defaultdict[Account, _Used] = defaultdict(_Used)
            _merge(both, self._unwritten)
            _merge(both, self._writing)
            return both

    def _user(self, user: str | None) -> str:
        if not user:
            return ""
        if self._salt is None:
            # PostgreSQL holds no NUL; a lone surrogate is no text to any database.
            return user.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        digest = hmac.new(self._salt, user.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return digest.hexdigest()[:_HASHED_USER_DIGITS]


def _merge(into: defaultdict[Account, _Used], usage: Mapping[Account, _Used]) -> None:
    for account, used in usage.items():
        into[account].requests += used.requests
        into[account].tokens += used.tokens


def _add(connection: Connection, usage: Mapping[Account, _Used]) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(USAGE)
    columns = ("requests", "tokens")
    statement = statement.on_conflict_do_update(
        index_elements=list(Account._fields),
        set_={name: USAGE.c[name] + statement.excluded[name] for name in columns},
    )
    # In one order for all servers: two that update the same rows must not wait for each other.
    rows = [
        {**account._asdict(), "requests": used.requests, "tokens": used.tokens}
        for account, used in sorted(usage.items())
    ]
    connection.execute(statement, rows)


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
