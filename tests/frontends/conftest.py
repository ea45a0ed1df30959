"""A front end and the engine process's side in one event loop, over a fake forward pass."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from server.engine.interface import Phase
from server.engine.patience import PATIENCE, Patience
from server.engine.served_models import ServedModels
from server.frontends.channel import receive_frame
from server.frontends.engine_service import EngineService, FrontEndLink
from server.frontends.front_end import FrontEnd
from server.frontends.messages import Welcome
from server.frontends.remote_models import RemoteModels
from server.inference.loader import Encoder
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.fakes import FakeBackend, FakeOpener


@dataclass
class Split:
    """Both sides, ready."""

    app: FastAPI
    link: FrontEndLink
    service: EngineService
    models: ServedModels
    metrics: Metrics  # of the engine's side
    opener: FakeOpener

    @property
    def remote(self) -> RemoteModels:
        """The models as the front end has them."""
        models = self.app.state.services.models
        assert isinstance(models, RemoteModels)
        return models

    @property
    def client(self) -> httpx.AsyncClient:
        return client_of(self.app)


class SplitOver(Protocol):
    async def __call__(
        self, backend: FakeBackend, *, patience: Patience = ..., **settings: Any
    ) -> Split: ...


@pytest.fixture
async def split_over(encoder: Encoder) -> AsyncIterator[SplitOver]:
    """Makes the two sides over a forward pass that can be made to fail."""
    made: list[tuple[Split, FakeBackend]] = []
    tasks: list[asyncio.Task[None]] = []

    async def make(
        backend: FakeBackend, *, patience: Patience = PATIENCE, **settings: Any
    ) -> Split:
        given = Settings(**{"model": [PLAIN], "threads": 1, "frontends": 2, **settings})
        opener = FakeOpener(given, encoder.tokenizer, backend)
        models = ServedModels.find(given, opener=opener, patience=patience)
        metrics = Metrics([PLAIN], [PLAIN])
        service = EngineService(models, metrics, given)
        ours, theirs = socket.socketpair()
        link = await service.connect(ours)
        tasks.append(asyncio.create_task(service.keep_telling()))
        welcome = await asyncio.to_thread(receive_frame, theirs)
        assert welcome is not None
        app = FrontEnd(Welcome.read(welcome.content), theirs).app
        split = Split(app, link, service, models, metrics, opener)
        made.append((split, backend))
        loading = asyncio.create_task(split.remote.load(app.state.services.metrics))
        await models.load(metrics)
        await loading
        assert split.remote.phase is Phase.READY
        return split

    yield make
    for task in tasks:
        task.cancel()
    for split, backend in made:
        backend.gate.set()
        split.remote.close()
        split.link.channel.abort()
        await split.link.lost.wait()
        split.models.close()
        await asyncio.to_thread(split.models.join)
        await asyncio.to_thread(split.remote.join)
