"""What comes at once is done in its order, and a probe does not wait for all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import pytest
import uvicorn

from server.http.connection_limit import Connection, FewConnections
from server.http.patient_connection import LimitedState
from server.http.protocol import BoundedProtocol
from server.http.turns import READS_AT_ONCE, STARTS_AT_ONCE, Turns
from server.http.waiting_room import WaitingRoom

MANY = 10 * STARTS_AT_ONCE


class Unread(asyncio.Transport):
    """A connection whose answers nobody reads."""

    is_read = True
    protocol: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: object) -> None: ...

    def writelines(self, parts: object) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Crowd:
    """Connections of one port in front of an application."""

    def __init__(self, app: Any) -> None:
        self._config = uvicorn.Config(app, http=BoundedProtocol, lifespan="off")
        self._config.load()
        self._state = LimitedState(WaitingRoom(10**9))
        connections = cast("set[Connection]", self._state.connections)
        self._state.connection_limit = FewConnections(connections, 2 * MANY)

    def come(self, content: bytes) -> tuple[Any, Unread]:
        """A connection that sends this first."""
        protocol: Any = self._config.http_protocol_class
        connection, transport = protocol(self._config, self._state, {}), Unread()
        connection.connection_made(transport)
        connection.data_received(content)
        return connection, transport

    def leave(self) -> None:
        for task in self._state.tasks:
            task.cancel()


async def test_of_many_requests_a_few_begin_at_a_time_and_a_probe_at_once() -> None:
    begun: list[str] = []
    end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["path"])
        if len(begun) > MANY:
            end.set()
        await asyncio.sleep(3600)

    crowd = Crowd(app)
    try:
        for path in (*(f"/{number}" for number in range(MANY)), "/livez"):
            crowd.come(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await asyncio.wait_for(end.wait(), 60)
    finally:
        crowd.leave()
    assert begun.index("/livez") <= STARTS_AT_ONCE
    begun.remove("/livez")
    assert begun == [f"/{number}" for number in range(MANY)]


@pytest.mark.parametrize("is_wanted", [True, False])
async def test_large_bodies_are_read_a_few_at_a_time(is_wanted: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while is_wanted:
            await receive()
        await send({"type": "http.response.start", "status": 400})
        await send({"type": "http.response.body"})

    crowd = Crowd(app)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
    try:
        come = [crowd.come(head) for _ in range(4 * READS_AT_ONCE)]
        for _ in range(3):  # all have begun, and their bodies are wanted or not
            await asyncio.sleep(0)
        for connection, _ in come:
            connection.data_received(b" " * 100_000)
        assert not any(transport.is_read for _, transport in come)
        before = 0
        for _ in range(20):
            await asyncio.sleep(0)
            now = sum(transport.is_read for _, transport in come)
            assert now - before <= READS_AT_ONCE
            assert all(transport.is_read for _, transport in come[:now])
            before = now
        assert before == len(come)
    finally:
        crowd.leave()


UNWANTED = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"
LARGE = UNWANTED.replace(b"POST / ", b"POST /large ")
OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


async def answer_early(scope: Any, receive: Any, send: Any) -> None:
    """But for one path, at which a body is neither read nor answered."""
    if scope["path"] == "/large":
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": 400})
    await send({"type": "http.response.body"})


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd(answer_early)
    yield crowd
    crowd.leave()


async def test_behind_an_unwanted_body_what_waits_in_the_same_piece_is_read_no_further(
    crowd: Crowd,
) -> None:
    connection, transport = crowd.come(UNWANTED)
    await turns()
    waiting = LARGE + b" " * 100_000
    connection.data_received(b" " * 200_000 + waiting)
    await turns()
    assert not transport.is_read
    assert len(connection.cycle.body) == 100_000


async def test_a_turn_to_read_on_is_none_of_the_next_parser(crowd: Crowd) -> None:
    connection, transport = crowd.come(UNWANTED)
    await turns()
    connection.data_received(b" " * 200_000)
    head, _, _ = LARGE.rpartition(b"\r\n")
    connection.data_received(head + OFFER + b"\r\n" + b" " * 100_000)
    await turns()
    assert not transport.is_read
    transport.protocol.flow.resume_reading()
    await turns()
    assert transport.is_read


async def test_where_h11_reads_on_by_itself_the_next_large_body_still_waits(crowd: Crowd) -> None:
    head, _, _ = UNWANTED.rpartition(b"\r\n")
    _, transport = crowd.come(head + OFFER + b"\r\n")
    await turns()
    transport.protocol.data_received(b" " * 200_000 + LARGE + b" " * 100_000)
    await turns()
    assert not transport.is_read


async def test_a_step_that_fails_stops_no_other() -> None:
    done: list[int] = []
    turns_of_port = Turns(2)
    turns_of_port.later(lambda: done.append(1))
    turns_of_port.later(partial(done.remove, 7))
    for number in range(2, 6):
        turns_of_port.later(partial(done.append, number))
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: failures.append(told))
    await turns()
    assert done == [1, 2, 3, 4, 5]
    assert len(failures) == 1
