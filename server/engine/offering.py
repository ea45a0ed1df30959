"""The models that a server offers: whether they take work, and which requests are in flight.

One class for every process that answers requests; where the models compute is its Source's.
Lives in the event loop's thread. Knows nothing of HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from server.catalog.card import Card
from server.catalog.registry import Registry
from server.engine.interface import LoadedModel, ModelState, Phase
from server.engine.on_demand import OnDemand
from server.errors import ModelFailing
from server.metrics import Metrics

# How often a drain without a server's ticks looks whether it is over.
_LOOK_INTERVAL_S = 0.02


class OfferedModel:
    """A model that requests may name, and what it computes with while that is in memory.

    Args:
        encoder_card: whose files are read for it.
        open_model: makes one attempt to have it in memory.
        state: what is to be known of it now.
        own_token_ids: token ids in requests are the model's own, not OpenAI's.
    """

    def __init__(
        self,
        card: Card,
        encoder_card: Card,
        open_model: Callable[[], Coroutine[Any, Any, LoadedModel]],
        state: Callable[[OfferedModel], ModelState],
        *,
        own_token_ids: bool = False,
    ) -> None:
        self.card = card
        self.encoder_card = encoder_card
        self.own_token_ids = own_token_ids
        self.on_demand: OnDemand[LoadedModel] = OnDemand(card.name, open_model)
        self.in_flight = 0  # requests; while there are some it stays in memory
        self.used_at_s = 0.0  # when the last one ended, in the event loop's time
        self._state = state

    @property
    def state(self) -> ModelState:
        """What is to be known of it now."""
        return self._state(self)

    @property
    def loaded(self) -> LoadedModel | None:
        """What it computes with, if that is in memory; it stays while a request is in flight."""
        return self.on_demand.value

    async def load(self) -> LoadedModel:
        """What it computes with, as soon as that is in memory; others wait for the same load.

        Raises:
            ModelLoadFailed: it cannot be loaded; the log says why.
            Draining: the server was stopped meanwhile.
        """
        return await self.on_demand.get()


class Source(Protocol):
    """Where models compute: in this process, or in the engine process."""

    @property
    def registry(self) -> Registry: ...

    @property
    def models(self) -> Sequence[OfferedModel]:
        """One for each card of the registry, in its order."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the models may be asked for."""
        ...

    @property
    def answers(self) -> bool:
        """Whether the process in which they compute has been heard lately."""
        ...

    @property
    def drains_elsewhere(self) -> bool:
        """Whether another process still has requests in flight while all of them drain."""
        ...

    async def load(self, metrics: Metrics) -> None:
        """Turn ready; raises StartupError."""
        ...

    def close(self) -> None:
        """Answer what is still in flight with Draining."""
        ...

    def join(self) -> None:
        """Wait for all threads, after `close`; blocks, for after the event loop."""
        ...


class Offering:
    """All models of a server, and its life's phases."""

    def __init__(self, source: Source) -> None:
        self.registry = source.registry
        self.models = source.models
        self.draining = asyncio.Event()  # no new work is taken from now on
        self._source = source
        self._by_name = {model.card.name: model for model in source.models}
        self._closed = False
        self._on_change: Callable[[], None] = lambda: None

    @property
    def encoder_cards(self) -> list[Card]:
        """The card of each encoder, whose files are read."""
        return list({model.encoder_card.name: model.encoder_card for model in self.models}.values())

    @property
    def is_ready(self) -> bool:
        """Whether the models may be asked for by who has taken a request; also while draining."""
        return self._source.is_ready

    @property
    def phase(self) -> Phase:
        """Whether new work is taken."""
        if self.draining.is_set():
            return Phase.DRAINING
        if not self._source.answers:
            return Phase.SILENT
        return Phase.READY if self.is_ready else Phase.LOADING

    @property
    def in_flight(self) -> int:
        """How many requests this process has taken and not answered yet."""
        return sum(model.in_flight for model in self.models)

    @property
    def is_busy(self) -> bool:
        """Whether a drain must wait.

        Front ends end together: until the last one has answered, each tells who comes that it
        drains.
        """
        return self.in_flight > 0 or self._source.drains_elsewhere

    def tell_changes_to(self, on_change: Callable[[], None]) -> None:
        """Have this called when a model comes or goes, and when the phase or a drain's end does.

        Nothing tells when a model's soundness changes, which is also a matter of time.
        """
        self._on_change = on_change
        for model in self.models:
            model.on_demand.on_change = on_change

    async def load(self, metrics: Metrics) -> None:
        """Have every model in memory (if lazy: ready to be read) and turn ready.

        Raises:
            StartupError: a file is wrong or cannot be used.
        """
        await self._source.load(metrics)
        self._on_change()

    def resolve(self, name: str) -> OfferedModel:
        """The model with this name or alias, if it takes new work.

        Raises:
            ModelNotFound: no served model has this name.
            ModelLoading, EngineSilent, Draining, ModelFailing: it takes no work now.
        """
        card = self.registry.resolve(name)
        self.phase.check_ready()
        model = self._by_name[card.name]
        check_sound(model)
        return model

    def request_for(self, name: str) -> AbstractContextManager[OfferedModel]:
        """A request for the model with this name or alias: in flight while the context lasts.

        Raises:
            ApiError: those of `resolve`.
        """
        return _InFlight(self.resolve(name), self._note_end)

    def request_taken(self, model: OfferedModel) -> AbstractContextManager[OfferedModel]:
        """As `request_for`, whatever the phase: another process has taken it before."""
        return _InFlight(model, self._note_end)

    def _note_end(self) -> None:
        """A request has ended, maybe the last one of a drain."""
        if self.draining.is_set():
            self._on_change()

    def check_ready(self) -> None:
        """Raise what `resolve` would for each model, unless every model takes work.

        A model that is not in memory takes work as well: it will be loaded.
        """
        self.phase.check_ready()
        for model in self.models:
            check_sound(model)

    def troubles(self) -> dict[str, str]:
        """What keeps single models from being used, by what is in trouble; none while all is well."""
        failed = [model.card.name for model in self.models if model.state.load_failed]
        if not failed:
            return {}
        return {
            "models": f"could not be loaded: {', '.join(failed)}; the log says why, and the next "
            "request for one tries again"
        }

    def drain(self) -> None:
        """Take no new work from now on; what is in flight goes on, also if it waits for a load."""
        self.draining.set()
        self._on_change()

    async def finish(self, timeout_s: float) -> None:
        """Drain and wait until nothing is in flight; after this time, or `close`, no longer."""
        self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.in_flight and not self._closed:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_INTERVAL_S)

    def close(self) -> None:
        """Answer what is still in flight with Draining and end the worker threads."""
        self._closed = True
        self.drain()
        self._source.close()

    def join(self) -> None:
        """Wait for all threads, after `close`; blocks, for after the event loop."""
        self._source.join()


class _InFlight:
    """The context of a request that this model answers; costs less than a generator's."""

    __slots__ = ("_ended", "_model")

    def __init__(self, model: OfferedModel, ended: Callable[[], None]) -> None:
        self._model = model
        self._ended = ended

    def __enter__(self) -> OfferedModel:
        self._model.in_flight += 1
        return self._model

    def __exit__(self, *_: object) -> None:
        self._model.in_flight -= 1
        self._model.used_at_s = asyncio.get_running_loop().time()
        self._ended()


def check_sound(model: OfferedModel) -> None:
    """Raise ModelFailing if the model is in memory and does not compute what it should."""
    if not model.state.sound:
        raise ModelFailing
