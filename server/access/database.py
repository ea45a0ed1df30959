"""The database of keys and usage, SQLite or PostgreSQL: its tables, its version, its transactions.

Any thread may call. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    String,
    Table,
    cast,
    exc,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import Connection

from server.access.engines import connect_to
from server.errors import (
    DatabaseEmpty,
    DatabaseError,
    DatabaseForeign,
    DatabaseReplaced,
    first_line,
)

PATIENCE_S = 2.0
_UPGRADE_LOCK: Final = 0x656D6265  # any number; PostgreSQL's advisory locks are named by numbers

metadata = MetaData()
# The names are long because a PostgreSQL database may hold other programs' tables, too.
META = Table(
    "embedding_server_meta",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)
KEYS = Table(
    "embedding_server_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("digest", String, nullable=False, unique=True),
    Column("shown", String, nullable=False),
    Column("previous_digest", String),  # valid until `previous_until`, after a rotation
    Column("previous_until", BigInteger),
    Column("scopes", String, nullable=False),  # separated by spaces
    Column("models", String, nullable=False),  # a JSON list
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("token_budget", BigInteger),
    Column("spent_tokens", BigInteger, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),  # Unix seconds, as all times
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)
USAGE = Table(
    "embedding_server_usage",
    metadata,
    Column("day", String, primary_key=True),  # in UTC, 2026-11-22
    Column("key_id", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("user", String, primary_key=True),  # `user` or `safety_identifier`, else empty
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

VERSION = "schema_version"
KEYS_VERSION = "keys_version"  # grows whenever a key changes
USER_SALT = "user_salt"  # makes the hashes of user ids unlike those of any other database
IDENTITY = "identity"  # random; tells this database from all others
NUM_WRITES = "num_writes"  # grows with every write, so that an older copy is told

SCHEMA_VERSION = 1
# Statements that lead from each older version to the next one.
UPGRADES: dict[int, tuple[str, ...]] = {}


class _Mark(NamedTuple):
    identity: str
    num_writes: int


class Database:
    """An open database whose schema is of this version.

    Args:
        url: as SQLAlchemy takes it; `postgresql://` means the driver psycopg.
        patience_s: how long a statement may wait for another one's lock, or for the network.

    Raises:
        DatabaseError: it cannot be reached, or a newer server has written it.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self._engine, self._file, self.name = connect_to(url, patience_s)
        self._mark = _Mark("", 0)  # the newest state that was seen
        self._marking = threading.Lock()
        try:
            self.open()
        except BaseException:
            self.close()
            raise

    def open(self) -> bool:
        """Take what is there for the database from now on, and bring it to this version.

        An older copy of the one that was open gets an identity of its own, so that no other server
        takes it for the newer one, however much is written into it meanwhile.

        Returns:
            Whether that is another one; not if one only looked older, as a replica that lags does.

        Raises:
            DatabaseError: see Database.
        """
        with self._translated():
            if self._file is not None:
                self._file.begin_log(self._engine)
            with self._begun() as connection:
                _upgrade(connection)
                found = _found(connection)
                if found.identity == self._mark.identity and found < self._mark:
                    _set(connection, IDENTITY, _new_identity())
                    found = _found(connection)
        with self._marking:
            was, self._mark = self._mark, found
        return found.identity != was.identity

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            DatabaseError: the database is away or locked for too long.
        """
        with self._translated():
            if self._file is not None:
                self._file.check(self._engine)
            with self._engine.connect() as connection:
                yield connection.execution_options(only_reads=True)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or not at all.

        Raises:
            DatabaseReplaced: it is not the database that was opened; nothing was written.
            DatabaseError: the database is away, full, or locked for too long.
        """
        with self._translated():
            with self._begun() as connection:
                yield connection
                # At the end, since other servers that write wait from here on.
                _grow(connection, NUM_WRITES)
                found = self._checked(connection, num_own_writes=1)
            self._remember(found)

    def keys_version(self, connection: Connection) -> str:
        """Another one after each change of a key; asked first in a transaction that reads.

        Raises:
            DatabaseReplaced: it is not the database that was opened.
        """
        self._remember(self._checked(connection))
        return meta(connection, KEYS_VERSION) or ""

    def check_tables(self) -> None:
        """Raise DatabaseEmpty without any of ours, DatabaseForeign if a file has others instead."""
        with self.read() as connection:
            there = inspect(connection).get_table_names()
        if META.name in there:
            return
        if there and self._file is not None:  # a PostgreSQL database may hold others' tables, too
            raise DatabaseForeign(f"the database {self.name} holds tables of another program")
        raise DatabaseEmpty(f"the database {self.name} is empty")

    def settle(self) -> None:
        """Let a file hold all that was written; see SqliteFile.

        Raises:
            DatabaseError: as `write` does.
        """
        if self._file is not None:
            with self._translated():
                self._file.empty_log(self._engine)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _begun(self) -> Iterator[Connection]:
        looks = self._file.check(self._engine) if self._file is not None else None
        with self._engine.begin() as connection:
            yield connection
            if self._file is not None and looks is not None:
                self._file.check_written(looks)

    def _checked(self, connection: Connection, num_own_writes: int = 0) -> _Mark:
        # Before the database is asked: what others write from here on makes nothing look old.
        known = self._mark
        found = _found(connection)
        if found.identity != known.identity:
            older = not found.identity  # a copy from before there were identities
            raise DatabaseReplaced(f"the database {self.name} is another one now", older=older)
        if found.num_writes - num_own_writes < known.num_writes:
            raise DatabaseReplaced(f"the database {self.name} is an older copy now", older=True)
        return found

    def _remember(self, found: _Mark) -> None:
        with self._marking:
            if found.identity == self._mark.identity:
                self._mark = max(self._mark, found)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except (exc.SQLAlchemyError, sqlite3.Error) as error:
            reason = first_line(getattr(error, "orig", None) or error)
            raise DatabaseError(f"database {self.name}: {reason}") from error


def meta(connection: Connection, name: str) -> str | None:
    """A value that concerns the whole database."""
    value: str | None = connection.scalar(select(META.c.value).where(META.c.name == name))
    return value


def note_key_change(connection: Connection) -> None:
    """Let every server read the keys again."""
    _grow(connection, KEYS_VERSION)


def _new_identity() -> str:
    """What no other database is called."""
    return secrets.token_hex(16)


def _grow(connection: Connection, name: str) -> None:
    # In one statement: of two servers that read the number at once one change would be lost.
    next_number = cast(cast(META.c.value, BigInteger) + 1, String)
    connection.execute(update(META).where(META.c.name == name).values(value=next_number))


def _set(connection: Connection, name: str, value: str) -> None:
    connection.execute(update(META).where(META.c.name == name).values(value=value))


def _found(connection: Connection) -> _Mark:
    asked = select(META.c.name, META.c.value).where(META.c.name.in_((IDENTITY, NUM_WRITES)))
    rows = {row.name: row.value for row in connection.execute(asked)}
    return _Mark(rows.get(IDENTITY, ""), int(rows.get(NUM_WRITES, 0)))


def _upgrade(connection: Connection) -> None:
    """Make the tables, or bring them to this version; one process at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
    if not inspect(connection).has_table(META.name):
        metadata.create_all(connection)
        first = {VERSION: str(SCHEMA_VERSION), KEYS_VERSION: "0", USER_SALT: secrets.token_hex(16)}
        _insert(connection, first)
    version = int(meta(connection, VERSION) or 0)
    if not version:
        raise DatabaseError("the database has tables without their version: restore it as a whole")
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"the database has the schema of a newer server (version {version}; this one knows "
            f"{SCHEMA_VERSION}); upgrade this server"
        )
    for older in range(version, SCHEMA_VERSION):
        for statement in UPGRADES[older]:
            connection.execute(text(statement))
    _set(connection, VERSION, str(SCHEMA_VERSION))
    if meta(connection, IDENTITY) is None:  # servers before wrote none, and do not mind it
        _insert(connection, {IDENTITY: _new_identity(), NUM_WRITES: "0"})


def _insert(connection: Connection, values: dict[str, str]) -> None:
    rows = [{"name": name, "value": value} for name, value in values.items()]
    connection.execute(insert(META), rows)
