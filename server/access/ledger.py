"""What was used: requests and tokens by day, key, model and user; and what is left of budgets.

Usage is counted in memory and written once a second. Of a budget a server takes tokens in advance,
in one statement of the database that never goes below zero, and spends them without asking; what
it does not use it puts back. So no budget is overdrawn, however many servers share the database.
If the database is away, usage waits in memory and budgets are spent on credit.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.access.database import KEYS, USAGE, USER_SALT, Database, meta
from server.access.keys import Key
from server.errors import BudgetSpent, DatabaseError, StorageUnavailable

log = logging.getLogger(__name__)

# Taken in advance: this part of what is left, so that little is out of reach of other servers.
LEASED_PART = 1 / 16
MAX_LEASE_TOKENS = 200_000
_HASHED_USER_DIGITS = 32
_THREADS = 4


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
    """

    def __init__(self, database: Database, *, hash_users: bool) -> None:
        self._database = database
        with database.read() as connection:
            salt = meta(connection, USER_SALT) or ""
        self._salt = salt.encode() if hash_users else None
        self._lock = threading.Lock()
        self._unwritten: defaultdict[Account, _Used] = defaultdict(_Used)

    def count(self, key: Key, model: str, user: str | None, tokens: int) -> None:
        """Note an answered request; any thread may call."""
        day = datetime.now(UTC).date().isoformat()
        account = Account(day, key.id, model, self._user(user))
        with self._lock:
            used = self._unwritten[account]
            used.requests += 1
            used.tokens += tokens

    @property
    def unwritten_tokens(self) -> int:
        """Tokens that are counted and not in the database yet."""
        with self._lock:
            return sum(used.tokens for used in self._unwritten.values())

    def write(self) -> None:
        """Put what was counted into the database; what cannot be put waits for the next time.

        Raises:
            DatabaseError: the database is away, full or locked.
        """
        with self._lock:
            writing, self._unwritten = self._unwritten, defaultdict(_Used)
        if not writing:
            return
        try:
            with self._database.write() as connection:
                _add(connection, writing)
        except BaseException:
            with self._lock:
                for account, used in writing.items():
                    self._unwritten[account].requests += used.requests
                    self._unwritten[account].tokens += used.tokens
            raise

    def report_unwritten(self) -> None:
        """Tell the log what never reached the database, so that it can be entered by hand."""
        with self._lock:
            for account, used in self._unwritten.items():
                log.error(
                    "usage not written: day=%s key=%s model=%s user=%r requests=%d tokens=%d",
                    *account, used.requests, used.tokens,
                )  # fmt: skip

    def _user(self, user: str | None) -> str:
        if not user:
            return ""
        if self._salt is None:
            # PostgreSQL holds no NUL; a lone surrogate is no text to any database.
            return user.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        digest = hmac.new(self._salt, user.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return digest.hexdigest()[:_HASHED_USER_DIGITS]


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
    used: bool = False  # since it was looked at last
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Budgets:
    """The budgets of all keys; lives in the event loop's thread.

    Args:
        refuse_when_away: answer 503 while the database is away, instead of giving credit.
    """

    def __init__(self, database: Database, *, refuse_when_away: bool) -> None:
        self._database = database
        self._refuse_when_away = refuse_when_away
        self._leases: defaultdict[str, _Lease] = defaultdict(_Lease)
        # Not the loop's own threads: a database that hangs must not hold up answers.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="budgets")
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
            lease.used = True
            if lease.tokens < tokens and not await self._extend(key, lease, tokens):
                raise BudgetSpent(key.limits.token_budget, tokens)
            lease.tokens -= tokens

    def give_back(self, key: Key, tokens: int) -> None:
        """Undo `take`: the server has failed to do the work."""
        if key.limits.token_budget is not None:
            self._leases[key.id].tokens += tokens

    async def _extend(self, key: Key, lease: _Lease, tokens: int) -> bool:
        """Make the lease hold so many tokens; False if the budget has not as many left."""
        if not self.away:
            try:
                lease.tokens += await asyncio.get_running_loop().run_in_executor(
                    self._threads, lease_tokens, self._database, key.id, tokens - lease.tokens
                )
            except DatabaseError as error:
                self.away = True
                log.error("budgets cannot be asked for: %s", error.message)
        if not self.away:
            return lease.tokens >= tokens
        if self._refuse_when_away:
            raise StorageUnavailable("budgets")
        return True

    async def settle(self, *, everything: bool) -> None:
        """Put back what is not used and pay what is owed.

        Args:
            everything: also put back what was used lately, since the server stops.

        Raises:
            DatabaseError: the database is away.
        """
        loop = asyncio.get_running_loop()
        for key_id, lease in list(self._leases.items()):
            async with lease.lock:
                tokens = lease.tokens
                idle = everything or not lease.used
                lease.used = False
                if tokens < 0 or (tokens and idle):
                    lease.tokens -= tokens
                    try:
                        await loop.run_in_executor(
                            self._threads, spend, self._database, key_id, -tokens
                        )
                    except DatabaseError:
                        lease.tokens += tokens
                        raise

    def report_owed(self) -> None:
        """Tell the log what was spent on credit and never paid."""
        for key_id, lease in self._leases.items():
            if lease.tokens < 0:
                log.error("budget not charged: key=%s tokens=%d", key_id, -lease.tokens)


def lease_tokens(database: Database, key_id: str, needed: int) -> int:
    """Take at least the needed tokens of a budget in advance, or none.

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
        taken: int = max(needed, min(round(left * LEASED_PART), MAX_LEASE_TOKENS))
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
