"""The models of this process: which there are, whether they are ready, and their life's phases.

Lives in the event loop's thread. Knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.catalog.registry import Registry, read_registry
from server.catalog.verify import check_present
from server.engine.engine import Engine, warm_up
from server.errors import Draining, ModelFailing, ModelLoading, SettingError
from server.inference.cpu_cores import usable_cores
from server.inference.loader import Encoder, load_encoder, load_rotation
from server.metrics import EngineMetrics, Metrics
from server.settings import Settings


class Phase(enum.Enum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A card, the engine that computes for it, and its rotation (embedding_dim, embedding_dim)."""

    card: Card
    engine: Engine
    rotation: NDArray[np.float32] | None
    own_token_ids: bool


class ServedModels:
    """All models that are served; cards with the same base share one engine."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self.phase = Phase.LOADING
        self.in_flight = 0  # requests that a drain waits for
        self._settings = settings
        self._hash_files = settings.check_files == "full"
        self._models: dict[str, ServedModel] = {}
        self._engines: dict[str, Engine] = {}  # by the encoder's name
        self._reading: dict[str, Future[Encoder]] = {}

    @classmethod
    def find(cls, settings: Settings) -> ServedModels:
        """The models that the settings name, their files there unless `check_files` is off.

        Raises:
            StartupError: a card, a file or a setting is missing or wrong.
        """
        registry = read_registry(*settings.model_folders()).select(settings.model)
        if settings.check_files != "off":
            for card in registry.cards:
                check_present(card)
        unserved = set(settings.model_token_ids) - {card.name for card in registry.cards}
        if unserved:
            raise SettingError(f"setting model_token_ids: {min(unserved)} is not a served model")
        return cls(registry, settings)

    def start_reading(self) -> None:
        """Begin to read the models from disk, in threads; `load` waits for them.

        Callable before there is an event loop: the rest of the start needs the time as well.
        """
        encoders = {card.encoder.name: card.encoder for card in self.registry.cards}
        threads = ThreadPoolExecutor(thread_name_prefix="read-model")
        self._reading = {
            name: threads.submit(
                _load_and_warm_up,
                card,
                wide_threads=_threads(self._settings),
                hash_files=self._hash_files,
            )
            for name, card in encoders.items()
        }
        threads.shutdown(wait=False)

    async def load(self, metrics: Metrics) -> None:
        """Read every model from disk, off the event loop, and turn ready.

        Raises:
            StartupError: a file is wrong or cannot be used.
        """
        if not self._reading:
            self.start_reading()
        for name, reading in self._reading.items():
            self._engines[name] = Engine(
                await asyncio.wrap_future(reading),
                EngineMetrics(metrics, name),
                threads=_threads(self._settings),
                max_batch_tokens=self._settings.max_batch_tokens,
                max_request_tokens=self._settings.max_request_tokens,
                max_queue_tokens=self._settings.max_queue_tokens,
                max_wait_s=self._settings.max_wait_s,
            )
        for card in self.registry.cards:
            self._models[card.name] = ServedModel(
                card=card,
                engine=self._engines[card.encoder.name],
                rotation=await asyncio.to_thread(load_rotation, card, hash_files=self._hash_files),
                own_token_ids=card.name in self._settings.model_token_ids,
            )
        self._reading.clear()
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    @contextlib.contextmanager
    def work(self, name: str) -> Iterator[ServedModel]:
        """The model with this name or alias; what happens inside is in flight until it ends.

        Raises:
            ModelNotFound, ModelLoading, Draining, ModelFailing: as `resolve`.
        """
        model = self.resolve(name)
        self.in_flight += 1
        try:
            yield model
        finally:
            self.in_flight -= 1

    def resolve(self, name: str) -> ServedModel:
        """The model with this name or alias, if it takes work.

        Raises:
            ModelNotFound: no served model has this name.
            ModelLoading, Draining, ModelFailing: it takes no work yet, or no more.
        """
        card = self.registry.resolve(name)
        self._check_phase()
        model = self._models[card.name]
        if not model.engine.sound:
            raise ModelFailing
        return model

    def check_ready(self) -> None:
        """Raise ModelLoading, Draining or ModelFailing unless every model takes work."""
        self._check_phase()
        if not all(engine.sound for engine in self._engines.values()):
            raise ModelFailing

    def _check_phase(self) -> None:
        if self.phase is Phase.LOADING:
            raise ModelLoading
        if self.phase is Phase.DRAINING:
            raise Draining

    def drain(self) -> None:
        """Take no new work from now on; what is in flight goes on."""
        self.phase = Phase.DRAINING

    def close(self) -> None:
        """Answer what is still in flight with Draining and end the worker threads."""
        self.drain()
        for engine in self._engines.values():
            engine.close()

    def join(self) -> None:
        """Wait for the worker threads of closed engines; blocks, for after the event loop."""
        for engine in self._engines.values():
            engine.join()


def _threads(settings: Settings) -> int:
    return settings.threads or usable_cores()


def _load_and_warm_up(card: Card, *, wide_threads: int, hash_files: bool) -> Encoder:
    encoder = load_encoder(card, wide_threads=wide_threads, hash_files=hash_files)
    warm_up(encoder)
    return encoder
