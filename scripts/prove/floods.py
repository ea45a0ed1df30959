"""Many clients at once, and one key that wants everything: what is left for another one.

    python -m scripts.prove.floods              # with keys and without, 10 s a flood
    python -m scripts.prove.floods --seconds 3 --clients 48

Starts servers of its own on loopback and ends them. The other one asks short queries meanwhile,
one after the other; without keys it comes from an address of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from scripts.prove.bodies import BODIES, body_of
from scripts.prove.clients import CUT, SERVE, Client, beside, body, flood
from scripts.prove.tables import options, print_table
from scripts.prove.watching import Cost, watched
from tests.server_process import ServerProcess

KEYS = ("--api-key", "enemy", "--api-key", "other")
MIB = 1024 * 1024
TOLD = ("the other's", "its p50, ms", "its p99, ms", "memory, MB", "longest silence of /livez, ms")
QUIET_S = 3.0  # who is refused is told sooner
STALLED = 2100  # more than there are seats
FLOODS = ("short queries", "bodies of small values", "lists of 2,048 texts", "texts with emoji",
          "a key that is wrong", "names of users", "bodies that stall", "five large bodies that stall")  # fmt: skip


class Flooded(NamedTuple):
    """What one flood was answered, what the other one saw of it, and what it cost."""

    name: str
    statuses: Counter[int]
    others: list[tuple[int, float]]  # status and seconds of each query
    cost: Cost

    def told(self) -> tuple[str, ...]:
        """Cells of a table: the other's answers, milliseconds of half and of nearly all, the costs."""
        statuses = Counter(status for status, _ in self.others)
        seconds = sorted(seconds for _, seconds in self.others)
        p50_ms, p99_ms = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
        return told(statuses), f"{p50_ms:.0f}", f"{p99_ms:.0f}", *self.cost.told()


def bodies_of(name: str, num_bytes: int) -> list[bytes]:
    """What this flood sends, in turn."""
    match name:
        case "bodies of small values":
            return [body_of(name, num_bytes) for name in BODIES]
        case "lists of 2,048 texts":
            return [body([f"text {number}" for number in range(2048)], truncate=True)]
        case "texts with emoji":
            return [body("😀 as it came " * (num_bytes // 64), truncate=True)]
        case "names of users":
            return [body("a", user=f"{n:0300}") for n in range(20_000)]
    return [body()]


async def stall(clients: Sequence[Client], num_bytes: int, seconds: float) -> Counter[int]:
    """Each sends a body but for its last byte, and stays until nobody is answered for so long."""
    content = body_of("one text", num_bytes)

    async def ask(client: Client) -> int:
        reader, writer = await client.connect()
        try:
            writer.write(client.head(len(content)) + content[:-1])
            return int((await reader.read(12))[9:] or CUT)
        finally:
            writer.close()

    stalled, answers = {asyncio.create_task(ask(client)) for client in clients}, Counter[int]()
    came = stalled
    while came and stalled:
        came, stalled = await asyncio.wait(
            stalled, timeout=max(seconds, QUIET_S), return_when=asyncio.FIRST_COMPLETED
        )
        answers.update(task.result() for task in came)
    for task in stalled:
        task.cancel()
    await asyncio.gather(*stalled, return_exceptions=True)
    answers[CUT] += len(stalled)
    return answers


def attack(
    server: ServerProcess,
    *,
    keys: bool,
    clients: int,
    num_bytes: int,
    seconds: float,
    names: Sequence[str] = FLOODS,
    stalled: int = STALLED,
) -> Iterator[Flooded]:
    """Each of these floods, one after the other, for so long."""
    for name in names:
        key = ("wrong" if "wrong" in name else "enemy") if keys else None
        crowd = [Client(server.url, key)] * clients
        with watched(server) as cost:
            match name:
                case "bodies that stall":
                    running = beside(stall, crowd[:1] * stalled, 1000, seconds)
                case "five large bodies that stall":
                    running = beside(stall, crowd[:5], num_bytes, seconds)
                case _:
                    running = beside(flood, crowd, bodies_of(name, num_bytes), seconds)
            with running as statuses:
                others = list(other_queries(server, statuses, keys=keys))
        yield Flooded(name, statuses.result(), others, cost)


def other_queries(
    server: ServerProcess, attack: Future[Any], *, keys: bool
) -> Iterator[tuple[int, float]]:
    """What another one sees of the server until the attack is over: status and seconds."""
    source = httpx.HTTPTransport(local_address="127.0.0.1" if keys else "127.0.0.2")
    headers = {"Authorization": "Bearer other"} if keys else {}
    with httpx.Client(base_url=server.url, transport=source, headers=headers, timeout=60) as client:
        while not attack.done():
            begun_s = time.perf_counter()
            answer = client.post("/v1/embeddings", content=body("what others ask"))
            yield answer.status_code, time.perf_counter() - begun_s
            time.sleep(0.02)


def told(statuses: Counter[int]) -> str:
    """How often each status came."""
    return ", ".join(
        f"{count:,} x {status or 'none'}" for status, count in sorted(statuses.items())
    )


def _rows(clients: int, seconds: float) -> Iterator[tuple[str, ...]]:
    for keys in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            ledger = ("--database-url", f"sqlite:///{folder}/ledger.db")
            with ServerProcess(*SERVE, *(KEYS if keys else ()), *ledger) as server:
                for one in attack(
                    server, keys=keys, clients=clients, num_bytes=32 * MIB, seconds=seconds
                ):
                    yield one.name, "yes" if keys else "no", told(one.statuses), *one.told()
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            yield "all of them", "", f"the ledger has {size / 1e6:.1f} MB", *([""] * len(TOLD))


def main() -> None:
    """Print the table."""
    given = options(__doc__, seconds=10.0, clients=48)
    print_table(("flood", "keys", "answers", *TOLD), _rows(given.clients, given.seconds))


if __name__ == "__main__":
    main()
