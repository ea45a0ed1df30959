"""An answer that is given to the connection in pieces, so that it waits for its reader.

uvicorn takes a whole body at once and calls it sent; a client that does not read it would have it
lie in the connection's buffer, uncounted. Between two pieces it waits until the buffer is empty.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 256 * 1024


class PiecewiseResponse(Response):
    """A response that has ended when its client has read all but the last piece."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        body = memoryview(self.body)
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for start in range(0, len(body), PIECE_BYTES):
            stop = start + PIECE_BYTES
            piece = {"body": bytes(body[start:stop]), "more_body": stop < len(body)}
            await send({"type": "http.response.body", **piece})
