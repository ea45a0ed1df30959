"""The server in low precision on a CPU: both models over HTTP, and the Python API beside it."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import Dtype
from server.catalog.registry import Registry
from server.engine.offering import Offering
from server.engine.resident_models import ResidentModels
from server.errors import SettingError
from server.http.app import create_app
from server.inference.cpu_instructions import quick_dtypes
from server.offline.embedder import Embedder
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, client_of

TEXTS = ["Hello, world", "a", "Grüß Gott " * 20, "What is the capital of France?"]


async def vectors_of(client: httpx.AsyncClient, model: str, *texts: str) -> NDArray[np.float64]:
    answer = await client.post("/v1/embeddings", json={"model": model, "input": texts})
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
async def test_both_models_are_served_in_a_low_precision_and_the_fingerprint_tells(
    dtype: Dtype, registry: Registry, http: httpx.Client
) -> None:
    settings = Settings(device="cpu", dtype=dtype, model=[MATRYOSHKA, PLAIN], threads=2)
    if dtype not in quick_dtypes():
        with pytest.raises(SettingError, match=f"no instructions for {dtype}"):
            ResidentModels.find(settings)
        return
    app = create_app(settings, Offering(ResidentModels.find(settings)))
    models = app.state.services.models
    try:
        await models.load(app.state.services.metrics)
        async with client_of(app) as client:
            told = (await client.get("/v1/models")).json()["data"]
            expected = [registry.resolve(name).computed_in(dtype) for name in (MATRYOSHKA, PLAIN)]
            assert [one["fingerprint"] for one in told] == [one.fingerprint for one in expected]
            together = await vectors_of(client, PLAIN, *TEXTS)
            alone = await asyncio.gather(*(vectors_of(client, PLAIN, text) for text in TEXTS))
            assert np.concatenate(alone).tobytes() == together.tobytes()
            turned = await vectors_of(client, MATRYOSHKA, *TEXTS)
    finally:
        models.close()
        await asyncio.to_thread(models.join)
    asked = {"model": PLAIN, "input": TEXTS}
    exact = await asyncio.to_thread(http.post, "/v1/embeddings", json=asked)
    theirs = np.array([row["embedding"] for row in exact.json()["data"]])
    # Also not nearer: vectors in float32 would be.
    low, high = (0.9999, 0.999999) if dtype == "bfloat16" else (0.99, 0.9998)
    assert low < (together * theirs).sum(axis=1).min() < high
    np.testing.assert_allclose(turned @ turned.T, together @ together.T, atol=1e-5)


def test_the_python_api_computes_in_int8() -> None:
    if "int8" not in quick_dtypes():
        with pytest.raises(SettingError, match="no instructions for int8"):
            Embedder.open(PLAIN, device="cpu", dtype="int8")
        return
    with Embedder.open(PLAIN, device="cpu", dtype="int8") as quick, Embedder.open(PLAIN) as exact:
        near = (quick.embed(TEXTS) * exact.embed(TEXTS)).sum(axis=1)
    assert 0.99 < near.min() < 0.9998
