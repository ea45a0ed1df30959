from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from server.engine.admission import Admission, Ticket
from server.engine.client_patience import ClientPatience
from server.engine.fair_share import LIGHT_TOKENS
from server.engine.pace import Pace
from server.engine.ratio import Ratio
from server.engine.waiting_queue import WaitingQueue
from server.errors import Overloaded
from tests.engine import NO_LIMIT, groups_of, open_admission

BUDGET = 512
RATE = 1_000.0  # tokens a second, until something else is measured

keys = st.sampled_from("ABCD")
sizes = st.integers(1, 100_000)


def admission(
    *, max_queue_tokens: int = NO_LIMIT, max_wait_s: float = NO_LIMIT, rate: float = RATE
) -> Admission:
    return Admission(
        max_queue_tokens=max_queue_tokens,
        max_wait_s=max_wait_s,
        tokens_per_second=Ratio(rate, weight=1),
    )


def lets_in(gate: Admission, key: str, tokens: int) -> bool:
    """Whether a request would be let in; it leaves at once."""
    try:
        with gate.admit(key, tokens):
            return True
    except Overloaded:
        return False


# The books.


def estimates(gate: Admission) -> list[float]:
    """What every key would be told of its wait, for light requests and bulk ones."""
    return [
        gate.expected_wait_s(key, tokens)
        for key in (*"ABCD", "nobody's")
        for tokens in (LIGHT_TOKENS, LIGHT_TOKENS + 1, NO_LIMIT)
    ]


class Books(RuleBasedStateMachine):
    """Whatever happens in whatever order, the admission knows what its tickets hold."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.gate = admission(max_queue_tokens=300_000, max_wait_s=200)
        self.held: dict[Ticket, int] = {}
        self.admitted: dict[Ticket, int] = {}  # before anything of it was computed

    @rule(target=tickets, key=keys, tokens=sizes)
    def admit(self, key: str, tokens: int) -> Ticket:
        try:
            ticket = self.gate.admit(key, tokens)
        except Overloaded:
            assert self.held  # an idle server refuses nobody
            ticket = open_admission().admit(key, tokens)  # of no account here
        else:
            self.held[ticket] = self.admitted[ticket] = tokens
        return ticket

    @rule(ticket=tickets, tokens=sizes)
    def correct(self, ticket: Ticket, tokens: int) -> None:
        if ticket in self.held:
            if tokens != self.held[ticket]:
                self.admitted[ticket] = tokens
            ticket.correct(tokens)
            self.held[ticket] = tokens

    @rule(ticket=tickets, data=st.data())
    def compute(self, ticket: Ticket, data: st.DataObject) -> None:
        if ticket in self.held:
            tokens = data.draw(st.integers(0, self.held[ticket]))
            ticket.computed(tokens)
            self.held[ticket] -= tokens

    @rule(ticket=consumes(tickets), fails=st.booleans())
    def leave(self, ticket: Ticket, fails: bool) -> None:
        if ticket in self.held:
            try:
                with ticket:
                    if fails:
                        raise RuntimeError
            except RuntimeError:
                assert fails
            del self.held[ticket]

    @invariant()
    def counts_what_tickets_hold(self) -> None:
        assert self.gate.tokens == sum(self.held.values())
        assert estimates(self.gate) == pytest.approx(estimates(self.fresh()))

    def fresh(self) -> Admission:
        """One that has let in what is there now, and nothing else."""
        gate = admission()
        for ticket, tokens in self.held.items():
            admitted = self.admitted[ticket]
            gate.admit(ticket.key, admitted).computed(admitted - tokens)
        return gate

    def teardown(self) -> None:
        for ticket in list(self.held):
            self.leave(ticket, fails=False)
        assert self.gate.tokens == 0
        assert not any(estimates(self.gate))


TestBooks = Books.TestCase


def test_a_ticket_left_by_an_exception_gives_back_all_and_the_exception_goes_on() -> None:
    gate = admission()

    def fail() -> None:
        with gate.admit("A", 100):
            assert gate.tokens == 100
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert gate.tokens == 0


# Who is let in.


@given(keys, st.integers(1, 10**9), st.integers(1, 100), st.floats(0.001, 10))
def test_an_idle_server_takes_a_request_of_any_size(
    key: str, tokens: int, max_queue_tokens: int, max_wait_s: float
) -> None:
    gate = admission(max_queue_tokens=max_queue_tokens, max_wait_s=max_wait_s, rate=1)
    assert lets_in(gate, key, tokens)
    with gate.admit("B", tokens) as ticket:
        ticket.computed(tokens)  # nothing waits any more, though it has not left yet
        assert lets_in(gate, key, tokens)


@given(st.lists(st.tuples(keys, sizes), max_size=30), st.integers(1, 200_000))
def test_no_more_tokens_wait_than_the_queue_may_hold_but_for_a_lone_request(
    requests: list[tuple[str, int]], max_queue_tokens: int
) -> None:
    gate = admission(max_queue_tokens=max_queue_tokens)
    for key, tokens in requests:
        before = gate.tokens
        try:
            gate.admit(key, tokens)
        except Overloaded:
            assert before + tokens > max_queue_tokens
            assert gate.tokens == before
        else:
            assert gate.tokens == before + tokens
            assert gate.tokens <= max_queue_tokens or before == 0


@pytest.mark.parametrize("key", ["A", "B"])
def test_a_short_request_is_let_in_behind_bulk_work_and_a_long_one_is_not(key: str) -> None:
    gate = admission(max_wait_s=30)
    gate.admit("A", 200_000)
    assert lets_in(gate, key, 20)
    assert not lets_in(gate, key, 40_000)


def test_requests_are_let_in_until_the_estimate_of_the_wait_is_exceeded() -> None:
    gate = admission(max_wait_s=30)
    let_in = 0
    while lets_in(gate, "A", 5_000):
        gate.admit("A", 5_000)
        let_in += 1
    # The work of six others takes 30 s; that of seven would take longer.
    assert let_in == 7


def test_another_keys_requests_do_not_shut_a_key_out() -> None:
    """One key's load counts for no more than what fair queueing gives it meanwhile."""
    gate = admission(max_wait_s=30)
    for _ in range(1_000):
        gate.admit("A", 20)
    for _ in range(3):
        gate.admit("A", 5_000)
    assert not lets_in(gate, "A", 5_000)
    assert lets_in(gate, "B", 5_000)


@given(st.lists(st.tuples(keys, sizes), max_size=12), keys, st.integers(1, 50_000), sizes)
def test_whoever_is_let_in_with_more_is_let_in_with_less(
    requests: list[tuple[str, int]], key: str, fewer: int, more: int
) -> None:
    gate = admission(max_wait_s=60, max_queue_tokens=500_000)
    for other, tokens in requests:
        if lets_in(gate, other, tokens):
            gate.admit(other, tokens)
    assert lets_in(gate, key, min(fewer, more)) or not lets_in(gate, key, max(fewer, more))


def test_the_measured_speed_decides() -> None:
    speed = Ratio(100.0, weight=0.1)
    gate = Admission(max_queue_tokens=NO_LIMIT, max_wait_s=30, tokens_per_second=speed)
    gate.admit("A", 10_000)
    assert not lets_in(gate, "A", 10_000)
    for _ in range(10):
        speed.observe(1_000, 1.0)
    assert lets_in(gate, "A", 10_000)


# What is known of clients who left.


def test_a_key_whose_clients_leave_waits_no_longer_than_they_did() -> None:
    patience = ClientPatience()
    gate = Admission(
        max_queue_tokens=NO_LIMIT,
        max_wait_s=30,
        tokens_per_second=Ratio(RATE, weight=1),
        patience=patience,
    )
    gate.admit("C", 50_000)  # 50 s of work
    gate.admit("A", 15_000)
    assert lets_in(gate, "A", 1_000)
    patience.note_left("A", 9.0, 10_000)
    assert not lets_in(gate, "A", 10_000)
    assert lets_in(gate, "B", 10_000)  # nobody else is asked to wait less
    assert lets_in(gate, "A", 10)  # what is done sooner is let in


def test_an_idle_server_takes_what_its_client_may_not_wait_for() -> None:
    patience = ClientPatience()
    patience.note_left("A", 9.0, 10_000)
    gate = Admission(
        max_queue_tokens=NO_LIMIT,
        max_wait_s=30,
        tokens_per_second=Ratio(RATE, weight=1),
        patience=patience,
    )
    assert lets_in(gate, "A", 1_000_000)


# How long the others are told to stay away.


def refused(gate: Admission, key: str, tokens: int) -> Overloaded | None:
    try:
        with gate.admit(key, tokens):
            return None
    except Overloaded as refusal:
        return refusal


def serve(tickets: list[Ticket], tokens: float) -> None:
    """What fair queueing computes of them: the same of each key, inside a key of each request."""
    while tokens >= 1:
        waiting = [ticket for ticket in tickets if ticket.tokens]
        if not waiting:
            return
        by_key = Counter(ticket.key for ticket in waiting)
        step = max(1.0, tokens / 50 / len(by_key))
        for ticket in waiting:
            part = min(ticket.tokens, max(1, round(step / by_key[ticket.key])))
            ticket.computed(part)
            tokens -= part


@given(
    st.lists(st.tuples(keys, sizes), min_size=1, max_size=12),
    keys,
    sizes,
    st.sampled_from([(NO_LIMIT, 10.0), (NO_LIMIT, 60.0), (150_000, NO_LIMIT), (200_000, 30.0)]),
    st.sampled_from([1_000.0, 5_000.0, 50_000.0]),
)
@example([("A", 80_000)], "A", 30_000, (NO_LIMIT, 20.0), 1_000.0)
@example([("A", 90_000), ("B", 90_000), ("C", 90_000)], "D", 20_000, (NO_LIMIT, 10.0), 5_000.0)
@example([("A", 200_000)], "A", 1_000, (150_000, NO_LIMIT), 5_000.0)
@example([("A", 1), ("A", 1), ("B", 99_999)], "A", 100_000, (200_000, 30.0), 1_000.0)
def test_who_stays_away_as_long_as_told_is_let_in(
    requests: list[tuple[str, int]], key: str, tokens: int, limits: tuple[int, float], rate: float
) -> None:
    max_queue_tokens, max_wait_s = limits
    gate = admission(max_queue_tokens=max_queue_tokens, max_wait_s=max_wait_s, rate=rate)
    tickets = [gate.admit(k, n) for k, n in requests if lets_in(gate, k, n)]
    refusal = refused(gate, key, tokens)
    if refusal is None:
        return
    assert 1 <= refusal.retry_after_s <= 60
    serve(tickets, refusal.retry_after_s * rate)
    if refusal.retry_after_s < 60:  # nobody is told to stay away for longer
        assert lets_in(gate, key, tokens)


@given(
    st.lists(st.tuples(keys, st.integers(1, 2_000_000)), min_size=1, max_size=12), keys, sizes
)  # fmt: skip
def test_who_comes_back_as_told_is_let_in_in_the_end(
    requests: list[tuple[str, int]], key: str, tokens: int
) -> None:
    gate = admission(max_wait_s=30, max_queue_tokens=2_000_000, rate=5_000)
    tickets = [gate.admit(k, n) for k, n in requests if lets_in(gate, k, n)]
    # At most all that waits has to be computed; each time a part of it is.
    times = gate.tokens / 5_000 + 1
    while (refusal := refused(gate, key, tokens)) is not None:
        assert 1 <= refusal.retry_after_s <= 60
        serve(tickets, refusal.retry_after_s * 5_000)
        times -= 1
        assert times >= 0


# The estimate against the queue itself.


def foreign_work(
    requests: list[tuple[str, list[int]]], taken: int, key: str, lengths: list[int]
) -> tuple[float, int]:
    """What is estimated and what is really computed before a request is done."""
    gate = admission()
    queue = WaitingQueue(Pace(BUDGET))
    queue.add_worker()

    def take() -> list[tuple[Ticket, int]]:
        batch = queue.take(0)
        if batch is None:
            return []
        for sequence in batch.sequences:
            sequence.group.ticket.computed(sequence.num_tokens)
        return [(s.group.ticket, s.num_tokens) for s in batch.sequences]

    for group in groups_of(requests, gate):
        queue.put(group)
    for _ in range(taken):
        take()
    estimate = RATE * gate.expected_wait_s(key, sum(lengths))
    (mine,) = groups_of([(key, lengths)], gate)
    queue.put(mine)
    foreign = 0
    while mine.ticket.tokens:
        foreign += sum(tokens for ticket, tokens in take() if ticket is not mine.ticket)
    return estimate, foreign


def documents(count: int, seed: int) -> list[int]:
    """Lengths as documents have them: most are short, some are as long as the model reads."""
    lengths = random.Random(seed)
    return [min(256, max(3, int(lengths.lognormvariate(3.8, 0.8)))) for _ in range(count)]


bulks = st.tuples(keys, st.builds(documents, st.integers(1, 400), st.integers(0, 1_000)))
any_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(
    st.lists(st.one_of(bulks, st.tuples(keys, any_lengths)), min_size=1, max_size=8),
    st.integers(0, 60),
    keys,
    st.one_of(any_lengths, st.builds(documents, st.integers(1, 200), st.integers(0, 1_000))),
)
@settings(max_examples=100)
def test_no_more_than_the_estimate_is_computed_before_a_request_is_done(
    requests: list[tuple[str, list[int]]], taken: int, key: str, lengths: list[int]
) -> None:
    estimate, foreign = foreign_work(requests, taken, key, lengths)
    # Fair to within a few micro-batches of each request; and each of its own sequences may be in
    # a micro-batch that is filled up with those of others.
    assert foreign <= estimate + 4 * BUDGET * (len(requests) + 1) + BUDGET * len(lengths)


@pytest.mark.parametrize("bulks", [0, 1, 50])
@pytest.mark.parametrize("query", [5, 90])
def test_the_queries_of_its_key_that_came_before_are_counted(bulks: int, query: int) -> None:
    requests = [("A", documents(500, seed)) for seed in range(bulks)] + [("A", [90])] * 500
    estimate, foreign = foreign_work(requests, 0, "A", [query])
    assert foreign - 4 * BUDGET <= estimate <= 1.5 * foreign + 4 * BUDGET


@pytest.mark.parametrize("taken", [0, 20, 100])
@pytest.mark.parametrize("key", ["busy", "quiet"])
def test_a_query_behind_four_bulks_waits_for_no_more_than_estimated(key: str, taken: int) -> None:
    requests = [("busy", documents(2_000, seed)) for seed in range(4)]
    estimate, foreign = foreign_work(requests, taken, key, [12])
    assert estimate <= 4 * 12
    assert foreign <= estimate + 4 * BUDGET * (len(requests) + 1)
