from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from server.engine.pace import Pace
from server.engine.patience import Patience
from server.engine.replica import Replica
from server.engine.replica_pool import ReplicaPool
from server.engine.sequence import MicroBatch, SequenceGroup
from server.engine.waiting_queue import WaitingQueue
from tests.engine import ids, open_admission
from tests.fakes import FAKE_DIM, KILLS_THREAD, FakeBackend
from tests.waiting import wait_for


class Pool:
    """A pool, its queue, and what it delivered."""

    def __init__(self, *backends: FakeBackend, workers: int = 1) -> None:
        self.backends = backends
        self.queue = WaitingQueue(Pace(100))
        self.delivered: list[MicroBatch] = []
        self.replaced = 0
        self.pool = ReplicaPool(
            self.queue,
            backends,
            self.delivered.append,
            self._count,
            workers=workers,
            patience=Patience(restart_delay_s=0.01, probe_interval_s=60),
        )

    def _count(self) -> None:
        self.replaced += 1

    def put(self, *token_ids: int) -> None:
        ticket = open_admission().admit("key", len(token_ids))
        self.queue.put(SequenceGroup([ids(*token_ids)], FAKE_DIM, ticket))

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(wait_for, condition)

    async def end(self) -> None:
        self.queue.close()
        for backend in self.backends:
            backend.gate.set()
        assert await asyncio.to_thread(self.pool.join, 10)


def replicas() -> list[Replica]:
    return [thread for thread in threading.enumerate() if isinstance(thread, Replica)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(replicas())
    yield
    wait_for(lambda: set(replicas()) <= before)


async def test_each_device_has_so_many_workers() -> None:
    one, other = FakeBackend(), FakeBackend()
    pool = Pool(one, other, workers=2)
    assert pool.pool.num_sound == 4
    await pool.until(lambda: pool.queue.idle_workers == 4)
    one.gate.clear()
    other.gate.clear()
    for _ in range(4):
        pool.put(*[1] * 100)
    await pool.until(lambda: len(one.shapes) == len(other.shapes) == 2)
    await pool.end()
    assert len(pool.delivered) == 4


async def test_a_dead_worker_is_replaced_on_its_device() -> None:
    backend = FakeBackend()
    pool = Pool(backend)
    for deaths in (1, 2):
        pool.put(KILLS_THREAD)
        await pool.until(lambda: pool.replaced == deaths)  # noqa: B023
        pool.put(7)
        await pool.until(lambda: len(pool.delivered) == 2 * deaths)  # noqa: B023
        assert pool.pool.num_sound == 1
    await pool.end()


async def test_after_the_queue_is_closed_no_worker_is_replaced() -> None:
    backend = FakeBackend()
    pool = Pool(backend)
    backend.gate.clear()
    pool.put(KILLS_THREAD)
    await pool.until(lambda: bool(backend.shapes))
    await pool.end()
    await asyncio.sleep(0.05)
    assert pool.replaced == 0
    assert pool.pool.num_sound == 0


async def test_a_device_that_fails_leaves_the_work_to_a_sound_one() -> None:
    broken, sound = FakeBackend(), FakeBackend()
    pool = Pool(broken, sound)
    broken.broken.set()
    for _ in range(40):
        pool.put(7)
        count = len(pool.delivered)
        await pool.until(lambda: len(pool.delivered) > count)  # noqa: B023
        if pool.pool.num_sound == 1:
            break
    assert pool.pool.num_sound == 1
    pool.delivered.clear()
    for count in range(1, 11):
        pool.put(7)
        await pool.until(lambda: len(pool.delivered) == count)  # noqa: B023
    assert all(one.error is None for batch in pool.delivered for one in batch.sequences)
    await pool.end()


async def test_joining_tells_whether_a_worker_is_stuck() -> None:
    backend = FakeBackend()
    pool = Pool(backend)
    backend.gate.clear()
    pool.put(7)
    await pool.until(lambda: bool(backend.shapes))
    pool.queue.close()
    assert not await asyncio.to_thread(pool.pool.join, 0.01)
    await pool.end()


async def test_when_the_system_gives_no_more_threads_those_there_are_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = Replica.start
    started: list[Replica] = []

    def refuse_the_third(self: Replica) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(Replica, "start", refuse_the_third)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Pool(FakeBackend(), workers=4)
    for replica in started:
        await asyncio.to_thread(replica.join, 10)
    assert not any(replica.is_alive() for replica in started)
