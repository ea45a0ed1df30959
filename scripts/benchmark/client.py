"""The load generator: keep-alive HTTP/1.1 connections that send bytes made beforehand.

It shares the machine with the server it measures, so it does as little as it can: no HTTP library,
no JSON. Knows nothing of servers' lives, scenarios or reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from scripts.benchmark.texts import make_requests, num_tokens

Address = tuple[str, int]

MODEL, DIMENSIONS = "all-MiniLM-L6-v2", 384
SECRET = "sk-of-the-benchmark-0123456789"
# As OpenAI's clients do; only servers that ask for keys look at it.
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {SECRET}"}
_BASE64_BYTES = DIMENSIONS * 4 * 4 // 3  # a right answer holds at least this much for each text
_MOST_BYTES = 2**24  # of an answer, before its reading must not wait for its taking
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_CLOSES = re.compile(rb"\r\nconnection: *close")


class BadAnswer(Exception):
    """A server did not answer a request with the vectors asked for."""


class Request(NamedTuple):
    """The bytes of a whole POST /v1/embeddings, and how much work they ask for."""

    payload: bytes
    lengths: tuple[int, ...]  # tokens of each text, special tokens included, padding not


def embeddings_body(texts: list[str], more: Mapping[str, object] = MappingProxyType({})) -> str:
    """What OpenAI's clients send: one text or a list, and vectors wanted as base64."""
    given = texts[0] if len(texts) == 1 else texts
    return json.dumps({"model": MODEL, "input": given, "encoding_format": "base64", **more})


def embeddings_request(texts: list[str]) -> Request:
    body = embeddings_body(texts)
    headers = {"host": "localhost", **HEADERS, "content-length": len(body)}
    lines = ["POST /v1/embeddings HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", body]
    return Request("\r\n".join(lines).encode(), tuple(map(num_tokens, texts)))


def requests_of(kind: str, seed: str, requests: int, *, texts: int) -> list[Request]:
    """Requests made beforehand, see `make_requests`."""
    return list(map(embeddings_request, make_requests(kind, seed, requests, texts=texts)))


class Response(NamedTuple):
    """An answer; `head` is in lower case and holds status line and headers."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def header(self, name: str) -> str | None:
        found = re.search(rb"\r\n" + name.encode() + rb": *([^\r]*)", self.head)
        return found.group(1).decode() if found else None


class Connection:
    """One client's connection, with one request under way at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, address: Address) -> Connection:
        return cls(*await asyncio.open_connection(*address, limit=_MOST_BYTES))

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return not (self._writer.is_closing() or self._reader.at_eof())

    async def send(self, payload: bytes) -> Response:
        """A request's answer; raise BadAnswer if it does not tell its length, or is cut."""
        self._writer.write(payload)
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            length = _CONTENT_LENGTH.search(head)
            if length is None:
                raise BadAnswer(f"an answer without length: {head.decode()}")
            response = Response(head, await self._reader.readexactly(int(length.group(1))))
        except asyncio.IncompleteReadError:
            raise BadAnswer("the server hung up") from None
        if _CLOSES.search(head):
            self.close()
        return response

    def close(self) -> None:
        self._writer.transport.abort()


class Sample(NamedTuple):
    """One request's fate; times on the clock of `time.perf_counter`."""

    request: Request
    due: float  # when it was to be sent: latency counts from here
    sent: float
    ended: float
    status: int  # 0: no answer
    retry_after: str | None = None

    @property
    def ms(self) -> float:
        """Latency."""
        return (self.ended - self.due) * 1e3


async def closed_loop(
    address: Address,
    requests: Iterable[Request],
    clients: int,
    *,
    think_s: float = 0,
    stop: asyncio.Event | None = None,
) -> list[Sample]:
    """Send all requests, each client one after the other, until they are sent or `stop` is set.

    Clients think between an answer and the next request. Raises BadAnswer for one without vectors.
    """
    waiting, samples = iter(requests), list[Sample]()

    async def client() -> None:
        with contextlib.closing(await Connection.open(address)) as connection:
            for request in waiting:
                if stop is not None and stop.is_set():
                    return
                sent = time.perf_counter()
                response = await connection.send(request.payload)
                ended = time.perf_counter()
                if response.status != 200:
                    shown = response.body[:300].decode(errors="replace")
                    raise BadAnswer(f"answered {response.status}: {shown}")
                texts, length = len(request.lengths), len(response.body)
                if length < texts * _BASE64_BYTES:
                    raise BadAnswer(f"answered {texts} texts with {length} bytes")
                samples.append(Sample(request, sent, sent, ended, response.status))
                if think_s:
                    await asyncio.sleep(think_s)

    await asyncio.gather(*(client() for _ in range(clients)))
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
    hidden. Connections are kept for those who come later and opened as needed. A client hangs up
    after `give_up_s`, and all hang up at `until_s` from the start. A request without vectors counts
    as well, with what it got instead.
    """
    idle, samples = list[Connection](), list[Sample]()
    start = time.perf_counter()

    async def client(request: Request, due: float) -> None:
        sent = time.perf_counter()
        status, retry_after, connection = 0, None, None
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
