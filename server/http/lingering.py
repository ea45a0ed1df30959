"""Connections that end while their client still sends: it shall get its answer.

Whoever closes with bytes unread resets the connection, and the reset may take the answer along. So
only the sending half is closed, and what still comes is read and thrown away (RFC 9112, 9.6), within
the bounds that PatientConnection has for bodies that nobody wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# While the server stops: what a client that hardly sends may hold up its end.
MAX_SILENCE_AT_END_S = 1


class Lingering(asyncio.Protocol):
    """The part of a connection's protocol that ends it; for its answers it is the transport."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any  # uvicorn's: the request that came last, and its answer
    _answering: Any = None  # the one whose answer is next, if several have come
    flow: Any
    timeout_keep_alive: int
    # Of the classes that come with it:
    expects_more: Callable[[], bool]  # whether a request has begun to come, but not ended
    forget: Callable[[], None]  # nothing that lies here is wanted any more
    begin_unwanted: Callable[[], None]  # from now on all that comes is thrown away, within bounds
    watch_reader: Callable[[], None]  # wait no longer for a client that does not read
    _is_ending = False

    def write(self, data: bytes) -> None:
        """A part of an answer."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more may be written."""
        return self._is_ending or self.transport.is_closing()

    def close(self) -> None:
        """Behind what was written: at once if no request is under way, else when it has come."""
        self.end(lingers=self.expects_more())

    def end(self, *, lingers: bool) -> None:
        """Hang up behind what was written.

        Args:
            lingers: something may still come.
        """
        if self.is_closing():
            return
        self.forget()
        if lingers:
            self._is_ending = True
            self.transport.write_eof()
            self.flow.resume_reading()
            self.begin_unwanted()
        else:
            self.transport.close()
        if self.transport.get_write_buffer_size():
            self.watch_reader()

    def shutdown(self) -> None:
        """The server stops: what was answered ends; uvicorn would not let it linger."""
        self.timeout_keep_alive = min(self.timeout_keep_alive, MAX_SILENCE_AT_END_S)
        if self._is_ending:
            self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            self.end(lingers=self.cycle is not None and self.expects_more())
        else:
            self.cycle.keep_alive = False
