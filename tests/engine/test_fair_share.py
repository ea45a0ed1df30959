"""Who is served when, and what is expected to come before whom: the deed against the estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.fair_share import (
    LIGHT_TOKENS,
    MAX_BULK_SHARE,
    MAX_LEAD_TOKENS,
    FairShare,
    KeyShare,
)

QUANTUM = 8  # tokens that are served at once; so little that a turn is worth nothing by itself

keys = st.sampled_from("ABC")
sizes = st.one_of(st.integers(1, LIGHT_TOKENS), st.integers(1, 3_000))
some_requests = st.lists(st.tuples(keys, sizes), min_size=1, max_size=12)


class Request:
    """One request that waits, as the queue and the admission count it."""

    def __init__(self, shares: FairShare, key: str, tokens: int) -> None:
        self.key = key
        self.left = tokens
        self.share = shares.enter(key, tokens)
        self.flow = self.share.flow_of(tokens)
        self.finish = self.share.bulk_finish(tokens)


class Machine:
    """Computes a few tokens at a time, of whose turn it is."""

    def __init__(self, requests: Sequence[tuple[str, int]] = ()) -> None:
        self.shares = FairShare()
        self.waiting: list[Request] = []
        for key, tokens in requests:
            self.put(key, tokens)

    def put(self, key: str, tokens: int) -> Request:
        request = Request(self.shares, key, tokens)
        self.waiting.append(request)
        return request

    def serve(self) -> tuple[Request, int]:
        """The request that was served, and by how many tokens."""
        share = self.shares.next_share()
        flow = share.next_flow()
        there = [one for one in self.waiting if one.share is share and one.flow is flow]
        request = there[0] if flow is share.light else min(there, key=lambda one: one.finish)
        tokens = min(QUANTUM, request.left)
        share.charge(flow, tokens)
        self.shares.subtract(flow, tokens)
        request.left -= tokens
        if not request.left:
            self.remove(request)
        self.shares.forget_absent_keys()
        return request, tokens

    def remove(self, request: Request) -> None:
        self.waiting.remove(request)
        self.shares.leave(request.share, request.flow)


@given(some_requests)
def test_everything_that_waits_is_served_and_then_nothing_is_left(
    requests: list[tuple[str, int]],
) -> None:
    machine = Machine(requests)
    left = sum(tokens for _, tokens in requests)
    while machine.waiting:
        assert machine.shares.tokens == left
        left -= machine.serve()[1]
    assert machine.shares.tokens == left == 0


@given(some_requests)
def test_keys_that_wait_are_served_alike(requests: list[tuple[str, int]]) -> None:
    machine = Machine(requests)
    there = {key for key, _ in requests}
    served: Counter[str] = Counter(dict.fromkeys(there, 0))
    while {request.key for request in machine.waiting} == there:
        request, tokens = machine.serve()
        served[request.key] += tokens
        assert max(served.values()) - min(served.values()) <= QUANTUM


@pytest.mark.parametrize("lights", [1, 2, 5])
@pytest.mark.parametrize("bulks", [1, 4, 100])
def test_bulk_requests_have_a_share_each_but_few_beside_each_light_one(
    lights: int, bulks: int
) -> None:
    share = KeyShare("A", 0.0)
    for tokens in [LIGHT_TOKENS] * lights + [LIGHT_TOKENS + 1] * bulks:
        share.add_request(tokens)
    served = {share.light: 0, share.bulk: 0}
    for _ in range(1_000):
        flow = share.next_flow()
        share.charge(flow, 1)
        served[flow] += 1
    of_bulk = min(bulks, MAX_BULK_SHARE * lights)
    assert served[share.bulk] == pytest.approx(1_000 * of_bulk / (lights + of_bulk), abs=2)


def test_a_flow_that_has_nothing_is_not_next() -> None:
    share = KeyShare("A", 0.0)
    share.add_request(LIGHT_TOKENS + 1)
    assert share.next_flow() is share.bulk
    share.add_request(LIGHT_TOKENS)
    share.charge(share.bulk, 10)
    assert share.next_flow() is share.light
    share.charge(share.light, 10)
    assert share.next_flow() is share.light  # on a tie


def test_a_light_request_that_comes_late_starts_where_the_bulk_ones_are() -> None:
    share = KeyShare("A", 0.0)
    share.add_request(5_000)
    share.charge(share.bulk, 1_000)
    share.add_request(12)
    share.charge(share.light, 12)
    assert share.next_flow() is share.bulk


def test_a_small_bulk_request_that_comes_later_is_finished_first_and_an_endless_row_is_not() -> (
    None
):
    machine = Machine([("A", 3_000)])
    huge = machine.waiting[0]
    small = machine.put("A", 500)
    assert small.finish < huge.finish
    served = 0
    while huge.left:  # another small one whenever one is done
        if small.left == 0:
            small = machine.put("A", 500)
        served += machine.serve()[1]
    assert 3_000 + 500 <= served <= 3 * 3_000


def test_a_key_that_comes_back_starts_where_the_others_are() -> None:
    machine = Machine([("late", QUANTUM), ("busy", 2_000)])
    for _ in range(100):
        machine.serve()
    machine.put("late", 400)
    served: Counter[str] = Counter()
    for _ in range(40):
        request, tokens = machine.serve()
        served[request.key] += tokens
    assert abs(served["late"] - served["busy"]) <= QUANTUM


def test_a_key_that_is_ahead_is_remembered_until_the_others_have_caught_up() -> None:
    machine = Machine([("busy", 2_000), ("ahead", 500)])
    machine.shares.enter("ahead", 1)  # keeps the key, while it is served out of its turn
    ahead = machine.waiting[1]
    ahead.share.charge(ahead.flow, 500)
    machine.shares.subtract(ahead.flow, 501)
    machine.remove(ahead)
    machine.shares.leave(ahead.share, ahead.share.light)
    machine.serve()
    again = machine.put("ahead", 200)
    assert again.share is ahead.share
    served = 0
    while (found := machine.serve())[0] is not again:
        served += found[1]
    assert served >= 500 - QUANTUM


def test_what_a_key_was_served_when_it_was_last_there_counts_not_what_it_was_before() -> None:
    machine = Machine([("busy", 2_000)])
    for served in (100, 500):  # it leaves twice, further ahead each time
        brief = machine.put("brief", served)
        brief.share.charge(brief.flow, served)
        machine.shares.subtract(brief.flow, served)
        machine.remove(brief)
    for _ in range(200 // QUANTUM):  # the others' turn is between the two
        machine.serve()
    assert machine.put("brief", 10).share is brief.share
    assert brief.share.start_tokens == 600


def test_when_nobody_waits_every_key_is_forgotten() -> None:
    machine = Machine([("A", 100), ("B", 50)])
    old = {request.key: request.share for request in machine.waiting}
    while machine.waiting:
        machine.serve()
    for key in "AB":
        assert machine.put(key, 10).share is not old[key]


def test_a_key_may_come_along_until_it_is_too_far_ahead_of_the_turn() -> None:
    shares = FairShare()
    turn, other = shares.enter("turn", 1_000), shares.enter("other", 1_000)
    assert shares.next_share() is turn
    other.charge(other.bulk, MAX_LEAD_TOKENS)
    assert other.start_tokens <= shares.most_start_tokens
    other.charge(other.bulk, 1)
    assert other.start_tokens > shares.most_start_tokens
    turn.charge(turn.bulk, 1)
    shares.next_share()  # the turn goes on
    assert other.start_tokens <= shares.most_start_tokens


# The estimate.


@given(some_requests, keys, sizes)
def test_no_more_is_served_before_a_request_is_done_than_estimated(
    requests: list[tuple[str, int]], key: str, tokens: int
) -> None:
    machine = Machine(requests)
    estimate = machine.shares.work_before(key, tokens)
    mine = machine.put(key, tokens)
    foreign = 0
    while mine.left:
        request, served = machine.serve()
        foreign += served if request is not mine else 0
    assert foreign <= estimate + 4 * QUANTUM * (len(requests) + 1)


@given(some_requests, keys, sizes)
def test_no_more_is_estimated_than_waits(
    requests: list[tuple[str, int]], key: str, tokens: int
) -> None:
    shares = Machine(requests).shares
    assert 0 <= shares.work_before(key, tokens) <= shares.tokens


@given(some_requests, keys, sizes, sizes)
def test_the_more_a_request_holds_the_more_comes_before_it(
    requests: list[tuple[str, int]], key: str, one: int, other: int
) -> None:
    shares = Machine(requests).shares
    fewer, more = sorted((one, other))
    assert shares.work_before(key, fewer) <= shares.work_before(key, more)


def test_others_keys_count_for_no_more_than_they_get_meanwhile() -> None:
    shares = Machine([("A", 10_000), ("B", 300), ("mine", 50)]).shares
    assert shares.work_before("new", 500) == 500 + 300 + 50
    assert shares.work_before("mine", 500) == 50 + (500 + 50) + 300
