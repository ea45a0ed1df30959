"""Limits in memory and in a real Redis; windows end by real time where that is the point."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.access.counters import MemoryCounters
from server.access.keys import Key, Limits, new_id
from server.access.rate_limits import MEMORY, RateLimits, Unit
from server.errors import (
    RateLimitExceeded,
    RequestAboveTokenLimit,
    SettingError,
    StorageUnavailable,
)
from tests.services import Redis, free_port


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return MEMORY
    running: Redis = request.getfixturevalue("shared_redis")
    return running.url


@pytest.fixture
async def limits(url: str) -> AsyncIterator[RateLimits]:
    opened = RateLimits(url, refuse_when_away=False, patience_s=10)
    yield opened
    await opened.close()


def key(rpm: int | None = None, tpm: int | None = None) -> Key:
    """A key that nobody has used yet."""
    limits = Limits(requests_per_minute=rpm, tokens_per_minute=tpm)
    return Key(id=new_id(), name="n", limits=limits)


async def test_as_many_requests_as_allowed_are_let_in_and_no_more(limits: RateLimits) -> None:
    limited = key(rpm=3)
    for left in (2, 1, 0):
        one = limits.of(limited)
        await one.take_request()
        assert (await one.headers())["x-ratelimit-remaining-requests"] == str(left)
    for _ in range(2):
        one = limits.of(limited)
        with pytest.raises(RateLimitExceeded) as caught:
            await one.take_request()
        assert 1 <= caught.value.retry_after_s <= 60
        assert (await one.headers())["x-ratelimit-remaining-requests"] == "0"


async def test_refused_tokens_are_not_counted(limits: RateLimits) -> None:
    limited = key(tpm=100)
    await limits.of(limited).take_tokens(60)
    for _ in range(5):
        with pytest.raises(RateLimitExceeded):
            await limits.of(limited).take_tokens(41)
    await limits.of(limited).take_tokens(40)
    with pytest.raises(RateLimitExceeded):
        await limits.of(limited).take_tokens(1)


async def test_tokens_that_are_given_back_can_be_used_again(limits: RateLimits) -> None:
    limited = key(tpm=100)
    one = limits.of(limited)
    await one.take_tokens(100)
    await one.give_back_tokens(100)
    assert (await one.headers())["x-ratelimit-remaining-tokens"] == "100"
    await limits.of(limited).take_tokens(100)


async def test_large_requests_that_are_refused_keep_no_small_one_out(limits: RateLimits) -> None:
    limited = key(tpm=1_000)
    await limits.of(limited).take_tokens(500)

    async def ask(tokens: int) -> bool:
        try:
            await limits.of(limited).take_tokens(tokens)
        except RateLimitExceeded:
            return False
        return True

    answers = await asyncio.gather(*(ask(1 if number % 2 else 900) for number in range(60)))
    assert answers == [bool(number % 2) for number in range(60)]


@pytest.mark.slow
async def test_what_is_given_back_after_the_minute_adds_nothing_to_the_next(
    url: str,
) -> None:
    limits = RateLimits(url, refuse_when_away=False, window_s=1)
    limited = key(tpm=100)
    one = limits.of(limited)
    await one.take_tokens(90)
    async with asyncio.timeout(10):
        while (await limits.of(limited).headers())["x-ratelimit-remaining-tokens"] != "100":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await one.give_back_tokens(90)
    await limits.of(limited).take_tokens(100)
    with pytest.raises(RateLimitExceeded):
        await limits.of(limited).take_tokens(1)
    await limits.close()


async def test_hundreds_that_ask_at_once_do_not_make_a_redis_seem_away(
    shared_redis: Redis,
) -> None:
    limits = RateLimits(shared_redis.url, refuse_when_away=True, patience_s=10)
    limited = key(rpm=1_000)
    await asyncio.gather(*(limits.of(limited).take_request() for _ in range(500)))
    assert not away(limits)
    await limits.close()


async def test_a_redis_that_was_never_there_is_noticed_without_a_request() -> None:
    limits = RateLimits(f"redis://127.0.0.1:{free_port()}", refuse_when_away=False)
    await limits.check()
    assert away(limits)
    await limits.close()


async def test_a_request_that_no_minute_has_room_for_is_no_reason_to_wait(
    limits: RateLimits,
) -> None:
    limited = key(tpm=100)
    with pytest.raises(RequestAboveTokenLimit, match=r"101.*100"):
        await limits.of(limited).take_tokens(101)
    await limits.of(limited).take_tokens(100)


async def test_the_headers_show_every_limit_also_before_anything_is_counted(
    limits: RateLimits,
) -> None:
    assert await limits.of(key(rpm=5, tpm=70)).headers() == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "70",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "1s",
    }
    assert set(await limits.of(key(tpm=70)).headers()) == {
        f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")
    }


@pytest.mark.slow
async def test_who_waits_as_long_as_told_is_let_in(url: str) -> None:
    limits = RateLimits(url, refuse_when_away=False, window_s=1)
    limited = key(rpm=2, tpm=10)
    await limits.of(limited).take_request()
    await asyncio.sleep(0.4)
    await limits.of(limited).take_tokens(10)  # this window ends later than the other
    await limits.of(limited).take_request()
    with pytest.raises(RateLimitExceeded) as caught:
        await limits.of(limited).take_request()
    await asyncio.sleep(caught.value.retry_after_s)
    await limits.of(limited).take_request()
    await limits.of(limited).take_tokens(10)
    await limits.close()


async def test_who_is_refused_by_one_limit_is_told_when_the_other_ends_if_that_is_later() -> None:
    now = 0.0
    counters = MemoryCounters(now=lambda: now)
    limits = RateLimits(MEMORY, refuse_when_away=False, here=counters)
    limited = key(rpm=1, tpm=10)
    await limits.of(limited).take_request()
    now = 30
    await limits.of(limited).take_tokens(10)
    now = 40
    with pytest.raises(RateLimitExceeded) as caught:
        await limits.of(limited).take_request()
    assert caught.value.retry_after_s == 51  # 50 s and a margin
    now = 65
    with pytest.raises(RateLimitExceeded) as caught:
        await limits.of(limited).take_tokens(1)
    assert caught.value.retry_after_s == 26


async def test_fifty_at_once_get_no_more_than_there_is(limits: RateLimits) -> None:
    limited = key(rpm=20, tpm=1_000)

    async def ask() -> int:
        one = limits.of(limited)
        try:
            await one.take_request()
            await one.take_tokens(70)
        except RateLimitExceeded:
            return 0
        return 70

    taken = await asyncio.gather(*(ask() for _ in range(50)))
    assert sum(map(bool, taken)) == 14  # a thousand tokens; twenty requests are not reached


async def test_keys_do_not_share_their_limits(limits: RateLimits) -> None:
    for limited in (key(rpm=1), key(rpm=1)):
        await limits.of(limited).take_request()


async def test_servers_that_share_a_redis_share_the_limits(shared_redis: Redis) -> None:
    servers = [RateLimits(shared_redis.url, refuse_when_away=False) for _ in range(2)]
    limited = key(rpm=3)
    for server in (servers[0], servers[1], servers[0]):
        await server.of(limited).take_request()
    for server in servers:
        with pytest.raises(RateLimitExceeded):
            await server.of(limited).take_request()
        await server.close()


def away(limits: RateLimits) -> bool:
    return limits.away


@pytest.mark.parametrize("refuse", [True, False])
async def test_a_redis_that_is_away_is_told_and_used_again_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, refuse: bool
) -> None:
    limited = key(rpm=2, tpm=10)
    with Redis(tmp_path) as redis:
        limits = RateLimits(redis.url, refuse_when_away=refuse)
        await limits.of(limited).take_request()
        redis.stop()
        for _ in range(2):
            if refuse:
                with pytest.raises(StorageUnavailable):
                    await limits.of(limited).take_request()
                assert await limits.of(limited).headers() == {}
            else:
                await limits.of(limited).take_request()
        assert away(limits)
        if not refuse:
            with pytest.raises(RateLimitExceeded):  # this server's own limit
                await limits.of(limited).take_request()
        await limits.check()
        assert away(limits)
        redis.start()
        await limits.check()
        assert not away(limits)
        await limits.of(limited).take_request()
        await limits.close()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in told] == ["ERROR", "WARNING"]


async def test_a_redis_that_hangs_holds_up_one_request_for_a_moment_only() -> None:
    connections = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = f"redis://127.0.0.1:{port}"
    limits = RateLimits(url, refuse_when_away=False, patience_s=0.05)
    await asyncio.wait_for(limits.of(key(rpm=1)).take_request(), 5)
    assert limits.away
    tried = connections
    await limits.of(key(rpm=1)).take_request()
    assert connections == tried  # it is not asked again before it was looked for
    await limits.close()
    silent.close()
    await silent.wait_closed()


@pytest.mark.parametrize("url", ["", "nonsense", "memcached://127.0.0.1", "redis://host:port"])
def test_an_address_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="rate_limit_storage"):
        RateLimits(url, refuse_when_away=False)


def test_units_are_named_as_openai_names_them() -> None:
    assert [str(unit) for unit in Unit] == ["requests", "tokens"]
