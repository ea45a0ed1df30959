"""Clients that are slow, or do not read: how long they hold what others want.

    python -m scripts.prove.slow                # a thousand of each kind, two minutes
    python -m scripts.prove.slow --clients 100

Starts a server of its own on loopback that waits 2 s where a server waits 75 s, and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import httpx
import psutil

from scripts.prove.clients import SERVE, Client, beside, body
from scripts.prove.floods import KEYS, TOLD, Flooded, other_queries
from scripts.prove.tables import options, print_table
from scripts.prove.watching import watched
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess

FLAGS = (*SERVE, *KEYS, "--keep-alive-timeout-s", "2")
LISTENING = 1  # of the server's sockets
TEXTS = body(["a"] * 2048)
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"


class Kind(NamedTuple):
    """What a client sends at once, then how often which bytes, and how much it reads a second."""

    first: bytes
    then: bytes = b""
    clients: float = 1  # of those there are
    read_bytes: int = 0
    seconds: float = 8  # after which it must be gone


def kinds(client: Client) -> dict[str, Kind]:
    """All of them."""
    ask, tera = client.head(len(TEXTS)) + TEXTS, client.head(10**12).replace(b"enemy", b"wrong")
    return {
        "nothing is sent": Kind(b""),
        "half a head of 60 KB": Kind(POST + b"x-a: " + b"a" * 60_000),
        "half a head of 12,000 headers": Kind(POST + b"a:b\r\n" * 12_000),
        "12,000 headers, a body that stalls": Kind(client.head(9)[:-2] + b"a:b\r\n" * 12_000 + b"\r\n"),
        "7,000 requests in a row, unread": Kind(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 7_000
        ),
        "a terabyte after a 401, by drops": Kind(tera, then=b"a", read_bytes=1000),
        "answers of 2,048 texts, unread": Kind(ask, clients=0.02, seconds=20),
        "answers that are read slowly": Kind(ask, clients=0.02, read_bytes=100, seconds=20),
        "a body that comes by drops": Kind(client.head(9999), then=b" ", seconds=45),
    }  # fmt: skip


class Slow(NamedTuple):
    """What one kind of client did, and what was left of it."""

    kind: str
    clients: int
    gone_s: float | None  # after so long the server had ended all of its connections
    held_bytes: float  # that requests still hold
    seen: Flooded


async def crawl(client: Client, kind: Kind, clients: int) -> None:
    """All do it, and hold their connections for as long as they may."""
    loop = asyncio.get_running_loop()

    async def one() -> None:
        with contextlib.suppress(OSError, TimeoutError), client.bare_socket() as connection:
            async with asyncio.timeout(kind.seconds):
                await loop.sock_connect(connection, client.host_and_port)
                await loop.sock_sendall(connection, kind.first)
                while True:
                    await asyncio.sleep(1)
                    await loop.sock_sendall(connection, kind.then)
                    if kind.read_bytes:
                        await loop.sock_recv(connection, kind.read_bytes)
        # The server may have ended it long ago; what counts is what it still holds.

    await asyncio.gather(*(one() for _ in range(clients)))


def attack(
    server: ServerProcess, clients: int, names: Sequence[str] = (), seconds: float | None = None
) -> Iterator[Slow]:
    """Every kind, or those that are named, one after the other; all give up after `seconds`."""
    client = Client(server.url, "enemy")
    process = psutil.Process(server.process.pid)
    for name, full in kinds(client).items():
        if names and name not in names:
            continue
        kind = full._replace(seconds=seconds or full.seconds)
        crowd = max(1, round(kind.clients * clients))
        gone_s = None
        with watched(server) as cost, beside(crawl, client, kind, crowd) as crawling:
            queries = other_queries(server, crawling, keys=True)
            others = [next(queries)]
            begun_s, came = time.monotonic(), False
            for query in queries:
                others.append(query)
                # Two are left: who watches, and the other.
                is_empty = len(process.net_connections("tcp")) <= 2 + LISTENING
                came = came or not is_empty
                if came and is_empty and gone_s is None:
                    gone_s = time.monotonic() - begun_s
        yield Slow(name, crowd, gone_s, _held_bytes(server), Flooded(name, Counter(), others, cost))


def _held_bytes(server: ServerProcess) -> float:
    page = httpx.get(f"{server.url}/metrics").text
    return MetricsPage(page).value("request_memory_bytes")


def _rows(clients: int) -> Iterator[tuple[object, ...]]:
    with ServerProcess(*FLAGS) as server:
        for one in attack(server, clients):
            gone = "not" if one.gone_s is None else one.gone_s
            yield one.kind, one.clients, gone, f"{one.held_bytes:.0f}", *one.seen.told()


def main() -> None:
    """Print the table."""
    columns = ("kind", "clients", "gone after, s", "still held, bytes", *TOLD)
    print_table(columns, _rows(options(__doc__, clients=1000).clients))


if __name__ == "__main__":
    main()
