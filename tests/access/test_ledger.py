"""Usage on SQLite and PostgreSQL, alone, together, and with the database away."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, tzinfo
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.access import ledger as ledger_module
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import ANONYMOUS
from server.access.ledger import Ledger
from server.access.usage_report import By, Sum, usage_by
from server.errors import DatabaseError
from tests.access import lock, make_key
from tests.services import Postgres

TODAY = datetime.now(UTC).date().isoformat()


def test_usage_is_summed_by_day_key_model_and_user(database: Database, store: KeyStore) -> None:
    team, other = make_key(store), make_key(store, name="other")
    ledger = Ledger(database, hash_users=False)
    for _ in range(2):
        ledger.count(team, "small", "ann", 10)
        ledger.count(team, "small", None, 1)
        ledger.count(other, "large", "ann", 100)
        ledger.count(ANONYMOUS, "small", "", 5)
        ledger.write()
    assert usage_by(database, By.KEY) == [
        *(Sum("other", 2, 200), Sum("team", 4, 22), Sum("anonymous", 2, 10)),
    ]
    assert usage_by(database, By.MODEL) == [Sum("large", 2, 200), Sum("small", 6, 32)]
    assert usage_by(database, By.USER) == [Sum("ann", 4, 220), Sum("", 4, 12)]
    assert usage_by(database, By.DAY) == [Sum(TODAY, 8, 232)]
    assert usage_by(database, By.USER, key="team") == [Sum("ann", 2, 20), Sum("", 2, 2)]
    assert usage_by(database, By.KEY, key=other.id, since=TODAY) == [Sum("other", 2, 200)]
    assert usage_by(database, By.KEY, since="2999-01-01") == []


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
@settings(max_examples=25)
def test_any_users_can_be_written(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, users: list[str]
) -> None:
    for url in (postgres.url, f"sqlite:///{tmp_path_factory.mktemp('any') / 'keys.db'}"):
        database = Database(url)
        ledger = Ledger(database, hash_users=False)
        before = sum(row.tokens for row in usage_by(database, By.USER))
        for user in users:
            ledger.count(ANONYMOUS, "m", user, 1)
        ledger.write()
        assert sum(row.tokens for row in usage_by(database, By.USER)) == before + len(users)
        database.close()


def test_hashed_users_are_told_apart_and_not_told(database_url: str) -> None:
    for _ in range(2):  # also after a restart they have the same hash
        database = Database(database_url)
        ledger = Ledger(database, hash_users=True)
        for user in ("ann@example.org", "bob@example.org", ""):
            ledger.count(ANONYMOUS, "m", user, 1)
        ledger.write()
        rows = usage_by(database, By.USER)
        database.close()
    assert sorted(row.requests for row in rows) == [2, 2, 2]
    names = {row.name for row in rows}
    assert "" in names
    assert not any("@" in name for name in names)


def test_two_databases_hash_a_user_differently(tmp_path: Path) -> None:
    names = set()
    for file in ("a.db", "b.db"):
        database = Database(f"sqlite:///{tmp_path / file}")
        ledger = Ledger(database, hash_users=True)
        ledger.count(ANONYMOUS, "m", "ann", 1)
        ledger.write()
        names |= {row.name for row in usage_by(database, By.USER)}
        database.close()
    assert len(names) == 2


def test_many_servers_and_threads_lose_nothing(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(2)]
    ledgers = [Ledger(database, hash_users=False) for database in databases]

    def work(ledger: Ledger) -> None:
        for number in range(200):
            ledger.count(ANONYMOUS, "m", f"user {number % 7}", 3)
            if number % 20 == 0:
                ledger.write()

    threads = [threading.Thread(target=work, args=[one]) for one in ledgers for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.write()
        assert ledger.unwritten_tokens == 0
    assert usage_by(databases[0], By.KEY) == [Sum("anonymous", 1_200, 3_600)]
    for database in databases:
        database.close()


def test_usage_waits_while_the_database_is_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'keys.db'}", patience_s=0.05)
    ledger = Ledger(database, hash_users=False)
    unlock = lock(tmp_path / "keys.db")
    ledger.count(ANONYMOUS, "m", "ann", 7)
    with pytest.raises(DatabaseError, match="locked"):
        ledger.write()
    ledger.count(ANONYMOUS, "m", "ann", 7)
    assert ledger.unwritten_tokens == 14
    ledger.report_unwritten()
    assert "user='ann' requests=2 tokens=14" in caplog.text
    unlock()
    ledger.write()
    assert usage_by(database, By.USER) == [Sum("ann", 2, 14)]
    database.close()


def test_usage_waits_while_the_database_is_full(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'keys.db'}")
    ledger = Ledger(database, hash_users=False)
    with database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    for number in range(2_000):
        ledger.count(ANONYMOUS, "m", f"user {number}", 1)
    with pytest.raises(DatabaseError, match="full"):
        ledger.write()
    assert ledger.unwritten_tokens == 2_000
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    ledger.write()
    assert usage_by(database, By.KEY) == [Sum("anonymous", 2_000, 2_000)]
    database.close()


def test_more_users_than_can_be_kept_in_mind_are_no_longer_told_apart(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'keys.db'}")
    ledger = Ledger(database, hash_users=False, most_unwritten=10)
    for number in range(100):
        ledger.count(ANONYMOUS, "m", f"user {number}", 1)
    ledger.write()
    rows = usage_by(database, By.USER)
    assert len(rows) == 11
    assert rows[0] == Sum("", 90, 90)
    database.close()


def test_made_up_users_of_one_key_become_one_row(
    database: Database, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    flooding, other = make_key(store), make_key(store, name="other")
    ledger = Ledger(database, hash_users=False, most_users=3)
    for number in range(100):
        ledger.count(flooding, "m", f"user {number}", 1)
        ledger.write()
    ledger.count(flooding, "m", "user 1", 1)
    ledger.count(flooding, "m", None, 1)
    for number in range(3):
        ledger.count(other, "m", f"user {number}", 1)
    ledger.write()
    assert usage_by(database, By.USER, key="team") == [
        *(Sum("(others)", 97, 97), Sum("user 1", 2, 2)),
        *(Sum("", 1, 1), Sum("user 0", 1, 1), Sum("user 2", 1, 1)),
    ]
    assert len(usage_by(database, By.USER, key="other")) == 3
    assert caplog.text.count("has named 3 users today") == 1


def test_each_day_has_its_own_users(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(database, hash_users=False, most_users=1)
    for day in (1, 2):

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Clock:
                return cls(2026, 1, day, tzinfo=tz)  # noqa: B023

        monkeypatch.setattr(ledger_module, "datetime", Clock)
        ledger.count(ANONYMOUS, "m", f"user {day}", 1)
    ledger.write()
    assert {row.name for row in usage_by(database, By.USER)} == {"user 1", "user 2"}


def test_usage_waits_while_postgresql_is_away(postgres: Postgres) -> None:
    database = Database(postgres.empty_database())
    ledger = Ledger(database, hash_users=False)
    ledger.count(ANONYMOUS, "m", None, 7)
    with postgres.away(), pytest.raises(DatabaseError):
        ledger.write()
    assert ledger.unwritten_tokens == 7
    ledger.write()
    assert usage_by(database, By.KEY) == [Sum("anonymous", 1, 7)]
    database.close()
