"""The clients of an attacker: one that asks, or many in one event loop, in a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import select
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson

from server.http.listening import allow_many_connections
from tests.server_process import ServerProcess

MODEL = "all-MiniLM-L6-v2"
SERVE = ("--model", MODEL)  # what a server that is attacked needs at least
CUT = 0  # in place of a status: the connection was closed without an answer
PIECE_BYTES = 256 * 1024
Result = TypeVar("Result")


def body(texts: str | list[str] = "a short query", **fields: object) -> bytes:
    """What is asked of /v1/embeddings."""
    return orjson.dumps({"model": MODEL, "input": texts, **fields})


def embed(
    server: ServerProcess, key: str | None = None, timeout_s: float = 60, **fields: object
) -> httpx.Response:
    """Ask for the vector of a short text, on a connection of its own."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{server.base_url}/embeddings"
    return httpx.post(url, content=body(**fields), headers=headers, timeout=timeout_s)  # type: ignore[arg-type]


def outcome(ask: Callable[[], httpx.Response]) -> int | str:
    """The status, or the name of what the connection ended with."""
    try:
        return ask().status_code
    except httpx.TransportError as error:
        return type(error).__name__


def is_ended(connection: socket.socket) -> bool:
    """Whether the server has ended it, which is known without reading what it sent."""
    look = select.poll()
    look.register(connection, select.POLLRDHUP)
    return bool(look.poll(0))


@dataclass(frozen=True, slots=True)
class Client:
    """One client of the server at this URL; each request has a connection of its own."""

    url: str
    key: str | None = None

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Of the server."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    def bare_socket(self) -> socket.socket:
        """A socket of its own that nobody reads unasked, with little room for what it is sent."""
        bare = socket.socket()
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bare.setblocking(False)
        return bare

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of it."""
        return await asyncio.open_connection(*self.host_and_port)

    def head(self, num_bytes: int) -> bytes:
        """The head of a request whose body has so many bytes."""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {num_bytes}\r\n\r\n"
        ).encode()

    async def ask(self, content: bytes) -> int:
        """Send it, read the answer to its end, and return its status, or CUT."""
        with contextlib.suppress(OSError):
            reader, writer = await self.connect()
            answer = asyncio.create_task(_status(reader))
            try:
                with contextlib.suppress(OSError):
                    writer.write(self.head(len(content)))
                    for start in range(0, len(content), PIECE_BYTES):
                        writer.write(content[start : start + PIECE_BYTES])
                        await writer.drain()
                return await answer
            finally:
                answer.cancel()
                writer.close()
        return CUT


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of an answer that is read to its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length))
    except asyncio.IncompleteReadError:
        return CUT
    return int(head[9:12])


async def flood(clients: Sequence[Client], bodies: Sequence[bytes], seconds: float) -> Counter[int]:
    """All ask again and again, each the bodies in turn; how often each status came."""
    statuses: Counter[int] = Counter()
    end_s = time.monotonic() + seconds

    async def ask(number: int, client: Client) -> None:
        while time.monotonic() < end_s:
            statuses[await client.ask(bodies[number % len(bodies)])] += 1
            number += len(clients)

    async with asyncio.timeout(seconds + 120):  # an attack that hangs has found something
        await asyncio.gather(*(ask(number, client) for number, client in enumerate(clients)))
    return statuses


@contextlib.contextmanager
def beside(attack: Callable[..., Awaitable[Result]], *args: Any) -> Iterator[Future[Result]]:
    """The attack, in a process of its own: what is measured here must not wait for it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        yield process.submit(_run, attack, *args)


def _run(attack: Callable[..., Any], *args: Any) -> Any:
    allow_many_connections()
    return asyncio.run(attack(*args))
