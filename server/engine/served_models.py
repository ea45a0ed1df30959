"""The models of this process: which there are, whether they are ready, and their life's phases.

Lives in the event loop's thread. Knows nothing of HTTP or keys.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from server.catalog.card import Card
from server.catalog.registry import Registry
from server.engine.interface import ModelState, Phase
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_encoder import ResidentEncoder, ServedModel
from server.engine.resident_memory import ResidentMemory, give_back_freed_memory
from server.errors import ModelFailing, SettingError
from server.inference.loader import Encoder
from server.inference.opening import Opener, select_cards
from server.metrics import EngineMetrics, Metrics
from server.settings import Settings

# On 16 cores with an H100 eight took twice the tokens and twelve times the queries of one.
MOST_FRONTENDS = 8


class ServedModels:
    """All models that are served; cards whose encoders compute the same share one.

    Args:
        opener: reads them; default: from disk.
        patience: with their workers.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        opener: Opener | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self.registry = registry
        self.phase = Phase.LOADING
        self.in_flight = 0  # requests that a drain waits for
        self._settings = settings
        self._opener = opener or Opener(settings)
        self._patience = patience
        self._threads = ThreadPoolExecutor(thread_name_prefix="load-model")
        self._reading: dict[str, Future[Encoder]] = {}
        self._sharing: dict[str, list[Card]] = {}  # by what their encoders compute
        for card in registry.cards:
            self._sharing.setdefault(card.encoder_key, []).append(card)
        self._encoders: list[ResidentEncoder] = []
        self._models: dict[str, ServedModel] = {}

    @classmethod
    def find(
        cls, settings: Settings, *, opener: Opener | None = None, patience: Patience = PATIENCE
    ) -> ServedModels:
        """The models that the settings name, their files there unless `check_files` is off.

        Args:
            opener, patience: see ServedModels.

        Raises:
            StartupError: a card, a file or a setting is missing or wrong.
        """
        opener = opener or Opener.on_this_machine(settings)
        registry = select_cards(
            settings,
            settings.model,
            opener.placement,
            check_files=settings.check_files != "off",
        )
        unserved = set(settings.model_token_ids) - {card.name for card in registry.cards}
        if unserved:
            raise SettingError(f"setting model_token_ids: {min(unserved)} is not a served model")
        return cls(registry, settings, opener=opener, patience=patience)

    @property
    def encoder_cards(self) -> list[Card]:
        """The card of each encoder, whose files are read."""
        return [cards[0].encoder_card for cards in self._sharing.values()]

    def suited_frontends(self, cores: int) -> int:
        """How many processes should speak HTTP on so many cores, unless a setting says so."""
        if self._opener.placement.on_cpu or sys.platform == "win32":
            return 1
        return max(1, min(MOST_FRONTENDS, cores // 2))

    def start_reading(self) -> None:
        """Begin to read the models from disk, in threads; `load` waits for them.

        Callable before there is an event loop: the rest of the start needs the time as well. With
        `lazy` nothing is read before it is asked for.
        """
        if not self._settings.lazy:
            self._reading = {
                card.name: self._threads.submit(self._opener.open_encoder, card)
                for card in self.encoder_cards
            }

    async def load(self, metrics: Metrics) -> None:
        """Have every model in memory (with `lazy`: ready to be read) and turn ready.

        Raises:
            StartupError: a file is wrong or cannot be used.
        """
        if not self._reading:
            self.start_reading()
        if self._settings.unload_after_s is not None:
            give_back_freed_memory()
        memory = ResidentMemory()
        for cards in self._sharing.values():
            name = cards[0].encoder_card.name
            reading = self._reading.pop(name, None)
            encoder = ResidentEncoder(
                cards,
                self._settings,
                self._opener,
                EngineMetrics(metrics, name),
                self._threads,
                memory,
                reading,
                self._patience,
            )
            self._encoders.append(encoder)
            self._models |= {model.card.name: model for model in encoder.models}
        if not self._settings.lazy:
            for encoder in self._encoders:
                await encoder.on_demand.load()
            for model in self._models.values():
                await model.on_demand.load()
            self._threads.shutdown(wait=False)  # all is read
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    @contextlib.contextmanager
    def work(self, name: str) -> Iterator[ServedModel]:
        """The model with this name or alias; what happens inside is in flight until it ends.

        Raises:
            ModelNotFound, ModelLoading, Draining, ModelFailing: as `resolve`.
        """
        model = self.resolve(name)
        with model.encoder.use():
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
        self.phase.check_ready()
        model = self._models[card.name]
        if not model.encoder.sound:
            raise ModelFailing
        return model

    def states(self) -> list[ModelState]:
        """What of each model is in memory, in the order of the settings."""
        return [self._state(card) for card in self.registry.cards]

    def _state(self, card: Card) -> ModelState:
        model = self._models.get(card.name)
        loaded = model is not None and model.loaded is not None
        return ModelState(
            card,
            encoder_card=self._sharing[card.encoder_key][0].encoder_card,
            loaded=loaded,
            resident_bytes=model.encoder.resident_bytes if model and loaded else None,
            sound=model is None or model.encoder.sound,
        )

    def check_ready(self) -> None:
        """Raise ModelLoading, Draining or ModelFailing unless every model takes work.

        With `lazy` a model that is not in memory takes work as well: it will be loaded.
        """
        self.phase.check_ready()
        if not all(encoder.sound for encoder in self._encoders):
            raise ModelFailing

    def drain(self) -> None:
        """Take no new work from now on; what is in flight goes on, also if it waits for a load."""
        self.phase = Phase.DRAINING

    def close(self) -> None:
        """Answer what is still in flight with Draining and end the worker threads."""
        self.drain()
        for encoder in self._encoders:
            encoder.close()

    def join(self) -> None:
        """Wait for all threads, after `close`; blocks, for after the event loop."""
        for encoder in self._encoders:
            encoder.join()
        self._threads.shutdown()
