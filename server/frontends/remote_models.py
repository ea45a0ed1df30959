"""The models as a front end has them: tokenizers and rotations here, the rest in the engine process.

Offers what `ServedModels` offers. Lives in the event loop's thread; knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import TOKENIZER_FILE, Card
from server.catalog.registry import Registry
from server.engine.interface import Loaded, ModelState, Phase
from server.engine.on_demand import OnDemand
from server.engine.request_tokenizer import RequestTokenizer
from server.errors import ModelFailing
from server.frontends.channel import Channel, Kind
from server.frontends.messages import (
    EmbedQuestion,
    EngineState,
    RemoteState,
    read_rotation,
    read_vectors,
    write_model,
)
from server.inference.backend import TokenIds
from server.inference.inputs import Inputs
from server.inference.tokenizer import Tokenizer
from server.metrics import Metrics
from server.settings import Settings


class RemoteEngine:
    """Tokenises here and has the engine process compute."""

    def __init__(self, number: int, channel: Channel, tokenizer: RequestTokenizer) -> None:
        self._number = number
        self._channel = channel
        self._tokenizer = tokenizer

    def admit(self, inputs: Inputs, key: str) -> contextlib.nullcontext[str]:
        """Whether there is room is told by `embed`: only the engine process knows."""
        return contextlib.nullcontext(key)

    async def tokenize(
        self, inputs: Inputs, *, prompt: str, truncate: bool, own_token_ids: bool
    ) -> list[TokenIds]:
        """See RequestTokenizer."""
        return await self._tokenizer.tokenize(
            inputs, prompt=prompt, truncate=truncate, own_token_ids=own_token_ids
        )

    async def embed(
        self, token_ids: Sequence[TokenIds], ticket: str
    ) -> tuple[NDArray[np.float32], float, float]:
        """As `Engine.embed`, and raises Overloaded as `Engine.admit`."""
        question = EmbedQuestion(self._number, ticket, token_ids)
        answer = await self._channel.ask(Kind.EMBED, *question.write())
        return read_vectors(answer, len(token_ids))


class RemoteModel:
    """A card, and what a front end needs for it while the engine process has it in memory."""

    def __init__(
        self,
        number: int,
        card: Card,
        channel: Channel,
        tokenizer: OnDemand[RequestTokenizer],
        settings: Settings,
    ) -> None:
        self.card = card
        self.own_token_ids = card.name in settings.model_token_ids
        self.state = RemoteState()
        self.on_demand: OnDemand[Loaded] = OnDemand(card.name, self._load)
        self._number = number
        self._channel = channel
        self._tokenizer = tokenizer

    @property
    def loaded(self) -> Loaded | None:
        """What computes, if it is in memory."""
        return self.on_demand.value

    async def load(self) -> Loaded:
        """Have the engine process load it; see `ServedModel.load`."""
        return await self.on_demand.get()

    def take_over(self, state: RemoteState) -> None:
        """The engine process has told its state."""
        if self.state.loaded and not state.loaded:
            self.on_demand.forget()
        self.state = state

    async def _load(self) -> Loaded:
        answer = await self._channel.ask(Kind.LOAD, write_model(self._number))
        rotation = read_rotation(answer, self.card.embedding_dim)
        tokenizer = await self._tokenizer.get()
        return RemoteEngine(self._number, self._channel, tokenizer), rotation


class RemoteModels:
    """All models that are served, as seen from a front end."""

    def __init__(self, registry: Registry, settings: Settings, channel: Channel) -> None:
        self.registry = registry
        self._in_flight = 0
        self._settings = settings
        self._channel = channel
        self._draining = False
        self._engine = EngineState()
        self._engine_ready = asyncio.Event()
        self._encoders: dict[str, Card] = {}  # by what they compute
        self._tokenizers: dict[str, OnDemand[RequestTokenizer]] = {}
        for card in registry.cards:
            encoder = self._encoders.setdefault(card.encoder_key, card.encoder_card)
            self._tokenizers.setdefault(card.encoder_key, self._tokenizer_of(encoder))
        self._models = {
            card.name: RemoteModel(
                number, card, channel, self._tokenizers[card.encoder_key], settings
            )
            for number, card in enumerate(registry.cards)
        }

    @property
    def encoder_cards(self) -> list[Card]:
        """The card of each encoder."""
        return list(self._encoders.values())

    @property
    def phase(self) -> Phase:
        """The engine process's, unless this front end drains."""
        return Phase.DRAINING if self._draining else self._engine.phase

    @property
    def in_flight(self) -> int:
        """Requests that a drain waits for, one more while other front ends have some.

        All end together: until the last one has answered, each tells who comes that it drains.
        """
        return self._in_flight + self._engine.drains_others

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
            for model in self._models.values():
                await model.load()

    def take_over(self, state: bytes) -> None:
        """The engine process has told its state."""
        self._engine = EngineState.read(state)
        for model, told in zip(self._models.values(), self._engine.models, strict=True):
            model.take_over(told)
        if self._engine.phase is Phase.READY:
            self._engine_ready.set()

    @contextlib.contextmanager
    def work(self, name: str) -> Iterator[RemoteModel]:
        """See `ServedModels.work`."""
        card = self.registry.resolve(name)
        self.phase.check_ready()
        model = self._models[card.name]
        if not model.state.sound:
            raise ModelFailing
        self._in_flight += 1
        try:
            yield model
        finally:
            self._in_flight -= 1

    def states(self) -> list[ModelState]:
        """See `ServedModels.states`."""
        return [
            ModelState(
                model.card,
                encoder_card=self._encoders[model.card.encoder_key],
                loaded=model.state.loaded,
                resident_bytes=model.state.resident_bytes,
                sound=model.state.sound,
            )
            for model in self._models.values()
        ]

    def check_ready(self) -> None:
        """See `ServedModels.check_ready`."""
        self.phase.check_ready()
        if not all(model.state.sound for model in self._models.values()):
            raise ModelFailing

    def drain(self) -> None:
        """Take no new work from now on."""
        self._draining = True

    def close(self) -> None:
        """Answer what is still in flight with Draining."""
        self.drain()
        for model in self._models.values():
            model.on_demand.close()
        for tokenizer in self._tokenizers.values():
            tokenizer.close()
            if tokenizer.value is not None:
                tokenizer.value.close()
        self._channel.give_up()

    def join(self) -> None:
        """Wait for the threads, after `close`."""
        for tokenizer in self._tokenizers.values():
            if tokenizer.value is not None:
                tokenizer.value.join()

    def _tokenizer_of(self, encoder: Card) -> OnDemand[RequestTokenizer]:
        async def load() -> RequestTokenizer:
            # Its bytes are those that the engine process has compared with the card.
            path = encoder.path(TOKENIZER_FILE)
            tokenizer = await asyncio.to_thread(Tokenizer, path, encoder.max_input_tokens)
            most = self._settings.max_request_tokens
            return RequestTokenizer(tokenizer, max_request_tokens=most)

        return OnDemand(encoder.name, load)
