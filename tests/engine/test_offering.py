"""The offering over encoders in this process, whose forward passes are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.engine.engine import Engine
from server.engine.interface import Phase
from server.engine.offering import Offering
from server.engine.patience import Patience
from server.engine.replica import FAILURES_BEFORE_PROBE
from server.engine.resident_models import ResidentModels
from server.errors import Draining, InferenceFailed, ModelFailing, ModelLoading, ModelNotFound
from server.inference.loader import Encoder
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, AppOver, engine_of
from tests.engine import embed, ids, let_pass
from tests.fakes import KILLS_THREAD, FakeBackend, FakeOpener
from tests.waiting import wait_for


def metrics() -> Metrics:
    return Metrics(models=[PLAIN], encoders=[PLAIN])


@pytest.fixture
async def models(encoder: Encoder) -> AsyncIterator[Offering]:
    """One model, not loaded yet."""
    settings = Settings(model=[PLAIN], check_files="off", threads=1, unload_after_s=100, lazy=True)
    opener = FakeOpener(settings, encoder.tokenizer, FakeBackend())
    offering = Offering(ResidentModels.find(settings, opener=opener))
    yield offering
    offering.close()
    await asyncio.to_thread(offering.join)


async def test_work_is_taken_only_between_loading_and_draining(models: Offering) -> None:
    with pytest.raises(ModelLoading):
        models.resolve(PLAIN)
    with pytest.raises(ModelNotFound):
        models.resolve(MATRYOSHKA)
    await models.load(metrics())
    assert models.resolve(PLAIN).card.name == PLAIN
    models.drain()
    with pytest.raises(Draining):
        models.resolve(PLAIN)


async def test_a_server_told_to_stop_while_loading_does_not_turn_ready(models: Offering) -> None:
    models.drain()
    await models.load(metrics())
    assert models.phase is Phase.DRAINING


async def test_a_model_that_fails_takes_no_work_until_it_computes_again(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, patience=Patience(probe_interval_s=0.02), check_files="off")
    models = app.state.services.models
    engine = engine_of(app)
    backend.broken.set()
    for _ in range(FAILURES_BEFORE_PROBE):
        models.check_ready()
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(1)])
    with pytest.raises(ModelFailing):
        models.check_ready()
    with pytest.raises(ModelFailing), models.request_for(PLAIN):
        pass
    assert models.in_flight == 0
    backend.broken.clear()
    await asyncio.to_thread(wait_for, lambda: engine.sound)
    models.check_ready()


async def test_a_model_whose_only_worker_has_died_takes_no_work_until_it_is_replaced(
    app_over: AppOver,
) -> None:
    app = await app_over(FakeBackend(), patience=Patience(restart_delay_s=0.5), check_files="off")
    models = app.state.services.models
    engine = engine_of(app)
    with pytest.raises(InferenceFailed):
        await embed(engine, [ids(KILLS_THREAD)])
    await asyncio.to_thread(wait_for, lambda: not engine.sound)
    with pytest.raises(ModelFailing):
        models.check_ready()
    await asyncio.to_thread(wait_for, lambda: engine.sound)
    models.check_ready()
    assert (await embed(engine, [ids(7)])).tolist() == [[7, 1, 7]]


async def test_a_request_taken_elsewhere_is_in_flight_whatever_the_phase(models: Offering) -> None:
    await models.load(metrics())
    model = models.resolve(PLAIN)
    models.drain()
    with models.request_taken(model):
        assert (models.in_flight, models.is_busy) == (1, True)
        assert isinstance((await model.load()).engine, Engine)
    assert (models.in_flight, models.is_busy) == (0, False)


async def test_each_change_is_told_when_it_happens(
    models: Offering, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Phase, bool, int]] = []
    (model,) = models.models
    models.tell_changes_to(lambda: told.append((models.phase, model.state.loaded, model.in_flight)))
    await models.load(metrics())
    with models.request_for(PLAIN):
        await model.load()
    let_pass(101, monkeypatch)  # it is unloaded
    await asyncio.sleep(0.01)
    with models.request_for(PLAIN):
        models.drain()
    assert told == [
        (Phase.READY, False, 0),
        (Phase.READY, True, 0 + 1),
        (Phase.READY, False, 0),
        (Phase.DRAINING, False, 1),
        (Phase.DRAINING, False, 0),
    ]


async def test_finishing_waits_for_what_is_in_flight_and_no_longer_than_told(
    models: Offering,
) -> None:
    await models.load(metrics())
    with models.request_for(PLAIN):
        finishing = asyncio.create_task(models.finish(timeout_s=60))
        await asyncio.sleep(0.05)
        assert (models.phase, finishing.done()) == (Phase.DRAINING, False)
        await models.finish(timeout_s=0.01)
        assert models.in_flight == 1
    await asyncio.wait_for(finishing, 10)


async def test_closing_ends_the_wait_for_what_is_in_flight(models: Offering) -> None:
    await models.load(metrics())
    with models.request_for(PLAIN):
        finishing = asyncio.create_task(models.finish(timeout_s=60))
        await asyncio.sleep(0)
        models.close()
        await asyncio.wait_for(finishing, 10)
