"""The models that compute in this process; cards whose encoders compute the same share one.

Lives in the event loop's thread. Knows nothing of HTTP or keys, nor of requests.
"""

from __future__ import annotations

import sys

from server.catalog.card import Card
from server.catalog.registry import Registry
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_encoder import ResidentEncoder, Surroundings
from server.engine.resident_memory import give_back_freed_memory
from server.errors import SettingError
from server.inference.compilations import COMPILATIONS
from server.inference.opening import Opener, select_cards
from server.metrics import Metrics
from server.settings import Settings

# On 16 cores with an H100 eight took twice the tokens and twelve times the queries of one.
MOST_FRONTENDS = 8


class ResidentModels:
    """The Source of the process that computes.

    Args:
        opener: reads the models, and knows where they compute; default: from disk, on the CPU.
        patience: with their workers.
    """

    drains_elsewhere = False
    answers = True

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        opener: Opener | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self.registry = registry
        self.is_ready = False
        self._around = Surroundings(settings, opener or Opener(settings), patience)
        sharing: dict[str, list[Card]] = {}  # by what their encoders compute
        for card in registry.cards:
            sharing.setdefault(card.encoder_key, []).append(card)
        self._encoders = [ResidentEncoder(cards, self._around) for cards in sharing.values()]
        made = {model.card.name: model for one in self._encoders for model in one.models}
        self.models = [made[card.name] for card in registry.cards]

    @classmethod
    def find(
        cls, settings: Settings, *, opener: Opener | None = None, patience: Patience = PATIENCE
    ) -> ResidentModels:
        """The models that the settings name, their files there unless `check_files` is off.

        Args:
            opener, patience: see ResidentModels.

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

    def suited_frontends(self, cores: int) -> int:
        """How many processes should speak HTTP on so many cores, unless a setting says so."""
        if self._around.opener.placement.on_cpu or sys.platform == "win32":
            return 1
        return max(1, min(MOST_FRONTENDS, cores // 2))

    def start_reading(self) -> None:
        """Begin to read the models from disk, in threads; `load` waits for them.

        Callable before there is an event loop: the rest of the start needs the time as well. With
        `lazy` nothing is read before it is asked for.
        """
        if not self._around.settings.lazy:
            for encoder in self._encoders:
                encoder.start_reading()

    async def load(self, metrics: Metrics) -> None:
        """Have every model in memory (with `lazy`: ready to be read) and turn ready.

        Raises:
            StartupError: a file is wrong or cannot be used.
        """
        settings = self._around.settings
        give_back_freed_memory()
        self.start_reading()
        for encoder in self._encoders:
            encoder.show_in(metrics)
        COMPILATIONS.tell = metrics.serving_compilations.inc
        if not settings.lazy:
            if not self._around.opener.placement.on_cpu and len(self._encoders) > 1:
                await self._share_gpus()
            for encoder in self._encoders:
                await encoder.load()
            self._around.threads.shutdown(wait=False)  # all is read
        self.is_ready = True

    async def _share_gpus(self) -> None:
        """Find each model's token budget again: those loaded first had the memory of all."""
        for encoder in self._encoders:
            await encoder.finish_reading()
        for encoder in self._encoders:
            encoder.measure_again()

    def close(self) -> None:
        """Answer what is still in flight with Draining and end the worker threads."""
        for encoder in self._encoders:
            encoder.close()

    def join(self) -> None:
        """Wait for all threads, after `close`, but for those that read; blocks."""
        for encoder in self._encoders:
            encoder.join()
        self._around.threads.shutdown(wait=self.is_ready)
