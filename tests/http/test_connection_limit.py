from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
import uvloop

from server.http import connection_limit
from server.http.connection_limit import ConnectionLimit, FewConnections
from tests.waiting import until

MOST = 8


class Client:
    """One end of a connection, which the other may take to be idle."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=10)

    def is_open(self) -> bool:
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1) != b""
        except BlockingIOError:
            return True


class Served(asyncio.Protocol):
    """A connection that is idle since it was made, unless it is busy."""

    transport: asyncio.Transport
    made = 0

    def __init__(self, house: House) -> None:
        self.house = house

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.house.connections.append(self)
        self.house.made += 1
        self.number = self.house.made
        self.house.limit.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.house.connections.remove(self)

    @property
    def idle_order(self) -> float | None:
        is_busy = self.number <= self.house.busy or self.transport.is_closing()
        return None if is_busy else float(self.number)


class House:
    """A server that has room for some connections."""

    def __init__(self) -> None:
        self.connections: list[Served] = []
        self.made = self.closed = self.looks = 0
        self.busy = 0  # so many of those that came first
        self.limit = ConnectionLimit(self.connections, self._accept, self._count)

    async def _accept(self, listener: socket.socket) -> asyncio.AbstractServer:
        return await asyncio.get_running_loop().create_server(lambda: Served(self), sock=listener)

    def _count(self, number: int) -> None:
        self.looks += 1
        self.closed += number


class Surroundings:
    """A server that has room for so many connections, and its clients."""

    def __init__(self, listener: socket.socket) -> None:
        self.server = House()
        self._address = listener.getsockname()
        self.clients: list[Client] = []

    async def come(self, number: int) -> None:
        """So many new clients connect, one after the other."""
        for _ in range(number):
            made = self.server.made
            self.clients.append(Client(self._address))
            await until(lambda made=made: self.server.made > made)  # type: ignore[misc]

    async def come_at_once(self, number: int) -> None:
        """So many new clients connect before the server looks."""
        wanted = self.server.made + number
        self.clients += [Client(self._address) for _ in range(number)]
        await until(lambda: self.server.made == wanted)

    def open_clients(self) -> list[int]:
        return [number for number, one in enumerate(self.clients) if one.is_open()]


@contextlib.asynccontextmanager
async def surroundings(most: int = MOST) -> AsyncIterator[Surroundings]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        around = Surroundings(listener)
        await around.server.limit.open(listener)
        around.server.limit.max_connections = most
        yield around
        around.server.limit.close()
    for client in around.clients:
        client.socket.close()
    await until(lambda: not around.server.connections)


def test_the_connection_that_is_idle_longest_gives_way() -> None:
    async def act() -> None:
        async with surroundings() as around:
            await around.come(MOST + 3)
            await until(lambda: len(around.server.connections) == MOST)
            assert around.open_clients() == list(range(3, MOST + 3))
            assert around.server.closed == 3

    uvloop.run(act())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])  # which accepts one in a turn
def test_no_more_give_way_than_have_come_at_once(run: Callable[..., None]) -> None:
    async def act() -> None:
        async with surroundings(most=64) as around:
            await around.come_at_once(64)
            for number in (16, 5, 1, 7):
                before = around.server.closed
                await around.come_at_once(number)
                assert around.server.closed - before < number + 64 // 16
                await until(lambda: len(around.server.connections) <= 64)
            gone = around.server.closed
            assert around.open_clients() == list(range(gone, 64 + 29))

    run(act())


def test_a_connection_with_an_unread_request_is_not_idle() -> None:
    async def act() -> None:
        async with surroundings() as around:
            await around.come(MOST)
            around.server.connections[0].transport.pause_reading()
            around.clients[0].socket.sendall(b"GET")
            await around.come(1)
            assert around.open_clients() == list(range(MOST + 1))
            around.server.connections[0].transport.resume_reading()

    uvloop.run(act())


def test_the_new_connection_is_not_the_one_that_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        async with surroundings() as around:
            around.server.busy = MOST
            await around.come(MOST + 1)
            assert around.server.closed == 0

    monkeypatch.setattr(connection_limit, "_RETRY_S", 3600.0)  # later it may have to
    uvloop.run(act())


def test_new_connections_wait_while_all_are_busy_and_then_get_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act() -> None:
        async with surroundings() as around:
            around.server.busy = MOST + 1
            await around.come(MOST + 1)
            coming = asyncio.create_task(around.come(1))
            looks = around.server.looks
            await until(lambda: around.server.looks >= looks + 2)
            assert not coming.done()
            around.server.busy = 0
            await coming
            assert around.open_clients()[-1] == MOST + 1

    uvloop.run(act())
    (line,) = caplog.records
    assert "all are busy, and new ones wait. The limit of open files is" in line.message


def test_closing_turns_away_who_comes_and_keeps_who_is_there() -> None:
    async def act() -> None:
        async with surroundings() as around:
            around.server.busy = MOST + 1
            await around.come(MOST + 1)
            around.server.limit.close()
            with pytest.raises(ConnectionRefusedError):
                await around.come(1)
            assert around.open_clients() == list(range(MOST + 1))

    uvloop.run(act())


@pytest.mark.parametrize(("limit", "kept"), [(20_000, 64), (100, None)])
def test_connections_leave_descriptors_to_others(
    limit: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            house = House()
            with listener.dup() as other:
                taken = other.fileno()
            await house.limit.open(listener)
            house.limit.close()
            left = limit - taken - house.limit.max_connections
            assert left == (kept or (limit - taken) // 2)
        return left

    monkeypatch.setattr(connection_limit, "limit_of_files", lambda: limit)
    assert uvloop.run(act()) > 0


def test_where_few_may_come_the_last_is_turned_away_if_all_are_busy() -> None:
    class Ended:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    class Busy:
        idle_order = None

        def __init__(self) -> None:
            self.transport = cast("asyncio.Transport", Ended())

    connections = [Busy(), Busy(), Busy()]
    few = FewConnections(connections, 2)
    few.take(connections[-1])
    assert [cast("Ended", one.transport).is_closed for one in connections] == [False, False, True]
