"""Large bodies are read one after the other, and away from the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

import pytest

from server.api.large_bodies import LargeBodies
from server.api.outline import Outline
from server.api.schemas import EmbeddingRequest
from server.api.seats import SHORT_BYTES, Seats
from server.errors import Overloaded

MIB = 1024 * 1024


class Watched(EmbeddingRequest):
    """Tells how many are looked at, and waits to be let go."""

    @classmethod
    def outline(cls, body: bytes | bytearray, *, max_request_tokens: int) -> Outline:
        with LOOK:
            LOOK.looking += 1
            LOOK.most = max(LOOK.most, LOOK.looking)
            LOOK.began.set()
        assert LOOK.go.wait(30)
        with LOOK:
            LOOK.looking -= 1
        return super().outline(body, max_request_tokens=max_request_tokens)


class Look:
    """What is known of the threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.began, self.go = threading.Event(), threading.Event()
        self.looking = self.most = 0

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


LOOK = Look()


@pytest.fixture(autouse=True)
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    found = Look()
    monkeypatch.setattr(f"{__name__}.LOOK", found)
    return found


def body_of(size: int) -> bytearray:
    return bytearray(b'{"model":"m","input":"%s"}' % (b"a" * size))


async def test_huge_ones_are_read_one_at_a_time_and_shorter_ones_meanwhile(look: Look) -> None:
    seats, bodies = Seats(9, max_bytes=400 * MIB), LargeBodies()
    huge = [
        asyncio.create_task(
            bodies.read(Watched, body_of(2 * SHORT_BYTES), seats.take("a"), max_request_tokens=9)
        )
        for _ in range(4)
    ]
    assert await asyncio.to_thread(look.began.wait, 30)
    short = await bodies.read(
        EmbeddingRequest, body_of(100_000), seats.take("a"), max_request_tokens=9
    )
    assert len(short.input) == 1
    assert look.most == 1
    look.go.set()
    assert [len(asked.input) for asked in await asyncio.gather(*huge)] == [1] * 4
    assert look.most == 1


async def test_what_becomes_of_it_is_counted_before_it_is_made(look: Look) -> None:
    look.go.set()
    seats = Seats(9, max_bytes=4 * MIB)
    seat = seats.take("a")
    size = 2 * MIB
    seats.take("b").hold(2 * MIB)
    with pytest.raises(Overloaded):
        await LargeBodies().read(Watched, body_of(size // 2), seat, max_request_tokens=9)
    free = Seats(9, max_bytes=64 * MIB).take("a")
    await LargeBodies().read(Watched, body_of(size), free, max_request_tokens=9)
    assert size <= free.bytes < size + 1000  # the body is gone, its text is left
