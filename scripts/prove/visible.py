"""What a client's mistakes show to others, and what its way to hang up costs it, as a table.

    python -m scripts.prove.visible

Starts a server of its own on loopback and ends it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import quote

import httpx

from scripts.prove.clients import MODEL, SERVE, Client, body
from scripts.prove.tables import options, print_table
from tests.server_process import ServerProcess

KEYS = ("sk-visible-0123456789abcdef0123456789", "correct-horse.battery")
FLAGS = (*SERVE, *(flag for key in KEYS for flag in ("--api-key", key)))


def requests_with(key: str) -> Iterator[httpx.Request]:
    """Requests that have the key at a wrong place each."""
    url, headers = "http://localhost", {"Authorization": f"Bearer {key}"}
    for path in (f"/{key}", f"/v1/models/{key}", f"/v1/{quote(key, safe='')}", f"/livez?key={key}"):
        yield httpx.Request("GET", url + path, headers=headers)
    for name in ("x-request-id", "user-agent", "content-type", "x-expect-embedding-fingerprint"):
        yield httpx.Request("POST", f"{url}/v1/embeddings", headers={**headers, name: key})
    for field in ("model", "user", "input_type", "dimensions", key):
        fields = {"model": MODEL, "input": "x", field: key}
        yield httpx.Request("POST", f"{url}/v1/embeddings", headers=headers, json=fields)


def told_keys(server: ServerProcess) -> tuple[int, int, int]:
    """How many requests were sent, in how many answers the key was, and in how many log lines."""
    sent = answers = 0
    with httpx.Client(timeout=60) as client:
        for key in KEYS:
            for request in requests_with(key):
                request.url = request.url.copy_with(port=httpx.URL(server.url).port)
                answer = client.send(request)
                sent += 1
                answers += key in answer.text or key in str(answer.headers.multi_items())
    lines = server.log().splitlines()
    return sent, answers, sum(any(key in line for key in KEYS) for line in lines)


def half_closed(server: ServerProcess, sent: bytes) -> int:
    """How many answers a client gets that closes its sending half behind its requests."""
    received = b""
    with socket.create_connection(Client(server.url).host_and_port, timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
    return received.count(b"HTTP/1.1 200 OK")


POST = Client("", KEYS[0]).head(len(body())) + body()
HALF_CLOSED = {
    "HTTP/1.1": POST,
    "HTTP/1.0": POST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "three at once": 3 * POST,
}


def _rows() -> Iterator[tuple[str, str, str]]:
    with ServerProcess(*FLAGS) as server:
        for name, sent in HALF_CLOSED.items():
            yield "a half-closed connection", name, f"{half_closed(server, sent)} answers"
        requests, answers, lines = told_keys(server)
        told = f"in {answers} answers and {lines} log lines"
        yield "a key in the wrong place", f"{requests} requests", told


def main() -> None:
    """Print the table."""
    options(__doc__)
    print_table(("attack", "what was sent", "what happened"), _rows())


if __name__ == "__main__":
    main()
