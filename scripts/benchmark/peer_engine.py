"""The server's own engine without HTTP, driven by as many coroutines as there would be clients."""

from __future__ import annotations

import asyncio

import numpy as np

from scripts.benchmark.client import MODEL
from scripts.benchmark.peers import TextPeer, Vectors
from scripts.benchmark.targets import PeerOptions
from server.engine.engine import Engine
from server.engine.offering import Offering
from server.engine.resident_models import ResidentModels
from server.inference.inputs import TextInputs
from server.metrics import Metrics
from server.settings import load_settings


class EnginePeer(TextPeer):
    """An engine with the settings that `embedding-server serve` has by default.

    Only this class of the benchmark knows how an engine is made and asked.
    """

    def __init__(self, options: PeerOptions) -> None:
        super().__init__(options)
        self._loop = asyncio.new_event_loop()
        self._engine = self._loop.run_until_complete(_start(options.device))

    def compute(self, requests: list[list[str]], clients: int) -> Vectors:
        """One request after the other, as many at a time as there are clients."""
        return self._loop.run_until_complete(self._compute(requests, clients))

    async def _compute(self, requests: list[list[str]], clients: int) -> Vectors:
        turn = asyncio.Semaphore(clients)

        async def ask(texts: list[str]) -> Vectors:
            inputs = TextInputs(is_list=True, texts=texts)
            async with turn, self._engine.admit(inputs, key="") as ticket:
                token_ids = await self._engine.tokenize(
                    inputs, prompt="", truncate=False, own_token_ids=False
                )
                return (await self._engine.embed(token_ids, ticket)).vectors

        return np.concatenate(await asyncio.gather(*map(ask, requests)))


async def _start(device: str) -> Engine:
    models = Offering(ResidentModels.find(load_settings({"model": [MODEL], "device": device})))
    await models.load(Metrics([MODEL], [MODEL]))
    engine = (await models.resolve(MODEL).load()).engine
    assert isinstance(engine, Engine)
    return engine
