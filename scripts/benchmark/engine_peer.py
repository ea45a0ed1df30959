"""The server's own engine without HTTP, driven by as many coroutines as there would be clients."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from server.engine.engine import Engine
from server.engine.offering import Offering
from server.engine.resident_models import ResidentModels
from server.inference.inputs import TextInputs
from server.metrics import Metrics
from server.settings import load_settings

MODEL = "all-MiniLM-L6-v2"


class EnginePeer:
    """An engine with the settings that `embedding-server serve` has by default.

    Only this class of the benchmark knows how an engine is made and asked.

    Args:
        device: as the setting of this name.
    """

    def __init__(self, device: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._engine = self._loop.run_until_complete(_start(device))

    def embed(self, requests: list[list[str]], clients: int) -> NDArray[np.float32]:
        """Vectors of all texts in order; each client asks for one request after the other."""
        return self._loop.run_until_complete(self._serve(requests, clients))

    async def _serve(self, requests: list[list[str]], clients: int) -> NDArray[np.float32]:
        waiting = iter(enumerate(requests))
        vectors: dict[int, NDArray[np.float32]] = {}

        async def client() -> None:
            for number, texts in waiting:
                vectors[number] = await self._ask(TextInputs(is_list=True, texts=texts))

        await asyncio.gather(*(client() for _ in range(clients)))
        return np.concatenate([vectors[number] for number in range(len(requests))])

    async def _ask(self, inputs: TextInputs) -> NDArray[np.float32]:
        async with self._engine.admit(inputs, key="") as ticket:
            token_ids = await self._engine.tokenize(
                inputs, prompt="", truncate=False, own_token_ids=False
            )
            return (await self._engine.embed(token_ids, ticket)).vectors


async def _start(device: str) -> Engine:
    models = Offering(ResidentModels.find(load_settings({"model": [MODEL], "device": device})))
    await models.load(Metrics([MODEL], [MODEL]))
    engine = (await models.resolve(MODEL).load()).engine
    assert isinstance(engine, Engine)
    return engine
