"""The engine process's side: answers the questions of the front ends, and tells them its state.

Lives in the event loop's thread, which limits the whole server: little is done for a request.
Knows nothing of HTTP; of a key it knows the id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from server.access.counters import MemoryCounters
from server.engine.admission import Ticket
from server.engine.engine import Engine
from server.engine.interface import LoadedModel
from server.engine.offering import Offering, check_sound
from server.errors import ApiError, StartupError
from server.frontends import messages
from server.frontends.channel import Channel
from server.frontends.framing import BadFrame
from server.frontends.silence import FRONT_END_LOST_TICKS, FRONT_END_START_TICKS, Silence
from server.frontends.summed_metrics import Counted, Samples, Told, samples_of
from server.metrics import Metrics
from server.program.unseen_failures import ignore_failure
from server.settings import Settings

log = logging.getLogger(__name__)

# A model's soundness is also a matter of time (a pass takes too long), which nobody tells: so it is
# looked at. A front end that has old news refuses nothing wrongly for longer than this, and lets
# nothing in: the engine process decides. All other changes are told when they happen, too.
STATE_INTERVAL_S = 0.5


class HeldTicket(NamedTuple):
    """A request that a front end has not sent yet, and what gives its ticket back."""

    ticket: Ticket
    release: contextlib.ExitStack


class FrontEndLink:
    """One front end, as the engine process sees it."""

    def __init__(
        self, service: EngineService, stream: socket.socket, is_at_work: Callable[[], bool]
    ) -> None:
        self.channel = Channel(stream, self._answer, self._told, self._lost)
        # Whether it listens; fails with StartupError if it never will.
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(ignore_failure)
        self.lost = asyncio.Event()
        self.told = Told()  # its metrics
        self.is_lost = False  # it has been silent for too long
        self.tickets: dict[int, HeldTicket] = {}  # by the numbers that it chose
        self._service = service
        self._silence = Silence(is_at_work)

    def tick(self) -> bool:
        """One more tick has gone by; returns whether it is lost since then."""
        most = FRONT_END_LOST_TICKS if self._silence.ever_heard else FRONT_END_START_TICKS
        self._silence.tick()
        was_lost, self.is_lost = self.is_lost, self._silence.has_lasted(most)
        return self.is_lost and not was_lost

    async def _answer(self, question: messages.Question[Any]) -> object:
        service = self._service
        match question:
            case messages.Embed():
                return await service.embed(question, self.tickets)
            case messages.Admit():
                await service.admit(question, self.tickets)
                return None
            case messages.Load():
                return await service.load(question)
            case messages.TakeIfFits():
                return await service.counters.take_if_fits(
                    question.name, question.amount, question.most
                )
            case messages.SamplesOfOthers():
                return service.samples_of_others(self)
        raise BadFrame(f"{type(question).__name__} as a question of a front end")

    def _told(self, message: messages.Message) -> None:
        match message:
            case messages.Alive():
                self._silence.hear()
                self.told.update(message.counted)
            case messages.GiveBack():
                if (held := self.tickets.pop(message.ticket, None)) is not None:
                    held.release.close()
            case messages.Ready() if not self.ready.done():
                self._silence.hear()
                self.ready.set_result(None)
            case messages.CannotStart() if not self.ready.done():
                self.ready.set_exception(StartupError(message.why))
            case _:
                raise BadFrame(f"{type(message).__name__} at the wrong time")

    def _lost(self) -> None:
        while self.tickets:
            self.tickets.popitem()[1].release.close()
        if not self.ready.done():
            self.ready.set_exception(StartupError("a front end ended before it was ready"))
        self._service.forget(self)
        self.lost.set()


class EngineService:
    """What all front ends share."""

    def __init__(self, offering: Offering, metrics: Metrics, settings: Settings) -> None:
        self._offering = offering
        self._metrics = metrics
        self._welcome = messages.Welcome(settings, messages.served_by(offering.registry))
        self._links: list[FrontEndLink] = []
        self._state = self._read_state()
        self._counted_by_gone = Counted()
        self.counters = MemoryCounters()  # of requests and tokens a minute
        offering.tell_changes_to(self._tell_state)

    async def connect(
        self, stream: socket.socket, is_at_work: Callable[[], bool] = lambda: False
    ) -> FrontEndLink:
        """Welcome the front end at the other end of this socket.

        Args:
            is_at_work: see Silence.
        """
        link = FrontEndLink(self, stream, is_at_work)
        await link.channel.open()
        self._links.append(link)
        link.channel.tell(self._welcome)
        link.channel.tell(self._state)
        if self._offering.draining.is_set():  # it was not there when the others were told
            link.channel.tell(messages.Drain())
        return link

    def forget(self, link: FrontEndLink) -> None:
        """A front end is gone."""
        if link in self._links:
            self._links.remove(link)
            self._counted_by_gone.add(link.told.samples())

    def drain(self) -> None:
        """Have all front ends finish what they have, and end; the second call cuts that short."""
        self._offering.drain()
        for link in self._links:
            link.channel.tell(messages.Drain())

    async def tell_state(self) -> None:
        """Tell every front end the state again and again, also that this process goes on."""
        while True:
            self._tell(self._read_state())
            await asyncio.sleep(STATE_INTERVAL_S)

    async def admit(self, asked: messages.Admit, tickets: dict[int, HeldTicket]) -> None:
        """Hold a ticket for a request; see `Engine.admit`."""
        if asked.ticket in tickets:
            raise BadFrame(f"ticket {asked.ticket} once more")
        with contextlib.ExitStack() as release:
            loaded = await self._take(asked.model, release)
            ticket = _engine_of(loaded).admit_tokens(asked.tokens, asked.key)
            release.enter_context(ticket)
            # Nothing is waited for from here on: who cancels finds the ticket or there is none.
            tickets[asked.ticket] = HeldTicket(ticket, release.pop_all())

    async def embed(
        self, asked: messages.Embed, tickets: dict[int, HeldTicket]
    ) -> messages.EmbedAnswer:
        """Vectors for a request's tokens; see `Engine.embed`."""
        sequences = asked.sequences()
        with contextlib.ExitStack() as release:
            engine = _engine_of(await self._take(asked.model, release))
            if asked.ticket is None:
                tokens = sum(map(len, sequences))
                ticket = release.enter_context(engine.admit_tokens(tokens, asked.key))
            elif asked.ticket in tickets:
                ticket = tickets[asked.ticket].ticket
            else:
                raise BadFrame(f"ticket {asked.ticket}, which is not held")
            try:
                vectors, wait_s, compute_s = await engine.embed(sequences, ticket)
                return messages.EmbedAnswer(messages.Matrix.of(vectors), wait_s, compute_s)
            except ApiError:
                self._tell_state()  # if the model has failed, at once
                raise

    async def load(self, asked: messages.Load) -> messages.Matrix | None:
        """The rotation of a model that is in memory then; see `OfferedModel.load`."""
        with contextlib.ExitStack() as release:
            rotation = (await self._take(asked.model, release)).rotation
            return None if rotation is None else messages.Matrix.of(rotation)

    def samples_of_others(self, asking: FrontEndLink) -> list[Samples]:
        """The metrics of all processes but the one that asks, and of those that are gone."""
        mine = samples_of(self._metrics.families(), alike=self._metrics.alike)
        others = [link.told.samples() for link in self._links if link is not asking]
        return [mine, self._counted_by_gone.samples(), *others]

    async def _take(self, number: int, release: contextlib.ExitStack) -> LoadedModel:
        """A front end's request for this model, in flight until `release` is closed.

        A drain lets it in: the front end has taken it before.
        """
        models = self._offering.models
        if not 0 <= number < len(models):
            raise BadFrame(f"a question about model number {number}")
        model = models[number]
        check_sound(model)
        release.enter_context(self._offering.request_taken(model))
        return model.loaded or await model.load()

    def _tell_state(self) -> None:
        state = self._read_state()
        if state != self._state:
            self._tell(state)

    def _tell(self, state: messages.EngineState) -> None:
        self._state = state
        for link in self._links:
            link.channel.tell(state)

    def _read_state(self) -> messages.EngineState:
        offering = self._offering
        return messages.EngineState(
            is_ready=offering.is_ready,
            models=[model.state for model in offering.models],
            drains_elsewhere=offering.draining.is_set() and offering.in_flight > 0,
        )


def _engine_of(loaded: LoadedModel) -> Engine:
    assert isinstance(loaded.engine, Engine)  # no front end has front ends
    return loaded.engine
