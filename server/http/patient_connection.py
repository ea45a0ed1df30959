"""What keeps a connection from waiting for its client for ever, whichever parser reads it.

uvicorn closes a connection on which nothing came for a while after an answer. Here that timer also
runs from a connection's begin, and until the next head is whole; and who does not read is not
waited for either. Else whoever sends nothing, or half a head, or lets answers lie, would hold a
file descriptor for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, cast

from uvicorn.server import ServerState

from server.http.connection_limit import Connection, ConnectionLimit, FewConnections
from server.http.half_closed import HalfClosed
from server.http.turns import READS_AT_ONCE, STARTS_AT_ONCE, ReadInTurns, Turns
from server.http.waiting_room import WaitingRoom
from server.program.send_queue import unacknowledged_bytes

MAX_HEAD_BYTES = 64 * 1024
# What is read of a body whose request is answered already, so that the client sees its answer.
MAX_UNWANTED_BYTES = 64 * 1024 * 1024
MAX_UNWANTED_S = 60.0
MIN_READ_BYTES_PER_S = 1024  # of an answer: whoever reads it holds memory and a place of others


class LimitedState(ServerState):
    """What all connections of a port share.

    Args:
        room: for what belongs to no seat.
    """

    connection_limit: ConnectionLimit | FewConnections

    def __init__(self, room: WaitingRoom) -> None:
        super().__init__()
        self.room = room
        self.starts = Turns(STARTS_AT_ONCE)
        self.reads = Turns(READS_AT_ONCE)

    @property
    def all_connections(self) -> Collection[Connection]:
        """Those that are open; uvicorn says that they are of its own kinds."""
        return cast("Collection[Connection]", self.connections)


class PatientConnection(HalfClosed):
    """The part of a connection's protocol that gives up clients who do not move."""

    server_state: LimitedState
    _room_bytes = 0  # what this connection has of the room
    timeout_keep_alive_task: asyncio.TimerHandle | None
    _unset_keepalive_if_required: Callable[[], None]
    _body_bytes = 0  # of an answered request, since the timer was set
    _unwanted_bytes = 0  # of it, in all
    _answered_s = 0.0
    _unread_bytes = 0
    _reader_timer: asyncio.TimerHandle | None = None

    @property
    def idle_order(self) -> float | None:
        """When it is closed for its silence; None while a request or an answer is on its way."""
        timer = self.timeout_keep_alive_task
        if timer is None or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return None
        return timer.when()

    def connection_made(self, transport: Any) -> None:
        """As uvicorn's, but read in turn with the others."""
        super().connection_made(transport)
        self.flow = ReadInTurns(transport, self.server_state.reads)

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep nothing alive, however it ended."""
        self.hold(0)
        self._unset_keepalive_if_required()
        self.resume_writing()
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # no circle: it would be left to the collector

    def eof_received(self) -> Any:
        """Who is read only because more might come has sent it all."""
        return False if self._is_ending else super().eof_received()

    def timeout_keep_alive_handler(self) -> None:
        """No whole head came in time; what was answered may still be on its way."""
        self.transport.close()
        self.watch_reader()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self.watch_reader()

    def resume_writing(self) -> None:
        """The client has read."""
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Its body may still be on its way, for a while."""
        (self._answering or self.cycle).body.clear()  # of one that was refused
        if self._is_ending:
            return
        self._unwanted_bytes, self._answered_s = 0, self.loop.time()
        super().on_response_complete()

    def begin_unwanted(self) -> None:
        """As if an answered request went on."""
        self._unwanted_bytes, self._answered_s = 0, self.loop.time()
        self._set_keepalive()

    def _set_keepalive(self) -> None:
        self._unset_keepalive_if_required()
        self._body_bytes = 0
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def take_notice_of_body(self, size: int) -> None:
        """Of a request that was answered early the rest may come, unless it hardly moves."""
        if self.timeout_keep_alive_task is None:
            return
        self._body_bytes += size
        self._unwanted_bytes += size
        is_late = self.loop.time() - self._answered_s > MAX_UNWANTED_S
        if is_late or self._unwanted_bytes > MAX_UNWANTED_BYTES:
            self.transport.close()
            return
        if self._body_bytes >= MAX_HEAD_BYTES:
            self._set_keepalive()
        self.flow.pause_reading()  # the others first
        self.flow.resume_reading()

    def hold(self, num_bytes: int) -> bool:
        """Whether there is room for so many bytes of this connection."""
        if not self.server_state.room.change(self._room_bytes, num_bytes):
            return False
        self._room_bytes = num_bytes
        return True

    def watch_reader(self) -> None:
        """Cut the connection unless its client reads."""
        if self._reader_timer is None:
            self._unread_bytes = self._count_unread()
            self._reader_timer = self.loop.call_later(self.timeout_keep_alive, self._look_at_reader)

    def _look_at_reader(self) -> None:
        self._reader_timer = None
        read_bytes = self._unread_bytes - self._count_unread()
        if read_bytes < MIN_READ_BYTES_PER_S * self.timeout_keep_alive:
            self.transport.abort()
        else:
            self.watch_reader()

    def _count_unread(self) -> int:
        """Bytes that the client has not taken; the kernel alone holds megabytes for a slow one."""
        unsent = self.transport.get_write_buffer_size()
        file = self.transport.get_extra_info("socket")
        return unsent if file is None else unsent + unacknowledged_bytes(file)
