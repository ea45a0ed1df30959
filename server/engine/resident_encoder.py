"""An encoder and the models that share it: in memory from the start, or while they are needed.

not loaded -> first request -> loading -> loaded -> no request for `unload_after_s` -> not loaded

Lives in the event loop's thread; files are read and threads joined in others. Knows nothing of
HTTP or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.engine.engine import Engine
from server.engine.on_demand import OnDemand
from server.engine.pace import choose_pace
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_memory import ResidentMemory
from server.inference.loader import Encoder
from server.inference.opening import Opener, worker_threads
from server.metrics import EngineMetrics
from server.settings import Settings

log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """What computes for a model."""

    engine: Engine
    rotation: NDArray[np.float32] | None  # (embedding_dim, embedding_dim)


class ServedModel:
    """A card, and what computes for it while that is in memory."""

    def __init__(
        self, card: Card, encoder: ResidentEncoder, settings: Settings, opener: Opener
    ) -> None:
        self.card = card
        self.own_token_ids = card.name in settings.model_token_ids
        self.encoder = encoder
        self._opener = opener
        self.on_demand: OnDemand[LoadedModel] = OnDemand(card.name, self._load)

    @property
    def loaded(self) -> LoadedModel | None:
        """What computes, if it is in memory; it stays there while `use` of the encoder lasts."""
        return self.on_demand.value

    async def load(self) -> LoadedModel:
        """What computes, as soon as it is in memory; others wait for the same load.

        Raises:
            ModelLoadFailed: it cannot be loaded; the log says why.
            Draining: the server was stopped meanwhile.
        """
        return await self.on_demand.get()

    async def _load(self) -> LoadedModel:
        engine = await self.encoder.on_demand.get()
        rotation = await asyncio.to_thread(self._opener.open_rotation, self.card)
        return LoadedModel(engine, rotation)


class ResidentEncoder:
    """One encoder, loaded for all of its models together, unloaded when none of them is needed.

    Args:
        cards: those that share it; the first one's files are read.
        opener: reads their files.
        threads: where files are read and threads joined.
        memory: tells what a load adds.
        reading: what the opener gives for the first load, if that has begun already.
        patience: with its workers.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        settings: Settings,
        opener: Opener,
        metrics: EngineMetrics,
        threads: Executor,
        memory: ResidentMemory,
        reading: Future[Encoder] | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self.card = cards[0].encoder_card
        self.models = [ServedModel(card, self, settings, opener) for card in cards]
        self.on_demand: OnDemand[Engine] = OnDemand(self.card.name, self._load)
        self.resident_bytes: int | None = None  # what its load added; None: not known
        self._settings = settings
        self._opener = opener
        self._metrics = metrics
        self._threads = threads
        self._memory = memory
        self._reading = reading
        self._patience = patience
        self._in_use = 0
        self._idle_since_s = 0.0  # the loop's time
        self._timer: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None

    @property
    def sound(self) -> bool:
        """Whether it computes what it should, if it is in memory."""
        engine = self.on_demand.value
        return engine is None or engine.sound

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """While somebody is inside it is not unloaded."""
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
            self._idle_since_s = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Answer what is still in flight with Draining, and let the worker threads end."""
        if self._timer is not None:
            self._timer.cancel()
        self.on_demand.close()
        for model in self.models:
            model.on_demand.close()
        if self.on_demand.value is not None:
            self.on_demand.value.close()

    def join(self) -> None:
        """Wait for the worker threads, after `close`; blocks, for after the event loop."""
        if self.on_demand.value is not None:
            self.on_demand.value.join()

    async def _load(self) -> Engine:
        if self._unloading is not None:  # what it gives back may be needed
            await asyncio.wait([self._unloading])
        began_s = time.perf_counter()
        with self._memory.change() as growth:
            at_start, self._reading = self._reading, None
            reading = at_start or self._threads.submit(self._opener.open_encoder, self.card)
            encoder = await asyncio.wrap_future(reading)
            self.resident_bytes = None if at_start else growth()
        engine = Engine(
            encoder,
            self._metrics,
            pace=choose_pace(
                encoder.capacity,
                cores=worker_threads(self._settings),
                max_batch_tokens=self._settings.max_batch_tokens,
            ),
            max_request_tokens=self._settings.max_request_tokens,
            max_queue_tokens=self._settings.max_queue_tokens,
            max_wait_s=self._settings.max_wait_s,
            patience=self._patience,
        )
        self._metrics.tell_loaded(self.card.file_bytes, self.resident_bytes)
        if self._settings.lazy:
            log.info(
                "model %s loaded in %.2f s: %s of files, resident memory %s",
                self.card.name,
                time.perf_counter() - began_s,
                _megabytes(self.card.file_bytes),
                _megabytes(self.resident_bytes, sign="+"),
            )
        self._idle_since_s = asyncio.get_running_loop().time()
        self._watch_use()
        return engine

    def _watch_use(self) -> None:
        """Unload it as soon as it has not been used for long enough."""
        unload_after_s = self._settings.unload_after_s
        if unload_after_s is None:
            return
        loop = asyncio.get_running_loop()
        # A load that everybody has left still uses the encoder.
        in_use = self._in_use or any(model.on_demand.under_way for model in self.models)
        left_s = unload_after_s - (0.0 if in_use else loop.time() - self._idle_since_s)
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._watch_use)
        else:
            self._unload()

    def _unload(self) -> None:
        # All at once: the next request finds nothing, and loads again.
        engine = self.on_demand.forget()
        assert engine is not None
        for model in self.models:
            model.on_demand.forget()
        engine.close()
        self._metrics.tell_unloaded()
        self._unloading = asyncio.create_task(self._free([engine]))

    async def _free(self, box: list[Engine]) -> None:
        began_s = time.perf_counter()
        with self._memory.change() as growth:
            timeout_s = self._patience.join_timeout_s
            await asyncio.wrap_future(self._threads.submit(free_engine, box, timeout_s))
            if not self._opener.placement.on_cpu:
                from server.inference.torch_cuda import give_back_memory

                await asyncio.wrap_future(self._threads.submit(give_back_memory))
            log.info(
                "model %s unloaded in %.2f s: resident memory %s",
                self.card.name,
                time.perf_counter() - began_s,
                _megabytes(growth(), sign="+"),
            )


def free_engine(box: list[Engine], timeout_s: float) -> None:
    """Let go of a closed engine's memory; blocks, any thread may call.

    Args:
        box: holds the only reference, so that the last one is dropped here.
        timeout_s: for each of its threads to end.
    """
    engine = box.pop()
    if not engine.join(timeout_s):
        log.error("a worker thread does not end; its model stays in memory")


def _megabytes(count: int | None, *, sign: str = "") -> str:
    return "unknown" if count is None else f"{count / 1e6:{sign}.0f} MB"
