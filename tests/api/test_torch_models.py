"""The server over torch: what a GPU server answers, computed on the CPU by the same code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from server.catalog.card import Card, Dtype
from server.engine.offering import Offering
from server.engine.resident_models import ResidentModels
from server.errors import ModelLoadError
from server.http.app import create_app
from server.inference.backend_kinds import GPU_DTYPES
from server.inference.opening import Opener
from server.inference.placement import Placement
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, client_of

TEXTS = ["Hello, world", "a", "Grüß Gott " * 20]
TorchApp = Callable[..., Awaitable[FastAPI]]


@pytest.fixture
async def torch_app() -> AsyncIterator[TorchApp]:
    """Makes the application over torch on so many devices, which all are this CPU."""
    made: list[FastAPI] = []

    async def make(
        dtype: Dtype | None = None,
        devices: int = 1,
        quick: tuple[Dtype, ...] = GPU_DTYPES,
        **settings: object,
    ) -> FastAPI:
        models = {"model": [MATRYOSHKA, PLAIN], "max_batch_tokens": 512}
        given = Settings(**models | settings)  # type: ignore[arg-type]
        opener = Opener(
            given, Placement(("cpu:0",) * devices, dtype, quick=quick, slowest="an old card")
        )
        app = create_app(given, Offering(ResidentModels.find(given, opener=opener)))
        made.append(app)
        await app.state.services.models.load(app.state.services.metrics)
        return app

    yield make
    for app in made:
        app.state.services.models.close()
        await asyncio.to_thread(app.state.services.models.join)


async def embed(app: FastAPI, **body: object) -> httpx.Response:
    async with client_of(app) as client:
        asked = {"model": PLAIN, "input": TEXTS} | body
        return await client.post("/v1/embeddings", json=asked)


def vectors_of(response: httpx.Response) -> NDArray[np.float64]:
    assert response.status_code == 200, response.text
    return np.array([row["embedding"] for row in response.json()["data"]])


@pytest.mark.parametrize("devices", [1, 2])
async def test_float32_answers_as_the_cpu_server_does(
    torch_app: TorchApp, http: httpx.Client, devices: int
) -> None:
    app = await torch_app("float32", devices)
    for dimensions in (384, 64):
        asked = {"model": MATRYOSHKA, "input": TEXTS, "dimensions": dimensions}
        theirs = await asyncio.to_thread(http.post, "/v1/embeddings", json=asked)
        ours = await embed(app, **asked)
        assert vectors_of(ours).shape == (len(TEXTS), dimensions)
        assert np.abs(vectors_of(ours) - vectors_of(theirs)).max() < 2e-6
        assert ours.json()["usage"] == theirs.json()["usage"]
        name = "x-embedding-fingerprint"
        assert ours.headers[name] == theirs.headers[name]


async def test_half_precision_is_near_and_has_a_fingerprint_of_its_own(
    torch_app: TorchApp, http: httpx.Client, plain_card: Card
) -> None:
    app = await torch_app()
    asked = {"model": PLAIN, "input": TEXTS}
    theirs = vectors_of(await asyncio.to_thread(http.post, "/v1/embeddings", json=asked))
    response = await embed(app)
    assert ((vectors_of(response) * theirs).sum(axis=1) > 0.9999).all()
    fingerprint = response.headers["x-embedding-fingerprint"]
    assert fingerprint == plain_card.computed_in("float16").fingerprint != plain_card.fingerprint
    async with client_of(app) as client:
        model = (await client.get(f"/v1/models/{PLAIN}")).json()
    assert model["fingerprint"] == fingerprint


async def test_on_an_old_card_other_numbers_are_computed_and_that_is_said(
    torch_app: TorchApp, plain_card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    app = await torch_app(quick=("float32",))
    response = await embed(app)
    assert response.headers["x-embedding-fingerprint"] == plain_card.fingerprint
    assert caplog.messages[0] == (
        f"model {PLAIN} is computed in float32, not in float16, since that is not for an old card; "
        "its fingerprint tells"
    )


async def test_every_device_has_its_workers_and_nothing_is_padded(torch_app: TorchApp) -> None:
    app = await torch_app("float32", devices=2)
    answers = await asyncio.gather(*(embed(app, input=TEXTS * 4) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    async with client_of(app) as client:
        page = (await client.get("/metrics")).text
    assert f'replicas_alive{{model="{PLAIN}"}} 4.0' in page
    assert f'padding_tokens_total{{model="{PLAIN}"}} 0.0' in page


async def test_a_machine_that_computes_something_else_does_not_get_ready(
    torch_app: TorchApp,
) -> None:
    with pytest.raises(ModelLoadError, match="setting min_parity"):
        await torch_app("bfloat16", min_parity=0.99999)
