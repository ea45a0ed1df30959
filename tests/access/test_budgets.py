"""Budgets on SQLite and PostgreSQL, alone, together, and with the database away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from server.access.budgets import Budgets
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import ANONYMOUS, Key
from server.errors import BudgetSpent, DatabaseError, StorageUnavailable
from tests.access import lock, make_key
from tests.waiting import wait_for

TODAY = datetime.now(UTC).date().isoformat()


def spent(store: KeyStore, key: Key) -> int:
    return store.find(key.id).spent_tokens


async def test_a_budget_is_spent_to_the_last_token_and_no_further(
    database: Database, store: KeyStore
) -> None:
    key = make_key(store, 100)
    budgets = Budgets(database, refuse_when_away=False)
    await budgets.take(key, 60)
    with pytest.raises(BudgetSpent, match="100"):
        await budgets.take(key, 41)
    await budgets.take(key, 40)
    with pytest.raises(BudgetSpent):
        await budgets.take(key, 1)
    await budgets.settle(everything=True)
    assert spent(store, key) == 100


async def test_what_is_given_back_can_be_spent_again(database: Database, store: KeyStore) -> None:
    key = make_key(store, 100)
    budgets = Budgets(database, refuse_when_away=False)
    await budgets.take(key, 100)
    budgets.give_back(key, 100)
    await budgets.settle(everything=True)
    assert spent(store, key) == 0
    await budgets.take(key, 100)


async def test_a_key_without_a_budget_never_asks_the_database(database: Database) -> None:
    database.close()
    await Budgets(database, refuse_when_away=True).take(ANONYMOUS, 10**9)


class WatchedDatabase(Database):
    """Counts what is written, and can hold it up."""

    def __init__(self, url: str) -> None:
        self.writes = 0
        self.asked = threading.Event()
        self.answer = threading.Event()
        self.answer.set()
        super().__init__(url)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        self.writes += 1
        self.asked.set()
        assert self.answer.wait(10)
        with super().write() as connection:
            yield connection

    def hold_up(self) -> None:
        """From now on each write sets `asked` and waits for `answer`."""
        self.asked.clear()
        self.answer.clear()


@pytest.fixture
def watched(database_url: str) -> Iterator[WatchedDatabase]:
    opened = WatchedDatabase(database_url)
    yield opened
    opened.close()


async def test_few_requests_of_many_ask_the_database(
    watched: WatchedDatabase, store: KeyStore
) -> None:
    key = make_key(store, 1_000_000)
    budgets = Budgets(watched, refuse_when_away=False)
    before = watched.writes
    for _ in range(1_000):
        await budgets.take(key, 100)
    assert 1 <= watched.writes - before <= 10


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.slow
async def test_many_at_once_on_several_servers_never_overdraw(
    database_url: str, store: KeyStore, servers: int
) -> None:
    key = make_key(store, 10_000)
    # Patient, since SQLite lets writers wait in no order, and a slow machine would give credit.
    databases = [Database(database_url, patience_s=30) for _ in range(servers)]
    all_budgets = [Budgets(database, refuse_when_away=False) for database in databases]
    used = 0

    async def client(budgets: Budgets, number: int) -> None:
        nonlocal used
        for round_ in range(20):
            tokens = 1 + (number * 7 + round_ * 13) % 60
            try:
                await budgets.take(key, tokens)
            except BudgetSpent:
                continue
            used += tokens
            await asyncio.sleep(0.001)

    clients = (client(all_budgets[number % servers], number) for number in range(50))
    await asyncio.gather(*clients)
    for budgets in all_budgets:
        await budgets.settle(everything=True)
    assert used <= 10_000
    assert spent(store, key) == used
    assert used > 9_000  # what one server holds in advance keeps little from the others
    for database in databases:
        database.close()


async def test_what_a_server_holds_and_does_not_use_is_put_back(
    database: Database, store: KeyStore
) -> None:
    key = make_key(store, 16_000)
    budgets = Budgets(database, refuse_when_away=False)
    await budgets.take(key, 100)
    assert spent(store, key) == 200
    await budgets.settle(everything=False)  # used since it was looked at last
    assert spent(store, key) == 200
    await budgets.settle(everything=False)
    assert spent(store, key) == 100


async def test_no_more_than_a_part_of_what_is_left_is_held(
    database: Database, store: KeyStore
) -> None:
    key = make_key(store, 1_600)
    budgets = Budgets(database, refuse_when_away=False)
    await budgets.take(key, 90)
    assert spent(store, key) == 100


async def test_a_budget_that_is_lowered_is_lower_at_once(
    database: Database, store: KeyStore
) -> None:
    key = make_key(store, 1_000_000)
    budgets = Budgets(database, refuse_when_away=False)
    await budgets.take(key, 1_000)
    lowered = store.change(key.id, token_budget=1_050)
    await budgets.take(lowered, 50)
    with pytest.raises(BudgetSpent):
        await budgets.take(lowered, 1)


async def test_what_is_given_back_while_the_database_is_asked_is_not_lost(
    watched: WatchedDatabase, store: KeyStore
) -> None:
    key = make_key(store, 16_000)
    budgets = Budgets(watched, refuse_when_away=False)
    await budgets.take(key, 900)
    watched.hold_up()
    taking = asyncio.create_task(budgets.take(key, 5_000))
    await asyncio.to_thread(watched.asked.wait)
    budgets.give_back(key, 900)
    watched.answer.set()
    await taking
    budgets.give_back(key, 5_000)
    await budgets.settle(everything=True)
    assert spent(store, key) == 0


async def test_a_client_that_leaves_while_the_database_is_asked_costs_nothing(
    watched: WatchedDatabase, store: KeyStore
) -> None:
    key = make_key(store, 16_000)
    budgets = Budgets(watched, refuse_when_away=False)
    watched.hold_up()
    taking = asyncio.create_task(budgets.take(key, 900))
    await asyncio.to_thread(watched.asked.wait)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    watched.answer.set()
    await asyncio.to_thread(wait_for, lambda: spent(store, key) > 0)
    async with asyncio.timeout(10):
        while spent(store, key):
            await budgets.settle(everything=True)


async def test_a_settlement_that_is_given_up_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = WatchedDatabase(f"sqlite:///{tmp_path / 'keys.db'}")
    store = KeyStore(database)
    key = make_key(store, 16_000)
    budgets = Budgets(database, refuse_when_away=False)
    budgets.away = True
    await budgets.take(key, 500)
    unlock = lock(tmp_path / "keys.db")
    database.asked.clear()
    settling = asyncio.create_task(budgets.settle(everything=True))
    await asyncio.to_thread(database.asked.wait)
    settling.cancel()
    budgets.report_unsettled()
    assert f"budget not charged: key={key.id} tokens=500" in caplog.text
    unlock()
    await asyncio.to_thread(wait_for, lambda: spent(store, key) == 500)
    database.close()


async def test_a_budget_that_is_raised_can_be_spent_at_once(
    database: Database, store: KeyStore
) -> None:
    key = make_key(store, 10)
    budgets = Budgets(database, refuse_when_away=False)
    await budgets.take(key, 10)
    raised = store.change(key.id, token_budget=20)
    await budgets.take(raised, 10)
    with pytest.raises(BudgetSpent):
        await budgets.take(raised, 1)


@pytest.mark.parametrize("refuse", [True, False])
async def test_while_the_database_is_away_there_is_credit_or_refusal_as_was_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, refuse: bool
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'keys.db'}", patience_s=0.05)
    store = KeyStore(database)
    key = make_key(store, 160)
    budgets = Budgets(database, refuse_when_away=refuse)
    await budgets.take(key, 5)  # and so 5 are held in advance
    unlock = lock(tmp_path / "keys.db")
    await budgets.take(key, 5)
    for _ in range(2):
        if refuse:
            with pytest.raises(StorageUnavailable):
                await budgets.take(key, 50)
        else:
            await budgets.take(key, 50)
    assert budgets.away
    if refuse:
        await budgets.settle(everything=True)  # there is nothing to settle
    else:
        with pytest.raises(DatabaseError):
            await budgets.settle(everything=True)
    budgets.report_unsettled()
    assert ("tokens=100" in caplog.text) is not refuse
    unlock()
    budgets.away = False
    await budgets.settle(everything=True)
    assert spent(store, key) == (10 if refuse else 110)
    assert logging.ERROR in {record.levelno for record in caplog.records}
    database.close()
