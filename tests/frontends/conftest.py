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

from server.engine import served_encoder
from server.engine.interface import Phase
from server.engine.served_models import ServedModels
from server.frontends import front_end
from server.frontends.channel import receive_frame
from server.frontends.engine_service import EngineService, FrontEndLink
from server.frontends.front_end import FrontEnd
from server.frontends.messages import Welcome
from server.inference.loader import Encoder
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.fakes import FAKE_DIM, FakeBackend


@dataclass
class Split:
    """Both sides, ready."""

    app: FastAPI
    front_end: FrontEnd
    link: FrontEndLink
    models: ServedModels
    metrics: Metrics  # of the engine's side

    @property
    def client(self) -> httpx.AsyncClient:
        return client_of(self.app)


class SplitOver(Protocol):
    async def __call__(self, backend: FakeBackend, **settings: Any) -> Split: ...


@pytest.fixture
async def split_over(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SplitOver]:
    """Makes the two sides over a forward pass that can be made to fail."""
    made: list[tuple[Split, FakeBackend]] = []
    tasks: list[asyncio.Task[None]] = []

    async def make(backend: FakeBackend, **settings: Any) -> Split:
        fake = Encoder(encoder.tokenizer, backend, FAKE_DIM)
        monkeypatch.setattr(served_encoder, "load_encoder", lambda card, **options: fake)
        monkeypatch.setattr(front_end, "ORPHANED_TIMEOUT_S", 3600)  # it would end the tests
        given = Settings(**{"model": [PLAIN], "threads": 1, "frontends": 2, **settings})
        models, metrics = ServedModels.find(given), Metrics([PLAIN], [PLAIN])
        service = EngineService(models, metrics, given)
        ours, theirs = socket.socketpair()
        link = await service.connect(ours)
        tasks.append(asyncio.create_task(service.keep_telling()))
        welcome = await asyncio.to_thread(receive_frame, theirs)
        assert welcome is not None
        far = FrontEnd(Welcome.read(welcome.content), theirs)
        app = far._app
        made.append((Split(app, far, link, models, metrics), backend))
        loading = asyncio.create_task(far._models.load(app.state.services.metrics))
        await models.load(metrics)
        await loading
        assert far._models.phase is Phase.READY
        return made[-1][0]

    yield make
    for task in tasks:
        task.cancel()
    for split, backend in made:
        backend.gate.set()
        split.front_end._models.close()
        split.front_end._server.should_exit = True
        split.link.channel.abort()
        await split.link.lost.wait()
        split.models.close()
        await asyncio.to_thread(split.models.join)
        await asyncio.to_thread(split.front_end._models.join)
