"""The models as a front end has them: tokenizers and rotations here, the rest in the engine process.

Lives in the event loop's thread; knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.catalog.registry import Registry
from server.engine.interface import LoadedModel, ModelState
from server.engine.offering import OfferedModel
from server.engine.on_demand import OnDemand
from server.engine.request_tokenizer import RequestTokenizer
from server.errors import EngineSilent
from server.frontends.channel import Channel
from server.frontends.framing import BadFrame
from server.frontends.messages import Admit, Embed, EngineState, GiveBack, Load
from server.frontends.silence import ENGINE_LOST_TICKS, ENGINE_SILENT_TICKS, TICK_S, Silence
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs
from server.inference.tokenizer import Tokenizer
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)


class RemoteTicket(NamedTuple):
    """A request that may be embedded; see `Engine.admit`."""

    key: str
    number: int | None  # of the ticket that the engine process holds for it, if it does


class RemoteEngine:
    """Tokenises here and has the engine process compute.

    Args:
        model: its place in `Welcome.served`.
        numbers: of tickets, each used once on this channel.
    """

    def __init__(
        self,
        model: int,
        channel: Channel,
        tokenizer: RequestTokenizer,
        numbers: Iterator[int],
    ) -> None:
        self._model = model
        self._channel = channel
        self._tokenizer = tokenizer
        self._numbers = numbers

    @contextlib.asynccontextmanager
    async def admit(self, inputs: Inputs, key: str) -> AsyncIterator[RemoteTicket]:
        """Let a request in: here if tokenising costs little, `embed` asks then for its tokens.

        Any other is refused before it is tokenised, or a flood of them would take the machine.

        Raises:
            ApiError: those of `Engine.admit`, and of loading.
        """
        if self._tokenizer.costs_little(inputs):
            yield RemoteTicket(key, None)
            return
        number = next(self._numbers)
        tokens = self._tokenizer.estimate(inputs)
        try:
            await self._channel.ask(Admit(self._model, key, tokens, number))
            yield RemoteTicket(key, number)
        finally:  # also when cancelled while asking: the ticket may be on its way
            self._channel.tell(GiveBack(number))

    async def tokenize(
        self, inputs: Inputs, *, prompt: str, truncate: bool, own_token_ids: bool
    ) -> list[TokenIds]:
        """See RequestTokenizer."""
        return await self._tokenizer.tokenize(
            inputs, prompt=prompt, truncate=truncate, own_token_ids=own_token_ids
        )

    async def embed(
        self, token_ids: Sequence[TokenIds], ticket: RemoteTicket
    ) -> tuple[NDArray[np.float32], float, float]:
        """As `Engine.embed`; may raise Overloaded if it was not asked before."""
        question = Embed.of(self._model, ticket.key, ticket.number, token_ids)
        answer = await self._channel.ask(question)
        return answer.vectors.array(), answer.wait_s, answer.compute_s


class RemoteModels:
    """The Source of a front end.

    Args:
        engine_at_work: see Silence.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        channel: Channel,
        engine_at_work: Callable[[], bool] = lambda: False,
    ) -> None:
        self.registry = registry
        self._settings = settings
        self._channel = channel
        self._engine = EngineState()
        self._silence = Silence(engine_at_work)
        self._engine_ready = asyncio.Event()
        self._ticket_numbers = itertools.count()
        encoders: dict[str, Card] = {}  # by what they compute
        self._tokenizers: dict[str, OnDemand[RequestTokenizer]] = {}
        for card in registry.cards:
            encoder = encoders.setdefault(card.encoder_key, card.encoder_card)
            self._tokenizers.setdefault(card.encoder_key, self._tokenizer_of(encoder))
        self.models = [
            OfferedModel(
                card,
                encoders[card.encoder_key],
                functools.partial(self._open_model, number, card),
                functools.partial(self._state, number),
                own_token_ids=card.name in settings.model_token_ids,
            )
            for number, card in enumerate(registry.cards)
        ]

    @property
    def is_ready(self) -> bool:
        """Whether the engine process is."""
        return self._engine.is_ready

    @property
    def answers(self) -> bool:
        """Whether the engine process has been heard lately."""
        return self._silence.ticks < ENGINE_SILENT_TICKS

    @property
    def silent_s(self) -> float:
        """How old the state of the engine process is, in ticks of this process."""
        return self._silence.ticks * TICK_S

    @property
    def drains_elsewhere(self) -> bool:
        """Whether other front ends still have requests in flight while all drain."""
        return self._engine.drains_elsewhere

    async def load(self, metrics: Metrics) -> None:
        """Open the channel, and turn ready once the engine process is.

        Raises:
            StartupError: a tokenizer cannot be used.
        """
        await self._channel.open()
        if not self._settings.lazy:
            for tokenizer in self._tokenizers.values():
                await tokenizer.load()
        await self._engine_ready.wait()
        if not self._settings.lazy:
            for model in self.models:
                await model.on_demand.load()

    def update(self, engine: EngineState) -> None:
        """The engine process has told its state.

        Raises:
            BadFrame: it is not that of these models.
        """
        if len(engine.models) != len(self.models):
            raise BadFrame(f"the state of {len(engine.models)} models")
        if not self.answers:
            log.warning("the engine process answers again, after %.0f s", self.silent_s)
            self._channel.accept_questions()
        self._silence.hear()
        before, self._engine = self._engine, engine
        for model, was, told in zip(self.models, before.models, engine.models, strict=False):
            if was.loaded and not told.loaded:
                model.on_demand.forget()
        if engine.is_ready:
            self._engine_ready.set()

    def tick(self) -> bool:
        """One more tick has gone by.

        Requests that the engine process has are answered with EngineSilent once it has been silent
        for too long, and no more are sent.

        Returns:
            Whether it is lost. At the start it may be silent for long: it loads libraries.
        """
        if not self._engine.is_ready:
            return False
        ticks = self._silence.tick()
        if ticks == ENGINE_SILENT_TICKS:
            log.error("the engine process is silent for %.0f s: requests get 503", self.silent_s)
            self._channel.refuse_questions(EngineSilent)
        return self._silence.has_lasted(ENGINE_LOST_TICKS)

    def close(self) -> None:
        """Answer what is still in flight with Draining."""
        for model in self.models:
            model.on_demand.close()
        for tokenizer in self._tokenizers.values():
            tokenizer.close()
            if tokenizer.value is not None:
                tokenizer.value.close()
        self._channel.withdraw_questions()

    def join(self) -> None:
        """Wait for the threads, after `close`."""
        for tokenizer in self._tokenizers.values():
            if tokenizer.value is not None:
                tokenizer.value.join()

    def _state(self, number: int, _: OfferedModel) -> ModelState:
        told = self._engine.models
        return told[number] if told else ModelState()

    async def _open_model(self, number: int, card: Card) -> LoadedModel:
        rotation = await self._channel.ask(Load(number))
        tokenizer = await self._tokenizers[card.encoder_key].get()
        engine = RemoteEngine(number, self._channel, tokenizer, self._ticket_numbers)
        return LoadedModel(engine, None if rotation is None else rotation.array())

    def _tokenizer_of(self, encoder: Card) -> OnDemand[RequestTokenizer]:
        async def load() -> RequestTokenizer:
            # Its bytes are those that the engine process has compared with the card.
            tokenizer = await asyncio.to_thread(Tokenizer.of, encoder)
            most = self._settings.max_request_tokens
            return RequestTokenizer(tokenizer, max_request_tokens=most)

        return OnDemand(encoder.name, load)
