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

from scripts.prove.clients import SERVE, Client, beside, body, is_ended
from scripts.prove.floods import KEYS, TOLD, Flooded, other_queries
from scripts.prove.tables import options, print_table
from scripts.prove.watching import watched
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess

FLAGS = (*SERVE, *KEYS, "--keep-alive-timeout-s", "2")
PATIENCE_S = 60.0  # what is not ended after so long is not ended
TEXTS = body(["a"] * 2048)
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"


class Kind(NamedTuple):
    """What a client sends at once, then how often which bytes, and how much it reads a second."""

    first: bytes
    then: bytes = b""
    clients: float = 1  # of those there are
    read_bytes: int = 0


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
        "answers of 2,048 texts, unread": Kind(ask, clients=0.02),
        "answers that are read slowly": Kind(ask, clients=0.02, read_bytes=100),
        "a body that comes by drops": Kind(client.head(9999), then=b" "),
    }  # fmt: skip


class Slow(NamedTuple):
    """What one kind of client did, and what was left of it."""

    kind: str
    clients: int
    gone_s: float | None  # after so long the server had ended all of their connections
    held_bytes: float  # that requests still hold
    seen: Flooded


async def crawl(client: Client, kind: Kind, clients: int) -> float | None:
    """All do it until the server ends their connections; after how many seconds it had, or None."""
    loop = asyncio.get_running_loop()

    async def one() -> None:
        with contextlib.suppress(ConnectionError), client.bare_socket() as connection:
            await loop.sock_connect(connection, client.host_and_port)
            await loop.sock_sendall(connection, kind.first)
            while not is_ended(connection):
                await asyncio.sleep(1)
                await loop.sock_sendall(connection, kind.then)
                if kind.read_bytes:
                    await loop.sock_recv(connection, kind.read_bytes)

    begun_s = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(one() for _ in range(clients)))
    except TimeoutError:
        return None
    return time.monotonic() - begun_s


def attack(server: ServerProcess, clients: int, names: Sequence[str] = ()) -> Iterator[Slow]:
    """Every kind, or those that are named, one after the other."""
    client = Client(server.url, "enemy")
    for name, kind in kinds(client).items():
        if names and name not in names:
            continue
        crowd = max(1, round(kind.clients * clients))
        with watched(server) as cost, beside(crawl, client, kind, crowd) as crawling:
            others = list(other_queries(server, crawling, keys=True))
        seen = Flooded(name, Counter(), others, cost)
        yield Slow(name, crowd, crawling.result(), _held_bytes(server), seen)


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
