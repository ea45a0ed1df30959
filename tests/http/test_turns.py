"""Requests that come at once: all begin, in their order, and a probe does not wait for them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import uvicorn

from server.http.connection_limit import Connection, FewConnections
from server.http.patient_connection import LimitedState
from server.http.protocol import BoundedProtocol
from server.http.turns import STARTS_AT_ONCE
from server.http.waiting_room import WaitingRoom

MANY = 10 * STARTS_AT_ONCE


class Unread(asyncio.Transport):
    """A connection whose answers nobody reads."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: object) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def test_of_many_requests_a_few_begin_at_a_time_and_a_probe_at_once() -> None:
    begun: list[str] = []
    end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["path"])
        if len(begun) > MANY:
            end.set()
        await asyncio.sleep(3600)

    config = uvicorn.Config(app, http=BoundedProtocol.within(WaitingRoom(10**9)), lifespan="off")
    config.load()
    state = LimitedState()
    connections = cast("set[Connection]", state.connections)
    state.connection_limit = FewConnections(connections, 2 * MANY)

    def come(path: str) -> None:
        protocol: Any = config.http_protocol_class
        connection = protocol(config, state, {})
        connection.connection_made(Unread())
        connection.data_received(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    try:
        for number in range(MANY):
            come(f"/{number}")
        come("/livez")
        await asyncio.wait_for(end.wait(), 60)
    finally:
        for task in state.tasks:
            task.cancel()
    assert begun.index("/livez") <= STARTS_AT_ONCE
    begun.remove("/livez")
    assert begun == [f"/{number}" for number in range(MANY)]
