from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from server.engine.fair_share import MIN_COST_TOKENS
from server.engine.pace import Pace
from server.engine.ratio import Ratio
from server.engine.sequence import MicroBatch, SequenceGroup
from server.engine.settlement import Settlement
from server.engine.waiting_queue import WaitingQueue
from server.errors import InferenceFailed
from server.metrics import Metrics
from tests.engine import ids, metrics_of_an_engine, open_admission
from tests.metrics_page import MetricsPage

WORKERS = 3


class Desk:
    """A queue that the test takes from, and what settles that."""

    def __init__(self) -> None:
        self.metrics, of_engine = metrics_of_an_engine()
        self.queue = WaitingQueue(Pace(100))
        self.queue.add_worker()
        self.queue.add_worker()  # computes elsewhere, so that nothing is alone
        self.speed = Ratio(1_000.0, weight=0.0001)  # forgotten with the first measurement
        self.admission = open_admission()
        self.settlement = Settlement(self.queue, self.speed, of_engine, workers=WORKERS)

    def put(self, *lengths: int) -> SequenceGroup:
        ticket = self.admission.admit("key", sum(lengths))
        group = SequenceGroup([ids(*[1] * length) for length in lengths], 2, ticket)
        self.queue.put(group)
        return group

    async def settle(self, change: Callable[[MicroBatch], None] = lambda batch: None) -> None:
        """Have the next micro-batch computed and delivered by another thread."""
        batch = self.queue.take(0)
        assert batch is not None
        batch.ended_s = batch.began_s + 0.5
        for sequence in batch.sequences:
            sequence.group.vectors[sequence.row] = sequence.row
        change(batch)
        await asyncio.to_thread(self.settlement.deliver, batch)
        await asyncio.sleep(0)


def count(metrics: Metrics, name: str) -> float:
    return MetricsPage(metrics.page()).value(name, model="model")


async def test_a_request_is_answered_once_all_of_it_is_computed() -> None:
    desk = Desk()
    group = desk.put(100, 100)
    await desk.settle()
    assert not group.future.done()
    assert desk.admission.tokens == 100
    began_s = group.began_s
    await desk.settle()
    assert np.array_equal(await group.future, [[0, 0], [1, 1]])
    assert desk.admission.tokens == 0
    assert group.began_s == began_s  # when the first of it was taken


async def test_a_failure_is_answered_at_once_and_the_rest_is_dropped() -> None:
    desk = Desk()
    group, other = desk.put(97, 100, 100), desk.put(50)

    def fail(batch: MicroBatch) -> None:
        for sequence in batch.sequences:
            if sequence.group is group:
                sequence.error = RuntimeError("fake")

    while not group.future.done():
        await desk.settle(fail)
    with pytest.raises(InferenceFailed, match=r"failed on input\[0\]"):
        group.future.result()
    while not other.future.done():
        await desk.settle()
    assert len(desk.queue) == 0
    assert count(desk.metrics, "sequence_failures_total") == 1


async def test_who_has_gone_is_not_answered() -> None:
    desk = Desk()
    group = desk.put(100)
    group.future.cancel()
    await desk.settle()
    assert group.future.cancelled()
    assert desk.admission.tokens == 100  # leaving gives it back


@pytest.mark.parametrize(
    ("tokens", "alone", "expected"),
    [
        (100, False, 100 / 0.5 * WORKERS),
        (100, True, 100 / 0.5),
        (12, False, MIN_COST_TOKENS / 0.5 * WORKERS),
    ],
)
async def test_the_speed_is_that_of_all_workers(tokens: int, alone: bool, expected: float) -> None:
    desk = Desk()
    desk.put(tokens)
    await desk.settle(lambda batch: setattr(batch, "alone", alone))
    assert desk.speed.value == pytest.approx(expected, rel=0.01)


async def test_a_failure_is_no_speed() -> None:
    desk = Desk()
    group = desk.put(100)
    before = desk.speed.value
    await desk.settle(lambda batch: setattr(batch.sequences[0], "error", RuntimeError()))
    assert isinstance(group.future.exception(), InferenceFailed)
    assert desk.speed.value == before


async def test_what_was_computed_is_counted() -> None:
    desk = Desk()
    desk.put(30, 29)
    await desk.settle()
    assert count(desk.metrics, "computed_tokens_total") == 59
    assert count(desk.metrics, "padding_tokens_total") == 1
    assert count(desk.metrics, "micro_batch_sequences_sum") == 2
    assert count(desk.metrics, "micro_batch_tokens_sum") == 60
    assert count(desk.metrics, "micro_batch_seconds_sum") == 0.5


def test_when_the_process_is_ending_nobody_waits_for_an_answer() -> None:
    async def make() -> tuple[Settlement, MicroBatch]:
        desk = Desk()
        desk.put(10)
        batch = desk.queue.take(0)
        assert batch is not None
        return desk.settlement, batch

    settlement, batch = asyncio.run(make())
    thread = threading.Thread(target=settlement.deliver, args=[batch])
    thread.start()
    thread.join(10)  # an exception in it would make the test fail
