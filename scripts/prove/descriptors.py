"""Too many connections for the limit of open files: whether those who ask are answered.

    python -m scripts.prove.descriptors                  # half a minute
    python -m scripts.prove.descriptors --frontends 2

Starts servers of its own on loopback and ends them.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx

from scripts.prove.clients import SERVE, embed, is_ended, outcome
from scripts.prove.tables import options, print_table
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess

FILES = 64  # what `ulimit -n` says
CONNECTIONS = 200
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
# What each connection sends before it falls silent.
ATTACKS = {
    "nothing": b"",
    "half a head": HEAD,
    "a whole request, and stays": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a head, and no body": HEAD + b"Content-Length: 100\r\n\r\n",
}


class Seen(NamedTuple):
    """What those got who asked while the connections were held."""

    held: int  # of CONNECTIONS, open afterwards
    probes: list[float | None]  # seconds of each; None without an answer
    vectors: list[float | None]
    told: list[str]  # lines of the log that name the limit
    page: str  # of /metrics; empty without an answer


def attack(sent: bytes, *flags: str, files: int = FILES, connections: int = CONNECTIONS) -> Seen:
    """Hold this many connections to a server that may have this many files, and ask it."""
    wrapper = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    with (
        ServerProcess(*SERVE, *flags, wrapper=wrapper) as server,
        contextlib.ExitStack() as stack,
    ):
        address = httpx.URL(server.url)
        held = []
        for _ in range(connections):
            one = socket.create_connection((address.host, address.port), timeout=10)
            held.append(stack.enter_context(one))
            with contextlib.suppress(OSError):
                one.sendall(sent)
        probes = [
            seconds_of(lambda: httpx.get(f"{server.url}/livez", timeout=5)) for _ in range(10)
        ]
        vectors = [seconds_of(lambda: embed(server, timeout_s=5)) for _ in range(10)]
        still = sum(not is_ended(one) for one in held)
        page = ""
        with contextlib.suppress(httpx.HTTPError):
            page = httpx.get(f"{server.url}/metrics", timeout=5).text
        told = [line for line in server.log().splitlines() if "open files" in line]
        return Seen(still, probes, vectors, told, page)


def seconds_of(ask: Callable[[], httpx.Response]) -> float | None:
    """How long a good answer took, or None."""
    begun_s = time.monotonic()
    return time.monotonic() - begun_s if outcome(ask) == 200 else None


def _rows(*flags: str) -> Iterator[tuple[object, ...]]:
    for name, sent in ATTACKS.items():
        seen = attack(sent, *flags)
        probes, vectors = ([s for s in x if s is not None] for x in (seen.probes, seen.vectors))
        open_now = MetricsPage(seen.page).total("open_connections")
        yield (
            name, f"{seen.held} of {CONNECTIONS}", f"{len(probes)} of {len(seen.probes)}",
            f"{len(vectors)} of {len(seen.vectors)}", max(probes + vectors, default=0.0), open_now,
            " ".join(seen.told[:1]),
        )  # fmt: skip


def main() -> None:
    """Print the table."""
    columns = ("each sends", "still open", "probes", "vectors", "longest, s", "open now", "log")
    print_table(columns, _rows("--frontends", str(options(__doc__, frontends=1).frontends)))


if __name__ == "__main__":
    main()
