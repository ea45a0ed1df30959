"""The server's own engine without HTTP, driven by as many coroutines as there would be clients."""

from __future__ import annotations

import asyncio

import numpy as np

from scripts.benchmark.client import MODEL
from scripts.benchmark.peers import TextPeer, Vectors
from scripts.benchmark.targets import PeerOptions
from server.engine.engine import Engine
from server.engine.served_models import ServedModels
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
        """Each client asks for one request after the other."""
        return self._loop.run_until_complete(self._serve(requests, clients))

    async def _serve(self, requests: list[list[str]], clients: int) -> Vectors:
        waiting = iter(enumerate(requests))
        vectors: dict[int, Vectors] = {}

        async def client() -> None:
            for number, texts in waiting:
                vectors[number] = await self._ask(TextInputs(is_list=True, texts=texts))

        await asyncio.gather(*(client() for _ in range(clients)))
        return np.concatenate([vectors[number] for number in range(len(requests))])

    async def _ask(self, inputs: TextInputs) -> Vectors:
        with self._engine.admit(inputs, key="") as ticket:
            token_ids = await self._engine.tokenize(
                inputs, prompt="", truncate=False, own_token_ids=False
            )
            return (await self._engine.embed(token_ids, ticket)).vectors


async def _start(device: str) -> Engine:
    models = ServedModels.find(load_settings({"model": [MODEL], "device": device}))
    await models.load(Metrics([MODEL], [MODEL]))
    return (await models.resolve(MODEL).on_demand.get()).engine
