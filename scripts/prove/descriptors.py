"""Too many connections for the limit of open files: whether those who ask are answered.

    python -m scripts.prove.descriptors                  # half a minute
    python -m scripts.prove.descriptors --frontends 2

Starts servers of its own on loopback and ends them.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import time
from typing import NamedTuple

import httpx

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
    metrics: dict[str, float]


def attack(sent: bytes, *flags: str, files: int = FILES, connections: int = CONNECTIONS) -> Seen:
    """Hold this many connections to a server that may have this many files, and ask it."""
    wrapper = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    with (
        ServerProcess("--model", "all-MiniLM-L6-v2", *flags, wrapper=wrapper) as server,
        contextlib.ExitStack() as stack,
    ):
        address = httpx.URL(server.url)
        held = []
        for _ in range(connections):
            one = socket.create_connection((address.host, address.port), timeout=10)
            held.append(stack.enter_context(one))
            with contextlib.suppress(OSError):
                one.sendall(sent)
        probes = [asked(server, "/livez") for _ in range(10)]
        body = {"model": "all-MiniLM-L6-v2", "input": "still there"}
        vectors = [asked(server, "/v1/embeddings", body) for _ in range(10)]
        still = sum(is_open(one) for one in held)
        page = ""
        with contextlib.suppress(httpx.HTTPError):
            page = httpx.get(f"{server.url}/metrics", timeout=5).text
        metrics = re.findall(r"^embedding_server_(\w*connections\w*) (\S+)$", page, re.MULTILINE)
        told = [line for line in server.log().splitlines() if "open files" in line]
        return Seen(still, probes, vectors, told, {name: float(value) for name, value in metrics})


def asked(server: ServerProcess, path: str, body: object = None) -> float | None:
    """Seconds to an answer on a connection of its own, or None."""
    begun_s = time.monotonic()
    try:
        answer = httpx.request("POST" if body else "GET", server.url + path, json=body, timeout=5)
    except httpx.HTTPError:
        return None
    return time.monotonic() - begun_s if answer.status_code == 200 else None


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not closed it."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frontends", default="1")
    flags = ("--frontends", parser.parse_args().frontends)
    print("| each connection sends | still open | probes answered | vectors | longest, s | lines |")
    print("|---|---|---|---|---|---|")
    for name, sent in ATTACKS.items():
        seen = attack(sent, *flags)
        probes, vectors = ([s for s in x if s is not None] for x in (seen.probes, seen.vectors))
        print(
            f"| {name} | {seen.held} of {CONNECTIONS} | {len(probes)} of {len(seen.probes)} | "
            f"{len(vectors)} of {len(seen.vectors)} | {max(probes + vectors, default=0):.2f} | "
            f"{len(seen.told)} | {seen.metrics}",
            flush=True,
        )
        print(*seen.told[:1], sep="\n")


if __name__ == "__main__":
    main()
