"""Keys that are made while a server runs, in a database that was not there when it began."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.access import access as access_module
from server.access import shared
from server.access.access import Access
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits
from server.access.usage_report import By, usage_by
from server.settings import Settings
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend
from tests.metrics_page import MetricsPage
from tests.waiting import until

BODY = {"model": PLAIN, "input": "one two three"}


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(shared, "SYNC_INTERVAL_S", 0.01)


def make_key(settings: Settings, name: str = "team a", **limits: int) -> str:
    """As `keys create` does, in another process; returns the secret."""
    database = Database(settings.database())
    _, secret = KeyStore(database).create(name, limits=Limits(**limits))
    database.close()
    return secret


async def post(client: httpx.AsyncClient, key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await client.post("/v1/embeddings", json=BODY, headers=headers)


async def until_let_in(running: Running, secret: str) -> None:
    async with asyncio.timeout(30):
        while (await post(running.client, secret)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Running:
    """A server's application with its keys kept in step, as its lifespan does."""

    def __init__(self, app: FastAPI) -> None:
        self.access: Access = app.state.services.access
        self.settings: Settings = app.state.services.settings
        self.client = client_of(app)
        self.access.start()


@pytest.fixture
async def run_over(app_over: AppOver, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    made: list[Running] = []

    async def make(**settings: Any) -> Running:
        settings = {"data_dir": tmp_path / "data", **settings}
        made.append(Running(await app_over(FakeBackend(), **settings)))
        return made[-1]

    yield make
    for running in made:
        await running.client.aclose()
        await running.access.close()


async def test_a_key_is_asked_for_from_then_on_and_the_log_says_so(
    run_over: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    running = await run_over()
    assert (await post(running.client)).status_code == 200
    secret = make_key(running.settings, requests_per_minute=2)
    await until(lambda: bool(running.access.asks_for_keys and caplog.messages))
    assert (await post(running.client)).status_code == 401
    answer = await post(running.client, secret)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"
    ((_, level, line),) = caplog.record_tuples
    assert level == logging.WARNING
    file = running.settings.database_file()
    assert line == f"the database {file} has appeared: from now on a key is asked for"


async def test_an_empty_database_asks_for_none_until_it_holds_one(
    run_over: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    running = await run_over()
    Database(running.settings.database()).close()
    await until(lambda: len(caplog.messages) == 1)
    assert caplog.messages[0].endswith("has appeared: a key is asked for once it holds one")
    assert (await post(running.client)).status_code == 200
    secret = make_key(running.settings)
    await until(lambda: len(caplog.messages) == 2)
    assert caplog.messages[1] == "the database holds a key: from now on one is asked for"
    assert (await post(running.client)).status_code == 401
    assert (await post(running.client, secret)).status_code == 200
    another = make_key(running.settings, "another")
    await until_let_in(running, another)
    assert len(caplog.messages) == 2  # it is said once


async def test_usage_is_counted_and_shown_from_then_on(
    run_over: Callable[..., Any],
) -> None:
    running = await run_over()
    secret = make_key(running.settings)
    await until(lambda: running.access.asks_for_keys)
    assert (await post(running.client, secret)).status_code == 200
    page = MetricsPage((await running.client.get("/metrics")).content)
    assert page.value("database_up") == 1
    await running.access.close()
    database = Database(running.settings.database())
    assert [(row.name, row.tokens) for row in usage_by(database, By.KEY)] == [("team a", 5)]
    database.close()


@pytest.mark.parametrize("given", [{"allow_no_keys": True}, {"api_key": ["sk-given"]}], ids=str)
async def test_the_keys_count_as_if_the_server_had_been_started_again(
    run_over: Callable[..., Any], given: dict[str, Any]
) -> None:
    running = await run_over(**given)
    secret = make_key(running.settings)
    await until(lambda: running.access.asks_for_keys)
    await until_let_in(running, secret)
    assert (await post(running.client)).status_code == 401
    for key in (secret, *given.get("api_key", ())):
        assert (await post(running.client, key)).status_code == 200


async def test_a_database_that_cannot_be_opened_is_told_once_and_tried_again(
    run_over: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await run_over()
    opened: list[int] = []
    open_database: Callable[[], shared.Shared] = running.access._open

    def count() -> shared.Shared:
        opened.append(1)
        return open_database()

    monkeypatch.setattr(running.access, "_open", count)
    running.settings.make_data_dir()
    file = running.settings.database_file()
    file.write_bytes(b"no database, but as long as the head of one " * 100)
    await until(lambda: len(opened) >= 3)
    assert "database" in running.access.troubles()
    refused = await post(running.client)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "storage_unavailable"
    assert (await running.client.get("/livez")).status_code == 200
    file.unlink()
    make_key(running.settings)
    await until(lambda: running.access.asks_for_keys and not running.access.troubles())
    told, appeared = caplog.record_tuples
    assert told[1] == logging.ERROR
    assert told[2].startswith("a database has appeared and cannot be used yet: database sqlite://")
    assert "from now on a key is asked for" in appeared[2]


async def test_a_server_may_end_while_the_database_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_opening = threading.Event()

    class Opening(shared.Shared):
        def __init__(self, *given: Any) -> None:
            is_opening.set()
            super().__init__(*given)

    monkeypatch.setattr(shared, "Shared", Opening)
    settings = Settings(data_dir=tmp_path)
    Database(settings.database()).close()
    file = settings.database_file()
    file.rename(file.with_suffix(".away"))
    access = Access(settings)
    lock = sqlite3.connect(file.with_suffix(".away"), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    access.start()
    file.with_suffix(".away").rename(file)
    await until(is_opening.is_set)
    closing = asyncio.create_task(access.close())
    await asyncio.sleep(0)
    lock.execute("ROLLBACK")
    lock.close()
    async with asyncio.timeout(30):
        await closing
    assert not [line for line in caplog.messages if "cannot" in line]
