"""The load generator: keep-alive HTTP/1.1 connections that send bytes made beforehand.

It shares the machine with the server it measures, so it does as little as it can: no HTTP library,
no JSON. Knows nothing of servers' lives, scenarios or reports.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import NamedTuple, Self, cast

from scripts.benchmark.texts import num_tokens

Address = tuple[str, int]

MODEL = "all-MiniLM-L6-v2"
# Sent always, as OpenAI's clients do; only servers that ask for keys look at it.
SECRET = "sk-of-the-benchmark-0123456789"
_EMBEDDING_BYTES = 384 * 4
# A right answer holds at least this much for each text.
_BASE64_BYTES = _EMBEDDING_BYTES * 4 // 3
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked")
_CLOSES = re.compile(rb"\r\nconnection: *close")


class BadAnswer(Exception):
    """A server did not answer a request with the vectors asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of a whole POST /v1/embeddings, and how much work they ask for."""

    payload: bytes
    texts: int
    lengths: tuple[int, ...]  # tokens of each text

    @property
    def tokens(self) -> int:
        """Tokens of all texts, special tokens included, padding not."""
        return sum(self.lengths)


def embeddings_request(texts: list[str]) -> Request:
    """What OpenAI's clients send: one text or a list, and vectors wanted as base64."""
    fields = {
        "model": MODEL,
        "input": texts[0] if len(texts) == 1 else texts,
        "encoding_format": "base64",
    }
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {SECRET}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, len(texts), tuple(map(num_tokens, texts)))


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: `head` is in lower case and holds status line and headers."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """A header's value, None if it is not there."""
        found = re.search(rb"\r\n" + name.encode() + rb": *([^\r]*)", self.head)
        return found.group(1).decode() if found else None

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection after this answer."""
        return _CLOSES.search(self.head) is not None


class ResponseReader:
    """Puts one response together from the pieces that arrive."""

    def __init__(self) -> None:
        self._start = b""
        self._head: bytes | None = None
        self._length: int | None = None  # None: chunked
        self._received = 0
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Response | None:
        """The response once it is complete.

        Raises:
            BadAnswer: it tells neither its length nor that it is chunked.
        """
        if self._head is None:
            self._start += data
            end = self._start.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head = self._start[:end].lower()
            data = self._start[end + 4 :]
            length = _CONTENT_LENGTH.search(self._head)
            if length is not None:
                self._length = int(length.group(1))
            elif not _CHUNKED.search(self._head):
                raise BadAnswer(f"an answer without length: {self._head.decode()}")
        self._pieces.append(data)
        self._received += len(data)
        if self._length is None:
            return self._feed_chunks(self._head)
        if self._received < self._length:
            return None
        return self._response(self._head, b"".join(self._pieces))

    def _feed_chunks(self, head: bytes) -> Response | None:
        joined = b"".join(self._pieces)
        self._pieces = [joined]
        body: list[bytes] = []
        position = 0
        while (line_end := joined.find(b"\r\n", position)) >= 0:
            size = int(joined[position:line_end].split(b";")[0], 16)
            start, position = line_end + 2, line_end + 4 + size
            if len(joined) < position:
                return None
            if size == 0:
                return self._response(head, b"".join(body))
            body.append(joined[start : start + size])
        return None

    def _response(self, head: bytes, body: bytes) -> Response:
        return Response(int(head.split(b" ", 2)[1]), head, body)


class Connection(asyncio.Protocol):
    """One client's connection, with one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._answer: asyncio.Future[Response] | None = None
        self.is_open = False

    @classmethod
    async def open(cls, address: Address) -> Connection:
        """Connect."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    async def send(self, payload: bytes) -> Response:
        """Send a request and wait for its answer.

        Raises:
            BadAnswer: the server closed the connection, or what it sent is no answer.
        """
        assert self._transport is not None
        self._reader = ResponseReader()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        response = await self._answer
        if response.closes:
            self.close()
        return response

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            return
        try:
            response = self._reader.feed(data)
        except (BadAnswer, ValueError) as error:
            self._answer.set_exception(BadAnswer(str(error)))
        else:
            if response is not None:
                self._answer.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BadAnswer(f"the server hung up: {exc}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Sample(NamedTuple):
    """One request's fate; times on the clock of `time.perf_counter`."""

    request: Request
    due: float  # when it was to be sent: latency counts from here
    sent: float
    ended: float
    status: int  # 0: no answer
    retry_after: str | None

    @property
    def ms(self) -> float:
        """Latency."""
        return (self.ended - self.due) * 1e3


def check(request: Request, response: Response) -> None:
    """Raise BadAnswer unless this looks like the vectors asked for."""
    if response.status != 200:
        shown = response.body[:300].decode(errors="replace")
        raise BadAnswer(f"answered {response.status}: {shown}")
    if len(response.body) < request.texts * _BASE64_BYTES:
        raise BadAnswer(f"answered {request.texts} texts with {len(response.body)} bytes")


async def closed_loop(
    address: Address,
    requests: Iterable[Request],
    clients: int,
    *,
    think_s: float = 0,
    stop: asyncio.Event | None = None,
) -> list[Sample]:
    """Send all requests, each client one after the other; think between an answer and the next.

    Args:
        stop: once set, no further request is sent.

    Raises:
        BadAnswer: a request was not answered with vectors.
    """
    waiting = iter(requests)
    samples: list[Sample] = []
    stop = stop or asyncio.Event()

    async def client() -> None:
        with await Connection.open(address) as connection:
            for request in waiting:
                if stop.is_set():
                    return
                sent = time.perf_counter()
                response = await connection.send(request.payload)
                ended = time.perf_counter()
                check(request, response)
                samples.append(Sample(request, sent, sent, ended, response.status, None))
                if think_s:
                    await asyncio.sleep(think_s)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
    return samples


def poisson_arrivals(rate: float, count: int, seed: str) -> list[float]:
    """Seconds from the start at which independent clients come, `rate` a second on average."""
    random = Random(seed)
    return list(itertools.accumulate(random.expovariate(rate) for _ in range(count)))


async def open_loop(
    address: Address,
    requests: Iterable[Request],
    arrivals: Sequence[float],
    *,
    give_up_s: float = 60,
    until_s: float = math.inf,
) -> list[Sample]:
    """Send each request when it is due, whatever happened to those before it.

    Latency counts from when a request was due, not from when it could be sent, so waiting is not
    hidden. Connections are kept for those who come later and opened as needed. A request without
    vectors counts as well, with what it got instead.

    Args:
        give_up_s: how long a client waits before it hangs up.
        until_s: when, counted from the start, all who still wait hang up.
    """
    idle: list[Connection] = []
    samples: list[Sample] = []
    start = time.perf_counter()

    async def client(request: Request, due: float) -> None:
        sent = time.perf_counter()
        status, retry_after = 0, None
        connection: Connection | None = None
        try:
            async with asyncio.timeout(min(give_up_s, start + until_s - sent)):
                while connection is None:
                    kept = idle.pop() if idle else await Connection.open(address)
                    connection = kept if kept.is_open else None
                response = await connection.send(request.payload)
            status, retry_after = response.status, response.header("retry-after")
        except (BadAnswer, OSError, TimeoutError):
            if connection is not None:
                connection.close()
        samples.append(Sample(request, due, sent, time.perf_counter(), status, retry_after))
        if connection is not None and connection.is_open:
            idle.append(connection)

    try:
        async with asyncio.TaskGroup() as tasks:
            for request, arrival in zip(requests, arrivals, strict=False):
                due = start + arrival
                await asyncio.sleep(max(0, due - time.perf_counter()))
                tasks.create_task(client(request, due))
    finally:
        for connection in idle:
            connection.close()
    return samples


async def ask(address: Address, request: Request) -> Response:
    """One request on a connection of its own."""
    with await Connection.open(address) as connection:
        return await connection.send(request.payload)


async def get(address: Address, path: str) -> Response:
    """GET a page on a connection of its own."""
    with await Connection.open(address) as connection:
        return await connection.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
