"""An answer's head comes with its body, and is never kept back for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
from uvicorn import Config

from server.http.patient_connection import LimitedState
from server.http.protocol import BoundedProtocol
from server.http.waiting_room import WaitingRoom

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = Callable[[Send], Awaitable[None]]


class NoLimit:
    def take(self, new: object) -> None:
        """Any number of connections."""


class Written(asyncio.Transport):
    """Notes each write, as the system call that it would be."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def write_eof(self) -> None:
        """All is written at once."""

    def pause_reading(self) -> None:
        """What is to come has come."""

    def resume_reading(self) -> None:
        """Nothing was paused."""


START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def whole(send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"body"})


async def in_pieces(send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"bo", "more_body": True})
    await send({"type": "http.response.body", "body": b"dy"})


async def cut(send: Send) -> None:
    await send(START)


@pytest.fixture
def timers() -> Iterator[list[BoundedProtocol]]:
    connections: list[BoundedProtocol] = []
    yield connections
    for connection in connections:
        connection.connection_lost(None)


async def writes(answer: Answer, request: bytes, timers: list[BoundedProtocol]) -> list[bytes]:
    """What is written for what came, one by one."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if b"expect" in dict(scope["headers"]):
            await receive()
        await answer(send)

    config = Config(app, http=BoundedProtocol, log_config=None, access_log=False)
    config.load()
    state = LimitedState(WaitingRoom(10**9))
    state.connection_limit = NoLimit()  # type: ignore[assignment]
    connection = BoundedProtocol(config, state, {})
    timers.append(connection)
    transport = Written()
    connection.connection_made(transport)
    connection.data_received(request)
    while connection.tasks:
        await asyncio.wait(list(connection.tasks))
    return transport.writes


def ends(written: list[bytes]) -> list[bytes]:
    """What is behind the last blank line of each."""
    return [one.rpartition(b"\r\n\r\n")[2] for one in written]


async def test_head_and_body_are_one_write(timers: list[BoundedProtocol]) -> None:
    written = await writes(whole, GET, timers)
    assert ends(written) == [b"body"]
    assert written[0].startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n")


async def test_a_later_piece_is_written_as_it_comes(timers: list[BoundedProtocol]) -> None:
    assert ends(await writes(in_pieces, GET, timers)) == [b"bo", b"dy"]


async def test_each_answer_of_a_connection_has_its_head(timers: list[BoundedProtocol]) -> None:
    written = await writes(whole, GET * 3, timers)
    assert ends(written) == [b"body"] * 3
    assert all(one.startswith(b"HTTP/1.1 200") for one in written)


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
async def test_an_answer_without_a_body_is_its_head(
    timers: list[BoundedProtocol], more: bytes
) -> None:
    request = b"HEAD / HTTP/1.1\r\n" + more + b"Host: localhost\r\n\r\n"
    written = await writes(whole, request, timers)
    assert ends(written) == [b""]
    assert written[0].startswith(b"HTTP/1.1 200")


async def test_a_head_whose_body_never_comes_is_told(timers: list[BoundedProtocol]) -> None:
    written = await writes(cut, GET, timers)
    assert ends(written) == [b""]
    assert written[0].startswith(b"HTTP/1.1 200")


async def test_who_waits_for_100_continue_gets_it_at_once(timers: list[BoundedProtocol]) -> None:
    head = (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    )
    written = await writes(whole, head + b"x", timers)
    assert written[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert ends(written[1:]) == [b"body"]


async def test_what_is_no_http_is_refused_behind_an_answer(timers: list[BoundedProtocol]) -> None:
    async def later(send: Send) -> None:
        await whole(send)
        timers[0].data_received(b"no HTTP\r\n\r\n")

    answer, refusal = await writes(later, GET, timers)
    assert answer.endswith(b"body")
    assert refusal.startswith(b"HTTP/1.1 400")
