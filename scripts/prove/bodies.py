"""Bodies that would become much more than they are: what each costs a server, as a table.

    python -m scripts.prove.bodies            # bodies of 32 MiB, a minute
    python -m scripts.prove.bodies --mib 4

Starts a server of its own on loopback and ends it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx

from scripts.prove.clients import MODEL, SERVE
from scripts.prove.tables import options, print_table
from scripts.prove.watching import Cost, watched
from tests.server_process import ServerProcess

BEGIN = b'{"model":"%s","input":' % MODEL.encode()
LIST, TEXT = (BEGIN + b"[", b"]}"), (BEGIN + b'"', b'"}')
# Name: what is in front, what is repeated, what is behind.
BODIES: dict[str, tuple[bytes, bytes, bytes]] = {
    "empty lists": (LIST[0], b"[],", b"[]" + LIST[1]),
    "lists in lists": (LIST[0], b"[[[[[]]]]],", b"[]" + LIST[1]),
    "objects": (LIST[0], b"{},", b"{}" + LIST[1]),
    "ids of one digit": (LIST[0], b"1,", b"1" + LIST[1]),
    "ids of four digits": (LIST[0], b"1000,", b"1" + LIST[1]),
    "lists of two ids": (LIST[0], b"[1,2],", b"[1]" + LIST[1]),
    "texts of two letters": (LIST[0], b'"ab",', b'"a"' + LIST[1]),
    "a text, then numbers": (LIST[0] + b'"a",', b"1,", b"1" + LIST[1]),
    "an unknown field": (b'{"x":[', b"[],", b"[]]}"),
    "a model of lists": (b'{"input":"a","model":[', b"[],", b"[]]}"),
    "an input that is said twice": (LIST[0], b"[],", b'[]],"input":"a"}'),
    "many fields": (b"{", b'"":1,', b'"model":"m"}'),
    "a list as a whole": (b"[", b"[],", b"[]]"),
    "a list that does not end": (LIST[0], b"[],", b"]"),
    "one text": (TEXT[0], b"a", TEXT[1]),
    "a text with one emoji": (TEXT[0], b"a", "😀".encode() + TEXT[1]),
    "a text of escapes": (TEXT[0], b"\\u0041", TEXT[1]),
}


class Attack(NamedTuple):
    """What one body was answered, and what it cost."""

    name: str
    status: int
    seconds: float
    cost: Cost


def body_of(name: str, num_bytes: int) -> bytes:
    """The body of this name, as long as it may be."""
    front, unit, behind = BODIES[name]
    return front + unit * ((num_bytes - len(front) - len(behind)) // len(unit)) + behind


def attack(server: ServerProcess, num_bytes: int) -> Iterator[Attack]:
    """Send every body, one after the other."""
    for name in BODIES:
        body = body_of(name, num_bytes)
        with watched(server) as cost, httpx.Client(base_url=server.url, timeout=120) as client:
            begun_s = time.perf_counter()
            answer = client.post("/v1/embeddings", content=body)
            seconds = time.perf_counter() - begun_s
        yield Attack(name, answer.status_code, seconds, cost)


def main() -> None:
    """Print the table."""
    num_bytes = options(__doc__, mib=32).mib * 1024 * 1024
    with ServerProcess(*SERVE) as server:
        print_table(
            ("body", "answer", "seconds", "memory, MB", "longest silence of /livez, ms"),
            ((*one[:3], *one.cost.told()) for one in attack(server, num_bytes)),
        )


if __name__ == "__main__":
    main()
