"""A large answer waits for its reader, and arrives as it was."""

from __future__ import annotations

import pytest
from starlette.types import Message

from server.api.sending import PIECE_BYTES, PiecewiseResponse


@pytest.mark.parametrize("num_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
async def test_the_pieces_are_the_body_and_none_is_large(num_bytes: int) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    body = bytes(range(256)) * (num_bytes // 256) + b"x" * (num_bytes % 256)
    response = PiecewiseResponse(body, media_type="application/json")
    await response({"type": "http"}, receive, send)
    start, *pieces = sent
    assert (b"content-length", str(num_bytes).encode()) in start["headers"]
    assert b"".join(piece["body"] for piece in pieces) == body
    assert all(len(piece["body"]) <= PIECE_BYTES for piece in pieces)
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [
        False
    ]
