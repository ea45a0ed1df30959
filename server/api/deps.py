"""What routes begin with: the services, the key, the body, and bounds on their work.

Plain functions, not FastAPI's dependencies, whose solving costs 0.1 ms a request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.access.access import Access
from server.access.keys import Key, Scope
from server.api.content_encoding import Decoder, content_encoding
from server.api.request_record import RequestRecord
from server.engine.offering import Offering
from server.errors import ApiError, BodyTooLarge, Overloaded, RequestTimedOut
from server.metrics import Metrics
from server.settings import Settings

# Bodies of the largest size that are held at a time; what is parsed from them takes more.
LARGEST_BODIES = 4
# So many bytes of each body are not counted: large bodies must not keep short queries out.
UNCOUNTED_BODY_BYTES = 64 * 1024


class Seats:
    """How many requests for embeddings there may be at a time, and how many bytes of bodies.

    A request holds its seat from its head to its answer, so that no flood takes memory without
    bound, however it is sent.
    """

    def __init__(self, seats: int, max_bytes: int) -> None:
        self._seats = self._free = seats
        self._max_bytes = self._free_bytes = max_bytes

    @contextlib.contextmanager
    def take(self) -> Iterator[Seat]:
        """Hold a seat.

        Raises:
            Overloaded: none is free.
        """
        if not self._free:
            raise Overloaded(f"{self._seats} requests are being answered", retry_after_s=1)
        self._free -= 1
        seat = Seat(self)
        try:
            yield seat
        finally:
            self._free += 1
            self._free_bytes += seat.bytes

    def hold(self, more_bytes: int) -> None:
        """Count bytes of a body.

        Raises:
            Overloaded: they are too many, together with the others'.
        """
        if more_bytes > self._free_bytes:
            raise Overloaded(
                f"requests of {self._max_bytes} bytes are being answered", retry_after_s=1
            )
        self._free_bytes -= more_bytes


class Seat:
    """One request's place and the bytes it holds."""

    __slots__ = ("_seats", "bytes")

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.bytes = 0

    def hold(self, body_bytes: int) -> None:
        """The body has so many bytes by now; raises Overloaded."""
        counted = body_bytes - UNCOUNTED_BODY_BYTES
        if counted > self.bytes:
            self._seats.hold(counted - self.bytes)
            self.bytes = counted


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the routes work with; one a process, kept at `app.state.services`."""

    settings: Settings
    access: Access
    models: Offering
    metrics: Metrics
    seats: Seats
    metrics_page: Callable[[Metrics], Awaitable[bytes]]


def services_of(request: Request) -> Services:
    """The process's services."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


def require_key(request: Request, scope: Scope) -> Key:
    """Let the request in by its API key, before anybody looks at its body.

    Raises:
        AuthenticationFailed: the key is missing, unknown or no longer valid.
        ScopeMissing: it was not made for this.
    """
    caller = RequestRecord.of(request.scope).caller
    if isinstance(caller, ApiError):
        raise caller
    caller.check_scope(scope)
    return caller


async def read_body(request: Request, max_body_bytes: int, seat: Seat) -> bytearray:
    """The whole body, decompressed; a declared length that is too large is refused unread.

    Raises:
        UnsupportedContentEncoding: it is compressed in a way that this server does not know.
        BodyTooLarge: it is longer than allowed, as it came or decompressed.
        InvalidRequest: it is not what its `Content-Encoding` says.
        Overloaded: too many bytes are held for all requests together.
    """
    encoding = content_encoding(request.headers.getlist("content-encoding"))
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise BodyTooLarge(max_body_bytes)
    body = bytearray()

    def take(part: bytes | bytearray) -> None:
        body.extend(part)
        if len(body) > max_body_bytes:
            raise BodyTooLarge(max_body_bytes)
        seat.hold(len(body))

    if encoding is None:
        async for part in request.stream():
            take(part)
        return body
    decoder = Decoder(encoding)
    received_bytes = 0
    async for part in request.stream():
        received_bytes += len(part)
        if received_bytes > max_body_bytes:  # there are ways to compress nothing into very much
            raise BodyTooLarge(max_body_bytes)
        decoder.feed(part)
        while decoder.has_more:
            take(await decoder.read())
    decoder.finish()
    return body


@contextlib.asynccontextmanager
async def abandoned_when_client_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel the work inside when the client disconnects; the body must have been read before.

    Raises:
        ClientDisconnect: the client left before the work was done.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()


@contextlib.asynccontextmanager
async def deadline(request_timeout_s: float) -> AsyncIterator[None]:
    """Cancel the work inside when it takes longer than this.

    Raises:
        RequestTimedOut: it did.
    """
    try:
        async with asyncio.timeout(request_timeout_s):
            yield
    except TimeoutError:
        raise RequestTimedOut(request_timeout_s) from None
