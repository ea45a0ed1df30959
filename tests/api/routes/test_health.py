from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from server.api.services import Services
from server.engine.patience import Patience
from server.engine.replica import FAILURES_BEFORE_PROBE
from server.http.app import create_app
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, AppOver, client_of, engine_of
from tests.fakes import KILLS_THREAD, RAISES, FakeBackend
from tests.waiting import wait_for


@pytest.fixture
def unstarted() -> FastAPI:
    """The application before its lifespan began: nothing is loaded."""
    return create_app(Settings())


@pytest.fixture
async def client(unstarted: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(unstarted)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def test_a_loaded_server_is_alive_ready_and_healthy(http: httpx.Client) -> None:
    assert http.get("/livez").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}
    health = http.get("/health").json()
    assert health["status"] == "ready"
    assert [(model["name"], model["loaded"]) for model in health["models"]] == [
        (MATRYOSHKA, True),
        (PLAIN, True),
    ]
    for path in ("/livez", "/readyz", "/health"):
        assert http.get(path).status_code == http.head(path).status_code == 200
        assert http.head(path).content == b""


@pytest.mark.parametrize(
    ("draining", "status", "code"),
    [(False, "loading", "model_loading"), (True, "draining", "server_draining")],
)
async def test_a_loading_or_draining_server_is_alive_but_takes_no_work(
    unstarted: FastAPI, client: httpx.AsyncClient, draining: bool, status: str, code: str
) -> None:
    services = unstarted.state.services
    assert isinstance(services, Services)
    if draining:
        services.models.drain()
    assert (await client.get("/livez")).status_code == 200
    health = await client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, status)
    body = {"model": PLAIN, "input": "x"}
    for refused in (await client.get("/readyz"), await client.post("/v1/embeddings", json=body)):
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "upstream_error"
        assert refused.json()["error"]["code"] == code
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers.get("connection") == ("close" if draining else None)
    assert (await client.get("/v1/models")).status_code == 200


async def test_an_unknown_model_is_not_found_also_while_loading(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/embeddings", json={"model": "other", "input": "x"})
    assert refused.status_code == 404


def embeddings(*token_ids: int) -> dict[str, object]:
    return {"model": PLAIN, "input": list(token_ids)}


async def refusals(app: FastAPI) -> list[httpx.Response]:
    """What those get who ask for the state or for work."""
    async with client_of(app) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        return [
            await client.get("/readyz"),
            await client.post("/v1/embeddings", json=embeddings(1)),
        ]


def assert_model_failing(answers: list[httpx.Response]) -> None:
    for refused in answers:
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "upstream_error"
        assert refused.json()["error"]["code"] == "model_failing"
        assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_a_server_whose_model_fails_is_unready_until_it_computes_again(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    quick = Patience(probe_interval_s=0.02)
    app = await app_over(backend, model_token_ids=[PLAIN], patience=quick)
    engine = engine_of(app)
    async with client_of(app) as client:
        assert (await client.post("/v1/embeddings", json=embeddings(1))).status_code == 200
        backend.broken.set()
        for _ in range(FAILURES_BEFORE_PROBE):
            assert (await client.get("/readyz")).status_code == 200
            failed = await client.post("/v1/embeddings", json=embeddings(1))
            assert failed.status_code == 500
            assert failed.json()["error"]["type"] == "internal_server_error"
    assert_model_failing(await refusals(app))
    backend.broken.clear()
    await asyncio.to_thread(wait_for, lambda: engine.sound)
    assert [answer.status_code for answer in await refusals(app)] == [200, 200]


async def test_health_has_the_status_of_readyz_also_when_the_model_fails(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, model_token_ids=[PLAIN])
    async with client_of(app) as client:
        assert (await client.get("/health")).status_code == 200
        backend.broken.set()
        for _ in range(FAILURES_BEFORE_PROBE):
            await client.post("/v1/embeddings", json=embeddings(1))
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/health")).status_code == 503


async def test_a_server_whose_worker_died_is_unready_until_it_is_replaced(
    app_over: AppOver,
) -> None:
    slow = Patience(restart_delay_s=0.5)
    app = await app_over(FakeBackend(), model_token_ids=[PLAIN], patience=slow)
    engine = engine_of(app)
    async with client_of(app) as client:
        killed = await client.post("/v1/embeddings", json=embeddings(KILLS_THREAD))
    assert killed.status_code == 500
    assert killed.json()["error"]["type"] == "internal_server_error"
    await asyncio.to_thread(wait_for, lambda: not engine.sound)
    assert_model_failing(await refusals(app))
    await asyncio.to_thread(wait_for, lambda: engine.sound)
    assert [answer.status_code for answer in await refusals(app)] == [200, 200]


async def test_a_server_whose_worker_is_stuck_is_unready_until_it_comes_back(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    hasty = Patience(stuck_after_s=0.05)
    app = await app_over(backend, model_token_ids=[PLAIN], patience=hasty)
    engine = engine_of(app)
    backend.gate.clear()
    async with client_of(app) as client:
        stuck = asyncio.create_task(client.post("/v1/embeddings", json=embeddings(7)))
        await asyncio.to_thread(wait_for, lambda: not engine.sound)
        assert_model_failing(await refusals(app))
        backend.gate.set()
        assert (await stuck).json()["data"][0]["embedding"] == [7, 1, 7]
    assert [answer.status_code for answer in await refusals(app)] == [200, 200]


async def test_an_input_that_the_model_cannot_compute_does_not_make_the_server_unready(
    app_over: AppOver,
) -> None:
    app = await app_over(FakeBackend(), model_token_ids=[PLAIN])
    async with client_of(app) as client:
        for _ in range(4 * FAILURES_BEFORE_PROBE):
            failed = await client.post("/v1/embeddings", json=embeddings(RAISES))
            assert failed.status_code == 500
            assert (await client.get("/readyz")).status_code == 200
