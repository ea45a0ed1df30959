"""Bytes to a request, without a server."""

from __future__ import annotations

import codecs

import pytest

from server.api.json_values import PIECE_BYTES
from server.api.schemas import EmbeddingRequest
from server.errors import InvalidRequest
from server.inference.inputs import TextInputs


def complaint(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        EmbeddingRequest.read(bytearray(body))
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "position", "value"),
    [
        (b"\xff", 0, 0xFF),
        ('{"input": "é"}'.encode("latin-1"), 11, 0xE9),
        ('{"input": "x"}'.encode("utf-16"), 0, 0xFF),
        (b"\x1f\x8b\x08\x00", 1, 0x8B),  # gzip that does not say so
        ('{"é": "'.encode() + b"\xe2\x82", 8, 0xE2),  # cut off inside a character
        (codecs.BOM_UTF8 + b"{\xfe}", 4, 0xFE),
        (b'"' + b" " * PIECE_BYTES + b'\x80"', PIECE_BYTES + 1, 0x80),
        (b" " * (PIECE_BYTES - 1) + b"\xe2\x82 ", PIECE_BYTES - 1, 0xE2),
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_their_position(
    body: bytes, position: int, value: int
) -> None:
    assert complaint(body) == (
        f"The request body is not valid UTF-8: byte {position} is 0x{value:02x}."
    )


def test_a_character_that_two_pieces_share_is_no_mistake() -> None:
    body = b'"' + b" " * (PIECE_BYTES - 2) + "€".encode() + b" x"
    assert "not valid JSON" in complaint(body)


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_what_is_wrong_with_the_json_is_told_with_its_byte(mark: bytes) -> None:
    body = mark + '{"model": "é€", x}'.encode()
    assert complaint(body).endswith(f" at byte {body.index(b'x')}.")


def test_a_byte_order_mark_is_skipped() -> None:
    body = codecs.BOM_UTF8 + b'{"model": "m", "input": "x"}'
    for kind in (bytes, bytearray):
        asked = EmbeddingRequest.read(kind(body))
        assert asked.model == "m"
        assert isinstance(asked.input, TextInputs)
        assert asked.input.texts == ["x"]
    assert "not valid JSON" in complaint(codecs.BOM_UTF8 + body)  # one, not several
