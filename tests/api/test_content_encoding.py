"""Compressed bodies: what they were is read, and no more than that is held."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.api.content_encoding import INLINE_BYTES, STEP_BYTES, Decoder, content_encoding
from server.errors import InvalidRequest, UnsupportedContentEncoding
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-zlib.MAX_WBITS)


def two_members(body: bytes) -> bytes:
    return (
        gzip.compress(body[:5], mtime=0)
        + gzip.compress(b"", mtime=0)
        + gzip.compress(body[5:], mtime=0)
    )


ENCODED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("gzip", two_members),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
]
every_encoding = pytest.mark.parametrize(
    ("encoding", "encode"), ENCODED, ids=["gzip", "gzip members", "deflate", "raw deflate"]
)


async def decode(encoding: str, encoded: bytes, part_bytes: int = 1 << 20) -> bytes:
    decoder, body = Decoder(encoding), b""
    for start in range(0, len(encoded), part_bytes):
        decoder.feed(encoded[start : start + part_bytes])
        while decoder.has_more:
            decoded = await decoder.read()
            assert len(decoded) <= STEP_BYTES
            body += decoded
    decoder.finish()
    return body


@pytest.mark.parametrize(
    ("headers", "encoding"),
    [
        ([], None),
        ([""], None),
        (["identity"], None),
        (["Identity, identity", "identity"], None),
        (["gzip"], "gzip"),
        ([" GZip "], "gzip"),
        (["x-gzip"], "gzip"),
        (["DEFLATE"], "deflate"),
    ],
)
def test_the_header_is_read_in_any_case(headers: list[str], encoding: str | None) -> None:
    assert content_encoding(headers) == encoding


@pytest.mark.parametrize(
    "headers", [["br"], ["zstd"], ["utf-8"], ["gzip, gzip"], ["identity, gzip"], ["gzip", "br"]]
)
def test_another_encoding_or_several_are_refused(headers: list[str]) -> None:
    with pytest.raises(UnsupportedContentEncoding) as caught:
        content_encoding(headers)
    assert ", ".join(headers) in caught.value.message


@every_encoding
@pytest.mark.parametrize("part_bytes", [1, 7, 1 << 20])
async def test_a_body_is_what_it_was_in_whatever_parts_it_comes(
    encoding: str, encode: Callable[[bytes], bytes], part_bytes: int
) -> None:
    for body in (b"", b"x", bytes(range(256)) * 20):
        assert await decode(encoding, encode(body), part_bytes) == body


@every_encoding
async def test_a_large_body_comes_in_steps(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    for size in (STEP_BYTES, 2 * STEP_BYTES + 1):
        body = b"word " * (size // 5)
        assert await decode(encoding, encode(body)) == body


@every_encoding
async def test_a_body_that_is_cut_off_is_refused(
    encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    encoded = encode(b"a body of some words")
    # Whole members alone are a whole body.
    for size in {0, 1, 2, len(encoded) // 2 + 1, len(encoded) - 1}:
        with pytest.raises(InvalidRequest, match=f"not valid {encoding}: it is cut off"):
            await decode(encoding, encoded[:size])


@pytest.mark.parametrize(
    ("encoding", "encoded", "reason"),
    [
        ("gzip", b"{}", "incorrect header check"),
        ("gzip", zlib.compress(b"{}"), "incorrect header check"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-8] + bytes(8), "incorrect data check"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", "incorrect header check"),
        ("deflate", gzip.compress(b"{}", mtime=0), "invalid block type"),
        ("deflate", zlib.compress(b"{}")[:-4] + bytes(4), "incorrect data check"),
        ("deflate", zlib.compress(b"{}") + b"more", "bytes follow its end"),
        ("deflate", raw_deflate(b"{}") + b"more", "bytes follow its end"),
    ],
)
async def test_a_body_that_is_not_so_encoded_is_refused(
    encoding: str, encoded: bytes, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"not valid {encoding}: {reason}"):
        await decode(encoding, encoded)


class CountingThreads(ThreadPoolExecutor):
    def __init__(self) -> None:
        super().__init__(1)
        self.calls = 0

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(*arguments, **options)


async def test_only_large_bodies_are_decompressed_in_a_thread() -> None:
    threads = CountingThreads()
    asyncio.get_running_loop().set_default_executor(threads)
    await decode("gzip", gzip.compress(b" " * 1_000, mtime=0))
    assert threads.calls == 0
    large = gzip.compress(b" " * (INLINE_BYTES + 3 * STEP_BYTES))
    await decode("gzip", large)
    assert threads.calls >= 3
    before = threads.calls
    await decode("gzip", gzip.compress(b"", mtime=0) * INLINE_BYTES)  # nothing, at great length
    assert threads.calls > before


# Over HTTP.


def post(client: httpx.AsyncClient, content: Any, encoding: str) -> Any:
    return client.post("/v1/embeddings", content=content, headers={"content-encoding": encoding})


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


async def test_a_compressed_request_is_answered_as_a_plain_one(app_over: AppOver) -> None:
    body = json.dumps({"model": PLAIN, "input": "compressed"}).encode()
    async with client_of(await app_over(FakeBackend())) as client:
        plain = await client.post("/v1/embeddings", content=body)
        assert plain.status_code == 200
        for encoding, encode in (*ENCODED, ("Identity", bytes)):
            assert (await post(client, encode(body), encoding)).json() == plain.json()


async def test_a_broken_compressed_body_is_400_and_an_unknown_encoding_415(
    app_over: AppOver,
) -> None:
    body = json.dumps({"model": PLAIN, "input": "x"}).encode()
    app = await app_over(FakeBackend(), api_key=["sk-right"])

    reads = 0

    async def never() -> AsyncIterator[bytes]:
        nonlocal reads
        reads += 1
        yield b""

    async with client_of(app) as client:
        assert (await post(client, never(), "br")).status_code == 401
        client.headers["authorization"] = "Bearer sk-right"
        for broken in (gzip.compress(body, mtime=0)[:-9], body, b""):
            assert "not valid gzip" in refusal(await post(client, broken, "gzip"), 400)["message"]
        for encoding in ("br", "gzip, identity"):
            response = await post(client, never(), encoding)
            error = refusal(response, 415)
            assert (error["code"], error["param"]) == (
                "unsupported_content_encoding",
                "content-encoding",
            )
            assert encoding in error["message"]
            assert response.headers["accept-encoding"] == "gzip, deflate, identity"
    assert reads == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_is_413_and_costs_no_memory(app_over: AppOver, encoding: str) -> None:
    most = 1 << 20
    app = await app_over(FakeBackend(), max_body_bytes=most)
    wbits = {"gzip": 31, "deflate": 15}[encoding]
    bomb = zlib.compress(bytes(64 * most), 1, wbits)
    assert len(bomb) < most
    async with client_of(app) as client:
        tracemalloc.start()
        try:
            error = refusal(await post(client, bomb, encoding), 413)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert error["code"] == "body_too_large"
        assert peak_bytes < 6 * most
        within = json.dumps({"model": PLAIN, "input": "x"}).encode().ljust(most)
        assert (await post(client, zlib.compress(within, 1, wbits), encoding)).status_code == 200
        beyond = zlib.compress(within + b" ", 1, wbits)
        refusal(await post(client, beyond, encoding), 413)


async def test_a_body_that_becomes_nothing_is_bounded_as_well(app_over: AppOver) -> None:
    most = 1 << 16
    app = await app_over(FakeBackend(), max_body_bytes=most)
    nothing = gzip.compress(b"", mtime=0) * 100
    sent_bytes = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent_bytes
        while True:
            sent_bytes += len(nothing)
            yield nothing

    async with client_of(app) as client:
        refusal(await post(client, endless(), "gzip"), 413)
    assert sent_bytes < most + 2 * len(nothing)


async def test_decompressed_bodies_count_against_what_all_requests_may_hold(
    app_over: AppOver,
) -> None:
    most = 2 << 20
    app = await app_over(FakeBackend(), max_body_bytes=most, max_memory_bytes=8 * most)
    seats = app.state.services.seats
    large = zlib.compress(bytes(most), 1, 31)
    for number in range(11):
        seats.take(f"key {number}").hold(most // 2)
    async with client_of(app) as client:
        response = await post(client, large, "gzip")
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "server_overloaded"
