"""The database of keys and usage, SQLite or PostgreSQL: its tables, its version, its transactions.

Any thread may call. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    String,
    Table,
    cast,
    create_engine,
    event,
    exc,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, Connection, Engine, make_url

from server.errors import DatabaseError, first_line, unusable
from server.program.command_lines import install_command
from server.program.daemon_threads import DaemonThreads

PATIENCE_S = 2.0
# A database that hangs may not answer even that; then it counts as away.
NO_ANSWER_AFTER_S = 2 * PATIENCE_S
_UPGRADE_LOCK: Final = 0x656D6265  # any number; PostgreSQL's advisory locks are named by numbers

T = TypeVar("T")

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

SCHEMA_VERSION = 1
# Statements that lead from each older version to the next one.
UPGRADES: dict[int, tuple[str, ...]] = {}

_THREADS = DaemonThreads("database")


class Database:
    """An open database whose schema is of this version.

    Args:
        url: as SQLAlchemy takes it; `postgresql://` means the driver psycopg.
        patience_s: how long a statement may wait for another one's lock, or for the network.

    Raises:
        DatabaseError: it cannot be reached, or a newer server has written it.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self._engine = _engine(url, patience_s)
        try:
            with self.write() as connection:
                _upgrade(connection)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            DatabaseError: the database is away or locked for too long.
        """
        with self._translated(), self._engine.connect() as connection:
            yield connection.execution_options(only_reads=True)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or not at all.

        Raises:
            DatabaseError: the database is away, full, or locked for too long.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.SQLAlchemyError as error:
            reason = first_line(getattr(error, "orig", None) or error)
            url = self._engine.url.set(query={})  # which may hold a password, too
            raise DatabaseError(f"database {url.render_as_string()}: {reason}") from error


async def in_thread(
    work: Callable[[], T],
    *,
    then: Callable[[T], None] = lambda result: None,
    otherwise: Callable[[], None] = lambda: None,
) -> T:
    """Do something that asks a database, off the event loop.

    Args:
        then: called in the event loop with the result, also if nobody waits for it any more.
        otherwise: called there instead if the work has failed.

    Raises:
        DatabaseError: from the work, or there is no answer for too long.
    """

    def settle(done: asyncio.Future[T]) -> None:
        if done.exception() is None:
            then(done.result())
        else:
            otherwise()

    done = _THREADS.run(work)
    done.add_done_callback(settle)
    try:
        # Shielded: what has been begun comes to its end, whoever waits for it.
        return await asyncio.wait_for(asyncio.shield(done), NO_ANSWER_AFTER_S)
    except TimeoutError:
        raise DatabaseError(f"the database gives no answer for {NO_ANSWER_AFTER_S:g} s") from None


def meta(connection: Connection, name: str) -> str | None:
    """A value that concerns the whole database."""
    value: str | None = connection.scalar(select(META.c.value).where(META.c.name == name))
    return value


def note_key_change(connection: Connection) -> None:
    """Let every server read the keys again."""
    # In one statement: of two servers that read the version at once one change would be lost.
    next_version = cast(cast(META.c.value, BigInteger) + 1, String)
    connection.execute(update(META).where(META.c.name == KEYS_VERSION).values(value=next_version))


def _engine(url: str, patience_s: float) -> Engine:
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise DatabaseError(
            "setting database_url: not of the form sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    options: dict[str, Any] = {}
    match parsed.get_backend_name():
        case "sqlite":
            file = parsed.database or ""
            if file in ("", ":memory:"):
                raise DatabaseError("setting database_url: a SQLite database needs a file")
            if not file.startswith("file:"):  # else a URI, which SQLite itself takes apart
                _check_folder(Path(file).parent)
                _make_for_owner_only(Path(file))
            options["connect_args"] = {"timeout": patience_s}
        case "postgresql" | "postgres":
            parsed = parsed.set(drivername="postgresql+psycopg")
            options = {"pool_pre_ping": True, "connect_args": _patience_of_postgresql(patience_s)}
        case other:
            raise DatabaseError(f"setting database_url: {other} is neither sqlite nor postgresql")
    try:
        engine = create_engine(parsed, **options)
    except (exc.ArgumentError, ModuleNotFoundError) as error:
        raise DatabaseError(_why_no_engine(parsed, error)) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_folder(folder: Path) -> None:
    """SQLite says "unable to open database file" of a folder that is missing."""
    try:
        folder.stat()
    except OSError as error:
        raise DatabaseError(unusable(f"setting database_url: folder {folder}", error)) from error


def _make_for_owner_only(file: Path) -> None:
    """SQLite would make it readable for all; what it puts beside the file gets the same mode."""
    with contextlib.suppress(OSError):  # it is there, or SQLite says what is wrong
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _why_no_engine(url: URL, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"a {url.get_backend_name()} database needs the package {error.name}: "
            f"{install_command('shared')}"
        )
    return f"setting database_url: {error}"


def _patience_of_postgresql(patience_s: float) -> dict[str, Any]:
    milliseconds = round(patience_s * 1000)
    return {
        "connect_timeout": round(patience_s),
        "tcp_user_timeout": milliseconds,
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
    }


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's driver would begin transactions by itself
    connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer


def _begin_sqlite(connection: Connection) -> None:
    # A writer that begins as a reader fails if another one wrote meanwhile, however long it waits.
    only_reads = connection.get_execution_options().get("only_reads")
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


def _upgrade(connection: Connection) -> None:
    """Make the tables, or bring them to this version; one process at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
    if not inspect(connection).has_table(META.name):
        metadata.create_all(connection)
        first = {VERSION: str(SCHEMA_VERSION), KEYS_VERSION: "0", USER_SALT: secrets.token_hex(16)}
        rows = [{"name": name, "value": value} for name, value in first.items()]
        connection.execute(insert(META), rows)
        return
    version = int(meta(connection, VERSION) or 0)
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"the database has the schema of a newer server (version {version}; this one knows "
            f"{SCHEMA_VERSION}); upgrade this server"
        )
    for older in range(version, SCHEMA_VERSION):
        for statement in UPGRADES[older]:
            connection.execute(text(statement))
    connection.execute(update(META).where(META.c.name == VERSION).values(value=str(SCHEMA_VERSION)))
