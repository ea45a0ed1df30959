"""A worker thread over a forward pass that fails, hangs or kills it."""

from __future__ import annotations

import gc
import logging
import queue as queues
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pytest

from server.engine.pace import Pace
from server.engine.patience import PATIENCE, Patience
from server.engine.replica import FAILURES_BEFORE_PROBE, Replica
from server.engine.sequence import MicroBatch, SequenceGroup
from server.engine.waiting_queue import WaitingQueue
from server.inference.probing import PROBE_TOKENS
from tests.engine import Clock, group_of, ids
from tests.fakes import GIVES_NAN, KILLS_THREAD, LOSES_ROWS, RAISES, FakeBackend
from tests.waiting import wait_for

QUICK = Patience(probe_interval_s=0.02)


class Harness:
    """One replica, its queue, and what it delivered."""

    def __init__(self, backend: FakeBackend, patience: Patience) -> None:
        self.queue = WaitingQueue(Pace(512))
        self.delivered: queues.Queue[MicroBatch] = queues.Queue()
        self.died: list[Replica] = []
        self.replica = Replica(
            "replica-0",
            self.queue,
            backend,
            self.delivered.put,
            self.died.append,
            patience=patience,
        )
        self.replica.start()
        wait_for(lambda: self.queue.idle_workers == 1)

    def ask(self, *token_ids: int) -> SequenceGroup:
        """Put one sequence in the queue."""
        group = group_of(len(token_ids))
        group.vectors = np.zeros((1, 3), np.float32)
        group.sequences[0].token_ids[:] = ids(*token_ids)
        self.queue.put(group)
        return group

    def compute(self, *token_ids: int) -> SequenceGroup:
        """The same, and wait until it has been handed back."""
        group = self.ask(*token_ids)
        assert self.delivered.get(timeout=20).sequences == group.sequences
        return group


class Start(Protocol):
    def __call__(self, backend: FakeBackend, patience: Patience = ...) -> Harness: ...


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[tuple[FakeBackend, Harness]] = []

    def make(backend: FakeBackend, patience: Patience = QUICK) -> Harness:
        started.append((backend, Harness(backend, patience)))
        return started[-1][1]

    yield make
    for backend, harness in started:
        backend.gate.set()
        harness.queue.close()
        harness.replica.join(20)
        assert not harness.replica.is_alive()


def probes(backend: FakeBackend) -> int:
    return backend.shapes.count((1, PROBE_TOKENS))


def test_a_backend_that_always_fails_is_found_out(start: Start) -> None:
    backend = FakeBackend()
    harness = start(backend)
    backend.broken.set()
    for _ in range(FAILURES_BEFORE_PROBE):
        assert harness.replica.sound
        assert probes(backend) == 0
        assert isinstance(harness.compute(1, 2).sequences[0].error, RuntimeError)
    wait_for(lambda: not harness.replica.sound)
    assert probes(backend) >= 1


def test_it_is_sound_again_by_itself_once_the_backend_works(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    backend = FakeBackend()
    harness = start(backend)
    backend.broken.set()
    for _ in range(FAILURES_BEFORE_PROBE):
        harness.compute(1, 2)
    wait_for(lambda: probes(backend) >= 4)  # asks again and again, though nobody sends work
    assert not harness.replica.sound
    backend.broken.clear()
    wait_for(lambda: harness.replica.sound)
    asked = probes(backend)
    assert harness.compute(7).vectors.tolist() == [[7, 1, 7]]
    time.sleep(0.1)
    assert probes(backend) == asked  # a sound one is not asked
    assert "the model fails on a known input" in caplog.text
    assert caplog.text.count("the model computes again") == 1


def test_work_that_succeeds_makes_it_sound_too(start: Start) -> None:
    backend = FakeBackend()
    harness = start(backend, Patience(probe_interval_s=3600))
    backend.broken.set()
    for _ in range(FAILURES_BEFORE_PROBE):
        harness.compute(1, 2)
    wait_for(lambda: not harness.replica.sound)
    backend.broken.clear()
    harness.compute(7)
    assert harness.replica.sound


@pytest.mark.parametrize("guilty_token", [RAISES, GIVES_NAN, LOSES_ROWS])
def test_an_input_that_always_fails_does_not_make_a_sound_backend_look_broken(
    start: Start, guilty_token: int
) -> None:
    backend = FakeBackend()
    harness = start(backend)
    for _ in range(5 * FAILURES_BEFORE_PROBE):
        assert harness.compute(guilty_token).sequences[0].error is not None
        assert harness.replica.sound
    wait_for(lambda: harness.queue.idle_workers == 1)
    assert harness.replica.sound
    assert 1 <= probes(backend) <= 5  # not one for each failure
    assert harness.compute(7).vectors.tolist() == [[7, 1, 7]]


def test_failures_that_are_not_in_a_row_ask_for_no_probe(start: Start) -> None:
    backend = FakeBackend()
    harness = start(backend)
    for _ in range(10):
        for _ in range(FAILURES_BEFORE_PROBE - 1):
            harness.compute(RAISES)
        harness.compute(7)
    assert probes(backend) == 0


def test_of_a_micro_batch_only_the_guilty_has_an_error(start: Start) -> None:
    backend = FakeBackend()
    backend.gate.clear()
    harness = start(backend)
    first = harness.ask(1)
    assert backend.entered.acquire(timeout=10)
    groups = [harness.ask(RAISES if n == 5 else n, 1, 2) for n in range(1, 9)]
    backend.gate.set()
    assert harness.delivered.get(timeout=20).sequences == first.sequences
    together = harness.delivered.get(timeout=20).sequences
    assert len(together) == 8
    assert [group.sequences[0].error is None for group in groups] == [n != 5 for n in range(1, 9)]
    assert [group.vectors[0, 2] for group in groups if group is not groups[4]] == [1, 2, 3, 4, 6, 7, 8]  # fmt: skip
    assert harness.replica.sound


def test_what_is_computed_in_parts_after_a_failure_is_not_alone(start: Start) -> None:
    backend = FakeBackend()
    harness = start(backend)
    harness.compute(7)
    assert backend.alone == [True]
    group = group_of(2, 2)
    group.vectors = np.zeros((2, 3), np.float32)
    group.sequences[1].token_ids[:] = ids(1, RAISES)
    harness.queue.put(group)
    harness.delivered.get(timeout=20)
    assert backend.alone == [True, True, False, False]


def test_a_thread_that_dies_hands_back_what_it_had_and_says_so(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    harness = start(FakeBackend())
    group = harness.compute(KILLS_THREAD)
    assert isinstance(group.sequences[0].error, SystemExit)
    harness.replica.join(10)
    assert not harness.replica.sound
    assert harness.died == [harness.replica]
    harness.queue.add_worker()  # in its place; it does not count as one that may compute
    harness.queue.put(group_of(1))
    micro_batch = harness.queue.take(0)
    assert micro_batch is not None
    assert micro_batch.alone
    assert "replica-0 died" in caplog.text
    assert "SystemExit" in caplog.text


def test_a_thread_that_is_told_to_end_does_not_count_as_dead(start: Start) -> None:
    harness = start(FakeBackend())
    harness.queue.close()
    harness.replica.join(10)
    assert harness.died == []
    assert not harness.replica.sound


def test_a_forward_pass_that_does_not_come_back_is_noticed_until_it_does(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    backend = FakeBackend()
    harness = start(backend)
    backend.gate.clear()
    harness.ask(1)
    assert backend.entered.acquire(timeout=10)
    clock.now_s += PATIENCE.stuck_after_s - 1
    assert harness.replica.sound
    clock.now_s += 2
    wait_for(lambda: not harness.replica.sound)
    assert harness.replica.is_alive()
    backend.gate.set()
    wait_for(lambda: harness.replica.sound)
    assert harness.died == []


def test_a_large_micro_batch_may_take_its_time(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    backend = FakeBackend()
    harness = start(backend)
    backend.gate.clear()
    harness.ask(*[1] * 20_480)
    assert backend.entered.acquire(timeout=10)
    clock.now_s += 20_480 / PATIENCE.slowest_tokens_per_s - 1
    assert harness.replica.sound
    clock.now_s += 2
    wait_for(lambda: not harness.replica.sound)
    backend.gate.set()


def test_an_idle_worker_lets_go_of_what_it_computed(start: Start) -> None:
    harness = start(FakeBackend())
    harness.ask(1)
    vectors = weakref.ref(harness.delivered.get(timeout=20).sequences[0].group.vectors)
    wait_for(lambda: gc.collect() >= 0 and vectors() is None)


def test_times_are_those_of_the_forward_pass(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    backend = FakeBackend()
    harness = start(backend)
    backend.gate.clear()
    began_s = clock.now_s
    harness.ask(1)
    assert backend.entered.acquire(timeout=10)
    clock.now_s += 0.25
    backend.gate.set()
    micro_batch = harness.delivered.get(timeout=20)
    assert (micro_batch.began_s, micro_batch.ended_s) == (began_s, began_s + 0.25)
