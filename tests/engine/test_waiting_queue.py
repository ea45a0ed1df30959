from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.sequence import MicroBatch, SequenceGroup, TokenSequence
from server.engine.waiting_queue import MIN_COST_TOKENS, WaitingQueue
from server.errors import Draining


def group_of(*lengths: int) -> SequenceGroup:
    async def make() -> SequenceGroup:
        return SequenceGroup([np.ones(length, np.int32) for length in lengths], 1)

    return asyncio.run(make())


def take(queue: WaitingQueue) -> MicroBatch:
    micro_batch = queue.take()
    assert micro_batch is not None
    return micro_batch


def drain(queue: WaitingQueue, sequences: int) -> list[TokenSequence]:
    served: list[TokenSequence] = []
    while len(served) < sequences:
        served += take(queue).sequences
    return served


@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=12), min_size=1, max_size=10))
def test_every_sequence_is_handed_out_exactly_once(requests: list[list[int]]) -> None:
    queue = WaitingQueue(512)
    groups = [group_of(*lengths) for lengths in requests]
    for group in groups:
        queue.put(group)
    wanted = [sequence for group in groups for sequence in group.sequences]
    served = drain(queue, len(wanted))
    assert len(served) == len(wanted)
    assert set(served) == set(wanted)


def test_a_short_request_does_not_wait_for_the_bulk_that_came_before_it() -> None:
    queue = WaitingQueue(512)
    queue.put(group_of(*[100] * 2000))
    for _ in range(3):
        take(queue)
    query = group_of(12)
    queue.put(query)
    assert query.sequences[0] in take(queue).sequences


@given(st.integers(1, 60))
def test_short_requests_without_end_do_not_starve_a_bulk(query_tokens: int) -> None:
    queue = WaitingQueue(512)
    bulk = group_of(*[200] * 20)
    queue.put(bulk)
    waiting = 20
    taken = 0
    while waiting and taken < 1000:
        queue.put(group_of(query_tokens))  # one more query before each micro-batch
        served = take(queue).sequences
        waiting -= sum(sequence.group is bulk for sequence in served)
        taken += 1
    # Half of what is charged goes to the bulk's 4,000 tokens, at least MIN_COST_TOKENS a batch.
    assert waiting == 0
    assert taken <= 2 * 4000 / max(query_tokens, MIN_COST_TOKENS) + 20


def test_two_bulks_advance_side_by_side() -> None:
    queue = WaitingQueue(400)
    first, second = group_of(*[100] * 40), group_of(*[90] * 40)
    queue.put(first)
    queue.put(second)
    served = drain(queue, 40)
    assert 10 <= sum(sequence.group is first for sequence in served) <= 30


def test_an_idle_servers_only_request_is_shared_among_the_workers() -> None:
    queue = WaitingQueue(512)
    taken: list[int] = []
    workers = [threading.Thread(target=lambda: taken.append(len(take(queue)))) for _ in range(2)]
    for worker in workers:
        worker.start()
    while queue._idle_workers < 2:
        time.sleep(0.001)
    queue.put(group_of(*[100] * 4))
    for worker in workers:
        worker.join(10)
    assert taken == [2, 2]


def test_a_busy_servers_worker_fills_its_micro_batch() -> None:
    queue = WaitingQueue(512)
    queue.put(group_of(*[100] * 8))
    assert len(take(queue)) == 5


def test_dropped_groups_are_never_handed_out() -> None:
    queue = WaitingQueue(512)
    gone, there = group_of(10, 20, 30), group_of(15)
    queue.put(gone)
    queue.put(there)
    queue.drop(gone)
    queue.drop(gone)  # twice is harmless
    assert take(queue).sequences == there.sequences


def test_take_waits_for_work_and_ends_when_the_queue_is_closed() -> None:
    queue = WaitingQueue(512)
    taken: list[MicroBatch | None] = []
    first_taken = threading.Event()

    def work() -> None:
        while True:
            taken.append(queue.take())
            first_taken.set()
            if taken[-1] is None:
                return

    worker = threading.Thread(target=work)
    worker.start()
    group = group_of(5)
    queue.put(group)
    assert first_taken.wait(10)
    assert queue.close() == []
    worker.join(10)
    assert not worker.is_alive()
    assert taken[0] is not None
    assert taken[0].sequences == group.sequences
    assert taken[1] is None


def test_closing_returns_the_groups_that_still_waited() -> None:
    queue = WaitingQueue(512)
    group = group_of(5, 6)
    queue.put(group)
    assert queue.close() == [group]
    assert queue.take() is None


def test_a_closed_queue_refuses_work_that_nobody_would_do() -> None:
    queue = WaitingQueue(512)
    queue.close()
    with pytest.raises(Draining):
        queue.put(group_of(5))


def test_what_was_served_or_dropped_is_not_kept_alive() -> None:
    queue = WaitingQueue(512)
    for _ in range(50):
        queue.put(group_of(*[20] * 30))
    dropped = group_of(7, 8)
    queue.put(dropped)
    queue.drop(dropped)
    while queue._by_length:
        take(queue)
        assert len(queue._by_urgency) <= 2 * len(queue._by_length)


def test_the_budget_is_halved_down_to_one_token() -> None:
    queue = WaitingQueue(4)
    assert [queue.lower_budget() for _ in range(4)] == [2, 1, 1, 1]
