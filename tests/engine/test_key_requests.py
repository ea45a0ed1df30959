from __future__ import annotations

import gc
import itertools
import sys
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType

from hypothesis import given
from hypothesis import strategies as st

from server.engine.fair_share import LIGHT_TOKENS, FairShare
from server.engine.key_requests import KeyRequests
from server.engine.sequence import MicroBatch, SequenceGroup
from tests.engine import group_of, groups_of

FRONT_TOKENS = 1_000
BULK = LIGHT_TOKENS + 1


class Key:
    """The requests of a key, counted as the queue counts them."""

    def __init__(self, front_tokens: int = FRONT_TOKENS) -> None:
        self.shares = FairShare()
        self.choosable: set[object] = set()
        self._front_tokens = front_tokens
        self.requests: KeyRequests | None = None

    def put(self, *lengths: int) -> SequenceGroup:
        return self.put_group(group_of(*lengths))

    def put_group(self, group: SequenceGroup) -> SequenceGroup:
        group.share = self.shares.enter(group.key, group.num_tokens)
        group.flow = group.share.flow_of(group.num_tokens)
        if self.requests is None:
            self.requests = KeyRequests(group.share, self._front_tokens)
        self.choosable |= set(self.requests.add(group))
        return group

    def take(self, group: SequenceGroup) -> None:
        """The first of its sequences that waits."""
        assert self.requests is not None
        (part,) = MicroBatch([group.next_sequence]).parts.values()
        self.requests.note_taken(group, part.tokens)
        group.mark_taken(part)
        if not group.num_waiting:
            self.remove(group)
        self.choosable |= set(self.requests.advance())

    def remove(self, group: SequenceGroup) -> None:
        assert self.requests is not None
        self.requests.remove(group)
        self.shares.leave(group.share, group.flow)
        self.choosable |= set(self.requests.advance())

    def first_light(self) -> SequenceGroup:
        assert self.requests is not None
        return self.requests.first_of(self.requests.share.light)

    def first_bulk(self) -> SequenceGroup:
        assert self.requests is not None
        return self.requests.first_of(self.requests.share.bulk)


def test_light_requests_are_served_as_they_came_and_can_all_be_chosen() -> None:
    key = Key()
    first, second, third = key.put(40, 50), key.put(3), key.put(LIGHT_TOKENS)
    assert key.first_light() is first
    key.remove(first)
    assert key.first_light() is second
    assert {*first.sequences, *second.sequences, *third.sequences} == key.choosable


def test_of_bulk_requests_the_one_that_is_finished_first_comes_first() -> None:
    key = Key()
    large = key.put(*[100] * 50)  # more than can be chosen from at once
    assert key.first_bulk() is large
    small = key.put(*[100] * 3)
    assert key.first_bulk() is small
    also_small = key.put(*[100] * 3)
    assert key.first_bulk() is small  # of two alike the one that came first
    key.remove(small)
    assert key.first_bulk() is also_small


def test_no_more_bulk_work_can_be_chosen_than_is_wanted() -> None:
    key = Key()
    huge, later = key.put(*[BULK] * 300), key.put(*[BULK] * 400)
    for _ in range(100):
        chosen_from = [s.num_tokens for s in huge.sequences if s in key.choosable and not s.taken]
        assert FRONT_TOKENS <= sum(chosen_from) <= FRONT_TOKENS + FRONT_TOKENS // 4 + BULK
        assert not key.choosable.intersection(later.sequences)
        key.take(huge)


@given(
    st.lists(st.lists(st.integers(BULK, 300), min_size=1, max_size=30), min_size=1, max_size=8),
    st.integers(1, 40),
)
def test_what_is_next_and_enough_bulk_work_beside_it_can_always_be_chosen(
    requests: list[list[int]], removed_every: int
) -> None:
    key = Key()
    groups = [key.put(*lengths) for lengths in requests]
    for count in itertools.count(1):
        groups = [group for group in groups if group.num_waiting]
        if not groups:
            return
        waiting = [s for group in groups for s in group.sequences if not s.taken]
        open_tokens = sum(s.num_tokens for s in waiting if s in key.choosable)
        first = key.first_bulk()
        assert first.next_sequence in key.choosable
        assert open_tokens >= min(FRONT_TOKENS, sum(s.num_tokens for s in waiting))
        key.take(first)
        if count % removed_every == 0 and (left := [one for one in groups if one.num_waiting]):
            key.remove(gone := left[count % len(left)])
            gone.num_waiting = 0


def calls_during(work: Callable[[], object]) -> int:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def test_a_further_request_costs_the_same_however_many_can_be_chosen_from() -> None:
    key = Key(front_tokens=1_000_000)
    groups = groups_of([("key", [BULK])] * 1_000)
    calls = [calls_during(partial(key.put_group, group)) for group in groups]
    assert {sequence for group in groups for sequence in group.sequences} == key.choosable
    assert calls[-1] == calls[10]


def test_more_of_a_request_that_went_ahead_can_be_chosen_before_more_of_the_one_behind() -> None:
    key = Key()
    large = key.put(*[100] * 50)
    small = key.put(*[100] * 20)
    for _ in range(10):  # along with others
        key.take(large)
    assert len(key.choosable.intersection(large.sequences)) == 10
    assert len(key.choosable.intersection(small.sequences)) == 10
    key.take(small)
    assert len(key.choosable.intersection(large.sequences)) == 10
    assert len(key.choosable.intersection(small.sequences)) == 13
    key.remove(small)  # of which something could not be chosen yet
    assert len(key.choosable.intersection(large.sequences)) == 20


def test_what_lies_in_the_backlog_can_be_removed_and_is_not_kept_alive() -> None:
    key = Key()
    first = key.put(*[BULK] * 40)
    later = [key.put(*[BULK] * (50 + n)) for n in range(20)]
    assert all(group.sequences[0] not in key.choosable for group in later)
    alive = [weakref.ref(group.vectors) for group in later]
    for group in later[1:]:
        key.remove(group)
    del group, later[1:]
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 4
    while first.num_waiting:
        key.take(first)
    assert key.first_bulk() is later[0]


def test_it_tells_which_requests_wait() -> None:
    key = Key()
    bulk, light = key.put(BULK), key.put(3)
    assert key.requests is not None
    assert list(key.requests) == [light, bulk]
    key.remove(light)
    assert light not in key.requests
    assert bulk in key.requests
