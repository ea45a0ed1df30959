from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from server.api.deps import Services
from server.app import create_app
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN


@pytest.fixture
def unstarted() -> FastAPI:
    """The application before its lifespan began: nothing is loaded."""
    return create_app(Settings())


@pytest.fixture
async def client(unstarted: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(unstarted)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def test_a_loaded_server_is_alive_ready_and_healthy(http: httpx.Client) -> None:
    assert http.get("/livez").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "ready"}
    assert http.get("/health").json() == {"status": "ready", "models": [MATRYOSHKA, PLAIN]}
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
