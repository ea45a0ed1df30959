"""The engine process's side: answers the questions of the front ends, and tells them its state.

Lives in the event loop's thread, which limits the whole server: little is done for a request.
Knows nothing of HTTP; of a key it knows the id.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from typing import TYPE_CHECKING

import orjson

from server.engine.served_models import ServedModels
from server.errors import ApiError, StartupError
from server.frontends.channel import BadFrame, Channel, Kind, Parts
from server.frontends.messages import (
    EmbedQuestion,
    EngineState,
    Welcome,
    read_amount,
    read_model,
    served_by,
    write_counter,
    write_rotation,
    write_vectors,
)
from server.frontends.summed_metrics import Counted, Samples, samples_of
from server.metrics import Metrics
from server.settings import Settings

if TYPE_CHECKING:
    from server.access.counters import Counters

log = logging.getLogger(__name__)

# How often it is looked whether there is a new state to tell: soundness also changes with time.
STATE_INTERVAL_S = 0.1
# A front end that does not tell its metrics in time is shown as it was before.
SAMPLES_TIMEOUT_S = 2.0


class FrontEndLink:
    """One front end, as the engine process sees it."""

    def __init__(self, service: EngineService, stream: socket.socket) -> None:
        self.channel = Channel(stream, self._answer, self._told, self._lost)
        # Whether it listens; fails with StartupError if it never will.
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_take_notice)
        self.lost = asyncio.Event()
        self.samples: Samples = []  # as it told them last
        self._service = service

    async def ask_samples(self) -> Samples:
        """Its metrics now, or as they were if it does not answer."""
        try:
            async with asyncio.timeout(SAMPLES_TIMEOUT_S):
                self.samples = orjson.loads(await self.channel.ask(Kind.SAMPLES))
        except (ApiError, TimeoutError):  # it is about to end, or busy
            log.warning("a front end does not tell its metrics")
        return self.samples

    async def _answer(self, kind: Kind, content: bytes) -> Parts:
        service = self._service
        match kind:
            case Kind.EMBED:
                return await service.embed(content)
            case Kind.LOAD:
                return await service.load(content)
            case Kind.COUNT:
                return (write_counter(*await service.counters.count(*read_amount(content))),)
            case Kind.LOOK:
                return (write_counter(*await service.counters.look(read_amount(content)[0])),)
            case Kind.SAMPLES_OF_OTHERS:
                self.samples = orjson.loads(content)
                return (orjson.dumps(await service.samples_of_others(self)),)
        raise BadFrame(f"a question of kind {kind.name}")

    def _told(self, kind: Kind, content: bytes) -> None:
        if kind is Kind.READY and not self.ready.done():
            self.ready.set_result(None)
        elif kind is Kind.CANNOT_START and not self.ready.done():
            self.ready.set_exception(StartupError(content.decode()))
        else:
            raise BadFrame(f"a frame of kind {kind.name} at the wrong time")

    def _lost(self) -> None:
        if not self.ready.done():
            self.ready.set_exception(StartupError("a front end ended before it was ready"))
        self._service.forget(self)
        self.lost.set()


class EngineService:
    """What all front ends share."""

    def __init__(self, models: ServedModels, metrics: Metrics, settings: Settings) -> None:
        self._models = models
        self._metrics = metrics
        self._names = [card.name for card in models.registry.cards]
        self._welcome = Welcome(settings, served_by(models.registry)).write()
        self._links: list[FrontEndLink] = []
        self._draining = False
        self._state = self._read_state()
        self._counted_by_gone = Counted()

    @functools.cached_property
    def counters(self) -> Counters:
        """Where requests and tokens a minute are counted; without a key that has limits, nowhere."""
        from server.access.counters import StorageCounters

        return StorageCounters()

    async def connect(self, stream: socket.socket) -> FrontEndLink:
        """Welcome the front end at the other end of this socket."""
        link = FrontEndLink(self, stream)
        await link.channel.open()
        self._links.append(link)
        link.channel.tell(Kind.WELCOME, self._welcome)
        link.channel.tell(Kind.STATE, self._state)
        if self._draining:  # it was not there when the others were told
            link.channel.tell(Kind.DRAIN)
        return link

    def forget(self, link: FrontEndLink) -> None:
        """A front end is gone."""
        if link in self._links:
            self._links.remove(link)
            self._counted_by_gone.add(link.samples)

    def drain(self) -> None:
        """Have all front ends finish what they have, and end; the second call cuts that short."""
        self._draining = True
        self._tell_state()
        for link in self._links:
            link.channel.tell(Kind.DRAIN)

    async def keep_telling(self) -> None:
        """Tell every front end the state whenever it changes."""
        while True:
            self._tell_state()
            await asyncio.sleep(STATE_INTERVAL_S)

    async def embed(self, content: bytes) -> Parts:
        """Vectors for a request's tokens; see `Engine.embed`."""
        asked = EmbedQuestion.read(content)
        with self._models.work(self._name(asked.model)) as model:
            engine, _ = model.loaded or await model.load()
            with engine.admit_tokens(sum(map(len, asked.token_ids)), asked.key) as ticket:
                return write_vectors(*await engine.embed(asked.token_ids, ticket))

    async def load(self, content: bytes) -> Parts:
        """The rotation of a model that is in memory then; see `ServedModel.load`."""
        with self._models.work(self._name(read_model(content))) as model:
            _, rotation = model.loaded or await model.load()
            self._tell_state()
            return write_rotation(rotation)

    async def samples_of_others(self, asking: FrontEndLink) -> list[Samples]:
        """The metrics of all processes but the one that asks, and of those that are gone."""
        others = [link.ask_samples() for link in self._links if link is not asking]
        told = await asyncio.gather(*others)
        return [samples_of(self._metrics), self._counted_by_gone.samples(), *told]

    def _name(self, number: int) -> str:
        if number >= len(self._names):
            raise BadFrame(f"a question about model number {number}")
        return self._names[number]

    def _tell_state(self) -> None:
        state = self._read_state()
        if state != self._state:
            self._state = state
            for link in self._links:
                link.channel.tell(Kind.STATE, state)

    def _read_state(self) -> bytes:
        busy = self._draining and self._models.in_flight > 0
        state = EngineState.of(self._models.phase, self._models.states(), drains_others=busy)
        return state.write()


def _take_notice(ready: asyncio.Future[None]) -> None:
    """Nobody may look at a failure; asyncio would log that."""
    if not ready.cancelled():
        ready.exception()
