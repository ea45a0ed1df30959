"""The bytes of a request's body, within bounds, whatever is sent; knows nothing of their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.api.content_encoding import Decoder, content_encoding
from server.api.seats import Seat
from server.errors import BodyTooLarge, BodyTooSlow

MIN_BYTES_PER_S = 1024
PATIENCE_S = 30.0  # before that rate is asked for


async def read_body(request: Request, max_body_bytes: int, seat: Seat) -> bytearray:
    """The whole body, decompressed; a declared length that is too large is refused unread.

    Raises:
        UnsupportedContentEncoding: it is compressed in a way that this server does not know.
        BodyTooLarge: it is longer than allowed, as it came or decompressed.
        InvalidRequest: it is not what its `Content-Encoding` says.
        BodyTooSlow: it comes more slowly than MIN_BYTES_PER_S.
        RequestTooLarge, Overloaded: it takes too much of the memory for all requests together.
        ClientDisconnect: the client left before its end.
    """
    try:
        async with asyncio.timeout(None) as patience:
            return await _read(request, _parts(request, patience), max_body_bytes, seat)
    except TimeoutError:
        raise BodyTooSlow(MIN_BYTES_PER_S) from None


async def _parts(request: Request, patience: asyncio.Timeout) -> AsyncIterator[bytes]:
    """The body's parts; each gives its client more time for the next."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + PATIENCE_S
    # Not before the loop's turn ends: most bodies are there already, and a timer costs more than
    # reading one.
    first_wait = loop.call_soon(patience.reschedule, deadline_s)
    more = True
    while more:
        try:
            message = await request.receive()
        finally:
            first_wait.cancel()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        if more:
            deadline_s += len(part) / MIN_BYTES_PER_S
            patience.reschedule(deadline_s)
        yield part


async def _read(
    request: Request, parts: AsyncIterator[bytes], max_body_bytes: int, seat: Seat
) -> bytearray:
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
        async for part in parts:
            take(part)
        return body
    decoder = Decoder(encoding)
    received_bytes = 0
    async for part in parts:
        received_bytes += len(part)
        if received_bytes > max_body_bytes:  # there are ways to compress nothing into very much
            raise BodyTooLarge(max_body_bytes)
        decoder.feed(part)
        while decoder.has_more:
            take(await decoder.read())
    decoder.finish()
    return body
