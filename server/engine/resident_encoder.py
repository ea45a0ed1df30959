"""An encoder and the models that share it: in memory from the start, or while they are needed.

not loaded -> first request -> loading -> loaded -> no request for `unload_after_s` -> not loaded

Lives in the event loop's thread; files are read and threads joined in others. Knows nothing of
HTTP or keys.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from server.catalog.card import Card
from server.engine.engine import Engine
from server.engine.interface import LoadedModel, ModelState
from server.engine.offering import OfferedModel
from server.engine.on_demand import OnDemand
from server.engine.pace import choose_pace
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_memory import ResidentMemory
from server.inference.loader import Encoder
from server.inference.opening import Opener, worker_threads
from server.metrics import EngineMetrics, Metrics
from server.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the encoders of one process share.

    Args:
        opener: reads their files, and knows where they compute.
        patience: with their workers.
        threads: where files are read and threads joined.
        memory: tells what a load adds.
    """

    settings: Settings
    opener: Opener
    patience: Patience = PATIENCE
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(thread_name_prefix="load-model")
    )
    memory: ResidentMemory = field(default_factory=ResidentMemory)


class ResidentEncoder:
    """One encoder, loaded for all of its models together, unloaded when none of them is needed.

    Args:
        cards: those that share it; the first one's files are read.
        around: what it shares with the other encoders of this process.
    """

    def __init__(self, cards: Sequence[Card], around: Surroundings) -> None:
        self.card = cards[0].encoder_card
        own_ids = around.settings.model_token_ids
        self.models = [
            OfferedModel(
                card,
                self.card,
                functools.partial(self._open_model, card),
                self._state,
                own_token_ids=card.name in own_ids,
            )
            for card in cards
        ]
        self._around = around
        self._engine: OnDemand[Engine] = OnDemand(self.card.name, self._start_engine)
        self._metrics: EngineMetrics | None = None
        self._reading: Future[Encoder] | None = None
        self._resident_bytes: int | None = None  # what its load added; None: not known
        self._loaded_at_s = 0.0  # the loop's time
        self._timer: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None

    def start_reading(self) -> None:
        """Begin to read it from disk, in a thread; callable before there is an event loop."""
        if self._reading is None:
            opener = self._around.opener
            self._reading = self._around.threads.submit(opener.open_encoder, self.card)

    async def finish_reading(self) -> None:
        """Wait until it is read, after `start_reading`; raises as `load`."""
        assert self._reading is not None
        await asyncio.wrap_future(self._reading)

    def measure_again(self) -> None:
        """Find out what it can do beside the others, in a thread; all are read and none is used."""
        assert self._reading is not None
        around = self._around
        self._reading = around.threads.submit(around.opener.measure_again, self._reading.result())

    def show_in(self, metrics: Metrics) -> None:
        """Tell these metrics what happens; must be called before anything is loaded."""
        self._metrics = EngineMetrics(metrics, self.card.name)

    async def load(self) -> None:
        """Have it and all of its models in memory.

        Raises:
            StartupError: a file is wrong or cannot be used.
        """
        await self._engine.load()
        for model in self.models:
            await model.on_demand.load()

    def close(self) -> None:
        """Answer what is still in flight with Draining, and let the worker threads end."""
        if self._timer is not None:
            self._timer.cancel()
        self._engine.close()
        for model in self.models:
            model.on_demand.close()
        if self._engine.value is not None:
            self._engine.value.close()

    def join(self) -> None:
        """Wait for the worker threads, after `close`; blocks, for after the event loop."""
        if self._engine.value is not None:
            self._engine.value.join()

    def _state(self, model: OfferedModel) -> ModelState:
        engine = self._engine.value
        loaded = model.loaded is not None
        return ModelState(
            loaded=loaded,
            sound=engine is None or engine.sound,
            resident_bytes=self._resident_bytes if loaded else None,
            load_failed=self._engine.has_failed or model.on_demand.has_failed,
        )

    async def _open_model(self, card: Card) -> LoadedModel:
        engine = await self._engine.get()
        rotation = await asyncio.to_thread(self._around.opener.open_rotation, card)
        return LoadedModel(engine, rotation)

    async def _start_engine(self) -> Engine:
        if self._unloading is not None:  # what it gives back may be needed
            await asyncio.wait([self._unloading])
        began_s = time.perf_counter()
        settings = self._around.settings
        with self._around.memory.change() as growth:
            at_start = self._reading is not None
            self.start_reading()
            reading, self._reading = self._reading, None
            assert reading is not None
            encoder = await asyncio.wrap_future(reading)
            self._resident_bytes = None if at_start else growth()
        assert self._metrics is not None
        engine = Engine(
            encoder,
            self._metrics,
            pace=choose_pace(
                encoder.capacity,
                cores=worker_threads(settings),
                max_batch_tokens=settings.max_batch_tokens,
                concurrent_passes=encoder.backends[0].concurrent_passes,
            ),
            max_request_tokens=settings.max_request_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_wait_s=settings.max_wait_s,
            patience=self._around.patience,
        )
        self._metrics.tell_loaded(self.card.file_bytes, self._resident_bytes)
        if encoder.capacity is not None:
            self._metrics.recorded_bytes.set(encoder.capacity.recorded_bytes)
            self._metrics.refused_shapes.set(encoder.capacity.refused_shapes)
        if settings.lazy:
            log.info(
                "model %s loaded in %.2f s: %s of files, resident memory %s",
                self.card.name,
                time.perf_counter() - began_s,
                _megabytes(self.card.file_bytes),
                _megabytes(self._resident_bytes, sign="+"),
            )
        self._loaded_at_s = asyncio.get_running_loop().time()
        self._watch_use()
        return engine

    def _watch_use(self) -> None:
        """Unload it as soon as it has not been used for long enough."""
        unload_after_s = self._around.settings.unload_after_s
        if unload_after_s is None:
            return
        loop = asyncio.get_running_loop()
        # A load that everybody has left still uses the encoder. One that does not compute gets no
        # requests; unloaded, nobody would know that its device may be lost.
        if any(
            model.in_flight or model.on_demand.under_way or not model.state.sound
            for model in self.models
        ):
            left_s = unload_after_s
        else:
            used_at_s = max(self._loaded_at_s, *(model.used_at_s for model in self.models))
            left_s = unload_after_s - (loop.time() - used_at_s)
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._watch_use)
        else:
            self._unload()

    def _unload(self) -> None:
        # All at once: the next request finds nothing, and loads again.
        engine = self._engine.forget()
        assert engine is not None
        assert self._metrics is not None
        for model in self.models:
            model.on_demand.forget()
        engine.close()
        self._metrics.tell_unloaded()
        self._unloading = asyncio.create_task(self._free([engine]))

    async def _free(self, box: list[Engine]) -> None:
        began_s = time.perf_counter()
        threads = self._around.threads
        with self._around.memory.change() as growth:
            timeout_s = self._around.patience.join_timeout_s
            await asyncio.wrap_future(threads.submit(free_engine, box, timeout_s))
            if not self._around.opener.placement.on_cpu:
                from server.inference.torch_cuda import give_back_memory

                await asyncio.wrap_future(threads.submit(give_back_memory))
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
