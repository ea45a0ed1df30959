"""Models that fail for good, over a fake forward pass."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.engine.broken_models import BrokenModels
from server.engine.offering import Offering
from server.engine.patience import Patience
from server.engine.replica import FAILURES_BEFORE_PROBE
from server.errors import GivenUp, InferenceFailed
from tests.conftest import PLAIN, AppOver, engine_of
from tests.engine import Clock, embed, ids
from tests.fakes import RAISES, FakeBackend
from tests.waiting import wait_for

QUICK = Patience(probe_interval_s=0.01, give_up_after_s=4)


async def failing(app_over: AppOver, backend: FakeBackend) -> Offering:
    """The models, once this one is found out."""
    app = await app_over(backend, patience=QUICK)
    models = app.state.services.models
    assert isinstance(models, Offering)
    engine = engine_of(app)
    backend.broken.set()
    for _ in range(FAILURES_BEFORE_PROBE):
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(1)])
    await asyncio.to_thread(wait_for, lambda: not models.models[0].state.sound)
    return models


async def test_a_model_that_stays_broken_is_given_up(
    app_over: AppOver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    broken = BrokenModels((await failing(app_over, FakeBackend())).models, QUICK)
    for _ in range(3):
        broken.count_second()
    assert caplog.text.count("does not compute; in 4 s the server ends") == 1
    with pytest.raises(GivenUp, match=f"model {PLAIN} has computed nothing for 4 s"):
        broken.count_second()


async def test_one_that_computes_again_in_between_is_not(app_over: AppOver) -> None:
    backend = FakeBackend()
    models = await failing(app_over, backend)
    broken = BrokenModels(models.models, QUICK)
    for _ in range(3):
        broken.count_second()
    backend.broken.clear()
    await asyncio.to_thread(wait_for, lambda: models.models[0].state.sound)
    broken.count_second()
    backend.broken.set()
    for _ in range(3):
        broken.count_second()


async def test_inputs_that_make_a_model_fail_do_not_end_the_server(app_over: AppOver) -> None:
    app = await app_over(FakeBackend(), patience=QUICK)
    engine = engine_of(app)
    broken = BrokenModels(app.state.services.models.models, QUICK)
    for _ in range(5 * FAILURES_BEFORE_PROBE):
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(RAISES)])
        broken.count_second()


async def test_a_process_that_slept_in_a_pass_does_not_give_it_up(
    app_over: AppOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks stuck when the process goes on, however long that has slept."""
    backend = FakeBackend()
    app = await app_over(backend, patience=QUICK)
    models, engine = app.state.services.models, engine_of(app)
    broken = BrokenModels(models.models, QUICK)
    backend.gate.clear()
    answer = asyncio.create_task(embed(engine, [ids(1)]))
    await asyncio.to_thread(wait_for, lambda: len(backend.shapes) == 2)  # one was at the start
    clock = Clock(monkeypatch)
    clock.now_s += 3600
    await asyncio.to_thread(wait_for, lambda: not models.models[0].state.sound)
    broken.count_second()
    backend.gate.set()
    assert (await answer).tolist() == [[1, 1, 1]]
    broken.count_second()
