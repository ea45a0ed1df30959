"""One of several processes that load a server: one alone cannot keep a card busy.

Run as a child: `python -m scripts.benchmark.load_peer`, and asked as `peer` is: first to make its
requests, then to send them, again and again, from several connections until the time is over.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import uvloop

from scripts.benchmark.client import Address, Request, Sample, closed_loop
from scripts.benchmark.measuring import first_error
from scripts.benchmark.peer import answer_lines
from scripts.benchmark.scenarios import requests_of


class LoadPeer:
    """Clients of one process."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line; what goes wrong is told."""
        match asked["do"]:
            case "make":
                self._requests = requests_of(
                    asked["kind"], asked["seed"], asked["requests"], texts=asked["texts"]
                )
                return {}
            case "load":
                return self._load(asked)
        raise ValueError(f"cannot do {asked['do']}")

    def _load(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Load from `begin` to `end`; both on the clock of `time.perf_counter`, as the answer is."""
        host, port = asked["address"]
        cpu_s = time.process_time()
        load = _load((host, port), self._requests, asked["clients"], asked["begin"], asked["end"])
        try:
            samples = uvloop.run(load)
        except ExceptionGroup as group:
            return {"problem": str(first_error(group))}
        return {
            "samples": [(s.ended, s.ms, s.request.texts, s.request.tokens) for s in samples],
            "cpu_s": time.process_time() - cpu_s,
        }


async def _load(
    address: Address, requests: list[Request], clients: int, begin: float, end: float
) -> list[Sample]:
    stop = asyncio.Event()
    await asyncio.sleep(begin - time.perf_counter())
    asyncio.get_running_loop().call_later(end - time.perf_counter(), stop.set)
    return await closed_loop(address, itertools.cycle(requests), clients, stop=stop)


if __name__ == "__main__":
    answer_lines(lambda: LoadPeer().answer)
