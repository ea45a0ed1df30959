"""A front end and the engine process's side in one event loop, over a fake forward pass."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from server.engine.interface import ModelState, Phase
from server.engine.offering import Offering
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_models import ResidentModels
from server.frontends.engine_service import EngineService, FrontEndLink
from server.frontends.framing import receive_frame
from server.frontends.front_end import FrontEnd
from server.frontends.messages import Welcome
from server.frontends.wire import read_message
from server.inference.loader import Encoder
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.fakes import FakeBackend, FakeOpener


@dataclass
class Split:
    """Both sides, ready; the engine's, and one front end or more."""

    service: EngineService
    models: Offering
    metrics: Metrics
    opener: FakeOpener
    apps: list[FastAPI] = field(default_factory=list)
    links: list[FrontEndLink] = field(default_factory=list)
    front_ends: list[FrontEnd] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)  # what front ends have ended, and how

    @property
    def app(self) -> FastAPI:
        """The first front end's."""
        return self.apps[0]

    @property
    def link(self) -> FrontEndLink:
        """The first front end's."""
        return self.links[0]

    @property
    def remote(self) -> Offering:
        """The models as the front end has them."""
        models = self.app.state.services.models
        assert isinstance(models, Offering)
        return models

    def told(self) -> ModelState:
        """What the front end knows of the plain model."""
        return self.remote.models[0].state

    @property
    def client(self) -> httpx.AsyncClient:
        return client_of(self.app)

    async def another_app(self) -> FastAPI:
        """One more front end, ready; with the first one the engine loads."""
        ours, theirs = socket.socketpair()
        self.links.append(await self.service.connect(ours))
        front_end = FrontEnd(
            await welcomed(theirs),
            theirs,
            on_orphaned=lambda: self.ends.append("itself"),
            on_engine_lost=lambda: self.ends.append("the engine process"),
        )
        self.front_ends.append(front_end)
        app = front_end.app
        self.apps.append(app)
        loading = app.state.services.models.load(app.state.services.metrics)
        if self.models.phase is Phase.LOADING:
            await asyncio.gather(loading, self.models.load(self.metrics))
        else:
            await loading
        return app


class SplitOver(Protocol):
    async def __call__(
        self, backend: FakeBackend, *, patience: Patience = ..., **settings: Any
    ) -> Split: ...


async def welcomed(stream: socket.socket) -> Welcome:
    """The first message that a front end gets."""
    first = await asyncio.to_thread(receive_frame, stream)
    assert first is not None
    welcome = read_message(first.content)
    assert isinstance(welcome, Welcome)
    return welcome


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
        models = Offering(ResidentModels.find(given, opener=opener, patience=patience))
        metrics = Metrics([PLAIN], [PLAIN])
        service = EngineService(models, metrics, given)
        tasks.append(asyncio.create_task(service.tell_state()))
        split = Split(service, models, metrics, opener)
        made.append((split, backend))
        await split.another_app()
        assert split.remote.phase is Phase.READY
        return split

    yield make
    for task in tasks:
        task.cancel()
    for split, backend in made:
        backend.gate.set()
        for app, link in zip(split.apps, split.links, strict=True):
            app.state.services.models.close()
            link.channel.abort()
            await link.lost.wait()
            await asyncio.to_thread(app.state.services.models.join)
        split.models.close()
        await asyncio.to_thread(split.models.join)
