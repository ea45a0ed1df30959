"""Files that are deleted, moved, replaced and overwritten under an open database."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from server.access.database import Database
from server.access.key_store import KeyStore
from server.errors import DatabaseError, DatabaseGone, DatabaseReplaced

CREATES_A_KEY = """
import sys
from server.access.database import Database
from server.access.key_store import KeyStore
database = Database(sys.argv[1])
KeyStore(database).create("theirs")
print("created", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.db"


@pytest.fixture
def opened(file: Path) -> Iterator[Database]:
    file.parent.mkdir()
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


def names(database: Database) -> list[str]:
    return [key.name for key in KeyStore(database).all()]


def another(folder: Path, *keys: str) -> Path:
    """Another database, closed."""
    database = Database(f"sqlite:///{folder / 'another.db'}")
    for name in keys:
        KeyStore(database).create(name)
    database.close()
    return folder / "another.db"


def test_what_is_gone_is_told_not_made_again_and_used_again_once_it_is_back(
    opened: Database, file: Path, tmp_path: Path
) -> None:
    KeyStore(opened).create("one")
    for was, away in ((file, tmp_path / "away.db"), (file.parent, tmp_path / "away")):
        was.rename(away)
        for act in (names, lambda database: KeyStore(database).create("two")):
            with pytest.raises(DatabaseGone):
                act(opened)
        opened._engine.dispose()
        with pytest.raises(OperationalError):  # nor if it goes between a look and a connection
            opened._engine.connect()
        assert not was.exists()
        away.rename(was)
        assert names(opened) == ["one"]


@pytest.mark.parametrize("in_place", [False, True])
def test_another_file_is_neither_read_nor_written_until_it_is_opened(
    opened: Database, file: Path, tmp_path: Path, in_place: bool
) -> None:
    KeyStore(opened).create("one")
    opened.settle()
    other = another(tmp_path, "two")
    before = other.read_bytes()
    shutil.copyfile(other, file) if in_place else other.rename(file)
    for act in (names, lambda database: KeyStore(database).create("three")):
        with pytest.raises(DatabaseReplaced):
            act(opened)
    assert file.read_bytes() == before
    opened.open()
    assert names(opened) == ["two"]


def test_a_replaced_files_log_is_not_read_into_the_next_one(
    opened: Database, file: Path, tmp_path: Path
) -> None:
    KeyStore(opened).create("one")
    assert file.with_name("keys.db-wal").stat().st_size > 0
    another(tmp_path, "two").rename(file)
    opened.open()
    assert names(opened) == ["two"]


def test_a_log_that_another_process_writes_into_the_next_file_stays(
    opened: Database, file: Path, tmp_path: Path
) -> None:
    KeyStore(opened).create("one")
    opened.settle()
    another(tmp_path, "two").rename(file)
    url = f"sqlite:///{file}"
    with subprocess.Popen(
        [sys.executable, "-c", CREATES_A_KEY, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as theirs:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == b"created\n"
        opened.open()
        assert sorted(names(opened)) == ["theirs", "two"]
        KeyStore(opened).create("three")
        theirs.communicate()
    assert sorted(names(opened)) == ["theirs", "three", "two"]


@pytest.mark.parametrize("is_link", [False, True])
def test_a_settled_file_is_whole(file: Path, tmp_path: Path, *, is_link: bool) -> None:
    file.parent.mkdir()
    named = file
    if is_link:
        named = tmp_path / "link.db"
        named.symlink_to(file)
    opened = Database(f"sqlite:///{named}")
    KeyStore(opened).create("one")
    opened.settle()
    shutil.copyfile(file, tmp_path / "copy.db")
    opened.close()
    copied = Database(f"sqlite:///{tmp_path / 'copy.db'}")
    assert names(copied) == ["one"]
    copied.close()


def test_a_file_can_be_settled_while_others_read(opened: Database) -> None:
    KeyStore(opened).create("one")
    with opened.read() as reading:
        opened.keys_version(reading)
        KeyStore(opened).create("two")
        opened.settle()
    assert sorted(names(opened)) == ["one", "two"]


def test_a_file_that_is_cut_is_told_until_it_is_whole_again(opened: Database, file: Path) -> None:
    KeyStore(opened).create("one")
    opened.settle()
    whole = file.read_bytes()
    file.write_bytes(whole[:8192])
    for _ in range(2):
        with pytest.raises(DatabaseError, match="malformed"):
            names(opened)
    file.write_bytes(whole)
    assert names(opened) == ["one"]
