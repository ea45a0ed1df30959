"""What was used: requests and tokens by day, key, model and user.

Usage is counted in memory and written once a second. If the database is away, it waits in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from server.access.database import USAGE, USER_SALT, Database, meta
from server.access.keys import Key

log = logging.getLogger(__name__)

MAX_UNWRITTEN_ACCOUNTS = 100_000
# Of one key on one day; more are counted together, so that made-up names do not fill the disk.
MAX_USERS = 10_000
OTHER_USERS = "(others)"
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
        most_users: of a key on a day; more are counted as OTHER_USERS.
    """

    def __init__(
        self,
        database: Database,
        *,
        hash_users: bool,
        most_unwritten: int = MAX_UNWRITTEN_ACCOUNTS,
        most_users: int = MAX_USERS,
    ) -> None:
        self._database = database
        self._hash_users = hash_users
        self.read_salt()
        self._most_unwritten = most_unwritten
        self._most_users = most_users
        self._users_day = ""
        # Of that day, by key; hashes, since names may be long. Two that are alike count as one user.
        self._users: defaultdict[str, set[int]] = defaultdict(set)
        self._lock = threading.Lock()
        self._unwritten: defaultdict[Account, _Used] = defaultdict(_Used)
        self._writing: defaultdict[Account, _Used] = defaultdict(_Used)
        self._one_writes = threading.Lock()

    def read_salt(self) -> None:
        """Hash users as the database says; raises DatabaseError if it is away."""
        with self._database.read() as connection:
            salt = meta(connection, USER_SALT) or ""
        self._salt = salt.encode() if self._hash_users else None

    def count(self, key: Key, model: str, user: str | None, tokens: int) -> None:
        """Note an answered request; any thread may call."""
        day = datetime.now(UTC).date().isoformat()
        with self._lock:
            account = Account(day, key.id, model, self._known(day, key, self._user(user)))
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

    def _known(self, day: str, key: Key, user: str) -> str:
        """The user, or OTHER_USERS if this key has named too many on this day."""
        if day != self._users_day:
            self._users_day = day
            self._users.clear()
        users = self._users[key.id]
        if not user or hash(user) in users:
            return user
        if len(users) < self._most_users:
            users.add(hash(user))
            return user
        if hash(OTHER_USERS) not in users:
            users.add(hash(OTHER_USERS))
            log.warning(
                "key %s has named %d users today; more are counted together as %s",
                key.id, self._most_users, OTHER_USERS,
            )  # fmt: skip
        return OTHER_USERS

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
