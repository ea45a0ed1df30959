"""A flood whose clients leave before they are answered: how much accepted work is lost.

    python -m scripts.prove.leaving                     # who waits 10 s, and who waits ten minutes
    python -m scripts.prove.leaving --patience 5 --seconds 60

Starts a server of its own on loopback and ends it. All have one key; who is refused comes
back when it was told to.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator

import httpx

from scripts.prove.clients import SERVE, beside, body
from scripts.prove.tables import options, print_table
from tests.server_process import ServerProcess

KEY = "who-leaves"
TEXTS = 128
WORDS = 60
PATIENT_S = 600.0  # as OpenAI's own library


async def leave(url: str, clients: int, patience_s: float, seconds: float) -> Counter[str]:
    """All ask again and again; how many requests were answered, refused and left."""
    ends: Counter[str] = Counter()
    end_s = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        base_url=url, timeout=patience_s, limits=limits, headers=headers
    ) as client:

        async def ask(number: int) -> None:
            words = random.Random(number)
            while time.monotonic() < end_s:
                drawn = (words.choices(["one", "two", "three"], k=WORDS) for _ in range(TEXTS))
                texts = [" ".join(text) for text in drawn]
                try:
                    answer = await client.post("/v1/embeddings", content=body(texts))
                except httpx.TimeoutException:
                    ends["left"] += 1
                    continue
                ends["answered" if answer.status_code == 200 else "refused"] += 1
                if answer.status_code == 503:
                    await asyncio.sleep(int(answer.headers["retry-after"]))

        await asyncio.gather(*map(ask, range(clients)))
    return ends


def _rows(patience_s: float, seconds: float, clients: int) -> Iterator[tuple[object, ...]]:
    for waits_s in (patience_s, PATIENT_S):
        with (
            ServerProcess(*SERVE, "--api-key", KEY) as server,
            beside(leave, server.url, clients, waits_s, seconds) as ends,
        ):
            found = ends.result()
        accepted = found["answered"] + found["left"]
        yield waits_s, accepted, found["answered"], found["left"], found["refused"]


def main() -> None:
    """Print the table."""
    given = options(__doc__, patience=10.0, seconds=60.0, clients=100)
    columns = ("clients wait, s", "accepted", "answered", "left, lost", "refused")
    print_table(columns, _rows(given.patience, given.seconds, given.clients))


if __name__ == "__main__":
    main()
