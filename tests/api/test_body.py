"""A body is waited for as long as it moves, and one that is there costs no timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.api import body as body_module
from server.api.body import read_body
from server.api.seats import Seats
from server.errors import BodyTooLarge, BodyTooSlow

MOST_BYTES = 100_000


def part(content: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


async def read(*messages: Message | float, most_bytes: int = MOST_BYTES) -> bytes:
    """The body that comes in these messages, with these pauses; then nothing comes any more."""
    left = list(messages)

    async def receive() -> Message:
        while left:
            one = left.pop(0)
            if not isinstance(one, float):
                return one
            await asyncio.sleep(one)
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "headers": []}, receive)
    return bytes(await read_body(request, most_bytes, Seats(1, MOST_BYTES).take("a")))


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the timers end that the event loop was asked for."""
    found: list[float] = []
    loop = asyncio.get_running_loop()
    call_at: Callable[..., Any] = loop.call_at

    def noted(when: float, *arguments: Any, **context: Any) -> Any:
        found.append(when)
        return call_at(when, *arguments, **context)

    monkeypatch.setattr(loop, "call_at", noted)
    return found


async def test_a_body_that_is_there_costs_no_timer(timers: list[float]) -> None:
    assert await read(part(b"{}")) == b"{}"
    await asyncio.sleep(0)
    assert not timers
    assert await read(part(b"{", more=True), part(b"}")) == b"{}"
    assert len(timers) == 1


async def test_who_sends_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "PATIENCE_S", 0.01)
    with pytest.raises(BodyTooSlow):
        await read()
    with pytest.raises(BodyTooSlow):
        await read(part(b"{", more=True))


@pytest.mark.parametrize("first_pause", [(), (0.001,)], ids=["at once", "later"])
async def test_what_came_gives_time_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, timers: list[float], first_pause: tuple[float, ...]
) -> None:
    monkeypatch.setattr(body_module, "PATIENCE_S", 5.0)
    begun_s = asyncio.get_running_loop().time()
    content = b" " * 10_240  # good for ten seconds
    assert await read(*first_pause, part(content, more=True), 0.001, part(b"1")) == content + b"1"
    assert begun_s + 15 <= max(timers) < begun_s + 16
    assert timers.index(max(timers)) >= len(timers) - 2  # and no shorter one after it but the pause


async def test_a_body_that_ends_otherwise_leaves_no_timer() -> None:
    with pytest.raises(ClientDisconnect):
        await read(part(b"{", more=True), {"type": "http.disconnect"})
    with pytest.raises(BodyTooLarge):
        await read(part(b"1234", more=True), most_bytes=3)
    await asyncio.sleep(0)
