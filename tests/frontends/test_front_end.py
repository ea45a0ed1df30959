"""A front end that hears nothing of the engine process; ticks are the test's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits
from server.engine.interface import Phase
from server.frontends import engine_service
from server.frontends.messages import EngineState
from server.frontends.silence import (
    ENGINE_LOST_TICKS,
    ENGINE_SILENT_TICKS,
    FRONT_END_LOST_TICKS,
    FRONT_END_START_TICKS,
)
from tests.conftest import client_of
from tests.fakes import FakeBackend
from tests.frontends.conftest import Split, SplitOver
from tests.frontends.test_over_one_engine import OWN_IDS, admitted, asked, post
from tests.metrics_page import MetricsPage
from tests.waiting import until


@pytest.fixture(autouse=True)
def _the_engine_process_tells_its_state_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_service, "STATE_INTERVAL_S", 3600)


def tick(split: Split, times: int) -> None:
    for _ in range(times):
        split.front_ends[0].tick()


def tell_state(split: Split) -> None:
    """As a live engine process does."""
    split.link.channel.tell(split.service._read_state())


async def page_of(client: httpx.AsyncClient) -> MetricsPage:
    return MetricsPage((await client.get("/metrics")).content)


async def test_an_engine_process_that_is_silent_is_told_at_once_until_it_is_heard(
    split_over: SplitOver, caplog: pytest.LogCaptureFixture
) -> None:
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS)
    async with split.client as client:
        assert (await post(client, asked(1))).status_code == 200
        before = (await page_of(client)).value("computed_tokens_total", model="all-MiniLM-L6-v2")
        backend.gate.clear()
        waiting = asyncio.create_task(post(client, asked(1)))
        await until(lambda: admitted(split) == 1)
        tick(split, ENGINE_SILENT_TICKS - 1)
        assert (await client.get("/readyz")).status_code == 200
        assert not waiting.done()
        tick(split, 1)
        for refused in (await waiting, await client.get("/readyz"), await post(client, asked(1))):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_silent"
            assert refused.headers["retry-after"] == "5"
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/health")).json()["status"] == "silent"
        page = await page_of(client)
        assert page.value("engine_silent_seconds") == ENGINE_SILENT_TICKS
        assert page.value("ready") == 0
        # What other processes counted is not lost from the page.
        assert page.value("computed_tokens_total", model="all-MiniLM-L6-v2") == before
        backend.gate.set()
        tell_state(split)
        await until(lambda: split.remote.phase is Phase.READY)
        assert (await page_of(client)).value("engine_silent_seconds") == 0
        assert (await post(client, asked(1))).status_code == 200
        await until(lambda: admitted(split) == 0)
    assert caplog.text.count("the engine process is silent for 5 s: requests get 503") == 1
    assert caplog.text.count("the engine process answers again, after 5 s") == 1
    assert split.ends == []


async def test_limits_a_minute_are_not_waited_for_while_it_is_silent(
    split_over: SplitOver, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    database = Database(url)
    _, secret = KeyStore(database).create("key", limits=Limits(requests_per_minute=5))
    database.close()
    split = await split_over(FakeBackend(), **OWN_IDS, database_url=url)
    tick(split, ENGINE_SILENT_TICKS)
    async with split.client as client:
        refused = await post(client, asked(1), secret)
        assert refused.json()["error"]["code"] == "engine_silent"
    await split.app.state.services.access.close()


async def test_an_engine_process_that_stays_silent_is_ended_and_the_front_end_too(
    split_over: SplitOver,
) -> None:
    split = await split_over(FakeBackend())
    tick(split, ENGINE_LOST_TICKS - 1)
    assert split.ends == []
    tick(split, 1)
    assert split.ends == ["the engine process", "itself"]
    assert split.remote.phase is Phase.DRAINING


async def test_one_that_loads_its_models_may_be_silent(split_over: SplitOver) -> None:
    split = await split_over(FakeBackend())
    split.link.channel.tell(EngineState(models=[split.told()]))
    await until(lambda: split.remote.phase is Phase.LOADING)
    tick(split, ENGINE_LOST_TICKS + 1)
    assert split.ends == []


async def test_a_front_end_is_lost_once_it_has_been_silent_for_too_long(
    split_over: SplitOver,
) -> None:
    split = await split_over(FakeBackend())
    link = split.link
    assert [link.tick() for _ in range(FRONT_END_START_TICKS - 1)].count(True) == 0
    tick(split, 1)
    await until(lambda: link._silence.ticks == 0)
    assert [link.tick() for _ in range(FRONT_END_LOST_TICKS - 1)].count(True) == 0
    assert not link.is_lost
    assert [link.tick() for _ in range(5)] == [True, False, False, False, False]
    assert link.is_lost


async def test_what_a_front_end_counts_is_told_with_every_tick(split_over: SplitOver) -> None:
    split = await split_over(FakeBackend(), **OWN_IDS)
    await split.another_app()
    async with split.client as client:
        for _ in range(3):
            assert (await post(client, asked(1))).status_code == 200
    tick(split, 1)
    await until(lambda: split.link._silence.ever_heard)
    split.link.channel.abort()  # as a killed one's
    await split.link.lost.wait()
    samples = split.service.samples_of_others(split.links[1])
    counted = [
        value
        for told in samples
        for family, _, series in told
        for name, labels, value in series
        if name == "embedding_server_requests_total" and dict(labels)["status"] == "200"
    ]
    assert sum(counted) == 3


async def test_what_one_page_has_shown_is_on_every_page(split_over: SplitOver) -> None:
    split = await split_over(FakeBackend(), **OWN_IDS)
    other = await split.another_app()
    async with split.client as client, client_of(other) as second:
        for _ in range(3):
            assert (await post(client, asked(1))).status_code == 200
        for one in (client, second):
            page = await page_of(one)
            assert page.total("requests_total", route="/v1/embeddings", status="200") == 3
