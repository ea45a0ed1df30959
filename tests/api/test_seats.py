"""Seats and bytes: as many as there are, and all given back, however a request ends."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
from collections import Counter

import pytest
from fastapi import FastAPI
from starlette.types import Message

from server.api import seats as seats_module
from server.api.seats import SHORT_BYTES, Seats
from server.errors import Overloaded, RequestTooLarge
from server.settings import Settings
from tests.conftest import PLAIN, AppOver
from tests.fakes import FakeBackend

MIB = 1024 * 1024
SEATS = 12


def test_a_seat_that_is_given_back_is_free_again() -> None:
    seats = Seats(1, max_bytes=MIB)
    for _ in range(3):
        seat = seats.take("a")
        with pytest.raises(Overloaded, match="1 requests"):
            seats.take("a")
        seat.hold(MIB // 2)
        seat.give_back()


def test_what_all_hold_together_is_bounded() -> None:
    seats = Seats(9, max_bytes=100)
    one, other = seats.take("a"), seats.take("a")
    one.hold(60)
    other.hold(20)
    with pytest.raises(Overloaded, match="60 bytes"):
        other.hold(21)
    one.hold(50)  # the body is gone, its texts are left
    other.hold(30)
    one.give_back()
    seats.take("a").hold(50)
    with pytest.raises(Overloaded):
        seats.take("a").hold(1)


def test_large_requests_leave_room_for_short_ones() -> None:
    seats = Seats(9, max_bytes=10 * MIB)
    seats.take("a").hold(4 * MIB)
    large = seats.take("a")
    with pytest.raises(Overloaded):
        large.hold(3 * MIB)
    for _ in range(4):
        seats.take("a").hold(SHORT_BYTES)


def test_a_key_leaves_seats_to_others() -> None:
    seats = Seats(100, max_bytes=MIB)
    for whose, most in (("a", 80), ("b", 16), ("c", 4)):
        for _ in range(most):
            last = seats.take(whose)
        with pytest.raises(Overloaded, match="requests"):
            seats.take(whose)
    last.give_back()
    seats.take("c")


def test_a_key_leaves_memory_to_others() -> None:
    seats = Seats(100, max_bytes=100)
    for whose, most in (("a", 80), ("b", 16), ("c", 3)):
        for _ in range(most):
            seat = seats.take(whose)
            seat.hold(1)
        with pytest.raises(Overloaded, match="requests of"):
            seat.hold(2)
        seat.hold(0)
        seat.hold(1)


@pytest.mark.parametrize("seats", [1, 2, 3, 4])
def test_where_there_are_few_seats_one_key_may_have_all(seats: int) -> None:
    few = Seats(seats, max_bytes=MIB)
    for _ in range(seats):
        few.take("a")
    with pytest.raises(Overloaded, match=f"{seats} requests are"):
        few.take("b")


def test_a_request_for_which_there_is_never_room_is_told_so() -> None:
    seat = Seats(9, max_bytes=10 * MIB).take("a")
    with pytest.raises(RequestTooLarge, match=f"{7 * MIB} bytes .* {6 * MIB}"):
        seat.hold(7 * MIB)
    seat.hold(6 * MIB)


@pytest.mark.parametrize(("usable", "most"), [(512 * MIB, 128 * MIB), (None, 512 * MIB)])
def test_a_quarter_of_the_memory_is_for_requests(
    monkeypatch: pytest.MonkeyPatch, usable: int | None, most: int
) -> None:
    monkeypatch.setattr(seats_module, "usable_memory_bytes", lambda: usable)
    assert Seats.of(Settings()).max_bytes == most
    assert Seats.of(Settings(frontends=4)).max_bytes == most // 4
    assert Seats.of(Settings(max_memory_bytes=16 * MIB)).max_bytes == 16 * MIB


@pytest.mark.parametrize(("frontends", "seats"), [(None, 10), (3, 4), (8, 2)])
def test_each_front_end_has_its_share(frontends: int | None, seats: int) -> None:
    settings = Settings(max_concurrent_requests=10, frontends=frontends)
    shared = Seats.of(settings)
    taken = [shared.take(f"key {number}") for number in range(seats)]
    with pytest.raises(Overloaded):
        shared.take("another")
    assert len(taken) == seats


async def test_whatever_becomes_of_requests_all_is_given_back(app_over: AppOver) -> None:
    backend = FakeBackend()
    app = await app_over(
        backend, max_concurrent_requests=SEATS, max_body_bytes=100_000, request_timeout_s=0.2
    )
    seats = app.state.services.seats
    chance = random.Random(15)
    outcomes: Counter[int] = Counter()
    for _ in range(40):
        for event, often in ((backend.broken, 0.2), (backend.gate, 0.8)):
            event.set() if chance.random() < often else event.clear()
        together = [_odd_request(app, chance) for _ in range(chance.randint(1, 16))]
        outcomes.update(await asyncio.gather(*together))
        assert seats.held_bytes == 0
        for seat in [seats.take(f"key {number}") for number in range(SEATS)]:
            seat.give_back()
    # 0: its client left, or it was ended.
    assert outcomes.keys() >= {0, 200, 400, 404, 413, 415, 503}, outcomes


async def _odd_request(app: FastAPI, chance: random.Random) -> int:
    """One that ends in any of many ways; the status of its answer, 0 without one."""
    text = chance.choice(["a", "a", "b" * 70_000, "c" * 200_000])
    body = json.dumps({"model": chance.choice([PLAIN, PLAIN, "x"]), "input": text})
    content = chance.choice([body.encode(), body.encode(), body.encode()[:-1], b""])
    headers = [(b"host", b"localhost")]
    if chance.random() < 0.3:
        named = chance.choice([b"gzip", b"gzip", b"br"])
        headers.append((b"content-encoding", named))
        content = chance.choice([gzip.compress(content), gzip.compress(content)[:-1], content])
    parts = [content[at : at + 30_000] for at in range(0, len(content), 30_000)] or [b""]
    leaves_at, breaks_at = chance.randint(0, 12), chance.randint(0, 8)
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal leaves_at
        await asyncio.sleep(0)
        leaves_at -= 1
        if leaves_at == 0:
            return {"type": "http.disconnect"}
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == breaks_at:
            raise ConnectionResetError
        await asyncio.sleep(chance.choice([0, 0.001]))

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "headers": headers,
        "path": "/v1/embeddings", "raw_path": b"/v1/embeddings", "query_string": b"",
        "root_path": "", "client": (f"10.0.0.{chance.randint(1, 3)}", 1),
    }  # fmt: skip
    asking = asyncio.create_task(app(scope, receive, send))
    if chance.random() < 0.2:
        asyncio.get_running_loop().call_later(chance.choice([0, 0.01, 0.1]), asking.cancel)
    with contextlib.suppress(ConnectionResetError, asyncio.CancelledError):
        await asking
    return int(sent[0]["status"]) if sent else 0
