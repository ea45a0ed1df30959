from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from server.engine import on_demand
from server.engine.on_demand import OnDemand
from server.errors import Draining, ModelFileError, ModelLoadFailed
from tests.engine import let_pass


class Source:
    """Loads that wait for the gate, then fail with what `fails` holds."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.fails: Exception | None = None
        self.attempts = 0

    async def load(self) -> str:
        self.attempts += 1
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        return f"load {self.attempts}"


async def test_all_who_wait_get_the_outcome_of_one_load() -> None:
    source = Source()
    wanted = OnDemand("tiny", source.load)
    waiting = [asyncio.create_task(wanted.get()) for _ in range(1000)]
    await asyncio.sleep(0)
    source.gate.set()
    assert await asyncio.gather(*waiting) == ["load 1"] * 1000
    assert await wanted.get() == wanted.value == "load 1"


async def test_those_who_leave_do_not_cancel_the_load_for_others() -> None:
    source = Source()
    wanted = OnDemand("tiny", source.load)
    leaving = [asyncio.create_task(wanted.get()) for _ in range(2)]
    staying = asyncio.create_task(wanted.get())
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    source.gate.set()
    assert await staying == "load 1"


async def test_a_load_that_everybody_has_left_is_there_for_the_next() -> None:
    source = Source()
    wanted = OnDemand("tiny", source.load)
    leaving = asyncio.create_task(wanted.get())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    source.gate.set()
    assert await wanted.get() == "load 1"


async def test_a_failure_is_told_to_all_logged_once_and_tried_again_after_a_pause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    source.gate.set()
    source.fails = ModelFileError("/secret/place/weights is not the approved file")
    wanted = OnDemand("tiny", source.load)
    outcomes = await asyncio.gather(*(wanted.get() for _ in range(9)), return_exceptions=True)
    assert all(isinstance(outcome, ModelLoadFailed) for outcome in outcomes)
    assert not any("secret" in str(outcome) for outcome in outcomes)
    assert [record.getMessage() for record in caplog.records] == [
        "loading failed: /secret/place/weights is not the approved file"
    ]
    source.fails = None
    with pytest.raises(ModelLoadFailed) as refused:
        await wanted.get()
    assert 1 <= refused.value.retry_after_s <= on_demand.RETRY_LOAD_S
    assert source.attempts == 1
    let_pass(on_demand.RETRY_LOAD_S, monkeypatch)
    assert await wanted.get() == "load 2"


async def test_a_failure_that_nobody_waits_for_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    source.fails = ModelFileError("what is wrong")
    leaving = asyncio.create_task(OnDemand("tiny", source.load).get())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    source.gate.set()
    async with asyncio.timeout(10):
        while not caplog.records:  # noqa: ASYNC110
            await asyncio.sleep(0)
    del leaving
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == ["loading failed: what is wrong"]


async def test_a_failure_that_nobody_foresaw_is_logged_with_its_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    source.gate.set()
    source.fails = MemoryError()
    with pytest.raises(ModelLoadFailed):
        await OnDemand("tiny", source.load).get()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is MemoryError


async def test_a_failure_of_what_it_needs_is_no_failure_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    source.gate.set()
    source.fails = ModelLoadFailed("base", retry_after_s=3)
    wanted = OnDemand("variant", source.load)
    with pytest.raises(ModelLoadFailed, match="base"):
        await wanted.get()
    assert not caplog.records
    source.fails = None
    assert await wanted.get() == "load 2"


async def test_what_is_forgotten_is_loaded_again() -> None:
    source = Source()
    source.gate.set()
    wanted = OnDemand("tiny", source.load)
    assert await wanted.get() == "load 1"
    assert wanted.forget() == "load 1"
    assert await wanted.get() == "load 2"


async def test_closing_answers_those_who_wait_and_those_who_come() -> None:
    source = Source()
    wanted = OnDemand("tiny", source.load)
    waiting = [asyncio.create_task(wanted.get()) for _ in range(3)]
    await asyncio.sleep(0)
    wanted.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, Draining)
    with pytest.raises(Draining):
        await wanted.get()


async def test_at_the_start_the_failure_itself_is_told(caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    source.gate.set()
    source.fails = ModelFileError("what is wrong")
    with pytest.raises(ModelFileError, match="what is wrong"):
        await OnDemand("tiny", source.load).load()
    assert not caplog.records
