"""Keys in memory while another database comes into the place of the one that was opened."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from server.access import key_sync
from server.access.database import IDENTITY, META, NUM_WRITES, Database, metadata
from server.access.key_store import KeyStore
from server.access.key_sync import KeySync
from server.access.keyring import Keyring
from server.errors import (
    ApiKeyRevoked,
    DatabaseEmpty,
    DatabaseError,
    DatabaseForeign,
    DatabaseReplaced,
    IncorrectApiKey,
)


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """Another server's, or an operator's, on the same database."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def keyring() -> Keyring:
    return Keyring()


@pytest.fixture
def read_again() -> list[bool]:
    return []


@pytest.fixture
def sync(database: Database, keyring: Keyring, read_again: list[bool]) -> KeySync:
    return KeySync(database, keyring, lambda: read_again.append(True))


def execute(database: Database, *statements: str) -> None:
    with database._engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def become_older(database: Database, num_writes: int = 0) -> None:
    """As a copy is that was made before the last write."""
    changed = f"UPDATE {META.name} SET value = '{num_writes}' WHERE name = '{NUM_WRITES}'"
    execute(database, changed)


def lose_marks(database: Database) -> None:
    """As a copy is that was made before databases had them."""
    execute(database, f"DELETE FROM {META.name} WHERE name IN ('{IDENTITY}', '{NUM_WRITES}')")


def test_a_change_is_read_and_nothing_is_told(
    sync: KeySync, other: Database, keyring: Keyring
) -> None:
    _, secret = KeyStore(other).create("team")
    assert sync.read_changes() is None
    assert keyring.find(f"Bearer {secret}").name == "team"
    KeyStore(other).revoke("team")
    assert sync.read_changes() is None
    with pytest.raises(ApiKeyRevoked):
        keyring.find(f"Bearer {secret}")


@pytest.mark.parametrize("age", [become_older, lose_marks])
def test_an_older_copy_is_told_once_and_what_had_ended_stays_so(
    age: Callable[[Database], None],
    sync: KeySync,
    other: Database,
    keyring: Keyring,
    read_again: list[bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = KeyStore(other)
    _, revoked = store.create("revoked")
    _, rotated_out = store.create("rotated")
    with other.read() as connection:
        old = connection.execute(text("SELECT id, digest FROM embedding_server_keys")).all()
    store.revoke("revoked")
    _, rotated = store.rotate("rotated")
    sync.read_changes()
    execute(
        other,
        *(f"UPDATE embedding_server_keys SET digest = '{d}' WHERE id = '{i}'" for i, d in old),
        "UPDATE embedding_server_keys SET revoked_at = NULL",
    )
    age(other)
    found = sync.read_changes()
    assert isinstance(found, DatabaseReplaced)
    assert found.older
    assert read_again == [True]
    with pytest.raises(ApiKeyRevoked):
        keyring.find(f"Bearer {revoked}")
    with pytest.raises(IncorrectApiKey):
        keyring.find(f"Bearer {rotated_out}")
    assert keyring.find(f"Bearer {rotated}").name == "rotated"
    assert caplog.text.count("was ended before") == 2
    assert sync.read_changes() is None


def test_a_replica_that_lags_for_a_moment_is_not_taken_for_an_older_copy(
    sync: KeySync, database: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    KeyStore(other).create("team")
    sync.read_changes()
    become_older(other)
    opening = database.open

    def open_where_it_is_written() -> bool:
        become_older(other, num_writes=1)
        return opening()

    monkeypatch.setattr(database, "open", open_where_it_is_written)
    assert sync.read_changes() is None
    assert sync.read_changes() is None


def test_every_server_notices_an_older_copy_also_if_one_has_written_much_into_it(
    sync: KeySync, database_url: str, other: Database
) -> None:
    KeyStore(other).create("team")
    sync.read_changes()
    second = Database(database_url)
    its_sync = KeySync(second, Keyring(), lambda: None)
    become_older(other)
    assert sync.read_changes() is not None
    newly_opened = Database(database_url)
    for number in range(9):
        KeyStore(newly_opened).create(f"more {number}")
    assert its_sync.read_changes() is not None
    assert [one.read_changes() for one in (sync, its_sync)] == [None, None]
    newly_opened.close()
    second.close()


def test_another_database_brings_its_own_keys_and_no_server_opens_to_all(
    sync: KeySync, other: Database, keyring: Keyring
) -> None:
    _, secret = KeyStore(other).create("team")
    sync.read_changes()
    with other._engine.begin() as connection:
        metadata.drop_all(connection)
    other.open()
    found = sync.read_changes()
    assert found is not None
    assert "another one" in found.message
    with pytest.raises(IncorrectApiKey):
        keyring.find(f"Bearer {secret}")
    _, new = KeyStore(other).create("team")
    assert sync.read_changes() is None
    assert keyring.find(f"Bearer {new}").name == "team"


def test_an_empty_database_is_left_alone_for_a_while_and_then_taken_over(
    sync: KeySync, database: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other._engine.begin() as connection:
        metadata.drop_all(connection)
    with pytest.raises(DatabaseError) as waiting:
        sync.read_changes()
    assert waiting.value.state == "empty"
    with pytest.raises(DatabaseEmpty):
        database.check_tables()
    monkeypatch.setattr(key_sync, "EMPTY_PATIENCE_S", 0)
    assert isinstance(sync.read_changes(), DatabaseEmpty)
    database.check_tables()


def test_a_file_of_another_program_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, others = tmp_path / "keys.db", tmp_path / "others.db"
    database = Database(f"sqlite:///{file}")
    sync = KeySync(database, Keyring(), lambda: None)
    with contextlib.closing(sqlite3.connect(others)) as connection:
        connection.execute("CREATE TABLE letters (text)")
    before = others.read_bytes()
    others.rename(file)
    monkeypatch.setattr(key_sync, "EMPTY_PATIENCE_S", 0)
    for _ in range(2):
        with pytest.raises(DatabaseForeign):
            sync.read_changes()
    database.close()
    assert file.read_bytes() == before


def test_what_fails_while_another_one_is_taken_over_is_done_the_next_time(
    database: Database, other: Database, keyring: Keyring
) -> None:
    failing = [True]

    def fail() -> None:
        if failing:
            raise DatabaseError("away")

    sync = KeySync(database, keyring, fail)
    KeyStore(other).create("team")
    sync.read_changes()
    become_older(other)
    for _ in range(2):
        with pytest.raises(DatabaseError, match="away"):
            sync.read_changes()
    failing.clear()
    assert sync.read_changes() is not None
