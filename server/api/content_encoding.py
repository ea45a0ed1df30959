"""Compressed bodies, undone a bounded step at a time: a few bytes can stand for gigabytes.

Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable

from server.errors import InvalidRequest, UnsupportedContentEncoding

IDENTITY = "identity"
SUPPORTED = ("gzip", "deflate", IDENTITY)
_ALSO_CALLED = {"x-gzip": "gzip"}  # RFC 9110, 8.4.1.3

# Below this much, decompressing takes less time than the way to a thread and back.
INLINE_BYTES = 16 * 1024
STEP_BYTES = 512 * 1024
# What follows the end of a member is copied each time one ends.
_CHUNK_BYTES = 4 * 1024

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def content_encoding(headers: Iterable[str]) -> str | None:
    """What a body's `Content-Encoding` headers say: gzip, deflate, or None if it is as it is.

    Raises:
        UnsupportedContentEncoding: another encoding, or several.
    """
    named = [name.strip().lower() for name in ",".join(headers).split(",")]
    named = [_ALSO_CALLED.get(name, name) for name in named if name]
    if all(name == IDENTITY for name in named):
        return None
    if len(named) > 1 or named[0] not in SUPPORTED:
        raise UnsupportedContentEncoding(", ".join(named), SUPPORTED)
    return named[0]


class Decoder:
    """Undoes one body's encoding: feed a part, read until there is no more, feed the next.

    Args:
        encoding: from `content_encoding`.
    """

    def __init__(self, encoding: str) -> None:
        self.has_more = False  # of what was fed
        self._encoding = encoding
        self._stream: zlib._Decompress | None = None
        self._part = b""
        self._position = 0  # in the part, of what is not decompressed yet
        self._decoded_bytes = 0

    def feed(self, part: bytes) -> None:
        """The next part of the body, once there is no more of the one before."""
        self._part, self._position = part, 0
        self.has_more = bool(part)

    async def read(self) -> bytearray:
        """At most STEP_BYTES of the body; large bodies are decompressed in a thread.

        Raises:
            InvalidRequest: what was fed is not so encoded.
        """
        if max(len(self._part), self._decoded_bytes) < INLINE_BYTES:
            decoded = self._decode(INLINE_BYTES)
        else:
            decoded = await asyncio.to_thread(self._decode, STEP_BYTES)
        self._decoded_bytes += len(decoded)
        return decoded

    def finish(self) -> None:
        """Nothing is left to be fed.

        Raises:
            InvalidRequest: something is lacking.
        """
        if self._stream is None or not self._stream.eof:
            raise self._wrong("it is cut off")

    def _decode(self, most_bytes: int) -> bytearray:
        decoded = bytearray()
        while len(decoded) < most_bytes:
            if self._stream is None:
                self._stream = self._begin()
            elif self._stream.eof:
                if self._position == len(self._part):
                    self.has_more = False
                    break
                if self._encoding != "gzip":  # which alone may have several members
                    raise self._wrong("bytes follow its end")
                self._stream = self._begin()
            chunk = self._part[self._position : self._position + _CHUNK_BYTES]
            try:
                decoded += self._stream.decompress(chunk, most_bytes - len(decoded))
            except zlib.error as error:
                raise self._wrong(str(error).rpartition(": ")[2]) from None
            left = len(self._stream.unconsumed_tail) + len(self._stream.unused_data)
            self._position += len(chunk) - left
            if not chunk:  # what zlib had left over came out
                self.has_more = False
                break
        return decoded

    def _begin(self) -> zlib._Decompress:
        if self._encoding == "gzip":
            return zlib.decompressobj(_GZIP)
        # Many send deflate without the zlib wrapper that belongs around it. What a wrapper begins
        # with is, without one, a stored block with a bit in its padding: nobody writes that.
        return zlib.decompressobj(_ZLIB if self._part[0] & 0x0F == 8 else _RAW)

    def _wrong(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"The request body is not valid {self._encoding}: {reason}.")
