from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import inspect, text

from server.access import database as database_module
from server.access.database import (
    KEYS_VERSION,
    META,
    NUM_WRITES,
    SCHEMA_VERSION,
    VERSION,
    Database,
    meta,
    note_key_change,
)
from server.errors import DatabaseError, DatabaseReplaced
from tests.services import Postgres


def version(database: Database) -> str | None:
    with database.read() as connection:
        return meta(connection, VERSION)


def test_a_new_database_has_this_version_and_keeps_it(database_url: str) -> None:
    for _ in range(2):
        opened = Database(database_url)
        assert version(opened) == str(SCHEMA_VERSION)
        opened.close()


def test_an_older_database_is_brought_to_this_version_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(database_url).close()
    statement = "ALTER TABLE embedding_server_keys ADD COLUMN note VARCHAR"
    monkeypatch.setattr(database_module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setitem(database_module.UPGRADES, SCHEMA_VERSION, (statement,))
    for _ in range(2):  # the statement would fail if it ran again
        opened = Database(database_url)
        assert version(opened) == str(SCHEMA_VERSION + 1)
        with opened.read() as connection:
            columns = inspect(connection).get_columns("embedding_server_keys")
        assert "note" in {column["name"] for column in columns}
        opened.close()


def test_a_database_of_a_newer_server_is_refused_and_left_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(database_module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        Database(database_url).close()
    with pytest.raises(DatabaseError, match="newer server"):
        Database(database_url)


def test_processes_that_start_together_make_one_schema(database_url: str) -> None:
    script = "import sys; from server.access.database import Database; Database(sys.argv[1])"
    started = [
        subprocess.Popen([sys.executable, "-c", script, database_url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    opened = Database(database_url)
    with opened.read() as connection:
        assert connection.scalar(text(f"SELECT count(*) FROM {META.name}")) == 5
    opened.close()


def test_a_database_of_an_older_server_gets_one_identity_from_many_that_open_it(
    database_url: str,
) -> None:
    opened = Database(database_url)
    with opened._engine.begin() as connection:
        connection.execute(
            text(f"DELETE FROM {META.name} WHERE name IN ('identity', 'num_writes')")
        )
    with ThreadPoolExecutor(4) as threads:
        others = list(threads.map(Database, [database_url] * 4))
    assert len({other._mark.identity for other in others} - {""}) == 1
    for other in (opened, *others):
        other.close()


@pytest.fixture
def strict_database_url(database_url: str) -> Iterator[str]:
    """PostgreSQL's own default is the strictest isolation, which an operator may choose for all."""
    if database_url.startswith("sqlite"):
        yield database_url
        return
    with psycopg.connect(database_url, autocommit=True) as connection:
        default = "ALTER DATABASE test {} default_transaction_isolation"
        connection.execute(default.format("SET") + " = 'serializable'")
        yield database_url
        connection.execute(default.format("RESET"))


def test_many_writers_count_every_write_and_take_nobody_for_another(
    strict_database_url: str,
) -> None:
    servers = [Database(strict_database_url) for _ in range(2)]

    def work(number: int) -> None:
        with servers[number % 2].write() as connection:
            note_key_change(connection)
        with servers[number % 2].read() as connection:
            servers[number % 2].keys_version(connection)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(40)))
    with servers[0].read() as connection:
        assert meta(connection, NUM_WRITES) == "40"
    for server in servers:
        server.close()


def test_nothing_is_written_into_an_older_copy(database: Database) -> None:
    def change() -> None:
        with database.write() as connection:
            note_key_change(connection)

    for _ in range(2):
        change()
    with database._engine.begin() as connection:
        connection.execute(text(f"UPDATE {META.name} SET value = '1' WHERE name = '{NUM_WRITES}'"))
    with pytest.raises(DatabaseReplaced):
        change()
    with database.read() as connection:
        assert meta(connection, KEYS_VERSION) == "2"


def test_changes_from_many_threads_are_all_counted(database: Database) -> None:
    def change(_: int) -> None:
        with database.write() as connection:
            note_key_change(connection)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(change, range(64)))
    with database.read() as connection:
        assert meta(connection, database_module.KEYS_VERSION) == "64"


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    class Stop(Exception):
        pass

    def fail() -> None:
        with database.write() as connection:
            note_key_change(connection)
            raise Stop

    with pytest.raises(Stop):
        fail()
    with database.read() as connection:
        assert meta(connection, database_module.KEYS_VERSION) == "0"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "not of the form"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("postgresql://127.0.0.1:1/x?user=u&password=s3cret", "refused"),
        ("mysql://root@127.0.0.1/x", "neither sqlite nor postgresql"),
        ("sqlite:////no/such/folder/keys.db", "folder /no/such/folder does not exist"),
        ("postgresql://user:s3cret@127.0.0.1:1/x", "refused"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line_without_the_password(
    url: str, reason: str
) -> None:
    with pytest.raises(DatabaseError) as caught:
        Database(url)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert "s3cret" not in caught.value.message


def test_a_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    database = Database(f"sqlite:///{path}")
    with database.write() as connection:
        connection.execute(text("create table t (a)"))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert {"keys.db", "keys.db-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}
    database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    file.write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseError, match="not a database"):
        Database(f"sqlite:///{file}")
    assert file.read_bytes() == b"not a database" * 1000


def test_readers_do_not_wait_for_a_writer_and_writers_do_not_wait_for_ever(
    tmp_path: Path,
) -> None:
    opened = Database(f"sqlite:///{tmp_path / 'keys.db'}", patience_s=0.1)
    other = sqlite3.connect(tmp_path / "keys.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert version(opened) == str(SCHEMA_VERSION)

    def write() -> None:
        with opened.write() as connection:
            note_key_change(connection)

    with pytest.raises(DatabaseError, match="locked"):
        write()
    other.execute("ROLLBACK")
    write()
    other.close()
    opened.close()


def test_a_postgresql_that_was_started_again_is_used_again(postgres: Postgres) -> None:
    opened = Database(postgres.empty_database())
    with postgres.away(), pytest.raises(DatabaseError):
        version(opened)
    assert version(opened) == str(SCHEMA_VERSION)
    opened.close()
