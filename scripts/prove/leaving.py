"""A flood whose clients leave before they are answered: how much accepted work is lost.

    python -m scripts.prove.leaving                     # who waits 10 s, and who waits for good
    python -m scripts.prove.leaving --patience 5 --seconds 60

Starts a server of its own on loopback and ends it. All have one key; who is refused comes
back when it was told to.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter

import httpx
import orjson

from scripts.prove.bodies import MODEL
from scripts.prove.clients import beside
from tests.server_process import ServerProcess

KEY = "who-leaves"
TEXTS = 128
WORDS = 60


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
                texts = [" ".join(words.choices(["one", "two", "three"], k=WORDS))] * TEXTS
                body = orjson.dumps({"model": MODEL.decode(), "input": texts})
                try:
                    answer = await client.post("/v1/embeddings", content=body)
                except httpx.TimeoutException:
                    ends["left"] += 1
                    continue
                ends["answered" if answer.status_code == 200 else "refused"] += 1
                if answer.status_code == 503:
                    await asyncio.sleep(int(answer.headers["retry-after"]))

        await asyncio.gather(*map(ask, range(clients)))
    return ends


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patience", type=float, nargs="*", default=[10.0, 600.0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=100)
    given = parser.parse_args()
    print("| clients wait, s | accepted | answered | left, lost | refused |")
    print("|---|---|---|---|---|")
    for patience_s in given.patience:
        with (
            ServerProcess("--model", MODEL.decode(), "--api-key", KEY) as server,
            beside(leave, server.url, given.clients, patience_s, given.seconds) as ends,
        ):
            found = ends.result()
        accepted = found["answered"] + found["left"]
        print(
            f"| {patience_s:g} | {accepted} | {found['answered']} | {found['left']} "
            f"| {found['refused']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
