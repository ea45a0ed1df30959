"""Encoders that come and go, over fakes whose loads and passes can be held up."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from server.catalog.card import Card
from server.engine import on_demand, served_encoder
from server.engine.interface import ModelState
from server.engine.replica import Replica
from server.engine.served_models import ServedModels
from server.errors import Draining, ModelFailing, ModelFileError, ModelLoadFailed
from server.inference.loader import Encoder
from server.metrics import Metrics
from server.settings import Settings
from tests.catalog import card_table, pins, variant_table, write_model
from tests.engine import embed, ids
from tests.fakes import FAKE_DIM, FakeBackend
from tests.metrics_page import MetricsPage

ONE, OTHER, VARIANT = "one", "other", "variant"  # VARIANT shares the encoder of ONE


class Disk:
    """Where the fakes are loaded from: a load can be held up, and can fail."""

    def __init__(self, encoder: Encoder) -> None:
        self._tokenizer = encoder.tokenizer
        self.backend = FakeBackend()
        self.loads: list[str] = []
        self.held_up: dict[str, threading.Event] = {}
        self.fails: dict[str, Exception] = {}
        self.options: dict[str, object] = {}
        self.made: list[weakref.ref[Encoder]] = []

    def load(self, card: Card, devices: Sequence[str], **options: object) -> Encoder:
        self.loads.append(card.name)
        self.options = options
        if card.name in self.held_up:
            assert self.held_up[card.name].wait(timeout=30)
        if card.name in self.fails:
            raise self.fails[card.name]
        made = EncoderThatCanBeWatched(self._tokenizer, (self.backend,), FAKE_DIM)
        self.made.append(weakref.ref(made))
        return made

    def hold_up(self, name: str) -> threading.Event:
        return self.held_up.setdefault(name, threading.Event())

    def let_go(self) -> None:
        self.backend.gate.set()
        for event in self.held_up.values():
            event.set()


class EncoderThatCanBeWatched(Encoder):
    """Encoders have slots, and those have no place for weak references."""

    __slots__ = ("__weakref__",)


class Served:
    """Models over the disk, asked as the route asks them."""

    def __init__(self, settings: Settings) -> None:
        self.models = ServedModels.find(settings)
        self.metrics = Metrics([ONE, VARIANT, OTHER], [ONE, OTHER])

    async def ask(self, name: str, token_id: int = 7) -> int:
        """The token id itself, as the fake forward pass computes it."""
        with self.models.work(name) as model:
            engine, _ = model.loaded or await model.on_demand.get()
            return int((await embed(engine, [ids(token_id)]))[0, 0])

    def asking(self, name: str) -> asyncio.Task[int]:
        return asyncio.create_task(self.ask(name))

    async def computing(self, name: str, backend: FakeBackend) -> asyncio.Task[int]:
        """A request whose forward pass waits for the backend's gate."""
        await self.ask(name)
        backend.gate.clear()
        passes = len(backend.shapes)
        asking = self.asking(name)
        await until(lambda: len(backend.shapes) > passes)
        return asking

    def states(self) -> dict[str, ModelState]:
        return {state.card.name: state for state in self.models.states()}

    def value(self, name: str, encoder: str = ONE) -> float:
        return MetricsPage(self.metrics.page()).value(name, model=encoder)

    async def until_unloaded(self) -> None:
        await until(lambda: not any(state.loaded for state in self.models.states()))


class Serve(Protocol):
    async def __call__(self, **settings: Any) -> Served: ...


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds, the event loop running meanwhile."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
def disk(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(encoder)
    monkeypatch.setattr(served_encoder, "load_encoder", disk.load)
    monkeypatch.setattr(served_encoder, "check_parity", lambda *asked: None)
    return disk


@pytest.fixture
async def serve(disk: Disk, tmp_path: Path) -> AsyncIterator[Serve]:
    for name in (ONE, OTHER):
        files = {"graph.onnx": b"a graph", "model.safetensors": name.encode()}
        write_model(tmp_path, card_table(name, files=pins(files)), files)
    write_model(tmp_path, variant_table(VARIANT, ONE), {})
    started: list[Served] = []

    async def start(**settings: Any) -> Served:
        usual = {"model": [ONE, VARIANT, OTHER], "threads": 1, "lazy": True}
        served = Served(Settings(**{"models_dir": tmp_path, **usual, **settings}))
        started.append(served)
        await served.models.load(served.metrics)
        return served

    yield start
    disk.let_go()
    for served in started:
        served.models.close()
        await asyncio.to_thread(served.models.join)


async def test_without_lazy_everything_is_read_at_the_start(disk: Disk, serve: Serve) -> None:
    served = await serve(lazy=False)
    assert sorted(disk.loads) == [ONE, OTHER]
    assert all(state.loaded for state in served.models.states())
    assert await served.ask(VARIANT) == 7
    assert sorted(disk.loads) == [ONE, OTHER]


async def test_with_lazy_nothing_is_read_before_it_is_asked_for(disk: Disk, serve: Serve) -> None:
    served = await serve()
    served.models.start_reading()
    served.models.check_ready()
    assert disk.loads == []
    assert not any(state.loaded for state in served.models.states())
    assert await served.ask(VARIANT) == 7
    assert disk.loads == [ONE]
    states = served.states()
    assert [states[name].loaded for name in (ONE, VARIANT, OTHER)] == [False, True, False]
    assert states[VARIANT].encoder.name == ONE
    assert await served.ask(ONE) == 7
    assert disk.loads == [ONE]


async def test_a_thousand_requests_at_once_wait_for_one_load(disk: Disk, serve: Serve) -> None:
    gate = disk.hold_up(ONE)
    served = await serve()
    waiting = [served.asking((ONE, VARIANT)[n % 2]) for n in range(1000)]
    await until(lambda: disk.loads == [ONE])
    assert served.models.in_flight == 1000
    gate.set()
    assert await asyncio.gather(*waiting) == [7] * 1000
    assert disk.loads == [ONE]


async def test_other_models_answer_while_one_is_loaded(disk: Disk, serve: Serve) -> None:
    gate = disk.hold_up(ONE)
    served = await serve()
    waiting = served.asking(ONE)
    await until(lambda: disk.loads == [ONE])
    assert await served.ask(OTHER) == 7
    assert not waiting.done()
    served.models.check_ready()
    gate.set()
    assert await waiting == 7


async def test_a_client_that_leaves_does_not_cancel_the_load(disk: Disk, serve: Serve) -> None:
    gate = disk.hold_up(ONE)
    served = await serve()
    leaving, staying = served.asking(ONE), served.asking(ONE)
    await until(lambda: disk.loads == [ONE])
    leaving.cancel()
    await asyncio.wait([leaving])
    assert served.models.in_flight == 1
    gate.set()
    assert await staying == 7
    assert disk.loads == [ONE]


async def test_a_model_that_cannot_be_loaded_fails_alone_and_comes_back(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.fails[ONE] = ModelFileError("model one: changed")
    served = await serve()
    with pytest.raises(ModelLoadFailed):
        await served.ask(ONE)
    with pytest.raises(ModelLoadFailed):  # by the pause of the encoder that they share
        await served.ask(VARIANT)
    assert disk.loads == [ONE]
    assert await served.ask(OTHER) == 7
    served.models.check_ready()
    assert served.models.in_flight == 0
    assert served.value("model_loads_total") == 0
    disk.fails.clear()
    monkeypatch.setattr(on_demand, "RETRY_LOAD_S", 0.0)
    assert await served.ask(VARIANT) == 7


@pytest.mark.parametrize(
    ("check_files", "hashes", "looks"),
    [("full", True, False), ("sizes", False, True), ("off", False, False)],
)
async def test_files_are_checked_at_each_load_as_the_setting_says(
    disk: Disk, serve: Serve, tmp_path: Path, check_files: str, hashes: bool, looks: bool
) -> None:
    served = await serve(check_files=check_files, unload_after_s=0.02)
    await served.ask(ONE)
    assert disk.options["hash_files"] is hashes
    await served.until_unloaded()
    (tmp_path / ONE / "model.safetensors").unlink()
    if looks:  # with `full` that is the real loader's work
        with pytest.raises(ModelLoadFailed):
            await served.ask(ONE)
    else:
        assert await served.ask(ONE) == 7


async def test_a_load_that_gets_too_few_threads_leaves_none_behind(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Replica.start

    def start_the_first(replica: Replica) -> None:
        if replica.name != "replica-0":
            raise RuntimeError("can't start new thread")
        start(replica)

    monkeypatch.setattr(Replica, "start", start_the_first)
    served = await serve(threads=2)
    with pytest.raises(ModelLoadFailed):
        await served.ask(ONE)
    await until(lambda: not any(t.name == "replica-0" for t in threading.enumerate()))


async def test_a_wrong_rotation_is_the_failure_of_its_own_model(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_rotation(card: Card, **options: object) -> None:
        if card.name == VARIANT:
            raise ModelFileError("model variant: changed")

    monkeypatch.setattr(served_encoder, "load_rotation", load_rotation)
    served = await serve()
    with pytest.raises(ModelLoadFailed, match=VARIANT):
        await served.ask(VARIANT)
    assert await served.ask(ONE) == 7


async def test_a_model_is_unloaded_when_idle_and_loaded_when_asked_for(
    disk: Disk, serve: Serve
) -> None:
    served = await serve(unload_after_s=0.05)
    for loads in (1, 2, 3):
        assert await served.ask(VARIANT) == await served.ask(ONE) == 7
        assert disk.loads == [ONE] * loads
        await served.until_unloaded()
        await until(lambda: disk.made[-1]() is None)
    assert not any(thread.name.startswith("replica") for thread in threading.enumerate())


async def test_an_unloaded_model_leaves_memory_without_waiting_for_the_collector(
    disk: Disk, serve: Serve
) -> None:
    gc.collect()
    gc.disable()
    try:
        served = await serve(unload_after_s=0.05)
        await served.ask(VARIANT)
        await until(lambda: disk.made[0]() is None)
    finally:
        gc.enable()


async def test_without_unload_after_s_a_model_stays(serve: Serve) -> None:
    served = await serve()
    await served.ask(ONE)
    (encoder,) = [e for e in served.models._encoders if e.card.name == ONE]
    assert encoder._timer is None


async def test_a_model_in_use_is_not_unloaded(disk: Disk, serve: Serve) -> None:
    served = await serve(unload_after_s=0.02)
    slow = await served.computing(ONE, disk.backend)
    await asyncio.sleep(0.2)
    assert served.states()[ONE].loaded
    disk.backend.gate.set()
    assert await slow == 7
    await served.until_unloaded()


async def test_use_of_one_model_keeps_the_encoder_of_both(disk: Disk, serve: Serve) -> None:
    served = await serve(unload_after_s=0.2)
    await served.ask(VARIANT)
    for _ in range(20):
        await asyncio.sleep(0.03)
        await served.ask(ONE)
    assert disk.loads == [ONE]
    assert served.states()[VARIANT].loaded


async def test_no_request_is_lost_between_unload_and_load(disk: Disk, serve: Serve) -> None:
    served = await serve(unload_after_s=0.001)
    chance = random.Random(1)

    async def client() -> None:
        for _ in range(60):
            assert await served.ask(chance.choice((ONE, VARIANT)), 9) == 9
            await asyncio.sleep(chance.choice((0.0, 0.0005, 0.001, 0.0015, 0.002)))

    for clients in (1, 2, 8):
        await asyncio.gather(*(client() for _ in range(clients)))
    assert len(disk.loads) > 10
    assert served.models.in_flight == 0


async def test_a_load_that_everybody_has_left_is_unloaded_in_its_time(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    turning = threading.Event()

    def load_rotation(card: Card, **options: object) -> None:
        assert turning.wait(timeout=30)

    monkeypatch.setattr(served_encoder, "load_rotation", load_rotation)
    served = await serve(unload_after_s=0.02)
    leaving = served.asking(ONE)
    await until(lambda: served.value("model_loaded") == 1)
    leaving.cancel()
    await asyncio.wait([leaving])
    await asyncio.sleep(0.1)  # the encoder must not go while the model is being made of it
    assert served.value("model_loaded") == 1
    turning.set()
    await until(lambda: served.value("model_loaded") == 0)
    assert await served.ask(ONE) == 7


async def test_a_new_load_waits_until_the_memory_of_the_last_is_free(
    disk: Disk, serve: Serve
) -> None:
    served = await serve(unload_after_s=0.02)
    leaving = await served.computing(ONE, disk.backend)
    leaving.cancel()  # its forward pass goes on
    await asyncio.wait([leaving])
    await served.until_unloaded()
    returning = served.asking(ONE)
    await asyncio.sleep(0.1)
    assert disk.loads == [ONE]
    assert disk.made[0]() is not None
    disk.backend.gate.set()
    assert await returning == 7
    assert disk.loads == [ONE, ONE]


async def test_a_worker_that_is_stuck_does_not_keep_its_model_away(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_encoder, "JOIN_TIMEOUT_S", 0.05)
    served = await serve(unload_after_s=0.02)
    stuck = disk.backend
    leaving = await served.computing(ONE, stuck)
    leaving.cancel()
    await asyncio.wait([leaving])
    disk.backend = FakeBackend()
    await served.until_unloaded()
    assert await served.ask(ONE) == 7
    assert "a worker thread does not end" in caplog.text
    stuck.gate.set()


async def test_a_drain_lets_those_who_wait_for_a_load_finish(disk: Disk, serve: Serve) -> None:
    gate = disk.hold_up(ONE)
    served = await serve()
    waiting = served.asking(ONE)
    await until(lambda: disk.loads == [ONE])
    served.models.drain()
    assert served.models.in_flight == 1
    with pytest.raises(Draining):
        await served.ask(ONE)
    gate.set()
    assert await waiting == 7


async def test_closing_during_a_load_answers_those_who_wait(disk: Disk, serve: Serve) -> None:
    gate = disk.hold_up(ONE)
    served = await serve()
    waiting = [served.asking(name) for name in (ONE, VARIANT)]
    await until(lambda: disk.loads == [ONE])
    served.models.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, Draining)
    gate.set()
    await asyncio.to_thread(served.models.join)
    assert disk.made[0]() is None
    assert not served.states()[ONE].loaded


async def test_closing_while_a_rotation_is_read_answers_those_who_wait(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    turning = threading.Event()

    def load_rotation(card: Card, **options: object) -> None:
        assert turning.wait(timeout=30)

    monkeypatch.setattr(served_encoder, "load_rotation", load_rotation)
    served = await serve()
    waiting = served.asking(VARIANT)
    await until(lambda: served.value("model_loaded") == 1)
    served.models.close()
    with pytest.raises(Draining):
        await waiting
    turning.set()


async def test_closing_during_an_unload_waits_for_its_threads(disk: Disk, serve: Serve) -> None:
    served = await serve(unload_after_s=0.02)
    leaving = await served.computing(ONE, disk.backend)
    leaving.cancel()
    await asyncio.wait([leaving])
    del leaving  # whose traceback holds the engine
    await served.until_unloaded()
    served.models.close()
    joining = asyncio.create_task(asyncio.to_thread(served.models.join))
    await asyncio.sleep(0.1)
    assert not joining.done()
    disk.backend.gate.set()
    await joining
    await until(lambda: disk.made[0]() is None)


async def test_a_model_that_is_in_memory_and_fails_takes_no_work(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve()
    await served.ask(OTHER)
    served.models.check_ready()
    (encoder,) = [e for e in served.models._encoders if e.card.name == OTHER]
    assert encoder.on_demand.value is not None
    encoder.on_demand.value.close()
    await asyncio.to_thread(encoder.on_demand.value.join)
    for refused in (served.models.check_ready, lambda: served.models.resolve(OTHER)):
        with pytest.raises(ModelFailing):
            refused()
    assert await served.ask(ONE) == 7


async def test_the_metrics_tell_what_is_in_memory(disk: Disk, serve: Serve) -> None:
    served = await serve(unload_after_s=0.05)
    names = ("model_loaded", "model_loads_total", "model_file_bytes", "replicas_alive")
    size = len(b"a graph") + len(ONE)
    assert [served.value(name) for name in names] == [0, 0, 0, 0]
    await served.ask(VARIANT)
    assert [served.value(name) for name in names] == [1, 1, size, 1]
    assert [served.value(name, OTHER) for name in names] == [0, 0, 0, 0]
    computed = served.value("computed_tokens_total")
    await served.until_unloaded()
    assert [served.value(name) for name in names] == [0, 1, 0, 0]
    assert served.value("model_resident_bytes") == 0
    assert served.value("computed_tokens_total") == computed > 0
    await served.ask(ONE)
    assert [served.value(name) for name in names] == [1, 2, size, 1]


async def test_what_a_load_adds_is_told_if_it_was_alone(
    disk: Disk, serve: Serve, encoder: Encoder
) -> None:
    ballast: list[object] = []
    load = disk.load

    def load_much(card: Card, devices: Sequence[str], **options: object) -> Encoder:
        # Smaller ones than 32 MiB may come from memory that was freed before (mallopt(3)).
        ballast.append(np.ones(16_000_000))
        return load(card, devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_encoder, "load_encoder", load_much)
        served = await serve()
        await served.ask(ONE)
        added = served.states()[ONE].resident_bytes
        assert added is not None
        assert 100e6 < added < 160e6
        assert served.value("model_resident_bytes") == added
        at_start = await serve(lazy=False)
        assert {state.resident_bytes for state in at_start.models.states()} == {None}
