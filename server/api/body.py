"""The bytes of a request's body, within bounds, whatever is sent; knows nothing of their meaning."""

from __future__ import annotations

from fastapi import Request

from server.api.content_encoding import Decoder, content_encoding
from server.api.seats import Seat
from server.errors import BodyTooLarge


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
