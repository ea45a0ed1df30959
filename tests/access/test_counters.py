"""Counters that take what fits, in memory and in a real Redis, against a plain account of them."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import Protocol

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from server.access.counters import Counters, MemoryCounters, Taken
from server.access.keys import new_id
from server.access.redis_counters import RedisCounters
from tests.services import Redis

# So long that what a test takes itself does not matter.
WINDOW_S = 6_000
NAMES = ("a", "b")


class Timed(Protocol):
    """Counters of one kind whose time the test lets pass."""

    def open(self) -> Counters: ...

    def let_pass(self, seconds: int, names: list[str]) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._now = 0.0

    def open(self) -> Counters:
        return MemoryCounters(window_s=WINDOW_S, now=lambda: self._now)

    def let_pass(self, seconds: int, names: list[str]) -> None:
        self._now += seconds


class InRedis:
    def __init__(self, url: str) -> None:
        self._url = url
        self._redis = redis.Redis.from_url(url)

    def open(self) -> Counters:
        return RedisCounters(self._url, patience_s=10, window_s=WINDOW_S)

    def let_pass(self, seconds: int, names: list[str]) -> None:
        for name in names:
            left_ms: int = self._redis.pttl(name)
            if left_ms > 0:
                self._redis.pexpire(name, left_ms - seconds * 1_000)


@pytest.fixture(scope="module", params=["memory", "redis"])
def timed(request: pytest.FixtureRequest) -> Timed:
    if request.param == "memory":
        return InMemory()
    running: Redis = request.getfixturevalue("shared_redis")
    return InRedis(running.url)


@dataclass
class Account:
    """One counter, as it should be: every amount it took since its minute began."""

    now: int = 0
    ends: int = 0
    amounts: list[int] = field(default_factory=list)

    def take_if_fits(self, amount: int, most: int) -> Taken:
        if self.now >= self.ends:
            self.amounts, self.ends = [], self.now
        held = sum(self.amounts)
        fits = -amount <= held if amount < 0 else amount == 0 or amount <= most - held
        if fits and amount:
            if held == 0:
                self.amounts, self.ends = [], self.now + WINDOW_S
            self.amounts.append(amount)
        return Taken(fits, sum(self.amounts), self.ends - self.now)


# Few, so that counters are often emptied, filled to the last, and above a limit that was lowered.
amounts = st.sampled_from([0, 10, 30, 60, 100, -10, -30, -60, -100, 10**14, -(10**14)])
takes = st.tuples(st.sampled_from(NAMES), amounts, st.sampled_from([0, 60, 100, 2 * 10**14]))
passes = st.sampled_from([100, 3_000, 5_900, WINDOW_S])


@given(steps=st.lists(takes | passes, max_size=30))
@settings(max_examples=300)
async def test_they_take_what_fits_and_nothing_else(
    timed: Timed, steps: list[tuple[str, int, int] | int]
) -> None:
    counters = timed.open()
    names = {name: f"test/{new_id()}" for name in NAMES}
    accounts = {name: Account() for name in NAMES}
    for step in steps:
        if isinstance(step, int):
            timed.let_pass(step, list(names.values()))
            for account in accounts.values():
                account.now += step
            continue
        name, amount, most = step
        expected = accounts[name].take_if_fits(amount, most)
        taken = await counters.take_if_fits(names[name], amount, most)
        assert taken[:2] == expected[:2]
        assert expected.ends_in_s - 60 <= taken.ends_in_s <= expected.ends_in_s
    if isinstance(counters, RedisCounters):
        await counters.close()


@pytest.mark.parametrize("seed", range(5))
async def test_many_at_once_never_get_more_than_there_is_and_none_is_refused_what_fits(
    timed: Timed, seed: int
) -> None:
    chance = random.Random(seed)
    most, name = 1_000, f"test/{new_id()}"
    servers = [timed.open()] * 3 if isinstance(timed, InMemory) else [timed.open() for _ in "123"]
    amounts = [chance.choice((1, 7, 300, 900)) for _ in range(300)]
    answers = await asyncio.gather(
        *(
            server.take_if_fits(name, amount, most)
            for server, amount in zip(itertools.cycle(servers), amounts, strict=False)
        )
    )
    total = sum(amount for amount, (fits, *_) in zip(amounts, answers, strict=True) if fits)
    assert max(held for _, held, _ in answers) == total <= most
    # The counter only grew: what does not fit at the end is all that was ever refused.
    refused = [amount for amount, (fits, *_) in zip(amounts, answers, strict=True) if not fits]
    assert all(total + amount > most for amount in refused)
    assert 900 in refused
    for server in servers:
        if isinstance(server, RedisCounters):
            await server.close()


async def test_what_has_ended_takes_no_memory() -> None:
    now = 0.0
    counters = MemoryCounters(now=lambda: now)
    for number in range(1_000):
        now += 1
        await counters.take_if_fits(f"{number}", 1, 9)
    assert counters.kept == 60
    now += 60
    await counters.take_if_fits("looks only", 0, 9)
    assert counters.kept == 0


async def test_a_counter_that_began_anew_keeps_no_other_in_memory() -> None:
    now = 0.0
    counters = MemoryCounters(now=lambda: now)
    await counters.take_if_fits("a", 1, 9)
    await counters.take_if_fits("b", 1, 9)
    now = 50
    await counters.take_if_fits("a", -1, 9)
    assert (await counters.take_if_fits("a", 1, 9)).ends_in_s == 60
    now = 70
    assert (await counters.take_if_fits("a", 0, 9)).held == 1
    assert counters.kept == 1


async def test_a_counter_in_redis_that_lasts_for_ever_or_whose_clock_was_set_back_ends_in_a_minute(
    shared_redis: Redis,
) -> None:
    name = new_id()
    with redis.Redis.from_url(shared_redis.url) as client:
        client.set(name, 9)
        counters = RedisCounters(shared_redis.url, patience_s=10)
        assert 50 < (await counters.take_if_fits(name, 1, 9)).ends_in_s <= 60
        client.persist(name)
        assert 50 < (await counters.take_if_fits(name, 0, 9)).ends_in_s <= 60
        client.pexpire(name, 3_660_000)  # as after an hour back: Redis keeps the time of each end
        assert 50 < (await counters.take_if_fits(name, 0, 9)).ends_in_s <= 60
        client.pexpire(name, 30_000)
        assert 20 < (await counters.take_if_fits(name, 0, 9)).ends_in_s <= 30
        await counters.close()
