"""Room for connections: each takes a descriptor, and the system gives a process only so many.

A new connection gets in as long as there is an idle one to close for it, the longest idle first. If
all are busy it waits in the kernel's backlog. The last descriptors are for others: databases, model
files, the log. Without this the event loop's library would close new connections without a word.
Belongs to the event loop's thread; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

log = logging.getLogger(__name__)

RESERVED = 64  # descriptors at most that connections leave to others
_CLOSED_AT_ONCE = 16  # this part of the idle ones: looking for the oldest takes a while
_RETRY_S = 0.05
_TELL_INTERVAL_S = 60.0
HOW_TO_RAISE = "raise that limit by ulimit -n, systemd's LimitNOFILE or docker's --ulimit nofile"


class Connection(Protocol):
    """What has a transport, and may be idle."""

    transport: asyncio.Transport

    @property
    def idle_order(self) -> float | None:
        """The smaller, the longer it is idle; None while it is busy."""


def limit_of_files() -> int:
    """How many descriptors this process may have."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


class ConnectionLimit:
    """Accepts on a socket while there is room.

    Args:
        connections: those that are open.
        accept: begins to accept on a socket.
        count_closed: called with how many idle connections were closed for new ones.
    """

    def __init__(
        self,
        connections: Collection[Connection],
        accept: Callable[[socket.socket], Awaitable[asyncio.AbstractServer]],
        count_closed: Callable[[int], object],
    ) -> None:
        self._connections = connections
        self._accept = accept
        self._count_closed = count_closed
        self._limit = self._most = limit_of_files()
        self._listener: socket.socket | None = None
        self._is_closed = False
        self._leaving = 0  # closed for new ones that have not come yet, and counted until they end
        self._server: asyncio.AbstractServer | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._told_s = -_TELL_INTERVAL_S
        self.max_connections = 0

    async def open(self, listener: socket.socket) -> None:
        """Begin to accept."""
        self._listener = listener
        # The system gives the lowest number that is free, so that it tells how many are taken.
        with listener.dup() as next_file:
            taken = next_file.fileno()
        self._most = self._limit - min(RESERVED, (self._limit - taken) // 2)
        self.max_connections = self._most - taken
        await self._begin()

    def close(self) -> None:
        """Accept no more; what is open stays so."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        for closable in (self._server, self._listener):
            if closable is not None:
                closable.close()

    def take(self, new: Connection) -> None:
        """A connection was accepted: see to it that the next one can be, too."""
        file = new.transport.get_extra_info("socket").fileno()
        if file < self._most and len(self._connections) <= self.max_connections:
            return
        if self._leaving:  # as many may come in one turn of the loop as wait in the backlog
            self._leaving -= 1
        elif closed := self._close_idle(new):
            self._leaving = closed - 1
            asyncio.get_running_loop().call_soon(self._all_have_left)
            self._tell("idle ones are closed for new ones")
        elif self._server is not None:
            self._tell("all are busy, and new ones wait")
            self._server.close()
            self._server = None
            self._look_again()

    def _all_have_left(self) -> None:
        self._leaving = 0

    def _look_again(self) -> None:
        if self._is_closed:
            return
        self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._go_on)

    def _go_on(self) -> None:
        if self._has_room():
            self._beginning = asyncio.create_task(self._begin())
        else:
            self._close_idle(None)
            self._look_again()

    def _has_room(self) -> bool:
        assert self._listener is not None
        try:
            with self._listener.dup() as next_file:
                file = next_file.fileno()
        except OSError:  # others have taken the rest
            return False
        open_ones = len(self._connections)
        return not open_ones or (file < self._most and open_ones < self.max_connections)

    async def _begin(self) -> None:
        """Accept on a copy, since closing a server closes its socket, and the backlog with it."""
        assert self._listener is not None
        try:
            server = await self._accept(self._listener.dup())
        except OSError:  # others have taken the rest meanwhile
            self._look_again()
            return
        if self._is_closed:  # meanwhile
            server.close()
        else:
            self._server = server

    def _close_idle(self, new: Connection | None) -> int:
        """Close those that are idle longest, but for the new one; returns how many."""
        closed = close_idle(self._connections, new, _CLOSED_AT_ONCE)
        self._count_closed(closed)
        return closed

    def _tell(self, what: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s < _TELL_INTERVAL_S:
            return
        self._told_s = now_s
        log.warning(
            "%d connections are open, and no room is left for more: %s. The limit of open files is %d; %s",
            len(self._connections), what, self._limit, HOW_TO_RAISE,
        )  # fmt: skip


def close_idle(connections: Collection[Connection], new: Connection | None, part: int) -> int:
    """Close those that are idle longest, but for the new one.

    Args:
        part: of how many idle ones one is closed; one at least.

    Returns:
        How many were closed.
    """
    idle = [
        (order, place, one.transport)
        for place, one in enumerate(connections)
        if one is not new and (order := one.idle_order) is not None
    ]
    oldest = heapq.nsmallest(max(1, len(idle) // part), idle)
    # A request that has come meanwhile shall be answered.
    asks = select.poll()
    transports = {t.get_extra_info("socket").fileno(): t for *_, t in oldest}
    for file in transports:
        asks.register(file, select.POLLIN)
    for file, _ in asks.poll(0):
        del transports[file]
    for transport in transports.values():
        transport.close()
    return len(transports)


class FewConnections:
    """Takes a few, and another one for the longest idle; for those the last descriptors are enough.

    Args:
        connections: those that are open.
        most: how many there may be.
    """

    def __init__(self, connections: Collection[Connection], most: int) -> None:
        self._connections = connections
        self._most = most

    def take(self, new: Connection) -> None:
        """A connection was accepted."""
        if len(self._connections) > self._most and not close_idle(
            self._connections, new, len(self._connections)
        ):
            new.transport.close()
