"""HTTP/1.1 on a connection: httptools, with a bound on what it does not bound itself.

httptools costs 0.2 to 0.3 ms less a request than h11, but it buffers a head of any size, before
any key is asked, and it stops at the end of the head of a request that offers an upgrade: the body
is lost. Java's own client offers h2c with its first request, so such a connection goes on with h11,
which ignores the offer (uvicorn 0.54, httptools 0.9).

What lies in a connection and belongs to no seat is counted in its port's waiting room.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.api.record import PROBES
from server.errors import ApiError, InvalidRequest
from server.http.absolute_target import take_host_of_target
from server.http.joined_head import JoinedHead
from server.http.patient_connection import MAX_HEAD_BYTES, LimitedState, PatientConnection
from server.http.refusals import MAX_HEADERS, no_room, refuse, too_many_headers
from server.http.turns import STARTS_AT_ONCE
from server.http.waiting_room import head_bytes, waiting_bytes

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# A head that is no larger is not counted: a few kilobytes as objects, as all of a connection.
USUAL_HEAD_BYTES = 4096
USUAL_HEADERS = 32
MAX_PIPELINED = 16  # requests that wait behind an unanswered one of their connection
_FIRST = PROBES - {"/metrics"}  # whose page takes some milliseconds
_NO_HTTP = "Invalid HTTP request received."


class BoundedProtocol(JoinedHead, PatientConnection, HttpToolsProtocol):
    """Refuses heads, trailers and chunk extensions that are too long, and keeps every body."""

    server_state: LimitedState
    _bytes_without_progress = 0
    _progress = False
    _data_bytes = 0  # that came last
    _head_bytes = 0  # of the request that is answered, if they are many
    _answering: RequestResponseCycle | None = None  # the request whose answer is next
    _expects_more = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head, no longer than for a later one."""
        super().connection_made(transport)
        self._set_keepalive()
        self.server_state.connection_limit.take(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell it the request that is answered, too; uvicorn tells the last one that has come."""
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        if self._answering is not None:
            self._answering.transport = self.transport

    def data_received(self, data: bytes) -> None:
        """Feed the parser; more than MAX_HEAD_BYTES that complete nothing are refused."""
        if self._is_ending:
            self.take_notice_of_body(len(data))
            return
        self._progress = False
        self._data_bytes = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._continue_with_h11(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            told = error.__context__
            self._refuse(told if isinstance(told, ApiError) else InvalidRequest(_NO_HTTP))
            return
        self._bytes_without_progress = (
            0 if self._progress else self._bytes_without_progress + len(data)
        )
        if self._bytes_without_progress > MAX_HEAD_BYTES:
            self.send_400_response(f"The request's head is longer than {MAX_HEAD_BYTES} bytes.")
        elif self._bytes_without_progress or self.pipeline or self._room_bytes or self._head_bytes:
            self._count()

    def on_headers_complete(self) -> None:
        """Parser callback."""
        self._progress = self._expects_more = True
        self._unset_keepalive_if_required()
        self._check_headers()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise InvalidRequest(f"More than {MAX_PIPELINED} requests wait for an answer.")
        if not self.url.startswith(b"/"):
            version = self.parser.get_http_version()  # h11, too, is handed a path alone
            self.url = take_host_of_target(self.url, self.headers, version)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Parser callback."""
        self._progress = True
        self.take_notice_of_body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Parser callback; trailers have been added to the headers."""
        self._expects_more = False
        self._check_headers()
        super().on_message_complete()

    def expects_more(self) -> bool:
        """Whether a body's end has not come."""
        return self._expects_more

    def forget(self) -> None:
        """Heads, and requests that wait."""
        self.pipeline.clear()
        self.headers = []
        self.scope = None  # type: ignore[assignment]  # which has them, too
        self.hold(0)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the one shape, too."""
        self._refuse(InvalidRequest(msg))

    def on_response_complete(self) -> None:
        """What it held is free."""
        self._head_bytes = 0
        if self.pipeline:  # how long the next one's head was is not known any more
            self._data_bytes = MAX_HEAD_BYTES
        super().on_response_complete()
        if self._room_bytes:
            self._count()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering, self.awaits_head = cycle, True
        cycle.transport = self  # type: ignore[assignment]  # which is closed in its own way
        if cycle.scope["http_version"] == "1.0":  # which knows no interim answers
            cycle.waiting_for_100_continue = False
        before = self._bytes_without_progress + self._data_bytes
        headers: Any = cycle.scope["headers"]
        if before > USUAL_HEAD_BYTES or len(headers) > USUAL_HEADERS:
            self._head_bytes = head_bytes(headers)
        start = super()._start_asgi_task
        if len(self.tasks) < STARTS_AT_ONCE or cycle.scope["path"] in _FIRST:
            start(cycle, app)
        else:
            self.server_state.starts.later(partial(start, cycle, app))

    def _count(self) -> None:
        """Hold what lies here; refuse what there is no room for."""
        num_bytes = self._bytes_without_progress + self._head_bytes + waiting_bytes(self.pipeline)
        if self._bytes_without_progress:
            headers = self.headers or ()  # None before the first
            num_bytes += head_bytes(headers)
            if len(headers) > MAX_HEADERS:
                self._refuse(too_many_headers())
                return
        if not self.hold(num_bytes):
            self._refuse(no_room())

    def _check_headers(self) -> None:
        """Not one by one as they come: one piece of data does not hold many, and costs each."""
        if len(self.headers) > MAX_HEADERS:
            raise too_many_headers()

    def _refuse(self, error: ApiError) -> None:
        refuse(self, self._answering, error)

    def _should_upgrade(self) -> bool:
        """Whatever is offered: no request is started here, since its body would be lost."""
        return True

    def _continue_with_h11(self, rest: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("An upgrade cannot be offered behind an unanswered request.")
            return
        from server.http.h11_connection import UpgradeIgnoringProtocol  # most servers never need it

        version = self.parser.get_http_version().encode()
        head = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
        head += [b"%s: %s\r\n" % header for header in self.headers]
        self.connections.discard(self)
        protocol = UpgradeIgnoringProtocol(self.config, self.server_state, self.app_state)
        self.hold(0)
        protocol.connection_made(self.transport)
        protocol.flow = self.flow  # whose turn to read on may be still to come
        if self.flow.write_paused:  # the transport tells that once
            self.resume_writing()
            protocol.pause_writing()
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join((*head, b"\r\n", rest)))
