from __future__ import annotations

import gc
import itertools
import random
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from server.engine.batch_budget import RAISE_BUDGET_AFTER
from server.engine.fair_share import MAX_BULK_SHARE, MIN_COST_TOKENS
from server.engine.pace import Pace
from server.engine.sequence import MicroBatch, SequenceGroup, TokenSequence
from server.engine.waiting_queue import FRONT_BUDGETS, WaitingQueue
from server.errors import Draining
from server.inference.backend import Layout
from tests.engine import Requests, group_of, groups_of
from tests.waiting import wait_for

BUDGET = 512
# How far two keys that both wait may be apart: what fair queueing allows is a micro-batch of each.
APART_TOKENS = 4 * BUDGET


keys = st.sampled_from("ABC")
some_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=12)
some_requests = st.lists(st.tuples(keys, some_lengths), min_size=1, max_size=10)
# Longer than MIN_COST_TOKENS, so that what is charged is what is served.
bulk_lengths = st.lists(st.integers(MIN_COST_TOKENS, 300), min_size=1, max_size=40)


def empty_queue(budget: int = BUDGET) -> WaitingQueue:
    """A queue whose only worker is the test."""
    queue = WaitingQueue(Pace(budget))
    queue.add_worker()
    return queue


def waiting(requests: Requests, budget: int = BUDGET) -> tuple[WaitingQueue, list[SequenceGroup]]:
    """A queue in which these requests wait."""
    queue = empty_queue(budget)
    groups = groups_of(requests)
    for group in groups:
        queue.put(group)
    return queue, groups


def take(queue: WaitingQueue) -> MicroBatch:
    micro_batch = queue.take(0)
    assert micro_batch is not None
    return micro_batch


def drain(queue: WaitingQueue) -> Iterator[MicroBatch]:
    """All micro-batches, until nothing waits."""
    while len(queue):
        yield take(queue)


def queries(key: str, tokens: int) -> Iterator[SequenceGroup]:
    """One short request after the other, without end; made a hundred at a time."""
    while True:
        yield from groups_of([(key, [tokens])] * 100)


def tokens_by_key(sequences: Iterable[TokenSequence]) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for sequence in sequences:
        tokens[sequence.group.key] += sequence.num_tokens
    return tokens


def mixed(count: int, seed: int = 0) -> list[int]:
    """Lengths as documents have them: most are short, some are as long as the model reads."""
    lengths = random.Random(seed)
    return [min(256, max(3, int(lengths.lognormvariate(3.8, 0.8)))) for _ in range(count)]


def bulk_of(tokens: int, pattern: list[int]) -> list[int]:
    """This pattern of lengths, again and again, until it holds so many tokens."""
    lengths: list[int] = []
    for length in itertools.cycle(pattern):
        if tokens <= 0:
            return lengths
        lengths.append(length)
        tokens -= length
    raise AssertionError


def furthest_apart(queue: WaitingQueue, wanted: Counter[str]) -> int:
    """The largest difference of tokens served while all keys wait."""
    served = Counter(dict.fromkeys(wanted, 0))
    apart = 0
    while all(served[key] < wanted[key] for key in wanted):
        served += tokens_by_key(take(queue).sequences)
        apart = max(apart, max(served.values()) - min(served[key] for key in wanted))
    return apart


# What comes out.


@given(some_requests)
def test_every_sequence_is_handed_out_exactly_once(requests: Requests) -> None:
    queue, groups = waiting(requests)
    wanted = [sequence for group in groups for sequence in group.sequences]
    served = [sequence for batch in drain(queue) for sequence in batch.sequences]
    assert len(served) == len(wanted)
    assert set(served) == set(wanted)
    assert queue.take(0) is None


@given(some_requests, st.integers(1, 1024))
def test_only_a_lone_sequence_exceeds_the_budget(requests: Requests, budget: int) -> None:
    queue, _ = waiting(requests, budget)
    for batch in drain(queue):
        assert batch.padded_tokens <= budget or len(batch) == 1


class Books(RuleBasedStateMachine):
    """Whatever is put, taken and dropped in whatever order, the queue knows what waits."""

    groups = Bundle("groups")

    def __init__(self) -> None:
        super().__init__()
        self.queue = empty_queue()
        self.left: set[TokenSequence] = set()
        self.left_tokens = 0
        self.lowered_to = BUDGET
        self.taken_since = 0

    @rule(target=groups, key=keys, lengths=some_lengths, times=st.sampled_from([1, 1, 1, 20, 200]))
    def put(self, key: str, lengths: list[int], times: int) -> SequenceGroup:
        group = group_of(*lengths * times, key=key)
        self.queue.put(group)
        self.left |= set(group.sequences)
        self.left_tokens += group.num_tokens
        return group

    @rule(times=st.integers(1, 20))
    def take(self, times: int) -> None:
        for _ in range(times):
            batch = self.queue.take(0)
            assert (batch is None) == (not self.left)
            if batch is not None:
                assert set(batch.sequences) <= self.left
                assert len(set(batch.sequences)) == len(batch) >= 1
                self.taken_since += 1
                doublings = self.taken_since // RAISE_BUDGET_AFTER
                budget = min(BUDGET, self.lowered_to * 2**doublings)
                assert batch.padded_tokens <= budget or len(batch) == 1
                self.left -= set(batch.sequences)
                self.left_tokens -= batch.tokens

    @rule(group=groups)
    def drop(self, group: SequenceGroup) -> None:
        self.queue.drop(group)
        dropped = self.left.intersection(group.sequences)
        self.left -= dropped
        self.left_tokens -= sum(sequence.num_tokens for sequence in dropped)

    @precondition(lambda self: self.lowered_to > 64)
    @rule()
    def lower_budget(self) -> None:
        self.lowered_to = self.queue.lower_budget(self.lowered_to)
        self.taken_since = 0

    @invariant()
    def counts_what_waits(self) -> None:
        assert len(self.queue) == len(self.left)
        assert self.queue.tokens == self.left_tokens

    def teardown(self) -> None:
        while self.left:
            self.take(1)
            self.counts_what_waits()
        assert self.queue.take(0) is None


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=40)


def test_many_threads_put_take_and_drop_at_once_and_nothing_is_lost() -> None:
    queue = WaitingQueue(Pace(BUDGET))
    workers = [Worker(queue, at_once=True) for _ in range(4)]
    numbers = random.Random(0)
    requests = [
        ("ABC"[n % 3], numbers.choices(range(1, 300), k=numbers.choice([1, 1, 3, 50])))
        for n in range(600)
    ]
    groups = groups_of(requests)

    def send(mine: list[SequenceGroup]) -> None:
        for number, group in enumerate(mine):
            queue.put(group)
            if number % 5 == 0:
                queue.drop(mine[number // 2])

    senders = [threading.Thread(target=send, args=(groups[n::3],)) for n in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(20)
    wait_for(lambda: queue.idle_workers == 4 and not len(queue))
    assert queue.tokens == 0
    for worker in workers:
        worker.end()
    taken = Counter(s for worker in workers for batch in worker.taken for s in batch.sequences)
    assert set(taken.values()) == {1}
    dropped = {mine[n // 2] for mine in (groups[i::3] for i in range(3)) for n in range(0, 200, 5)}
    for group in groups:
        assert group in dropped or all(sequence in taken for sequence in group.sequences)


@given(st.integers(1, 3), st.integers(1, 300), st.integers(1, 30))
def test_sequences_of_one_length_are_handed_out_in_the_order_of_their_request(
    requests: int, length: int, count: int
) -> None:
    queue, groups = waiting([("A", [length] * count)] * requests)
    rows: dict[SequenceGroup, list[int]] = {group: [] for group in groups}
    for batch in drain(queue):
        for sequence in batch.sequences:
            rows[sequence.group].append(sequence.row)
    assert all(found == list(range(count)) for found in rows.values())


@given(some_lengths)
def test_of_one_request_the_first_that_waits_is_always_next(lengths: list[int]) -> None:
    queue, (request,) = waiting([("A", lengths)])
    left = list(request.sequences)
    for batch in drain(queue):
        assert left[0] in batch.sequences
        left = [sequence for sequence in left if sequence not in batch.sequences]


def test_an_idle_servers_only_request_is_shared_among_the_workers() -> None:
    queue = WaitingQueue(Pace(BUDGET))
    taken: list[int] = []
    workers = [threading.Thread(target=lambda: taken.append(len(take_later(queue)))) for _ in "ab"]
    for worker in workers:
        worker.start()
    wait_for(lambda: queue.idle_workers == 2)
    queue.put(group_of(*[100] * 4))
    for worker in workers:
        worker.join(10)
    assert taken == [2, 2]


def take_later(queue: WaitingQueue) -> MicroBatch:
    micro_batch = queue.take()
    assert micro_batch is not None
    return micro_batch


def test_a_busy_servers_worker_fills_its_micro_batch() -> None:
    queue, _ = waiting([("A", [100] * 8)])
    assert len(take(queue)) == 5


# Fair between keys.


@given(bulk_lengths, bulk_lengths, st.integers(1, 12))
@settings(max_examples=50)
def test_two_keys_share_by_tokens_however_many_requests_each_has(
    pattern: list[int], other_pattern: list[int], count: int
) -> None:
    one, other = bulk_of(12_000, pattern), bulk_of(12_000, other_pattern)
    queue, _ = waiting([*[("many", one)] * count, ("one", other)])
    wanted = Counter({"many": count * sum(one), "one": sum(other)})
    assert furthest_apart(queue, wanted) <= APART_TOKENS


@given(st.lists(st.tuples(st.integers(1, 6), bulk_lengths), min_size=2, max_size=5))
@settings(max_examples=50)
def test_any_number_of_keys_share_by_tokens(loads: list[tuple[int, list[int]]]) -> None:
    bulks = {str(n): (count, bulk_of(8_000, pattern)) for n, (count, pattern) in enumerate(loads)}
    requests = [(key, bulk) for key, (count, bulk) in bulks.items() for _ in range(count)]
    queue, _ = waiting(requests)
    wanted = Counter({key: count * sum(bulk) for key, (count, bulk) in bulks.items()})
    assert furthest_apart(queue, wanted) <= APART_TOKENS


def test_with_lengths_as_documents_have_them_ten_bulks_get_no_more_than_one_of_another_key() -> (
    None
):
    queue, groups = waiting([*(("many", mixed(2_000, seed)) for seed in range(10))])
    one = group_of(*mixed(600, 99), key="one")
    queue.put(one)
    wanted = Counter({"many": 10**9, "one": sum(s.num_tokens for s in one.sequences)})
    assert furthest_apart(queue, wanted) <= APART_TOKENS
    assert groups


def test_filling_the_micro_batches_of_one_key_gives_no_other_key_more_than_its_share() -> None:
    """Queries of 12 tokens without end, a bulk like them, and a bulk of long texts."""
    queue, _ = waiting([("short", [12] * 20_000), ("long", [250] * 800), ("query", [12])])
    served: Counter[str] = Counter()
    for query in groups_of([("query", [12])] * 400):
        batch = take(queue)
        served += tokens_by_key(batch.sequences)
        if any(sequence.group.key == "query" for sequence in batch.sequences):
            queue.put(query)
    assert abs(served["short"] - served["long"]) <= APART_TOKENS


@given(st.integers(1, 10), st.integers(0, 30))
@settings(max_examples=40)
def test_a_query_does_not_wait_for_the_bulks_of_another_key(bulks: int, taken: int) -> None:
    queue, _ = waiting([("busy", mixed(400, seed)) for seed in range(bulks)])
    for _ in range(taken):
        take(queue)
    query = group_of(12, key="quiet")
    queue.put(query)
    assert any(query.sequences[0] in take(queue).sequences for _ in range(3))


@given(bulk_lengths, bulk_lengths, st.integers(1, 40), st.integers(0, 20))
@settings(max_examples=40)
def test_neither_silence_nor_service_of_the_past_counts(
    busy: list[int], late: list[int], taken: int, before: int
) -> None:
    queue, _ = waiting([("late", late[:1]), ("busy", bulk_of(60_000, busy))])
    for _ in range(before + taken):  # after the first of these, only one key waits
        take(queue)
    bulk = bulk_of(12_000, late)
    queue.put(group_of(*bulk, key="late"))
    wanted = Counter({"late": sum(bulk), "busy": queue.tokens - sum(bulk)})
    assert furthest_apart(queue, wanted) <= APART_TOKENS


@given(st.integers(1, 60))
@settings(max_examples=30)
def test_query_after_query_of_one_key_costs_another_no_more_than_half(query_tokens: int) -> None:
    queue, _ = waiting([("bulk", [200] * 600)])
    cost = Counter({"bulk": 0, "query": 0})
    answered = True
    for query in itertools.islice(queries("query", query_tokens), 1_500):
        if answered:
            queue.put(query)
        tokens = tokens_by_key(take(queue).sequences)
        answered = "query" in tokens
        for key in tokens:
            cost[key] += max(tokens[key], MIN_COST_TOKENS)
        assert cost["query"] <= cost["bulk"] + APART_TOKENS
        if cost["bulk"] >= 30_000:
            return
    raise AssertionError("the bulk starves")


# Fair between the requests of a key.


def test_a_short_request_does_not_wait_for_the_bulk_that_came_before_it() -> None:
    queue, _ = waiting([("A", [100] * 2_000)])
    for _ in range(3):
        take(queue)
    query = group_of(12, key="A")
    queue.put(query)
    assert query.sequences[0] in take(queue).sequences


@given(st.integers(1, 10), st.integers(0, 100), st.integers(1, 60))
@settings(max_examples=60)
def test_a_query_does_not_wait_for_bulks_of_its_own_key_whatever_their_lengths(
    bulks: int, taken: int, query_tokens: int
) -> None:
    queue, _ = waiting([("A", mixed(600, seed)) for seed in range(bulks)])
    for _ in range(min(taken, 30 * bulks)):
        take(queue)
    query = group_of(query_tokens, key="A")
    queue.put(query)
    # Each bulk may be a micro-batch behind its share.
    assert any(query.sequences[0] in take(queue).sequences for _ in range(2 * bulks + 3))


@pytest.mark.parametrize("bulks", [1, 4, 200])
def test_query_after_query_waits_for_few_micro_batches_however_many_bulks_its_key_has(
    bulks: int,
) -> None:
    queue, _ = waiting([("A", mixed(300, seed)) for seed in range(bulks)])
    for _ in range(20):
        query = group_of(12, key="A")
        queue.put(query)
        before = 0
        while query.num_waiting:
            before += take(queue).padded_tokens
        assert before <= MAX_BULK_SHARE * MIN_COST_TOKENS + 2 * BUDGET


@given(st.integers(1, 4), st.integers(1, 60))
@settings(max_examples=40)
def test_clients_that_ask_query_after_query_do_not_starve_a_bulk(
    clients: int, query_tokens: int
) -> None:
    queue, (bulk, *asked) = waiting([("A", [200] * 20), *[("A", [query_tokens])] * clients])
    following = queries("A", query_tokens)
    rows_left = 20
    for taken in itertools.count():
        # At least one part in so many of what is charged goes to the bulk's 4,000 tokens.
        assert taken <= (clients + 1) * 4_000 / max(query_tokens, MIN_COST_TOKENS) + 20
        served = [sequence.group for sequence in take(queue).sequences]
        rows_left -= served.count(bulk)
        if not rows_left:
            return
        for number, query in enumerate(asked):
            if query in served:  # answered: its client sends the next one
                asked[number] = next(following)
                queue.put(asked[number])


def tokens_until_done(queue: WaitingQueue, groups: list[SequenceGroup]) -> list[int]:
    """How many tokens are served until each of these requests is done."""
    done: dict[SequenceGroup, int] = {}
    served = 0
    while len(done) < len(groups):
        served += sum(sequence.num_tokens for sequence in take(queue).sequences)
        done |= {g: served for g in groups if not g.num_waiting and g not in done}
    return [done[group] for group in groups]


# What of a key can be chosen from: in steps of a quarter, and as whole texts.
FRONT_TOKENS = (FRONT_BUDGETS + FRONT_BUDGETS // 4 + 1) * BUDGET


@given(st.lists(bulk_lengths, min_size=1, max_size=5), st.integers(2_000, 40_000))
@example([[32, 32, 32, 32, 34], [32, 32, 34]], 19_375)
@settings(max_examples=30)
def test_bulks_of_a_key_are_done_one_after_the_other(
    patterns: list[list[int]], tokens: int
) -> None:
    queue, groups = waiting([("A", bulk_of(tokens, pattern)) for pattern in patterns])
    sizes = sorted(group.num_tokens for group in groups)
    done = sorted(tokens_until_done(queue, groups))
    for place, at in enumerate(done):
        assert at <= sum(sizes[: place + 1]) + FRONT_TOKENS


def test_a_smaller_bulk_overtakes_a_huge_one_of_its_key_but_an_endless_row_of_them_does_not() -> (
    None
):
    queue, (huge,) = waiting([("A", mixed(3_000, 1))])
    take(queue)
    small = group_of(*mixed(64, 2), key="A")
    queue.put(small)
    (done,) = tokens_until_done(queue, [small])
    assert done <= 2 * small.num_tokens + FRONT_TOKENS
    served = 0
    there = [huge]
    for seed in itertools.count():  # one comes whenever one is done
        there.append(group_of(*mixed(64, seed), key="A"))
        queue.put(there[-1])
        while all(group.num_waiting for group in there):
            served += take(queue).tokens
        there = [group for group in there if group.num_waiting]
        assert served <= 3 * huge.num_tokens + 2 * FRONT_TOKENS
        if not huge.num_waiting:
            return


@given(
    st.lists(st.tuples(keys, st.lists(st.integers(1, 300), min_size=1, max_size=4)), min_size=1, max_size=6),
    st.lists(st.tuples(keys, st.integers(1, 300)), min_size=1, max_size=20),
)  # fmt: skip
@settings(max_examples=50)
def test_nothing_starves_while_a_new_request_comes_before_each_micro_batch(
    first: Requests, arrivals: list[tuple[str, int]]
) -> None:
    queue, groups = waiting(first)
    # Of each micro-batch's cost, at least MIN_COST_TOKENS, a key gets its part and a request
    # its part of that; what is waited for is the request's tokens up to the sequence, and the
    # lead that a new request may have.
    shares = 3 * (len(queue) + 1)
    patience = {
        sequence: shares * (1 + (BUDGET + sum(s.num_tokens for s in group.sequences[: sequence.row + 1])) // MIN_COST_TOKENS)
        for group in groups
        for sequence in group.sequences
    }  # fmt: skip
    for taken, (key, length) in enumerate(itertools.cycle(arrivals), start=1):
        queue.put(group_of(length, key=key))
        for sequence in take(queue).sequences:
            patience.pop(sequence, None)
        assert all(taken <= bound for bound in patience.values())
        if not patience:
            return


# Dropping, closing, forgetting.


def test_dropped_groups_are_never_handed_out() -> None:
    queue, (gone, there) = waiting([("A", [10, 20, 30]), ("A", [15])])
    queue.drop(gone)
    queue.drop(gone)  # twice is harmless
    assert take(queue).sequences == there.sequences


def test_a_key_whose_last_request_was_dropped_can_come_again() -> None:
    queue, (gone,) = waiting([("A", [10, 20])])
    queue.drop(gone)
    again = group_of(30, key="A")
    queue.put(again)
    assert take(queue).sequences == again.sequences
    queue.drop(again)  # has been served: harmless
    queue.put(third := group_of(40, key="A"))
    queue.drop(third)
    assert queue.take(0) is None
    assert len(queue) == queue.tokens == 0


def test_dropping_a_part_that_is_left_gives_no_advantage_over_other_keys() -> None:
    """A client that asks for much and leaves, over and over, gets no more than its share."""
    queue, _ = waiting([("patient", [100] * 400)])
    served: Counter[str] = Counter()
    for _ in range(60):
        queue.put(leaving := group_of(*[100] * 50, key="leaving"))
        for _ in range(2):
            served += tokens_by_key(take(queue).sequences)
        queue.drop(leaving)
    assert served["leaving"] <= served["patient"] + APART_TOKENS


def test_take_waits_for_work_and_ends_when_the_queue_is_closed() -> None:
    queue = WaitingQueue(Pace(BUDGET))
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
    queue, groups = waiting([("A", [5, 6]), ("B", [7])])
    assert queue.close() == groups
    assert queue.take() is None


def test_a_closed_queue_refuses_work_that_nobody_would_do() -> None:
    queue = WaitingQueue(Pace(BUDGET))
    queue.close()
    with pytest.raises(Draining):
        queue.put(group_of(5))


@given(some_requests, st.lists(st.integers(0, 9), max_size=5))
@settings(max_examples=40)
def test_what_was_served_or_dropped_is_not_kept_alive(
    requests: Requests, dropped: list[int]
) -> None:
    queue, groups = waiting([*requests, *requests])
    alive = [weakref.ref(group.vectors) for group in groups]
    for index in dropped:
        queue.drop(groups[index % len(groups)])
    del groups
    while queue.take(0) is not None:
        pass
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_served_requests_are_let_go_while_their_key_still_waits() -> None:
    """Requests that ride in other keys' micro-batches are never the head of one."""
    queue = empty_queue()
    queue.put(group_of(300, *[300] * 20, key="riding"))
    alive: list[weakref.ref[object]] = []
    for _ in range(200):
        riding = groups_of([("riding", [12]) for _ in range(20)])
        alive += [weakref.ref(group.vectors) for group in riding]
        for group in riding:
            queue.put(group)
        del group, riding
        queue.put(group_of(12, key="driving"))
        for _ in range(2):
            queue.take(0)
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 2 * len(queue) + 100


class KeyThatCanBeWatched(str):
    """Plain strings have no place for weak references."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("at_once", [True, False])
def test_thousands_of_keys_that_came_once_are_forgotten(at_once: bool) -> None:
    queue = empty_queue()
    alive: list[weakref.ref[str]] = []
    for first in range(0, 3_000, 100):
        keys = [KeyThatCanBeWatched(f"key-{first + n}") for n in range(100)]
        alive += map(weakref.ref, keys)
        groups = groups_of([(key, [10]) for key in keys])
        del keys
        while groups:
            queue.put(groups.pop())
            if not at_once:
                take(queue)
    while len(queue):
        take(queue)
    for n in range(20):  # somebody else works on
        queue.put(group_of(10, key=f"later-{n % 2}"))
        take(queue)
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 10


def test_a_lowered_budget_is_doubled_whenever_it_has_been_enough_for_long() -> None:
    queue = empty_queue()
    queue.lower_budget(BUDGET // 2)
    sizes: list[int] = []
    while len(sizes) < 3 * RAISE_BUDGET_AFTER:
        queue.put(group_of(*[BUDGET // 4] * 4))
        sizes += [batch.tokens for batch in drain(queue)]
    assert set(sizes[:RAISE_BUDGET_AFTER]) == {BUDGET // 4}
    assert set(sizes[RAISE_BUDGET_AFTER + 3 : 2 * RAISE_BUDGET_AFTER]) == {BUDGET // 2}
    assert set(sizes[2 * RAISE_BUDGET_AFTER + 3 :]) == {BUDGET}


# The whole machine.


class Worker:
    """A thread that takes a micro-batch, holds it until told to go on, and takes the next."""

    def __init__(self, queue: WaitingQueue, *, at_once: bool = False, device: int = 0) -> None:
        self.taken: list[MicroBatch] = []
        self._queue = queue
        self._device = device
        self._at_once = at_once  # do not wait to be told
        self._done = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._done.release()

    def end(self) -> None:
        self._queue.close()
        self.finish()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        self._queue.add_worker(self._device)
        while (batch := self._queue.take(device=self._device)) is not None:
            self.taken.append(batch)
            assert self._at_once or self._done.acquire(timeout=20)
        self._queue.remove_worker(self._device)


def test_a_micro_batch_is_alone_only_if_nothing_else_waits_or_is_computed() -> None:
    queue = WaitingQueue(Pace(BUDGET))
    workers = [Worker(queue), Worker(queue)]

    def taken() -> list[MicroBatch]:
        return [batch for worker in workers for batch in worker.taken]

    wait_for(lambda: queue.idle_workers == 2)
    queue.put(group_of(50))
    wait_for(lambda: len(taken()) == 1)
    assert taken()[0].alone
    busy, idle = sorted(workers, key=lambda worker: len(worker.taken), reverse=True)

    queue.put(group_of(50))  # the other worker computes
    wait_for(lambda: len(idle.taken) == 1)
    assert not idle.taken[0].alone

    queue.put(group_of(50))
    queue.put(group_of(300))
    idle.finish()
    wait_for(lambda: len(idle.taken) == 2)
    assert not idle.taken[1].alone
    idle.finish()
    wait_for(lambda: len(idle.taken) == 3)
    assert not idle.taken[2].alone  # nothing waits, but the other still computes

    idle.finish()
    busy.finish()
    wait_for(lambda: queue.idle_workers == 2)
    queue.put(group_of(*[100] * 4))  # shared among them
    wait_for(lambda: len(taken()) == 6)
    assert not any(batch.alone for batch in taken()[-2:] if len(batch) == 2)
    assert sum(batch.alone for batch in taken()) == 1

    for worker in workers:
        worker.finish()
    wait_for(lambda: queue.idle_workers == 2)
    queue.put(group_of(50))
    wait_for(lambda: len(taken()) == 7)
    assert sum(batch.alone for batch in taken()) == 2
    for worker in workers:
        worker.end()


def test_a_worker_that_has_left_keeps_nobody_from_having_the_machine() -> None:
    queue = empty_queue()
    queue.add_worker()
    queue.put(group_of(50))
    assert not take(queue).alone  # the other may compute
    queue.remove_worker()
    queue.put(group_of(50))
    assert take(queue).alone
    queue.put(group_of(50))
    queue.put(group_of(300))
    assert not take(queue).alone
    assert take(queue).alone


def test_with_a_timeout_it_waits_no_longer() -> None:
    assert empty_queue().take(0.01) is None


@pytest.mark.parametrize("idle_workers", [1, 2, 5])
def test_without_sharing_micro_batches_do_not_depend_on_who_is_idle(
    idle_workers: int,
) -> None:
    """What makes vectors that are computed offline the same in every run."""

    def shapes(queue: WaitingQueue, idle_workers: int) -> list[list[int]]:
        workers = [Worker(queue, at_once=True) for _ in range(idle_workers)]
        wait_for(lambda: queue.idle_workers == idle_workers)
        queue.put(group_of(*[100] * 4, 40))
        wait_for(lambda: not len(queue) and queue.idle_workers == idle_workers)
        for worker in workers:
            worker.end()
        batches = [batch for worker in workers for batch in worker.taken]
        return sorted([s.num_tokens for s in batch.sequences] for batch in batches)

    alone = shapes(WaitingQueue(Pace(BUDGET)), 1)
    assert shapes(WaitingQueue(Pace(BUDGET, share_among_idle=False)), idle_workers) == alone
    assert (shapes(WaitingQueue(Pace(BUDGET)), idle_workers) == alone) is (idle_workers == 1)


class TestWorkersAhead:
    """While as many workers compute as there are devices, others take only what is worth it."""

    def queue(self) -> WaitingQueue:
        return WaitingQueue(
            Pace(BUDGET, light_batch_tokens=BUDGET, ahead_tokens=200), Layout.PACKED
        )

    def test_a_second_worker_leaves_little_for_the_first_one(self) -> None:
        queue = self.queue()
        workers = [Worker(queue) for _ in "ab"]
        wait_for(lambda: queue.idle_workers == 2)
        queue.put(group_of(10))
        wait_for(lambda: sum(len(worker.taken) for worker in workers) == 1)
        busy, idle = sorted(workers, key=lambda worker: len(worker.taken), reverse=True)
        queue.put(group_of(20))
        queue.put(group_of(30))
        busy.finish()
        wait_for(lambda: sum(len(worker.taken) for worker in workers) == 2)
        second = [worker.taken[-1] for worker in workers if worker.taken][-1]
        assert [s.num_tokens for s in (busy.taken + idle.taken)[-1].sequences] == [20, 30]
        assert second.tokens == 50
        for worker in workers:
            worker.end()

    def test_a_second_worker_takes_what_is_enough_for_a_micro_batch_of_its_own(self) -> None:
        queue = self.queue()
        workers = [Worker(queue) for _ in "ab"]
        wait_for(lambda: queue.idle_workers == 2)
        queue.put(group_of(10))
        wait_for(lambda: sum(len(worker.taken) for worker in workers) == 1)
        queue.put(group_of(199))
        queue.put(group_of(1))
        wait_for(lambda: all(worker.taken for worker in workers))
        assert sorted(worker.taken[0].tokens for worker in workers) == [10, 200]
        for worker in workers:
            worker.end()

    def test_a_device_whose_workers_are_stuck_keeps_no_other_one_from_its_work(self) -> None:
        queue = self.queue()
        stuck = [Worker(queue) for _ in "ab"]
        wait_for(lambda: queue.idle_workers == 2)
        queue.put(group_of(200))
        queue.put(group_of(200))
        queue.put(group_of(200))
        wait_for(lambda: all(worker.taken for worker in stuck))
        healthy = Worker(queue, device=1, at_once=True)
        for count in range(1, 6):
            queue.put(group_of(10))
            wait_for(lambda: not len(queue))
            assert sum(batch.tokens for batch in healthy.taken) >= 10 * count
        assert [len(worker.taken) for worker in stuck] == [1, 1]
        for worker in (*stuck, healthy):
            worker.end()

    def test_each_device_has_a_worker_of_its_own(self) -> None:
        queue = self.queue()
        workers = [Worker(queue, device=device) for device in (0, 0, 1)]
        wait_for(lambda: queue.idle_workers == 3)
        queue.put(group_of(10))
        wait_for(lambda: sum(len(worker.taken) for worker in workers) == 1)
        queue.put(group_of(20))
        wait_for(lambda: sum(len(worker.taken) for worker in workers) == 2)
        assert workers[2].taken
        queue.put(group_of(30))
        assert len(queue) == 1
        workers[2].finish()
        wait_for(lambda: not len(queue))
        for worker in workers:
            worker.end()


@given(some_requests, st.integers(1, 1024))
def test_a_micro_batch_holds_sequences_of_one_padded_length(
    requests: Requests, budget: int
) -> None:
    queue, _ = waiting(requests, budget)
    for batch in drain(queue):
        (length,) = {Layout.BY_LENGTH.padded_length(one.num_tokens) for one in batch.sequences}
        assert batch.padded_tokens == len(batch) * length


@given(some_requests, st.integers(1, 1024))
def test_padded_micro_batches_are_within_the_budget_with_their_longest(
    requests: Requests, budget: int
) -> None:
    queue = WaitingQueue(Pace(budget), Layout.PADDED)
    queue.add_worker()
    for group in groups_of(requests):
        queue.put(group)
    for batch in drain(queue):
        longest = max(sequence.num_tokens for sequence in batch.sequences)
        assert batch.padded_tokens == len(batch) * longest
        assert batch.padded_tokens <= budget or len(batch) == 1


def test_a_length_of_which_little_waits_is_served_among_a_flood_of_another() -> None:
    queue, _ = waiting([("flood", [12] * 4_000)])
    for key, length in (("flood", 250), ("other", 40), ("third", 3)):
        rare = group_of(length, key=key)
        queue.put(rare)
        assert any(rare.sequences[0] in take(queue).sequences for _ in range(3))


@given(some_requests, st.integers(1, 700))
def test_packed_micro_batches_are_filled_by_tokens(requests: Requests, budget: int) -> None:
    queue = WaitingQueue(Pace(budget, light_batch_tokens=budget), Layout.PACKED)
    queue.add_worker()
    for group in groups_of(requests):
        queue.put(group)
    served = 0
    while len(queue):
        batch = take(queue)
        assert batch.layout is Layout.PACKED
        assert batch.tokens == batch.padded_tokens
        assert batch.tokens <= budget or len(batch) == 1
        served += len(batch)
    assert served == sum(len(lengths) for _, lengths in requests)


def test_packed_a_short_sequence_goes_with_long_ones() -> None:
    queue = WaitingQueue(Pace(BUDGET, light_batch_tokens=BUDGET), Layout.PACKED)
    queue.add_worker()
    for length in (3, 300, 150):
        queue.put(group_of(length))
    assert sorted(s.num_tokens for s in take(queue).sequences) == [3, 150, 300]


def test_packed_a_long_sequence_is_filled_up_with_many_short_ones() -> None:
    queue = WaitingQueue(Pace(4096, light_batch_tokens=4096), Layout.PACKED)
    queue.add_worker()
    queue.put(group_of(512, *[16] * 1000))
    taken = take(queue)
    assert taken.tokens == 4096
    assert len(taken) == 1 + (4096 - 512) // 16
