"""The application under a server that is not ours, which drives its lifespan and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import FastAPI

from server.engine.interface import Phase
from server.engine.offering import Offering
from server.engine.resident_models import ResidentModels
from server.http.app import create_app
from server.inference.loader import Encoder
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.fakes import FakeBackend, FakeOpener
from tests.waiting import until

BODY = {"model": PLAIN, "input": "a text"}


class Hosted:
    """The application over a forward pass that waits for its gate."""

    def __init__(self, encoder: Encoder, **settings: Any) -> None:
        self.backend = FakeBackend()
        given = Settings(model=[PLAIN], threads=1, check_files="off", **settings)
        opener = FakeOpener(given, encoder.tokenizer, self.backend)
        self.offering = Offering(ResidentModels.find(given, opener=opener))
        self.app: FastAPI = create_app(given, self.offering)
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Begin, and end once `stop` is set."""
        async with self.app.router.lifespan_context(self.app):
            await self.stop.wait()

    async def in_flight(self, client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
        """A request that computes until the gate is opened."""
        await until(lambda: self.offering.phase is Phase.READY)
        self.backend.gate.clear()
        passes = len(self.backend.shapes)
        answer = asyncio.create_task(client.post("/v1/embeddings", json=BODY))
        await until(lambda: len(self.backend.shapes) > passes)
        return answer


async def test_the_end_of_the_lifespan_finishes_what_is_in_flight(encoder: Encoder) -> None:
    hosted = Hosted(encoder)
    running = asyncio.create_task(hosted.run())
    async with client_of(hosted.app) as client:
        answer = await hosted.in_flight(client)
        hosted.stop.set()
        await until(lambda: hosted.offering.phase is Phase.DRAINING)
        refused = await client.post("/v1/embeddings", json=BODY)
        assert refused.json()["error"]["code"] == "server_draining"
        await asyncio.sleep(0.05)
        assert not running.done()
        hosted.backend.gate.set()
        assert (await answer).status_code == 200
        await asyncio.wait_for(running, 10)


async def test_the_end_of_the_lifespan_waits_no_longer_than_the_setting_says(
    encoder: Encoder,
) -> None:
    hosted = Hosted(encoder, drain_timeout_s=0.1)
    running = asyncio.create_task(hosted.run())
    async with client_of(hosted.app) as client:
        computing = await hosted.in_flight(client)
        waiting = asyncio.create_task(client.post("/v1/embeddings", json=BODY))
        await until(lambda: hosted.offering.in_flight == 2)
        hosted.stop.set()
        assert (await waiting).json()["error"]["code"] == "server_draining"
        await asyncio.wait_for(running, 10)
        hosted.backend.gate.set()
        assert (await computing).status_code == 200
