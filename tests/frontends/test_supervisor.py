"""Which front ends are replaced; what processes do is shown in `test_processes`."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from server.engine.offering import Offering
from server.engine.resident_models import ResidentModels
from server.frontends import supervisor as supervising
from server.frontends.engine_service import EngineService
from server.frontends.supervisor import FrontEndProcess, Supervisor
from server.inference.loader import Encoder
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import PLAIN
from tests.fakes import FakeBackend, FakeOpener


def process_that_ends() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ""])


class Watched(Supervisor):
    """Starts processes that end at once; the test says how far each one came."""

    def __init__(self, settings: Settings, offering: Offering) -> None:
        super().__init__(settings, offering, [])
        self.started: list[FrontEndProcess] = []
        self.service = EngineService(offering, Metrics([PLAIN], [PLAIN]), settings)

    async def _start_front_end(self, number: int) -> FrontEndProcess:
        ours, theirs = socket.socketpair()
        started = FrontEndProcess(process_that_ends(), await self.service.connect(ours))
        asyncio.get_running_loop().call_soon(theirs.close)
        self._running[number] = started
        self.started.append(started)
        if len(self.started) == 4:
            self._offering.drain()
        return started

    async def keep_the_first(self, *, is_ready: bool, serves: bool) -> int:
        """Keep a front end until it is given up or the server stops; returns how many were started.

        Args:
            is_ready: whether all models are loaded, and all front ends listen.
            serves: whether the first one listened before it ended.
        """
        self._is_ready = is_ready
        first = await self._start_front_end(0)
        if serves:
            first.link.ready.set_result(None)
        await self._keep(0, first)
        return len(self.started)


@pytest.fixture
async def watched(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(supervising, "RESTART_DELAY_S", 0.001)
    settings = Settings(model=[PLAIN], threads=1, frontends=2)
    opener = FakeOpener(settings, encoder.tokenizer, FakeBackend())
    offering = Offering(ResidentModels.find(settings, opener=opener))
    yield Watched(settings, offering)
    offering.close()
    await asyncio.to_thread(offering.join)


@pytest.mark.parametrize("is_ready", [True, False], ids=["serving", "loading"])
async def test_whoever_takes_another_ones_place_is_replaced_also_if_it_cannot_start(
    watched: Watched, is_ready: bool
) -> None:
    assert await watched.keep_the_first(is_ready=is_ready, serves=True) == 4


async def test_where_the_first_cannot_start_the_server_does_not_try_again(watched: Watched) -> None:
    assert await watched.keep_the_first(is_ready=False, serves=False) == 1
