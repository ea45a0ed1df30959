"""Encoders that come and go, over fakes whose loads and passes can be held up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from server.catalog.card import GRAPH_FILE, TOKENIZER_FILE, Card
from server.catalog.card_file import read_card
from server.engine.engine import Engine
from server.engine.interface import ModelState
from server.engine.offering import Offering
from server.engine.on_demand import RETRY_LOAD_S
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_models import ResidentModels
from server.errors import (
    Draining,
    InferenceFailed,
    ModelFailing,
    ModelFileError,
    ModelLoadFailed,
    StartupError,
)
from server.inference.loader import Encoder
from server.inference.opening import Opener
from server.metrics import Metrics
from server.settings import Settings
from tests.catalog import card_table, pins, variant_table, write_model
from tests.engine import embed, ids, let_pass
from tests.fakes import FAKE_DIM, KILLS_THREAD, FakeBackend
from tests.metrics_page import MetricsPage
from tests.waiting import until

ONE, OTHER, VARIANT = "one", "other", "variant"  # VARIANT shares the encoder of ONE


class Disk(Opener):
    """Where the fakes are loaded from: a load can be held up, and can fail."""

    def __init__(self, encoder: Encoder) -> None:
        self._tokenizer = encoder.tokenizer
        self.backend = FakeBackend()
        self.loads: list[str] = []
        self.held_up: dict[str, threading.Event] = {}
        self.fails: dict[str, Exception] = {}
        self.rotations = threading.Event()  # are read only while it is set
        self.rotations.set()
        self.wrong_rotation = ""  # whose
        self.ballast: list[object] = []
        self.ballast_floats = 0  # that each load adds
        self.made: list[weakref.ref[Encoder]] = []

    def open_encoder(self, card: Card) -> Encoder:
        self.loads.append(card.name)
        if self.ballast_floats:
            self.ballast.append(np.ones(self.ballast_floats))
        if card.name in self.held_up:
            assert self.held_up[card.name].wait(timeout=30)
        if card.name in self.fails:
            raise self.fails[card.name]
        made = EncoderThatCanBeWatched(self._tokenizer, (self.backend,), FAKE_DIM)
        self.made.append(weakref.ref(made))
        return made

    def open_rotation(self, card: Card) -> None:
        assert self.rotations.wait(timeout=30)
        if card.name == self.wrong_rotation:
            raise ModelFileError(f"model {card.name}: changed")

    def hold_up(self, name: str) -> threading.Event:
        return self.held_up.setdefault(name, threading.Event())

    def let_go(self) -> None:
        self.backend.gate.set()
        self.rotations.set()
        for event in self.held_up.values():
            event.set()


class EncoderThatCanBeWatched(Encoder):
    """Encoders have slots, and those have no place for weak references."""

    __slots__ = ("__weakref__",)


class Served:
    """Models over the disk, asked as the route asks them."""

    def __init__(self, settings: Settings, disk: Disk, patience: Patience) -> None:
        self.source = ResidentModels.find(settings, opener=disk, patience=patience)
        self.models = Offering(self.source)
        self.metrics = Metrics([ONE, VARIANT, OTHER], [ONE, OTHER])

    async def ask(self, name: str, token_id: int = 7) -> int:
        """The token id itself, as the fake forward pass computes it."""
        with self.models.request_for(name) as model:
            engine = (model.loaded or await model.load()).engine
            assert isinstance(engine, Engine)
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
        return {model.card.name: model.state for model in self.models.models}

    def value(self, name: str, encoder: str = ONE) -> float:
        return MetricsPage(self.metrics.page()).value(name, model=encoder)

    async def until_unloaded(self) -> None:
        await until(lambda: not any(model.state.loaded for model in self.models.models))


class Serve(Protocol):
    async def __call__(self, *, patience: Patience = ..., **settings: Any) -> Served: ...


def started_since(before: list[threading.Thread]) -> set[threading.Thread]:
    """Worker threads that are there and were not."""
    there = set(threading.enumerate()).difference(before)
    return {thread for thread in there if thread.name.startswith("replica")}


@pytest.fixture
def disk(encoder: Encoder) -> Disk:
    return Disk(encoder)


@pytest.fixture
async def serve(disk: Disk, tmp_path: Path) -> AsyncIterator[Serve]:
    for name in (ONE, OTHER):
        files = {"graph.onnx": b"a graph", "model.safetensors": name.encode()}
        write_model(tmp_path, card_table(name, files=pins(files)), files)
    write_model(tmp_path, variant_table(VARIANT, ONE), {})
    started: list[Served] = []

    async def start(*, patience: Patience = PATIENCE, **settings: Any) -> Served:
        usual = {"model": [ONE, VARIANT, OTHER], "threads": 1, "lazy": True}
        given = Settings(**{"models_dir": tmp_path, **usual, **settings})
        served = Served(given, disk, patience)
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
    assert all(model.state.loaded for model in served.models.models)
    assert await served.ask(VARIANT) == 7
    assert sorted(disk.loads) == [ONE, OTHER]


async def test_with_lazy_nothing_is_read_before_it_is_asked_for(disk: Disk, serve: Serve) -> None:
    served = await serve()
    served.source.start_reading()
    served.models.check_ready()
    assert disk.loads == []
    assert not any(state.loaded for state in served.states().values())
    assert await served.ask(VARIANT) == 7
    assert disk.loads == [ONE]
    states = served.states()
    assert [states[name].loaded for name in (ONE, VARIANT, OTHER)] == [False, True, False]
    assert served.models.resolve(VARIANT).encoder_card.name == ONE
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
    assert f"could not be loaded: {ONE}, {VARIANT};" in served.models.troubles()["models"]
    assert served.models.in_flight == 0
    assert served.value("model_loads_total") == 0
    disk.fails.clear()
    let_pass(RETRY_LOAD_S, monkeypatch)
    assert await served.ask(VARIANT) == 7
    assert not served.models.troubles()


@pytest.mark.parametrize(
    ("check_files", "bytes_matter", "size_matters"),
    [("full", True, True), ("sizes", False, True), ("off", False, False)],
)
def test_files_are_checked_when_they_are_opened_as_the_setting_says(
    plain_card: Card,
    tokenizer_file: Path,
    tmp_path: Path,
    check_files: str,
    bytes_matter: bool,
    size_matters: bool,
) -> None:
    """By a file that the card pins and nothing needs, beside the plain graph with zeros in it."""
    sources = {GRAPH_FILE: plain_card.path(GRAPH_FILE), TOKENIZER_FILE: tokenizer_file}
    files = {name: path.read_bytes() for name, path in sources.items()}
    pinned = {"notes": b"a note", GRAPH_FILE: files[GRAPH_FILE]}
    table = card_table(embedding_dim=384, files=pins(pinned))
    folder = write_model(tmp_path, table, files)
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(plain_card.files["model.safetensors"].bytes)
    card = read_card(folder)
    opener = Opener(Settings.model_validate({"check_files": check_files, "threads": 1}))
    for content, matters in (
        (b"a note", False),
        (b"a_note", bytes_matter),
        (b"two notes", size_matters),
    ):
        (folder / "notes").write_bytes(content)
        with pytest.raises(StartupError) if matters else contextlib.nullcontext():
            opener.open_encoder(card)


async def test_a_load_that_gets_too_few_threads_leaves_none_behind(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    before = threading.enumerate()

    def start_the_first(thread: threading.Thread) -> None:
        if thread.name == "replica-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_the_first)
    served = await serve(threads=2)
    with pytest.raises(ModelLoadFailed):
        await served.ask(ONE)
    await until(lambda: not started_since(before))


@pytest.mark.parametrize(("concurrent_passes", "threads"), [(None, 2), (1, 1)])
async def test_a_backend_has_as_many_threads_as_it_computes_passes_at_once(
    disk: Disk, serve: Serve, concurrent_passes: int | None, threads: int
) -> None:
    disk.backend.concurrent_passes = concurrent_passes
    before = threading.enumerate()
    served = await serve(threads=2)
    assert await served.ask(ONE) == 7
    assert len(started_since(before)) == threads


async def test_a_wrong_rotation_is_the_failure_of_its_own_model(disk: Disk, serve: Serve) -> None:
    disk.wrong_rotation = VARIANT
    served = await serve()
    with pytest.raises(ModelLoadFailed, match=VARIANT):
        await served.ask(VARIANT)
    assert await served.ask(ONE) == 7


async def test_a_model_is_unloaded_when_idle_and_loaded_when_asked_for(
    disk: Disk, serve: Serve
) -> None:
    before = threading.enumerate()
    served = await serve(unload_after_s=0.05)
    for loads in (1, 2, 3):
        assert await served.ask(VARIANT) == await served.ask(ONE) == 7
        assert disk.loads == [ONE] * loads
        await served.until_unloaded()
        await until(lambda: disk.made[-1]() is None)
    assert not started_since(before)


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


async def after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much later, when the timers that are due have been called."""
    let_pass(seconds, monkeypatch)
    for _ in range(5):
        await asyncio.sleep(0)


async def test_without_unload_after_s_a_model_stays(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve()
    await served.ask(ONE)
    await after(1_000_000, monkeypatch)
    assert served.states()[ONE].loaded


async def test_a_model_in_use_is_not_unloaded(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(unload_after_s=100)
    slow = await served.computing(ONE, disk.backend)
    for _ in range(3):
        await after(101, monkeypatch)
        assert served.states()[ONE].loaded
    disk.backend.gate.set()
    assert await slow == 7
    await after(99, monkeypatch)
    assert served.states()[ONE].loaded
    await after(2, monkeypatch)
    assert not served.states()[ONE].loaded


async def test_a_model_that_does_not_compute_stays_so_that_it_can_be_seen(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(unload_after_s=100, patience=Patience(probe_interval_s=0.01))
    await served.ask(ONE)
    disk.backend.broken.set()
    for _ in range(3):
        with pytest.raises(InferenceFailed):
            await served.ask(ONE)
    await until(lambda: not served.states()[ONE].sound)
    for _ in range(3):
        await after(101, monkeypatch)
        assert served.states()[ONE].loaded
    disk.backend.broken.clear()
    await until(lambda: served.states()[ONE].sound)
    await after(101, monkeypatch)
    assert not served.states()[ONE].loaded


async def test_use_of_one_model_keeps_the_encoder_of_both(
    disk: Disk, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(unload_after_s=100)
    await served.ask(VARIANT)
    for _ in range(5):
        await after(60, monkeypatch)
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
    disk.rotations.clear()
    served = await serve(unload_after_s=100)
    leaving = served.asking(ONE)
    await until(lambda: served.value("model_loaded") == 1)
    leaving.cancel()
    await asyncio.wait([leaving])
    await after(101, monkeypatch)  # the encoder must not go while the model is being made of it
    assert served.value("model_loaded") == 1
    disk.rotations.set()
    await until(lambda: served.states()[ONE].loaded)
    await after(101, monkeypatch)
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
    disk: Disk, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve(unload_after_s=0.02, patience=Patience(join_timeout_s=0.05))
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
    disk: Disk, serve: Serve
) -> None:
    disk.rotations.clear()
    served = await serve()
    waiting = served.asking(VARIANT)
    await until(lambda: served.value("model_loaded") == 1)
    served.models.close()
    with pytest.raises(Draining):
        await waiting


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


async def test_a_model_that_is_in_memory_and_fails_takes_no_work(serve: Serve) -> None:
    served = await serve(patience=Patience(restart_delay_s=3600))
    await served.ask(OTHER)
    served.models.check_ready()
    with pytest.raises(InferenceFailed):
        await served.ask(OTHER, KILLS_THREAD)
    await until(lambda: not served.states()[OTHER].sound)
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


async def test_what_a_load_adds_is_told_if_it_was_alone(disk: Disk, serve: Serve) -> None:
    # Less than 32 MiB may come from memory that was freed before (mallopt(3)).
    disk.ballast_floats = 16_000_000
    served = await serve()
    await served.ask(ONE)
    added = served.states()[ONE].resident_bytes
    assert added is not None
    assert 100e6 < added < 160e6
    assert served.value("model_resident_bytes") == added
    at_start = await serve(lazy=False)
    assert {state.resident_bytes for state in at_start.states().values()} == {None}
