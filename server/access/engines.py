"""How a database is connected to, SQLite or PostgreSQL. Any thread may call."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, event, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url

from server.access.sqlite_file import SqliteFile
from server.errors import DatabaseError, unusable
from server.program.command_lines import install_command


def connect_to(url: str, patience_s: float) -> tuple[Engine, SqliteFile | None, str]:
    """SQLAlchemy's engine for a database, its file if it is one, and its name for people.

    Args:
        url: as SQLAlchemy takes it; `postgresql://` means the driver psycopg.
        patience_s: how long a statement may wait for another one's lock, or for the network.

    Raises:
        DatabaseError: there can be no such database.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise DatabaseError(
            "setting database_url: not of the form sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    options: dict[str, Any] = {}
    file = None
    name = parsed.set(query={}).render_as_string()  # the query may hold a password, too
    match parsed.get_backend_name():
        case "sqlite":
            path = parsed.database or ""
            if path in ("", ":memory:"):
                raise DatabaseError("setting database_url: a SQLite database needs a file")
            if not path.startswith("file:"):  # else a URI, which SQLite itself takes apart
                _check_folder(Path(path).parent)
                _make_for_owner_only(Path(path).resolve())
                file = SqliteFile(Path(path).absolute())
                # Never made by connecting: a file that was taken away must not come back empty.
                parsed = parsed.set(
                    database=f"file:{quote(str(file.path))}", query={"uri": "true", "mode": "rw"}
                )
            options["connect_args"] = {"timeout": patience_s}
        case "postgresql" | "postgres":
            parsed = parsed.set(drivername="postgresql+psycopg")
            options = {
                "pool_pre_ping": True,
                # Whatever the database's own default is: in a stricter one writers that wait for
                # each other fail.
                "isolation_level": "READ COMMITTED",
                "connect_args": _for_postgresql(patience_s),
            }
        case other:
            raise DatabaseError(f"setting database_url: {other} is neither sqlite nor postgresql")
    try:
        engine = create_engine(parsed, **options)
    except (exc.ArgumentError, ModuleNotFoundError) as error:
        raise DatabaseError(_why_no_engine(parsed, error)) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine, file, name


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


def _for_postgresql(patience_s: float) -> dict[str, Any]:
    milliseconds = round(patience_s * 1000)
    return {
        "prepare_threshold": None,  # a pooler may give each transaction another connection
        "connect_timeout": round(patience_s),
        "tcp_user_timeout": milliseconds,
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
    }


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's driver would begin transactions by itself


def _begin_sqlite(connection: Connection) -> None:
    # A writer that begins as a reader fails if another one wrote meanwhile, however long it waits.
    only_reads = connection.get_execution_options().get("only_reads")
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")
