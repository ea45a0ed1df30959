"""Clients that close their sending half behind a request: they get its answer.

Whoever leaves for good sends the same FIN, and its work must not be done. So it is asked: an interim
answer (100, which every client of HTTP/1.1 can skip: RFC 9110, 15.2) is answered by a reset if
nobody is there to read it. Neither uvloop nor the kernel tells a reset of a connection that is only
written to, so it is looked for.
"""

from __future__ import annotations

import socket
from typing import Any

from server.http.lingering import Lingering

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_LOOK_S = 0.01  # about the way to a client and back
MAX_LOOK_S = 1.0


class HalfClosed(Lingering):
    """The part of a connection's protocol that goes on when its client has sent all it will."""

    _is_half_closed = False

    def eof_received(self) -> Any:  # bool; uvicorn says None
        """The client sends no more; True keeps the connection for what it has asked."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self._is_half_closed = True
        answering = self._answering or self.cycle
        if not answering.response_started and answering.scope["http_version"] == "1.1":
            self.transport.write(_INTERIM)
            self._look_in(FIRST_LOOK_S)
        return True

    def on_response_complete(self) -> None:
        """Behind the last answer nothing can come."""
        super().on_response_complete()  # type: ignore[misc]  # both protocols have it
        if self._is_half_closed and self.cycle.response_complete:
            self.end(lingers=False)

    def _look_in(self, seconds: float) -> None:
        self.loop.call_later(seconds, self._look_for_reset, seconds)

    def _look_for_reset(self, waited_s: float) -> None:
        if self.transport.is_closing():
            return
        file = self.transport.get_extra_info("socket")
        if file.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()  # who works for it hears that it has left
        else:
            self._look_in(min(2 * waited_s, MAX_LOOK_S))
